// Package docker runs tasks on a Docker Engine. It is the only door between the agent and the engine's client.
//
// # Three jobs
//
//   - container.go (with network.go and template.go) translates: from a task to the engine's container and network
//     configuration. It is pure.
//   - adapter.go calls the engine's API and brings its errors into the three kinds that matter here.
//   - controller.go drives one task through its life: [Controller.Prepare], Start, Wait, Shutdown, Remove. Every step may
//     be repeated; "already there" is success. That is what makes restarts of the agent and of the engine safe.
//
// [Engine] is what controllers ask of an engine; [Adapter] is the real one, and package fake has one that behaves the
// same for tests.
//
// # Secrets and configs
//
// A task's secrets and configs are files (payload.go says which and expands templates) that are made for the task before
// its container is (provide.go, files.go) in a directory in memory, [Files], from where the engine binds them.
//
// # Errors
//
// An engine that does not answer is no failure of the task: such errors match [ErrUnavailable], and the caller repeats
// the step until the engine is back. So it does with those that match [ErrOccupied], until a network that is in the way is
// gone. Objects that do not exist match errdefs.ErrNotFound, names in use errdefs.ErrConflict
// (github.com/containerd/errdefs). Everything else is the engine's refusal, in its own words, and ends the task.
//
// # Noticing what happens
//
// A [Watcher] follows the engine's event stream for the containers of one node and wakes the controllers concerned; they
// then inspect. Nothing is polled per container. After a break of the stream every controller is woken, and the
// watcher's epoch tells them that something may have happened unseen.
//
// # Names and labels
//
// Containers carry Swarm's names (service.slot.task) and labels (com.docker.swarm.*); networks carry
// [LabelNetworkNode] and [LabelNetworkID]. What carries another node's label or none is not touched, so several agents
// may share an engine; only one of them has a data plane, and takes back the addresses of its networks (see [Networks.Make]).
package docker
