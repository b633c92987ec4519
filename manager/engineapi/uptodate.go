package engineapi

import (
	"slices"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/scheduler"
)

// upToDate says whether a task need not be replaced to match its service's present specification (swarm-semantics,
// 4.8): the progress bars of clients count such tasks only. Where it may run does not matter as long as its node is
// one of the places, and neither do the registry's credentials. Of a job it is the tasks of the present run, without
// those that others have taken over from and that have not stopped: they may be on a node that is down, and clients take
// the least advanced task of a slot for its state.
func upToDate(snap *cluster.Snapshot, svc *cluster.Service, t *cluster.Task) bool {
	if isJob(svc.Spec.Mode) {
		return ofThisRun(svc, t) && (t.Wanted() || !t.Live())
	}
	if t.SpecVersion == svc.SpecVersion {
		return true
	}
	different, placement := t.Differs(svc)
	if different || !placement || svc.Spec.TaskTemplate.Placement == nil {
		return !different
	}
	constraints, err := scheduler.ParseConstraints(svc.Spec.TaskTemplate.Placement.Constraints)
	n := snap.Node(t.NodeID)
	return err == nil && n != nil && !slices.ContainsFunc(constraints, func(c scheduler.Constraint) bool { return !c.Matches(n) })
}
