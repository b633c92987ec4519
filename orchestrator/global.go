package orchestrator

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// lookAtAllNodes evaluates every slot of a global service: one for each node, and for each node that is gone but has
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

// superviseOnNode makes the tasks of a global service on one node what they should be (swarm-semantics.md, 4.4).
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
	case n.lost():
		x.endOnNode(sl, fmt.Sprintf("node %s is down", hostname(n)))
		return
	case !n.valid():
		x.endOnNode(sl, fmt.Sprintf("node %s is drained", hostname(n)))
		return
	case !x.meetsConstraints(sl.obj, n):
		x.endOnNode(sl, fmt.Sprintf("node %s does not meet the constraints", hostname(n)))
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
	for _, old := range sl.tasks {
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

// meetsConstraints says whether the service as it is now may have tasks on the node.
func (x *pass) meetsConstraints(s *cluster.Service, n *node) bool {
	p := s.Spec.TaskTemplate.Placement
	return p == nil || x.accounts.MeetsConstraints(p.Constraints, n.obj)
}

// mayStay says whether the node meets the constraints that the task was created with.
func (x *pass) mayStay(t *cluster.Task, n *node) bool {
	p := t.Spec.Placement
	return p == nil || x.accounts.MeetsConstraints(p.Constraints, n.obj)
}

// lookAtNodes carries what happened to nodes to the tasks on them and to the services that want a task on each.
func (x *pass) lookAtNodes() {
	if x.freed {
		for n := range x.hungry {
			x.changedNodes[n.id] |= nodeAttachments
		}
	}
	if len(x.changedNodes) == 0 {
		return
	}
	ids := make([]string, 0, len(x.changedNodes))
	for id := range x.changedNodes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	var globals []*service
	for _, s := range x.services {
		if s.mode == global && s.obj != nil {
			globals = append(globals, s)
		}
	}
	for _, id := range ids {
		n, ev := x.nodes[id], x.changedNodes[id]
		delete(x.changedNodes, id)
		if n == nil {
			continue
		}
		if n.obj == nil && n.tasks == 0 {
			x.dropNode(n)
			continue
		}
		x.attach(n)
		if ev&(nodeAvailability|nodeNature) == 0 {
			continue
		}
		for _, s := range globals {
			s.dirty[n.num] = struct{}{}
			x.dirty[s] = struct{}{}
		}
		if !x.fresh {
			x.lookAtTasksOn(n)
		}
		if !n.lost() && n.obj.Spec.Availability == swarm.NodeAvailabilityActive {
			x.enforce(n)
		}
	}
}

// lookAtTasksOn marks the slots of all tasks on a node.
func (x *pass) lookAtTasksOn(n *node) {
	for t := range x.snap.TasksOfNode(n.id) {
		if s := x.services[t.ServiceID]; s != nil && s.mode != job {
			s.dirty[x.slotOf(s, t)] = struct{}{}
			x.dirty[s] = struct{}{}
		}
		// A successor elsewhere may be waiting for a task of this node: it is in the same slot.
	}
}

// enforce rejects the tasks that a node may not have any more since it changed: those whose service's constraints it
// does not meet, and those it has not the resources for (swarm-semantics.md, 4.9). Where resources are short, Swarm
// leaves to chance who stays; here it is who came first.
func (x *pass) enforce(n *node) {
	var tasks []*cluster.Task
	for t := range x.snap.TasksOfNode(n.id) {
		if t = x.view(t); t != nil && t.Wanted() && t.Live() && x.demanding(t) {
			tasks = append(tasks, t)
		}
	}
	slices.SortFunc(tasks, func(a, b *cluster.Task) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	capacity := n.obj.Description.Resources
	known := capacity.NanoCPUs != 0 || capacity.MemoryBytes != 0 // a node that has not reported yet holds nobody back
	cpu, mem := capacity.NanoCPUs, capacity.MemoryBytes
	generic := genericLeft(capacity.GenericResources)
	for _, t := range tasks {
		s := x.services[t.ServiceID]
		if s == nil || s.obj == nil {
			continue
		}
		why := ""
		// Constraints that were added to the service since are the update's affair, which goes slot by slot.
		if !x.meetsConstraints(s.obj, n) && !x.mayStay(t, n) {
			why = "does not meet the constraints any more"
		} else if known {
			why = fits(t, &cpu, &mem, generic)
		}
		if why == "" {
			continue
		}
		x.report(t, swarm.TaskStateRejected, "task rejected by constraint enforcer", "assigned node no longer meets constraints")
		x.because(Reject, s, t.ID, fmt.Sprintf("node %s %s", hostname(n), why))
		x.changedNodes[n.id] |= nodeNature // until the store has it
		if s.mode != job {
			s.dirty[x.slotOf(s, t)] = struct{}{}
			x.dirty[s] = struct{}{}
		}
	}
}

// demanding says whether the task asks anything of its node that it may lose.
func (x *pass) demanding(t *cluster.Task) bool {
	if t.Spec.Resources != nil && t.Spec.Resources.Reservations != nil || len(t.GenericResources) > 0 {
		return true
	}
	s := x.services[t.ServiceID]
	return s != nil && s.obj != nil && s.obj.Spec.TaskTemplate.Placement != nil
}

// genericLeft counts a node's generic resources: named ones one by one, the others by kind.
func genericLeft(list []swarm.GenericResource) map[swarm.NamedGenericResource]int64 {
	left := make(map[swarm.NamedGenericResource]int64)
	for _, r := range list {
		if r.NamedResourceSpec != nil {
			left[*r.NamedResourceSpec]++
		}
		if d := r.DiscreteResourceSpec; d != nil {
			left[swarm.NamedGenericResource{Kind: d.Kind}] += d.Value
		}
	}
	return left
}

// fits takes what the task has reserved from what is left of a node, or says what is missing and takes nothing.
func fits(t *cluster.Task, cpu, mem *int64, generic map[swarm.NamedGenericResource]int64) string {
	var want swarm.Resources
	if r := t.Spec.Resources; r != nil && r.Reservations != nil {
		want = *r.Reservations
	}
	need := genericLeft(t.GenericResources)
	switch {
	case want.NanoCPUs > *cpu:
		return "has not the CPUs any more"
	case want.MemoryBytes > *mem:
		return "has not the memory any more"
	}
	for r, n := range need {
		if generic[r] < n {
			return "has not the generic resources any more"
		}
	}
	*cpu -= want.NanoCPUs
	*mem -= want.MemoryBytes
	for r, n := range need {
		generic[r] -= n
	}
	return ""
}
