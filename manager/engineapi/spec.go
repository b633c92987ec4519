package engineapi

import (
	"net/http"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/api/types/versions"
)

// normalizeSpec checks the form of a specification and gives absent words their meaning, before anything is looked up in
// the cluster. What Docker stores in a canonical form is stored in the same here, so that clients read it back alike and
// comparing two specifications means something. Fields that the client's API version does not know are dropped.
func normalizeSpec(spec *swarm.ServiceSpec, version string) error {
	if spec.Labels == nil {
		spec.Labels = map[string]string{}
	}
	t := &spec.TaskTemplate
	switch mismatch := errorf(http.StatusBadRequest, "mismatched Runtime and *Spec fields"); {
	case t.Runtime == "" || t.Runtime == swarm.RuntimeContainer:
		if t.ContainerSpec == nil {
			return mismatch
		}
		t.Runtime, t.PluginSpec, t.NetworkAttachmentSpec = swarm.RuntimeContainer, nil, nil
	case t.Runtime == swarm.RuntimePlugin && t.PluginSpec == nil:
		return mismatch
	default:
		return errorf(http.StatusBadRequest, "unsupported runtime")
	}
	dropNewer(spec, version)
	moveNetworks(spec, version)
	dropNulls(t)
	for _, part := range []func() error{
		func() error { return normalizeContainer(t.ContainerSpec) },
		func() error { return normalizeRestart(t.RestartPolicy) },
		func() error { return normalizeUpdate(spec.UpdateConfig) },
		func() error { return normalizeUpdate(spec.RollbackConfig) },
		func() error { return normalizeEndpoint(spec.EndpointSpec) },
		func() error { return normalizeMode(&spec.Mode) },
	} {
		if err := part(); err != nil {
			return err
		}
	}
	return nil
}

// moveNetworks gives the networks of old clients the place where everybody looks for them.
func moveNetworks(spec *swarm.ServiceSpec, version string) {
	//lint:ignore SA1019 clients older than API 1.44 may still say it this way
	old := &spec.Networks
	if len(spec.TaskTemplate.Networks) == 0 && versions.LessThan(version, "1.44") {
		spec.TaskTemplate.Networks = *old
	}
	*old = nil
}

// maxReplicas bounds a service: beyond it no manager could hold the tasks, and a slip of the finger must not be the end of
// a cluster.
const maxReplicas = 1_000_000

func normalizeMode(m *swarm.ServiceMode) error {
	modes := 0
	for _, set := range []bool{m.Replicated != nil, m.Global != nil, m.ReplicatedJob != nil, m.GlobalJob != nil} {
		if set {
			modes++
		}
	}
	switch {
	case modes > 1:
		return errorf(http.StatusBadRequest, "must specify only one service mode")
	case modes == 0:
		m.Replicated = &swarm.ReplicatedService{}
	}
	if m.ReplicatedJob != nil {
		return normalizeJob(m.ReplicatedJob)
	}
	if m.Replicated == nil {
		return nil
	}
	if m.Replicated.Replicas == nil {
		one := uint64(1)
		m.Replicated.Replicas = &one
	}
	switch n := *m.Replicated.Replicas; {
	case int64(n) < 0:
		return rpcErrorf(invalidArgument, "Number of replicas must be non-negative")
	case n > maxReplicas:
		return rpcErrorf(invalidArgument, "Number of replicas must be at most %d", maxReplicas)
	}
	return nil
}

func normalizeEndpoint(e *swarm.EndpointSpec) error {
	if e == nil {
		return nil
	}
	switch e.Mode {
	case "":
		e.Mode = swarm.ResolutionModeVIP
	case swarm.ResolutionModeVIP, swarm.ResolutionModeDNSRR:
	default:
		return errorf(http.StatusBadRequest, "invalid resolution mode: %q", e.Mode)
	}
	for i := range e.Ports {
		p := &e.Ports[i]
		p.Protocol = swarm.PortConfigProtocol(strings.ToLower(string(p.Protocol)))
		if p.Protocol == "" {
			p.Protocol = swarm.PortConfigProtocolTCP
		}
		switch p.PublishMode = swarm.PortConfigPublishMode(strings.ToLower(string(p.PublishMode))); p.PublishMode {
		case "":
			p.PublishMode = swarm.PortConfigPublishModeIngress
		case swarm.PortConfigPublishModeIngress, swarm.PortConfigPublishModeHost:
		default:
			return errorf(http.StatusBadRequest, "invalid publish mode: %q", p.PublishMode)
		}
	}
	return nil
}

func normalizeRestart(p *swarm.RestartPolicy) error {
	if p == nil {
		return nil
	}
	switch p.Condition {
	case "":
		p.Condition = swarm.RestartPolicyConditionAny
	case swarm.RestartPolicyConditionNone, swarm.RestartPolicyConditionOnFailure, swarm.RestartPolicyConditionAny:
	default:
		return errorf(http.StatusBadRequest, "invalid RestartCondition: %q", p.Condition)
	}
	if p.MaxAttempts == nil {
		p.MaxAttempts = new(uint64)
	}
	return nil
}

