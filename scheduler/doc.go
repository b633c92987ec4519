// Package scheduler decides on which node a task runs, and can say why.
//
// [Accounts] are the scheduler's books: what every node has, what the tasks placed on it have taken, how many tasks of
// every service it runs and how often they failed there lately. They are kept by observing changes ([Accounts.SetNode],
// [Accounts.RemoveNode], [Accounts.SetNetwork], [Accounts.RemoveNetwork], [Accounts.SetTask]) and depend on nothing but what
// was observed, never on the order of unrelated changes, so that a manager that takes over comes to the same books.
//
// # How a group of tasks is placed
//
// [Accounts.Place] places a group of interchangeable tasks (same service, same spec version) as Docker Swarm does:
//
//  1. Filters rule nodes out, in this order: ready, resource, plugin, constraint, platform, the data plane if the task is
//     reached by the mesh, what the node allows of privileged containers, devices and GPUs (Swarm has none of these four),
//     host port, max replicas per node ([Filter]). Where nothing fits, the words are Swarm's, counting the first filter that failed per node.
//  2. The nodes that are left are ranked: nodes where this service failed five times within five minutes last, then by
//     the tasks of this service they run, then by all tasks they run, then by node id. Swarm leaves the last to chance;
//     here the same books always give the same answer.
//  3. Placement preferences split the nodes into branches by label, and tasks are spread over the branches first.
//  4. Within a branch the best node is filled until its neighbour is better, and so on to the last node, from where
//     the remaining tasks go round robin over all nodes that still pass.
//
// # Why it does not scan
//
// Placing costs what is placed, not what exists. Nodes that pass the filters that only depend on themselves (ready,
// plugin, constraint, platform, data plane, what is allowed) are kept in an index ordered by their number of tasks; a group
// walks the index from the least loaded node and stops as soon as it has placed its tasks. Nodes that already run tasks of the service are
// few and are found through the service. How many further tasks a node can take is computed once per group as a
// number, so that filling is counting. Only when tasks are left over are all nodes visited, to name the reasons.
//
// # Bookings
//
// Place and [Accounts.Check] book what they decide, so that the next decision of the same pass sees it. A booking is
// provisional: [Accounts.Rollback] takes all of them back. Who computes a pass always ends it with Rollback; the
// decisions that were really committed then come in as ordinary task changes through SetTask and count once.
//
// # Reasons
//
// Every [Result] carries a small [Decision]: how many nodes failed which filter, who won, who came next.
// [Accounts.Explain] computes the full one for a task: for every node the verdict of every filter with its numbers,
// the terms of the ranking, the branch, and why the winner won.
//
// The package is pure: it does no I/O, reads no clock, starts no goroutine and draws no random numbers.
package scheduler
