package cluster

import (
	"cmp"
	"reflect"
	"slices"

	"github.com/docker/docker/api/types/swarm"
)

// Differs says how what a task was made from differs from its service's present specification, as far as a task can tell
// (swarm-semantics.md, 4.8, "dirty"). different: by something that only another task can have. placement: by where it may
// run, so that a task whose node is one of the places may stay.
func (t *Task) Differs(s *Service) (different, placement bool) {
	var was swarm.EndpointSpec
	if t.Endpoint != nil {
		was = t.Endpoint.Spec
	}
	a, b := t.Spec, s.Spec.TaskTemplate
	a.Placement, b.Placement = nil, nil
	if !sameEndpoint(was, s.Spec.EndpointSpec) || !reflect.DeepEqual(a, b) {
		return true, false
	}
	return false, !reflect.DeepEqual(t.Spec.Placement, s.Spec.TaskTemplate.Placement)
}

// sameEndpoint compares what was asked for; to say nothing is to ask for virtual IPs and no ports.
func sameEndpoint(a swarm.EndpointSpec, spec *swarm.EndpointSpec) bool {
	var b swarm.EndpointSpec
	if spec != nil {
		b = *spec
	}
	return cmp.Or(a.Mode, swarm.ResolutionModeVIP) == cmp.Or(b.Mode, swarm.ResolutionModeVIP) && slices.Equal(a.Ports, b.Ports)
}
