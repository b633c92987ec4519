// Package node is one machine's daemon: who the machine is, kept on disk, and the parts that run on it.
//
// A [Node] always serves the Engine API on a unix socket. Once the machine is part of a swarm it runs an agent, and
// while its role says so a manager beside it. Init, Join and Leave change that; they come through the socket, as with
// Docker.
//
// # Role
//
// The managers decide the role, and the certificate carries it. The agent's session tells of a promotion or demotion; the
// node then fetches another certificate, and with that the manager's parts ([managing]) start or stop: the replica of the store, the
// manager over it and the cluster port. All else runs on. Package role decides when; the machine that it works on is the member. One
// that was promoted joins the raft group before it opens its replica; one that was demoted has left the group by then and deletes it.
//
// # State on disk
//
//	state.json                 addresses, known managers; present exactly while the machine is part of a swarm
//	certificates/              root, certificate and key: see package identity
//	raft/                      a manager's log and snapshots, sealed: see package raftstore
//	raft.key                   the keys that seal them and the key of the certificate: see vault
//	raft.former/               the log that the latest recovery has replaced
//	recovery/                  what a recovery was about to put in the place of the above: the next start goes on with it
//	agent/                     the tasks of this machine: see package agent
//	daemon.lock                held while a daemon runs on this directory
//
// Join and init write state.json last and leave removes it first, so that a crash at any moment leaves a machine that is
// part of a swarm with all it needs, or of none. A recovery makes all its files in a directory and renames that.
//
// A manager of a swarm that locks its managers cannot read raft.key, and thus nothing else, after a restart. Its agent and its data
// plane go on by themselves, as if no manager could be reached, until Unlock brings the key.
//
// # Order
//
// Start: credentials, store, then manager's parts, certificate renewal, data plane and agent together. They stop
// together as well; the store ends after the manager's other parts, so that what they were promised is on disk, and the
// engine and the data plane are let go last. Stopping the daemon stops no container and takes no rule out of the kernel: replicas serve on, reachable
// from everywhere, until a daemon is back. Only Leave cleans up, and the news that the swarm has removed this node.
//
// # Seen from outside
//
// A node tells how it is in three ways: in numbers (package metrics), by whether it lives and does its part (package health),
// and by what is wrong and what to do about it (package doctor). The same pages are served on the socket, at a manager's
// cluster port to nodes, and to the leader on a stream, by which managers show those of workers, which listen nowhere.
package node
