// Package oracle judges miniswarm by the real thing: scripts in the stock docker command run side by side, step by step,
// against a real Docker Swarm and against miniswarm, both on hosts of the lab, and what people would read is compared:
// output, complaints and exit codes. What differs from run to run anyway (ids, times, addresses, digests) is made equal
// first, by the rules in normal.go.
//
// The scripts are in testdata, one scenario a file, in folders by noun. A script is a text like this:
//
//	# Replicas come and go.
//	sample
//	$ docker service create -d -q --name $N --replicas 2 $IMAGE
//	until ^2/2$ $ docker service ls --filter name=$N --format {{.Replicas}}
//	$ docker service scale -d $N=many
//	differs the parser of numbers has new words
//	- ! invalid syntax
//	+ ! invalid number
//	-- compose.yml --
//	a file that the commands find in their working directory
//
// The first comment says what it is about. These words stand on lines of their own at its head:
//
//	sample      it is one of those that make test runs; make oracle runs all
//	exclusive   it changes what others see (nodes, the swarm's settings) and runs while no other does
//	fresh       it runs on vm4 in place of vm1, which is in no swarm, as vm5 is not
//	client 28   only the docker command of that major version runs it
//
// A step is "$ COMMAND" for a shell; "vm2$ COMMAND" has docker speak to that host. Before the dollar may stand
//
//	until REGEXP   repeat it until its output matches (a dot is any character, a newline too); the output is not compared
//	quiet          it must succeed on both sides; the output is not compared
//	set NAME       so as well, and the output is in the variable NAME of the commands that follow
//
// In what is compared a line of stderr begins with "! ", and an exit code other than zero is the last line. A
// difference that is meant stands below its step: "differs REASON" and then the lines that only Docker Swarm (-) or only
// miniswarm (+) prints; "differs(20) REASON" is about the docker command of that major version alone. A difference that
// vanishes or changes fails as well. A line "end" below it ends the script there, where what follows would only differ in
// consequence. Every reason has to be in docs/differences.md, word for word.
//
// Commands find in their environment N, a prefix for names that is the script's own (what has such a name is removed
// afterwards), IMAGE and IMAGE2, two versions of a server, VM1 to VM5, the addresses of the hosts, and WORKER and MANAGER,
// the swarm's join tokens. The swarm is vm1, a manager, with vm2 and vm3, its workers.
//
// To write scripts, keep the labs between runs and have differences written down for you to explain:
//
//	MINISWARM_LAB=1 go test ./lab/oracle -all -keep mine -accept -run Scripts/service/scale
//
// Fresh scripts are below Scripts/fresh.
package oracle