func normalizeUpdate(u *swarm.UpdateConfig) error {
	if u == nil {
		return nil
	}
	switch u.FailureAction {
	case "":
		u.FailureAction = swarm.UpdateFailureActionPause
	case swarm.UpdateFailureActionPause, swarm.UpdateFailureActionContinue, swarm.UpdateFailureActionRollback:
	default:
		return errorf(http.StatusBadRequest, "unrecognized update failure action %s", u.FailureAction)
	}
	switch u.Order {
	case "":
		u.Order = swarm.UpdateOrderStopFirst
	case swarm.UpdateOrderStopFirst, swarm.UpdateOrderStartFirst:
	default:
		return errorf(http.StatusBadRequest, "unrecognized update order %s", u.Order)
	}
	return nil
}

func normalizeContainer(c *swarm.ContainerSpec) error {
	if c.Isolation == "" {
		c.Isolation = container.IsolationDefault
	}
	for i := range c.Mounts {
		if err := normalizeMount(&c.Mounts[i]); err != nil {
			return err
		}
	}
	if p := c.Privileges; p != nil && p.CredentialSpec != nil && p.CredentialSpec.Config != "" {
		return rpcErrorf(unimplemented, "credential specs from configs are not supported: name a file on the nodes instead (file://...)")
	}
	for _, ref := range c.Configs {
		switch {
		case ref.File == nil && ref.Runtime == nil:
			return errorf(http.StatusBadRequest, "invalid Config: either File or Runtime should be set")
		case ref.File != nil && ref.Runtime != nil:
			return errorf(http.StatusBadRequest, "invalid Config: cannot specify both File and Runtime")
		}
	}
	return nil
}

func normalizeMount(m *mount.Mount) error {
	switch m.Type = mount.Type(strings.ToLower(string(m.Type))); m.Type {
	case "":
		m.Type = mount.TypeBind
	case mount.TypeBind, mount.TypeVolume, mount.TypeTmpfs, mount.TypeNamedPipe:
	case mount.TypeCluster:
		return rpcErrorf(unimplemented, "cluster volumes are not supported: mount %s as a volume of its node", m.Target)
	default:
		return errorf(http.StatusBadRequest, "invalid MountType: %q", m.Type)
	}
	if b := m.BindOptions; b != nil && b.Propagation != "" && !slices.Contains(mount.Propagations, b.Propagation) {
		return errorf(http.StatusBadRequest, "invalid MountPropagation: %q", b.Propagation)
	}
	return nil
}

// dropNulls takes the nulls out of lists, so that nobody has to look for them afterwards.
func dropNulls(t *swarm.TaskSpec) {
	c := t.ContainerSpec
	c.Secrets, c.Configs, c.Ulimits = notNil(c.Secrets), notNil(c.Configs), notNil(c.Ulimits)
	if p := t.Placement; p != nil {
		p.Preferences = slices.DeleteFunc(p.Preferences, func(p swarm.PlacementPreference) bool { return p.Spread == nil })
	}
	if t.Resources != nil && t.Resources.Reservations != nil {
		r := t.Resources.Reservations
		r.GenericResources = slices.DeleteFunc(r.GenericResources, func(g swarm.GenericResource) bool {
			return g.NamedResourceSpec == nil && g.DiscreteResourceSpec == nil
		})
	}
}

func notNil[T any](list []*T) []*T {
	return slices.DeleteFunc(list, func(v *T) bool { return v == nil })
}

// dropNewer drops what the client's API version has no meaning for, as Docker does (swarm-semantics, 10.5).
func dropNewer(spec *swarm.ServiceSpec, version string) {
	t := &spec.TaskTemplate
	c := t.ContainerSpec
	if versions.LessThan(version, "1.46") {
		for i := range c.Mounts {
			if o := c.Mounts[i].TmpfsOptions; o != nil {
				o.Options = nil
			}
		}
		c.OomScoreAdj = 0
	}
	if versions.LessThan(version, "1.44") {
		if p := c.Privileges; p != nil {
			p.Seccomp, p.AppArmor, p.NoNewPrivileges = nil, nil, false
		}
		if c.Healthcheck != nil {
			c.Healthcheck.StartInterval = 0
		}
	}
	if versions.LessThan(version, "1.41") {
		c.CapabilityAdd, c.CapabilityDrop, c.Ulimits = nil, nil, nil
		if t.Resources != nil && t.Resources.Limits != nil {
			t.Resources.Limits.Pids = 0
		}
		spec.Mode.ReplicatedJob, spec.Mode.GlobalJob = nil, nil
	}
	if versions.LessThan(version, "1.40") {
		c.Sysctls = nil
		if c.Privileges != nil && c.Privileges.CredentialSpec != nil {
			c.Privileges.CredentialSpec.Config = ""
		}
		for _, ref := range c.Configs {
			if ref != nil {
				ref.Runtime = nil
			}
		}
		if t.Placement != nil {
			t.Placement.MaxReplicas = 0
		}
	}
}
