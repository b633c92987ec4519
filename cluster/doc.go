// Package cluster is the ground floor of miniswarm: its vocabulary, its objects and the tables that hold them.
//
// The model is the Engine API's own (github.com/docker/docker/api/types/swarm). A type is wrapped only where Docker
// has no field for something the cluster must remember, so there is one world of types and no conversion layer.
//
// # Glossary
//
// The words are Docker Swarm's:
//
//   - node: one machine in the cluster; a worker runs tasks, a manager also holds a replica of the store.
//   - service: what the user asks for: an image, a number of replicas, ports, networks, policies.
//   - task: one attempt to run one replica. A task runs at most once and is never edited; what replaces it is a new
//     task with a new id.
//   - slot: the place of a replica in a replicated service (1, 2, 3 ...). Successive tasks of one replica share the
//     slot. In a global service the node takes the part of the slot.
//   - job: a service whose tasks run to their end: so often in all (slots 0, 1, 2 ...), or once on each node. Each
//     change of its specification is another run, a job iteration.
//   - desired state: what managers want of a task; it only moves forward. State: what was observed; it only moves
//     forward too.
//   - spec version: the version of the service whose template a task was made from. Tasks of one service and spec
//     version share one template.
//   - ingress: the network by which published ports of any node reach tasks on every node.
//   - attachment: the address a node or a task has on a network.
//   - drain, pause, active: the availability of a node for tasks.
//
// # Tables
//
// [State] holds every object, indexed by id, by name where names are unique, and tasks by service and by node. It has
// one writer, which applies a [Txn] at a log index and gets the [Event]s back in order. [State.Snapshot] costs O(1)
// and gives an immutable view that readers keep as long as they like; writers never wait for it. Objects handed in or
// out are never modified afterwards: to change one, copy it, change the copy, and put that in a transaction.
//
// This package does no I/O, reads no clock, starts no goroutine and draws no randomness of its own: times, readers of
// randomness and log indices are arguments. Given the same transactions at the same indices every manager holds the
// same tables, byte for byte ([Snapshot.Digest]).
package cluster
