package engineapi

import (
	"cmp"
	"reflect"
	"slices"

	"github.com/docker/docker/api/types/swarm"

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
	var was swarm.EndpointSpec
	if t.Endpoint != nil {
		was = t.Endpoint.Spec
	}
	if !sameEndpoint(was, svc.Spec.EndpointSpec) {
		return false
	}
	a, b := t.Spec, svc.Spec.TaskTemplate
	a.Placement, b.Placement = nil, nil
	if !reflect.DeepEqual(a, b) {
		return false
	}
	if reflect.DeepEqual(t.Spec.Placement, svc.Spec.TaskTemplate.Placement) || svc.Spec.TaskTemplate.Placement == nil {
		return true
	}
	constraints, err := scheduler.ParseConstraints(svc.Spec.TaskTemplate.Placement.Constraints)
	n := snap.Node(t.NodeID)
	return err == nil && n != nil && !slices.ContainsFunc(constraints, func(c scheduler.Constraint) bool { return !c.Matches(n) })
}

// sameEndpoint compares what was asked for; to say nothing is to ask for virtual IPs and no ports.
func sameEndpoint(a swarm.EndpointSpec, spec *swarm.EndpointSpec) bool {
	var b swarm.EndpointSpec
	if spec != nil {
		b = *spec
	}
	return cmp.Or(a.Mode, swarm.ResolutionModeVIP) == cmp.Or(b.Mode, swarm.ResolutionModeVIP) && slices.Equal(a.Ports, b.Ports)
}
