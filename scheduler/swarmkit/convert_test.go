package swarmkit

import (
	"github.com/docker/docker/api/types/swarm"
	"github.com/moby/swarmkit/v2/api"
	"github.com/moby/swarmkit/v2/api/genericresource"

	"github.com/miniswarm/miniswarm/cluster"
)

var (
	availabilities = map[swarm.NodeAvailability]api.NodeSpec_Availability{
		swarm.NodeAvailabilityActive: api.NodeAvailabilityActive, swarm.NodeAvailabilityPause: api.NodeAvailabilityPause, swarm.NodeAvailabilityDrain: api.NodeAvailabilityDrain,
	}
	nodeStates = map[swarm.NodeState]api.NodeStatus_State{
		swarm.NodeStateReady: api.NodeStatus_READY, swarm.NodeStateDown: api.NodeStatus_DOWN, swarm.NodeStateUnknown: api.NodeStatus_UNKNOWN, swarm.NodeStateDisconnected: api.NodeStatus_DISCONNECTED,
	}
	roles      = map[swarm.NodeRole]api.NodeRole{swarm.NodeRoleManager: api.NodeRoleManager, swarm.NodeRoleWorker: api.NodeRoleWorker}
	taskStates = map[swarm.TaskState]api.TaskState{
		swarm.TaskStatePending: api.TaskStatePending, swarm.TaskStateAssigned: api.TaskStateAssigned, swarm.TaskStateStarting: api.TaskStateStarting, swarm.TaskStateRunning: api.TaskStateRunning, swarm.TaskStateShutdown: api.TaskStateShutdown,
	}
	protocols = map[swarm.PortConfigProtocol]api.PortConfig_Protocol{swarm.PortConfigProtocolTCP: api.ProtocolTCP, swarm.PortConfigProtocolUDP: api.ProtocolUDP}
)

func nodeOf(n *cluster.Node) *api.Node {
	d := n.Description
	o := &api.Node{
		ID: n.ID, Role: roles[n.Role],
		Spec:   api.NodeSpec{Annotations: api.Annotations{Labels: n.Spec.Labels}, DesiredRole: roles[n.Spec.Role], Availability: availabilities[n.Spec.Availability]},
		Status: api.NodeStatus{State: nodeStates[n.Status.State], Addr: n.Status.Addr},
		Description: &api.NodeDescription{
			Hostname: d.Hostname, Platform: &api.Platform{OS: d.Platform.OS, Architecture: d.Platform.Architecture},
			Resources: &api.Resources{NanoCPUs: d.Resources.NanoCPUs, MemoryBytes: d.Resources.MemoryBytes, Generic: genericOf(d.Resources.GenericResources)},
			Engine:    &api.EngineDescription{EngineVersion: d.Engine.EngineVersion, Labels: d.Engine.Labels},
		},
	}
	for _, p := range d.Engine.Plugins {
		o.Description.Engine.Plugins = append(o.Description.Engine.Plugins, api.PluginDescription{Type: p.Type, Name: p.Name})
	}
	return o
}

func genericOf(list []swarm.GenericResource) (out []*api.GenericResource) {
	for _, g := range list {
		if s := g.NamedResourceSpec; s != nil {
			out = append(out, genericresource.NewString(s.Kind, s.Value))
		} else {
			out = append(out, genericresource.NewDiscrete(g.DiscreteResourceSpec.Kind, g.DiscreteResourceSpec.Value))
		}
	}
	return out
}

func taskOf(t *cluster.Task) *api.Task {
	o := &api.Task{
		ID: t.ID, ServiceID: t.ServiceID, NodeID: t.NodeID, Slot: uint64(t.Slot), SpecVersion: &api.Version{Index: t.SpecVersion.Index},
		AssignedGenericResources: genericOf(t.GenericResources), DesiredState: taskStates[t.DesiredState], Status: api.TaskStatus{State: taskStates[t.Status.State]},
	}
	c := &api.ContainerSpec{Image: t.Spec.ContainerSpec.Image}
	for _, m := range t.Spec.ContainerSpec.Mounts {
		c.Mounts = append(c.Mounts, api.Mount{Type: api.MountTypeVolume, Source: m.Source, Target: m.Target,
			VolumeOptions: &api.Mount_VolumeOptions{DriverConfig: &api.Driver{Name: m.VolumeOptions.DriverConfig.Name}}})
	}
	o.Spec.Runtime = &api.TaskSpec_Container{Container: c}
	if p := t.Spec.Placement; p != nil {
		o.Spec.Placement = &api.Placement{Constraints: p.Constraints, MaxReplicas: p.MaxReplicas}
		for _, q := range p.Platforms {
			o.Spec.Placement.Platforms = append(o.Spec.Placement.Platforms, &api.Platform{OS: q.OS, Architecture: q.Architecture})
		}
		for _, q := range p.Preferences {
			o.Spec.Placement.Preferences = append(o.Spec.Placement.Preferences, &api.PlacementPreference{Preference: &api.PlacementPreference_Spread{Spread: &api.SpreadOver{SpreadDescriptor: q.Spread.SpreadDescriptor}}})
		}
	}
	if r := t.Spec.Resources; r != nil {
		v := r.Reservations
		o.Spec.Resources = &api.ResourceRequirements{Reservations: &api.Resources{NanoCPUs: v.NanoCPUs, MemoryBytes: v.MemoryBytes, Generic: genericOf(v.GenericResources)}}
	}
	if d := t.Spec.LogDriver; d != nil {
		o.Spec.LogDriver = &api.Driver{Name: d.Name}
	}
	if e := t.Endpoint; e != nil {
		o.Endpoint = &api.Endpoint{}
		for _, p := range e.Ports {
			o.Endpoint.Ports = append(o.Endpoint.Ports, &api.PortConfig{Protocol: protocols[p.Protocol], PublishMode: api.PublishModeHost, PublishedPort: p.PublishedPort, TargetPort: p.TargetPort})
		}
	}
	return o
}
