package engineapi

import (
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/scheduler"
)

// The bounds are Swarm's (swarm-semantics, 4.10).
const (
	minNanoCPUs = 1e6
	minMemory   = 4 << 20
	maxName     = 63
	minHealth   = time.Millisecond
)

var nameForm = regexp.MustCompile(`^[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*$`)

// validateName checks the name of a service or a network.
func validateName(name string) error {
	switch {
	case name == "":
		return rpcErrorf(invalidArgument, "meta: name must be provided")
	case !nameForm.MatchString(name):
		return rpcErrorf(invalidArgument, "name must be valid as a DNS name component")
	case len(name) > maxName:
		return rpcErrorf(invalidArgument, "name must be 63 characters or fewer")
	}
	return nil
}

// validateSpec checks a service's specification against the cluster, with Swarm's words. current is the service when it is
// updated, nil when it is created.
func validateSpec(snap *cluster.Snapshot, spec swarm.ServiceSpec, current *cluster.Service) error {
	if err := validateName(spec.Name); err != nil {
		return err
	}
	t := &spec.TaskTemplate
	for _, check := range []func() error{
		func() error { return validateResources(t.Resources) },
		func() error { return validateRestart(t.RestartPolicy) },
		func() error { return validatePlacement(t.Placement) },
		func() error { return validateContainer(t.ContainerSpec) },
		func() error { return validateTemplates(spec) },
		func() error { return validateUpdate(spec) },
		func() error { return validateEndpoint(spec.EndpointSpec) },
		func() error { return validateNetworks(snap, t.Networks) },
		func() error { return validatePorts(snap, spec.EndpointSpec, current) },
		func() error { return validateReferences(snap, t.ContainerSpec) },
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func validateResources(r *swarm.ResourceRequirements) error {
	if r == nil {
		return nil
	}
	check := func(cpus, memory int64) error {
		if cpus != 0 && cpus < minNanoCPUs {
			return rpcErrorf(invalidArgument, "invalid cpu value %g: Must be at least %g", float64(cpus)/1e9, float64(minNanoCPUs)/1e9)
		}
		if memory != 0 && memory < minMemory {
			return rpcErrorf(invalidArgument, "invalid memory value %d: Must be at least 4MiB", memory)
		}
		return nil
	}
	if l := r.Limits; l != nil {
		if err := check(l.NanoCPUs, l.MemoryBytes); err != nil {
			return err
		}
	}
	if v := r.Reservations; v != nil {
		return check(v.NanoCPUs, v.MemoryBytes)
	}
	return nil
}

func validateRestart(p *swarm.RestartPolicy) error {
	switch {
	case p == nil:
		return nil
	case p.Delay != nil && *p.Delay < 0:
		return rpcErrorf(invalidArgument, "TaskSpec: restart-delay cannot be negative")
	case p.Window != nil && *p.Window < 0:
		return rpcErrorf(invalidArgument, "TaskSpec: restart-window cannot be negative")
	}
	return nil
}

func validatePlacement(p *swarm.Placement) error {
	if p == nil {
		return nil
	}
	if _, err := scheduler.ParseConstraints(p.Constraints); err != nil {
		return rpcErrorf(unknownCode, "%v", err) // Swarm gives it no code of its own
	}
	return nil
}

func validateContainer(c *swarm.ContainerSpec) error {
	if c.Image == "" {
		return rpcErrorf(invalidArgument, "ContainerSpec: image reference must be provided")
	}
	if _, err := reference.ParseNormalizedNamed(c.Image); err != nil {
		return rpcErrorf(invalidArgument, "ContainerSpec: %q is not a valid repository/tag", c.Image)
	}
	targets := map[string]bool{}
	for _, m := range c.Mounts {
		if targets[m.Target] {
			return rpcErrorf(invalidArgument, "ContainerSpec: duplicate mount point: %s", m.Target)
		}
		targets[m.Target] = true
	}
	if _, err := cluster.ParseExtras(c.Labels); err != nil {
		return rpcErrorf(invalidArgument, "ContainerSpec: %v", err)
	}
	return validateHealth(c.Healthcheck)
}

func validateHealth(h *container.HealthConfig) error {
	if h == nil {
		return nil
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"Interval", h.Interval}, {"Timeout", h.Timeout}, {"StartPeriod", h.StartPeriod}, {"StartInterval", h.StartInterval}} {
		if d.value != 0 && d.value < minHealth {
			return rpcErrorf(invalidArgument, "ContainerSpec: %s in HealthConfig cannot be less than 1ms", d.name)
		}
	}
	if h.Retries < 0 {
		return rpcErrorf(invalidArgument, "ContainerSpec: Retries in HealthConfig cannot be negative")
	}
	return nil
}

func validateUpdate(spec swarm.ServiceSpec) error {
	if isJob(spec.Mode) && spec.UpdateConfig != nil {
		return rpcErrorf(invalidArgument, "Jobs may not have an update config")
	}
	for _, u := range []*swarm.UpdateConfig{spec.UpdateConfig, spec.RollbackConfig} {
		switch {
		case u == nil:
		case u.Delay < 0:
			return rpcErrorf(invalidArgument, "TaskSpec: update-delay cannot be negative")
		case u.Monitor < 0:
			return rpcErrorf(invalidArgument, "TaskSpec: update-monitor cannot be negative")
		case u.MaxFailureRatio < 0 || u.MaxFailureRatio > 1:
			return rpcErrorf(invalidArgument, "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1")
		}
	}
	return nil
}

func validateEndpoint(e *swarm.EndpointSpec) error {
	if e == nil {
		return nil
	}
	type published struct {
		port  uint32
		proto swarm.PortConfigProtocol
	}
	seen := map[published]bool{}
	for _, p := range e.Ports {
		if p.TargetPort == 0 || p.TargetPort > 65535 || p.PublishedPort > 65535 {
			return rpcErrorf(invalidArgument, "EndpointSpec: port %d->%d is out of range: ports are 1 to 65535", p.PublishedPort, p.TargetPort)
		}
		switch p.Protocol {
		case swarm.PortConfigProtocolTCP, swarm.PortConfigProtocolUDP, swarm.PortConfigProtocolSCTP:
		default:
			return rpcErrorf(invalidArgument, "invalid protocol value '%s'", p.Protocol)
		}
		if e.Mode == swarm.ResolutionModeDNSRR && p.PublishMode == swarm.PortConfigPublishModeIngress {
			return rpcErrorf(invalidArgument, "EndpointSpec: port published with ingress mode can't be used with dnsrr mode")
		}
		if p.PublishedPort == 0 {
			continue
		}
		if k := (published{p.PublishedPort, p.Protocol}); seen[k] {
			return rpcErrorf(invalidArgument, "EndpointSpec: duplicate published ports provided")
		} else {
			seen[k] = true
		}
	}
	return nil
}

func validateNetworks(snap *cluster.Snapshot, nets []swarm.NetworkAttachmentConfig) error {
	for _, n := range nets {
		if net := snap.Network(n.Target); net != nil && net.Spec.Ingress {
			return rpcErrorf(invalidArgument, "Service cannot be explicitly attached to the ingress network %q", net.Spec.Name)
		}
	}
	return nil
}

// validateReferences checks that the secrets and configs exist and that no two are put in one place.
func validateReferences(snap *cluster.Snapshot, c *swarm.ContainerSpec) error {
	targets := map[string]string{}
	var missing []string
	for _, ref := range c.Secrets {
		if ref.SecretID == "" || ref.SecretName == "" {
			return rpcErrorf(invalidArgument, "malformed secret reference")
		}
		if ref.File == nil || ref.File.Name == "" {
			return rpcErrorf(invalidArgument, "malformed secret reference, no target provided")
		}
		if other, taken := targets[ref.File.Name]; taken {
			return rpcErrorf(invalidArgument, "secret references '%s' and '%s' have a conflicting target: '%s'", other, ref.SecretName, ref.File.Name)
		}
		targets[ref.File.Name] = ref.SecretName
		if s := snap.Secret(ref.SecretID); s == nil || s.Spec.Name != ref.SecretName {
			missing = append(missing, ref.SecretName)
		}
	}
	if len(missing) > 0 {
		return notFoundList("secret", missing)
	}
	clear(targets)
	for _, ref := range c.Configs {
		if ref.ConfigID == "" || ref.ConfigName == "" {
			return rpcErrorf(invalidArgument, "malformed config reference")
		}
		if ref.File == nil && ref.Runtime == nil {
			return rpcErrorf(invalidArgument, "malformed config reference, no target provided")
		}
		if ref.File != nil {
			if other, taken := targets[ref.File.Name]; taken {
				return rpcErrorf(invalidArgument, "config references '%s' and '%s' have a conflicting target: '%s'", other, ref.ConfigName, ref.File.Name)
			}
			targets[ref.File.Name] = ref.ConfigName
		}
		if s := snap.Config(ref.ConfigID); s == nil || s.Spec.Name != ref.ConfigName {
			missing = append(missing, ref.ConfigName)
		}
	}
	if len(missing) > 0 {
		return notFoundList("config", missing)
	}
	return nil
}

func notFoundList(kind string, names []string) error {
	if len(names) > 1 {
		kind += "s"
	}
	return rpcErrorf(invalidArgument, "%s not found: %s", kind, strings.Join(names, ", "))
}

// validatePorts refuses a published port that another service has, by wish or by allocation, and names that service.
// Host ports of two services may be equal: the scheduler keeps those apart. An update that leaves the ports as they are is
// not held up by them.
func validatePorts(snap *cluster.Snapshot, e *swarm.EndpointSpec, current *cluster.Service) error {
	if e == nil || current != nil && reflect.DeepEqual(e, current.Spec.EndpointSpec) {
		return nil
	}
	wanted := map[string]swarm.PortConfigPublishMode{}
	needsIngress := false
	for _, p := range e.Ports {
		needsIngress = needsIngress || p.PublishMode == swarm.PortConfigPublishModeIngress
		if p.PublishedPort != 0 {
			wanted[portKey(p)] = p.PublishMode
		}
	}
	if needsIngress && !hasIngress(snap) {
		return rpcErrorf(failedPrecondition, "service needs ingress network, but no ingress network is present")
	}
	if len(wanted) == 0 {
		return nil
	}
	for svc := range snap.Services() {
		if current != nil && svc.ID == current.ID {
			continue
		}
		ports := svc.Endpoint.Ports
		if svc.Spec.EndpointSpec != nil {
			ports = append(ports[:len(ports):len(ports)], svc.Spec.EndpointSpec.Ports...)
		}
		for _, p := range ports {
			mode, clash := wanted[portKey(p)]
			if p.PublishedPort == 0 || !clash {
				continue
			}
			switch {
			case p.PublishMode != swarm.PortConfigPublishModeHost:
				return rpcErrorf(invalidArgument, "port '%d' is already in use by service '%s' (%s) as an ingress port", p.PublishedPort, svc.Spec.Name, svc.ID)
			case mode != swarm.PortConfigPublishModeHost:
				return rpcErrorf(invalidArgument, "port '%d' is already in use by service '%s' (%s) as a host-published port", p.PublishedPort, svc.Spec.Name, svc.ID)
			}
		}
	}
	return nil
}

func portKey(p swarm.PortConfig) string { return fmt.Sprintf("%d/%s", p.PublishedPort, p.Protocol) }

func hasIngress(snap *cluster.Snapshot) bool {
	for n := range snap.Networks() {
		if n.Spec.Ingress {
			return true
		}
	}
	return false
}
