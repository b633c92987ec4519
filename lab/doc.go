// Package lab runs several real hosts on one Linux machine, to study a cluster and to test one.
//
// A host is what an operating system calls a host: a network namespace with its own address, mount, pid, uts and
// ipc namespaces, its own /run, /etc and /sys, its own Docker Engine with a disk of its own, and its own miniswarm
// daemon. What it is not is a kernel: all hosts share the machine's, which is why three of them boot in seconds.
//
//	machine (.1) --- veth --- switch namespace: br0 (.2, registry :5000)
//	                            |-- vm1 (.11)   namespaces, dockerd, miniswarm daemon
//	                            |-- vm2 (.12)
//	                            `-- vm3 (.13)
//
// The bridge lives in a namespace of its own, like a switch in its own box. So the machine's firewall, which would
// otherwise see bridged frames where br_netfilter is loaded, has no say in what the hosts tell each other, and
// removing that one namespace removes every port in it.
//
// # Bad days
//
// [Lab.Fail] pulls the power cord: first the network port goes, so that no peer gets a farewell from dying sockets,
// then the first process of the host is killed, and with it everything in its pid namespace: engine, containers,
// daemon. [Lab.Start] boots the same disk on the same address. [Lab.Cut] and [Lab.Heal] unplug and plug the network
// port only; [Lab.Lose] drops a share of the frames, or all, from one host to another, and not the other way. [Lab.KillDaemon] and
// [Lab.KillEngine] kill one process and leave the containers alone; [Lab.PauseDaemon] and [Lab.PauseEngine] stop it with SIGSTOP,
// [Lab.Pause] freezes the whole host, and [Lab.Starve] leaves it little of the processor. Where the daemon's state has a disk of
// its own (Options.DiskMiB), [Lab.FillDisk] and [Lab.HangDisk] make it full or mute. [Lab.Heal] ends what is wrong with the network,
// [Lab.Resume] what is wrong with processes and disks, [Lab.FreeDisk] makes room.
//
// [Lab.Move] gives a host another address, [Lab.Copy] makes a host of a copy of another's disk, and [Lab.SetClock] sets the clock of a
// daemon wrong: Linux gives time namespaces to the monotonic clock and not to the one that tells the date, so that is changed in the one
// process.
//
// One fault is not for labs: frames are lost but not delayed, where the kernel has no netem, as the one this was made on.
//
// # State
//
// Everything about a lab is in one directory, /var/lib/miniswarm-lab/NAME by default: lab.json, and for each host
// its disk, sockets and logs. Every call reads lab.json and locks what it changes, so a [Lab] holds nothing that
// another process could make stale: one command can bring a lab up, a second one break it, a third remove it.
// Processes are recorded with their start time and the machine's boot id, so a recycled pid is never killed.
//
// The names of all kernel objects follow from the directory, and every process carries it in its environment.
// [Remove] therefore also clears away what a killed run left, whether it got as far as writing lab.json or not.
//
// # Concurrency
//
// All methods may be called from several goroutines and several processes at once. Operations on one host wait for
// each other; operations on different hosts run side by side.
package lab
