// Package node is one machine's daemon: who the machine is, kept on disk, and the parts that run on it.
//
// A [Node] always serves the Engine API on a unix socket. Once the machine is part of a swarm it runs an agent, and
// while its role says so a manager beside it. Init, Join and Leave change that; they come through the socket, as with
// Docker.
//
// # State on disk
//
//	state.json                 addresses, known managers; present exactly while the machine is part of a swarm
//	certificates/              root, certificate and key: see package identity
//	raft/                      a manager's log and snapshots, sealed: see package raftstore
//	raft.key                   the key that seals them
//	agent/                     the tasks of this machine: see package agent
//
// # Order
//
// Start: credentials, store, cluster port, manager, mesh, agent. Stop is the reverse, and each step says why it is where
// it is. Stopping the daemon stops no container and takes no rule out of the kernel: replicas serve on, reachable from
// everywhere, until a daemon is back. Only Leave cleans up.
package node
