package orchestrator

import (
	"fmt"
	"slices"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// lookAtAllNodes evaluates every slot of a global service or job: one for each node, and for each node that is gone but has
// tasks left.
func (x *pass) lookAtAllNodes(s *service) {
	byNode := make(map[int][]*cluster.Task)
	for t := range x.snap.TasksOfService(s.id) {
		num := x.node(t.NodeID).num
		byNode[num] = append(byNode[num], t)
	}
	nums := make([]int, 0, len(x.nodes))
	for _, n := range x.nodes {
		nums = append(nums, n.num)
	}
	x.sortSlots(s, nums)
	for _, num := range nums {
		if tasks := byNode[num]; len(tasks) > 0 || x.byNumber[num].obj != nil {
			x.lookAtSlot(s, num, tasks)
		}
	}
}

// superviseOnNode makes the tasks of a global service or job on one node what they should be (swarm-semantics.md, 4.4).
func (x *pass) superviseOnNode(sl *slot) {
	n := sl.node
	if n.obj == nil {
		for _, t := range sl.tasks {
			x.remove(t)
			x.because(ScaleDown, sl.service, t.ID, "its node was removed")
		}
		sl.tasks = sl.tasks[:0]
		return
	}
	switch {
	case n.lost() && sl.mode.job():
		// Nobody else can do the node's work, and it may be doing it: what it says when it is back counts.
		return
	case n.lost():
		x.endOnNode(sl, fmt.Sprintf("node %s is down", hostname(n)))
		return
	case !n.valid():
		x.endOnNode(sl, fmt.Sprintf("node %s is drained", hostname(n)))
		return
	case !x.meetsConstraints(sl.obj, n):
		x.endOnNode(sl, fmt.Sprintf("node %s does not meet the constraints", hostname(n)))
		return
	case !x.reaches(n, sl.obj.Spec.TaskTemplate.Networks, x.endpoint(sl.service)):
		x.endOnNode(sl, fmt.Sprintf("node %s has no data plane", hostname(n)))
		return
	case !cluster.Allowed(n.obj).Covers(cluster.Needs(sl.obj.Spec.TaskTemplate.ContainerSpec)):
		x.endWhatDoesNotRun(sl, fmt.Sprintf("node %s does not allow what it asks for", hostname(n)))
		return
	case n.paused():
		// What runs stays, what ends is not started again before the node is active.
		for i, t := range sl.tasks {
			if t.Wanted() && cluster.Terminal(t.Status.State) {
				sl.tasks[i] = x.shutdown(t)
				x.because(GiveUp, sl.service, t.ID, fmt.Sprintf("%s; node %s is paused", endOf(t), hostname(n)))
			}
		}
		return
	}
	x.supervise(sl)
	if slices.ContainsFunc(sl.tasks, (*cluster.Task).Wanted) {
		return
	}
	if len(sl.tasks) > 0 && !sl.rollingBack() && !x.mayRestart(sl.tasks[0], sl.tasks) {
		return
	}
	t := x.newTask(sl.service, sl.num)
	for _, old := range slices.Concat(sl.tasks, sl.before) {
		if x.mayRun(old) { // the node was away, and has not stopped what it was told to stop
			t.Replaces, t.DesiredState = old.ID, swarm.TaskStateReady
			x.scheduleRelease(sl, t)
		}
	}
	x.because(ScaleUp, sl.service, t.ID, "one task on every node")
	sl.tasks = slices.Insert(sl.tasks, 0, t)
}

// endOnNode stops what the service has on a node that it should not be on. The tasks become history.
func (x *pass) endOnNode(sl *slot, why string) {
	for i, t := range sl.tasks {
		if t.Wanted() {
			sl.tasks[i] = x.shutdown(t)
			x.because(ScaleDown, sl.service, t.ID, why)
		}
	}
}

// endWhatDoesNotRun is for a node whose person has taken back, or never given, what the service needs to be allowed: what runs
// as the service is now goes on, and nothing else begins.
func (x *pass) endWhatDoesNotRun(sl *slot, why string) {
	for i, t := range sl.tasks {
		runs := t.Status.State == swarm.TaskStateRunning || t.Status.State == swarm.TaskStateStarting
		if t.Wanted() && (!runs || x.outdated(sl.service, t)) {
			sl.tasks[i] = x.shutdown(t)
			x.because(ScaleDown, sl.service, t.ID, why)
		}
	}
}

// reaches says whether the node can be part of all that tasks with these networks and ports are reached by.
func (x *pass) reaches(n *node, networks []swarm.NetworkAttachmentConfig, e *swarm.Endpoint) bool {
	return !n.obj.NoDataPlane || !x.accounts.NeedsDataPlane(networks, e)
}

// meetsConstraints says whether the service as it is now may have tasks on the node.
func (x *pass) meetsConstraints(s *cluster.Service, n *node) bool {
	return x.accounts.MeetsConstraints(constraints(s), n.obj)
}
