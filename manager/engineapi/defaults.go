package engineapi

import (
	"time"

	"github.com/docker/docker/api/types/swarm"
)

// withServiceDefaults fills what controllers assume where a specification says nothing (swarm-semantics, 1.7).
func withServiceDefaults(spec swarm.ServiceSpec) swarm.ServiceSpec {
	grace, delay, attempts := 10*time.Second, 5*time.Second, uint64(0)
	if c := spec.TaskTemplate.ContainerSpec; c != nil {
		next := *c
		if next.StopGracePeriod == nil {
			next.StopGracePeriod = &grace
		}
		if next.DNSConfig == nil {
			next.DNSConfig = &swarm.DNSConfig{}
		}
		spec.TaskTemplate.ContainerSpec = &next
	}
	restart := swarm.RestartPolicy{}
	if p := spec.TaskTemplate.RestartPolicy; p != nil {
		restart = *p
	}
	if restart.Condition == "" {
		restart.Condition = swarm.RestartPolicyConditionAny
	}
	if restart.Delay == nil {
		restart.Delay = &delay
	}
	if restart.MaxAttempts == nil {
		restart.MaxAttempts = &attempts
	}
	spec.TaskTemplate.RestartPolicy = &restart
	if spec.TaskTemplate.Resources == nil {
		spec.TaskTemplate.Resources = &swarm.ResourceRequirements{}
	}
	if spec.TaskTemplate.Placement == nil {
		spec.TaskTemplate.Placement = &swarm.Placement{}
	}
	update := swarm.UpdateConfig{Parallelism: 1, Monitor: 5 * time.Second, FailureAction: swarm.UpdateFailureActionPause, Order: swarm.UpdateOrderStopFirst}
	if spec.UpdateConfig == nil {
		u := update
		spec.UpdateConfig = &u
	}
	if spec.RollbackConfig == nil {
		u := update
		spec.RollbackConfig = &u
	}
	endpoint := swarm.EndpointSpec{}
	if spec.EndpointSpec != nil {
		endpoint = *spec.EndpointSpec
	}
	if endpoint.Mode == "" {
		endpoint.Mode = swarm.ResolutionModeVIP
	}
	spec.EndpointSpec = &endpoint
	return spec
}
