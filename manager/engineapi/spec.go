package engineapi

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/registry"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/api/types/versions"

	"github.com/miniswarm/miniswarm/cluster"
)

// normalizeSpec checks the form of a specification and gives absent modes their meaning, before anything is looked up
// in the cluster. Fields that the client's API version does not know are dropped, as Docker drops them.
func normalizeSpec(spec *swarm.ServiceSpec, version string) error {
	if spec.Labels == nil {
		spec.Labels = map[string]string{}
	}
	t := &spec.TaskTemplate
	switch t.Runtime {
	case "", swarm.RuntimeContainer:
		if t.ContainerSpec == nil || t.PluginSpec != nil || t.NetworkAttachmentSpec != nil {
			return errorf(http.StatusBadRequest, "mismatched Runtime and *Spec fields")
		}
		t.Runtime = swarm.RuntimeContainer
	default:
		return errorf(http.StatusBadRequest, "unsupported runtime")
	}
	modes := 0
	for _, set := range []bool{spec.Mode.Replicated != nil, spec.Mode.Global != nil, spec.Mode.ReplicatedJob != nil, spec.Mode.GlobalJob != nil} {
		if set {
			modes++
		}
	}
	switch {
	case modes > 1:
		return errorf(http.StatusBadRequest, "must specify only one service mode")
	case modes == 0:
		spec.Mode.Replicated = &swarm.ReplicatedService{}
	}
	if m := spec.Mode.Replicated; m != nil && m.Replicas == nil {
		one := uint64(1)
		m.Replicas = &one
	}
	if m := spec.Mode.Replicated; m != nil && int64(*m.Replicas) < 0 {
		return rpcErrorf(invalidArgument, "Number of replicas must be non-negative")
	}
	if spec.EndpointSpec != nil {
		switch spec.EndpointSpec.Mode {
		case "", swarm.ResolutionModeVIP, swarm.ResolutionModeDNSRR:
		default:
			return errorf(http.StatusBadRequest, "invalid resolution mode: %q", spec.EndpointSpec.Mode)
		}
		for i := range spec.EndpointSpec.Ports {
			p := &spec.EndpointSpec.Ports[i]
			if p.Protocol == "" {
				p.Protocol = swarm.PortConfigProtocolTCP
			}
			if p.PublishMode == "" {
				p.PublishMode = swarm.PortConfigPublishModeIngress
			}
		}
	}
	if p := t.RestartPolicy; p != nil {
		switch p.Condition {
		case "", swarm.RestartPolicyConditionNone, swarm.RestartPolicyConditionOnFailure, swarm.RestartPolicyConditionAny:
		default:
			return errorf(http.StatusBadRequest, "invalid RestartCondition: %q", p.Condition)
		}
	}
	for _, u := range []*swarm.UpdateConfig{spec.UpdateConfig, spec.RollbackConfig} {
		if err := checkUpdateConfig(u); err != nil {
			return err
		}
	}
	if len(spec.Networks) > 0 && len(t.Networks) == 0 && versions.LessThan(version, "1.44") {
		t.Networks = spec.Networks
	}
	spec.Networks = nil
	return nil
}

func checkUpdateConfig(u *swarm.UpdateConfig) error {
	if u == nil {
		return nil
	}
	switch u.FailureAction {
	case "", swarm.UpdateFailureActionPause, swarm.UpdateFailureActionContinue, swarm.UpdateFailureActionRollback:
	default:
		return errorf(http.StatusBadRequest, "unrecognized update failure action %s", u.FailureAction)
	}
	switch u.Order {
	case "", swarm.UpdateOrderStopFirst, swarm.UpdateOrderStartFirst:
	default:
		return errorf(http.StatusBadRequest, "unrecognized update order %s", u.Order)
	}
	return nil
}

// resolveSpec turns the names of networks into ids. The result shares nothing that is changed with spec.
func resolveSpec(snap *cluster.Snapshot, spec swarm.ServiceSpec) (swarm.ServiceSpec, error) {
	if len(spec.TaskTemplate.Networks) == 0 {
		return spec, nil
	}
	nets := make([]swarm.NetworkAttachmentConfig, len(spec.TaskTemplate.Networks))
	for i, cfg := range spec.TaskTemplate.Networks {
		found := snap.Matches(cluster.KindNetwork, cfg.Target)
		switch {
		case len(found) == 1:
			cfg.Target = found[0].ObjectID()
		case len(found) > 1:
			return spec, errorf(http.StatusInternalServerError, "network %s is ambiguous (%d matches found)", cfg.Target, len(found))
		case cfg.Target == "bridge" || cfg.Target == "host" || cfg.Target == "none":
			return spec, errorf(http.StatusNotFound, "could not find the corresponding predefined swarm network: network %s not found", cfg.Target)
		default:
			return spec, errorf(http.StatusInternalServerError, "network %s not found", cfg.Target)
		}
		nets[i] = cfg
	}
	spec.TaskTemplate.Networks = nets
	return spec, nil
}

// resolveForOldClient pins the image's digest for clients older than API 1.30, which leave that to the daemon; newer
// ones ask /distribution themselves.
func (s *Server) resolveForOldClient(r *http.Request, spec *swarm.ServiceSpec) []string {
	if !versions.LessThan(apiVersion(r), "1.30") {
		return nil
	}
	named, err := reference.ParseNormalizedNamed(spec.TaskTemplate.ContainerSpec.Image)
	if err != nil {
		return nil // refused with words by the validation
	}
	if _, pinned := named.(reference.Digested); pinned {
		return nil
	}
	named = reference.TagNameOnly(named)
	digest, err := s.imageDigest(r.Context(), reference.FamiliarString(named), r.Header.Get(headerRegistryAuth))
	if err != nil {
		return []string{"image " + spec.TaskTemplate.ContainerSpec.Image + " could not be accessed on a registry to record its digest. Each node will access it independently, possibly leading to different nodes running different versions of the image."}
	}
	spec.TaskTemplate.ContainerSpec.Image = reference.FamiliarString(named) + "@" + digest
	return nil
}

func (s *Server) imageDigest(ctx context.Context, image, auth string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	header := http.Header{}
	if auth != "" {
		header.Set(headerRegistryAuth, auth)
	}
	resp, err := s.engine.open(ctx, http.MethodGet, "/distribution/"+url.PathEscape(image)+"/json", nil, header)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var answer registry.DistributionInspect
	if err := decodeAnswer(resp, &answer); err != nil {
		return "", err
	}
	return answer.Descriptor.Digest.String(), nil
}

// withServiceDefaults fills what controllers assume where a specification says nothing (swarm-semantics, 1.7).
func withServiceDefaults(spec swarm.ServiceSpec) swarm.ServiceSpec {
	grace, delay, window, attempts := 10*time.Second, 5*time.Second, time.Duration(0), uint64(0)
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
	if restart.Window == nil {
		restart.Window = &window
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
