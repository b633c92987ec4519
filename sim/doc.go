// Package sim runs whole clusters in one process and breaks them: it holds tests only, and this page is how to read and
// replay them.
//
// A world is three or five managers and two workers, at first. Each host has what a machine has (an engine, a disk, a clock, a data
// plane) and, at times, the process of a daemon, made of the real parts: raftstore.Store on real files, manager.Manager with
// its loop, dispatcher and TLS handler, engineapi.Server, agent.Agent, and the role.Supervisor that
// starts and stops the manager. Only the machine is made up: the engine is agent/docker/fake, the network is a TCP of our own (or, in every second seed, messages between stores that are also dropped,
// doubled and reordered one by one), and time is testing/synctest's, so that a minute takes a part of a second.
//
// # A seed
//
// A seed is a size, a plan of faults at fixed times, and what each client will do. The faults: daemons killed, also at named
// points of the store (raftstore.Hooks) with the write in progress torn; machines without power; freezes; cuts, one way and
// both, and partitions; flaky networks; disks that are slow, full, or fail a sync; engines that restart or hang; clocks that
// jump; containers that die; leadership handed over. Clients create, read, update and remove configs, and an operator
// deploys, scales, updates and removes services and drains nodes, through the Engine API of any manager.
//
// In every fourth seed who is a manager changes as well: another operator promotes and demotes nodes, and strikes in the middle of it; machines
// are lost for good and others join in their place.
//
// While that goes on the invariants are checked (docs/decisions/0010 has the list and what each check looks at). Then
// the faults end, and the cluster has to converge; the history of the clients must be linearizable.
//
// # Replay
//
//	make sim SEEDS=1000      many seeds, from a random one on
//	make sim SEED=123        one seed, with its trace
//	make sim SEED=123 TIMES=50
//	make sim SEEDS=100 MEMBERS=1   managers change in every seed
//
// A seed fixes faults and workload and not the order in which goroutines run, so that a failure of chance may need some
// TIMES to come again; each run prints the trace of what was done and seen.
//
// # The simulator is tested too
//
// A simulation that finds nothing says little. TestBroken... run variants of the cluster with a known fault in them: a log
// that says it is on disk before it is, an agent that calls a container stopped before it has, reads that ask nobody, removals that are judged by
// what the dead said, voters that have nothing. They fail if the simulator does not notice.
package sim
