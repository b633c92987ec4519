// Package orchestrator is the whole of swarm's behaviour as one pure function: given the cluster and the time, what is
// to be changed, why, and when to look again.
//
//	p := orchestrator.New(orchestrator.Options{})
//	p.Reset(snapshot)                      // on becoming leader
//	for {
//		plan := p.Next(snapshot, now, ids)
//		... commit plan.Changes with a transaction time not before now
//		for each committed event, ours or anyone's: p.Observe(event)
//		... wait for an event or plan.Wake, take a fresh snapshot
//	}
//
// The package function [Next] is the same for a cluster that nothing is known about, for dry runs and simulations.
//
// # A pass
//
// One call of Next goes through these steps, each seeing what the earlier ones are going to change:
//
//  1. networks get subnets and VXLAN ids;
//  2. nodes that changed: the slots of their tasks and the global services are marked, tasks that a node may not have
//     any more are rejected;
//  3. services that changed, from the oldest: ports and virtual IPs; then each slot in which something happened is
//     looked at: ended tasks are restarted, held back ones released, replaced ones ended, old history forgotten; then
//     replicas are added or taken away and the update advances, or further slots of a job are begun;
//  4. tasks without a place get a node from package scheduler and addresses on their networks;
//  5. nodes join the networks that tasks on them need, and leave those that none needs.
//
// So scaling from 4 to 12 is one plan with eight tasks that are already ASSIGNED.
//
// # Nothing is remembered but in the store
//
// The planner's indexes can be rebuilt from any snapshot. What a supervisor would keep in memory is read from tasks:
// a replacement carries Replaces and is held back by desired state READY until StartAfter and until its predecessor
// has stopped; tasks made by the restart policy are those with a StartAfter, so counting them is the restart history;
// tasks made by an update replace one and have none, so counting those that are not running yet is the number of
// workers in use. A new leader goes on in the middle of everything.
//
// The exceptions are comforts: which address was given last on a network (a new leader resumes after the address of
// the newest task), when a task of an update began to run (a new leader counts its life from its creation, so that
// some failures within Monitor go unnoticed), and what package scheduler says about itself.
//
// # What a pass costs
//
// Observe marks the slot, node or service that an event may matter to, and the next pass looks at those alone. The two
// kinds of events that make up nearly all of a cluster's life are recognised and mark nothing: a task that was created
// complete, and one that goes on towards RUNNING. Scaling up costs what is added; scaling down and changing a template
// cost the size of the service.
//
// # Differences from Docker Swarm
//
//   - The replacement of a task whose node is down is not delayed by the restart policy: noticing took long enough.
//   - A task that waits because addresses or ports have run out says so in its Err.
//   - Tasks of a removed service are told to stop and forgotten when they have; Swarm forgets some while they run.
//   - A start-first update never ends the old task before the new one runs.
//   - A task does not take addresses before it has a node.
//   - A task of a global service on a node that comes back waits for its predecessor there to stop.
//   - Constraints that were added to a service move its tasks by rolling update only; in Swarm any change of a node, or
//     of the leader, evicts at once those that the update has not reached.
//   - An update that should be rolled back and has nothing to be rolled back to is paused; a rollback that fails is
//     paused and stays so.
//   - An update does not stop old tasks while there are no ports or addresses for new ones.
//   - Node events do not update global services past their update configuration.
//   - Jobs hear of nodes: what a node that is down or drained was doing is done elsewhere, and a node that joins gets
//     its task of a global job. A task of a global job on a node that is down is left alone, for nobody else can do the
//     node's work and what it reports when it is back counts.
//   - The restarts that a job's policy allows are a limit for each slot. Only failures count, not lost nodes. Swarm
//     begins such slots anew whenever something else happens to the job.
//   - A job that is over without being complete says so in its UpdateStatus, as an update that is paused does.
//   - Tasks of a job's new run wait until as many of the run before have stopped, for a minute at the most.
//   - A job's slot keeps as much history as a service's.
//   - Where Swarm leaves the order to chance (which slot is updated next, who is evicted from a node that shrank),
//     here the lowest slot and the youngest task are it.
//
// The package does no I/O, reads no clock, starts no goroutine and draws no random numbers; map order never reaches a
// result.
package orchestrator
