package orchestrator

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// enforce rejects the tasks that a node may not have any more since it changed: those whose service's constraints it
// does not meet, those it has not the resources for (swarm-semantics.md, 4.9), and those that nobody reaches there because its
// daemon came back without a data plane. Where resources are short, Swarm leaves to chance who stays; here it is who came
// first.
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
		why, told := "", "assigned node no longer meets constraints"
		// Constraints that were added to the service since are the update's affair, which goes slot by slot.
		if !x.meetsConstraints(s.obj, n) && !x.mayStay(t, n) {
			why = "does not meet the constraints any more"
		} else if !x.reaches(n, t.Spec.Networks, t.Endpoint) {
			why, told = "has no data plane any more", "assigned node has no data plane any more"
		} else if known {
			why = fits(t, &cpu, &mem, generic)
		}
		if why == "" {
			continue
		}
		x.report(t, swarm.TaskStateRejected, "task rejected by constraint enforcer", told)
		x.because(Reject, s, t.ID, fmt.Sprintf("node %s %s", hostname(n), why))
		x.changedNodes[n.id] |= nodeNature // until the store has it
		s.dirty[x.slotOf(s, t)] = struct{}{}
		x.dirty[s] = struct{}{}
	}
}

// demanding says whether the task asks anything of its node that it may lose.
func (x *pass) demanding(t *cluster.Task) bool {
	if x.nodes[t.NodeID].obj.NoDataPlane {
		return true
	}
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

// mayStay says whether the node meets the constraints that the task was created with.
func (x *pass) mayStay(t *cluster.Task, n *node) bool {
	p := t.Spec.Placement
	return p == nil || x.accounts.MeetsConstraints(p.Constraints, n.obj)
}
