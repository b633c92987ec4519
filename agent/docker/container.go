package docker

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/go-connections/nat"

	"github.com/miniswarm/miniswarm/cluster"
)

// Labels of task containers, as Docker Swarm sets them (swarm-semantics.md, 11.8). They win over labels of the same name
// in a service's spec.
const (
	LabelNodeID      = "com.docker.swarm.node.id"
	LabelServiceID   = "com.docker.swarm.service.id"
	LabelServiceName = "com.docker.swarm.service.name"
	LabelTask        = "com.docker.swarm.task"
	LabelTaskID      = "com.docker.swarm.task.id"
	LabelTaskName    = "com.docker.swarm.task.name"
)

// Node is what a container's configuration depends on besides the task.
type Node struct {
	// ID is the node's id.
	ID string
	// Description supplies host name and platform to templates.
	Description swarm.NodeDescription
	// FixedAddresses says that tasks get the addresses that the manager allocated. It is off on a node without the data
	// plane, whose engine then chooses addresses that nobody else routes to.
	FixedAddresses bool
	// Files is the directory in which the engine finds the files of tasks' secrets and configs; see [Files].
	Files string
	// Allowed is what the node's containers may have beyond the ordinary.
	Allowed cluster.Allowance
	// Names says that the node has a name server for its containers.
	Names bool
	// Resolver is where that is found from the networks of the container at hand; invalid if it is on none that has names.
	Resolver netip.Addr
}

// Container is a container as the engine has to create it.
type Container struct {
	Name   string
	Config container.Config
	Host   container.HostConfig
	// Networks lists where to connect it, first the one that HostConfig.NetworkMode names. Empty for the engine's
	// default network and for predefined ones.
	Networks []Connection
}

// Connection connects a container to a network of the engine.
type Connection struct {
	// Network is the engine's name of the network.
	Network  string
	Endpoint network.EndpointSettings
}

// Translate gives the container of a task (swarm-semantics.md, 12.5). networks maps the id of every swarm network that the task
// is attached to to its name on the engine. Reservations are the scheduler's business and do not reach the engine; nor
// does a restart policy, because the managers restart tasks.
//
// A network named host, bridge or none that is predefined on every engine needs no entry in networks.
func Translate(t *cluster.Task, n Node, networks map[string]string) (*Container, error) {
	if err := Validate(t); err != nil {
		return nil, err
	}
	spec := t.Spec.ContainerSpec
	if os := n.Description.Platform.OS; os == "linux" && !spec.Isolation.IsDefault() {
		return nil, fmt.Errorf("invalid isolation '%s' on %s", spec.Isolation, os)
	}
	x, err := expand(t, n)
	if err != nil {
		return nil, err
	}
	extras, err := grant(spec, n.Allowed)
	if err != nil {
		return nil, err
	}
	exposed, bindings := hostPorts(t)
	c := &Container{
		Name: t.FullName(),
		Config: container.Config{
			Image:        familiar(spec.Image),
			Labels:       labels(t, n.ID),
			Env:          append(x.env, resourceEnv(t.GenericResources)...),
			Hostname:     x.hostname,
			WorkingDir:   spec.Dir,
			User:         spec.User,
			Tty:          spec.TTY,
			OpenStdin:    spec.OpenStdin,
			StopSignal:   spec.StopSignal,
			Healthcheck:  spec.Healthcheck,
			ExposedPorts: exposed,
		},
		Host: container.HostConfig{
			Resources:      limits(t, extras),
			Privileged:     extras.Privileged,
			Mounts:         append(x.mounts, payloadMounts(spec, filepath.Join(n.Files, t.ID))...),
			PortBindings:   bindings,
			LogConfig:      logConfig(t),
			Init:           spec.Init,
			Isolation:      spec.Isolation,
			GroupAdd:       spec.Groups,
			ReadonlyRootfs: spec.ReadOnly,
			CapAdd:         spec.CapabilityAdd,
			CapDrop:        spec.CapabilityDrop,
			Sysctls:        maps.Clone(spec.Sysctls),
			ExtraHosts:     extraHosts(spec.Hosts),
			OomScoreAdj:    int(spec.OomScoreAdj),
			SecurityOpt:    securityOptions(spec.Privileges),
		},
	}
	if len(spec.Command) > 0 {
		c.Config.Entrypoint = slices.Clone(spec.Command)
	}
	if len(spec.Args) > 0 {
		c.Config.Cmd = slices.Clone(spec.Args)
	}
	if spec.StopGracePeriod != nil {
		// Swarm hands the period to its own stop only. With it on the container, an engine that shuts down and a
		// person's `docker stop` grant it as well.
		seconds := int(spec.StopGracePeriod.Seconds())
		c.Config.StopTimeout = &seconds
	}
	if d := spec.DNSConfig; d != nil {
		c.Host.DNS, c.Host.DNSSearch, c.Host.DNSOptions = d.Nameservers, d.Search, d.Options
	}
	if err := c.connect(t, n, networks); err != nil {
		return nil, err
	}
	if n.Resolver.IsValid() && len(c.Networks) > 0 {
		c.Host.DNS = []string{n.Resolver.String()} // which asks the servers of the spec itself
	}
	return c, nil
}

// Validate says whether the task is one that this package can run, in Swarm's words; a task that is not is rejected.
func Validate(t *cluster.Task) error {
	switch {
	case t.Spec.Runtime != "" && t.Spec.Runtime != swarm.RuntimeContainer, t.Spec.ContainerSpec == nil:
		return fmt.Errorf("unsupported runtime %q: nodes run tasks of type container", t.Spec.Runtime)
	case t.Spec.ContainerSpec.Image == "":
		return errors.New("ContainerSpec: image reference must be provided")
	}
	if err := validatePayloads(t.Spec.ContainerSpec); err != nil {
		return err
	}
	for _, m := range t.Spec.ContainerSpec.Mounts {
		// Sources and targets may be templates, which make sense of themselves only when expanded.
		if strings.Contains(m.Source+m.Target, "{{") {
			continue
		}
		if err := validateMount(m); err != nil {
			return err
		}
	}
	return nil
}

// familiar writes an image as people do, with its tag, for that is how the engine and its tools show and find it.
func familiar(image string) string {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return image // an id
	}
	return reference.FamiliarString(reference.TagNameOnly(named))
}

func validateMount(m mount.Mount) error {
	if m.Target == "" || m.Type != mount.TypeNamedPipe && !filepath.IsAbs(m.Target) {
		return fmt.Errorf("invalid mount target, must be an absolute path: %s", m.Target)
	}
	switch m.Type {
	case mount.TypeBind:
		if !filepath.IsAbs(m.Source) {
			return fmt.Errorf("invalid bind mount source, must be an absolute path: %s", m.Source)
		}
	case mount.TypeVolume:
		if filepath.IsAbs(m.Source) {
			return fmt.Errorf("invalid volume mount source, must not be an absolute path: %s", m.Source)
		}
	case mount.TypeTmpfs:
		if m.Source != "" {
			return errors.New("invalid tmpfs source, source must be empty")
		}
	case mount.TypeNamedPipe:
		if m.Source == "" {
			return errors.New("invalid npipe source, source must not be empty")
		}
	default:
		return fmt.Errorf("invalid mount type: %s", m.Type)
	}
	return nil
}

func labels(t *cluster.Task, nodeID string) map[string]string {
	out := make(map[string]string, len(t.Spec.ContainerSpec.Labels)+6)
	maps.Copy(out, t.Spec.ContainerSpec.Labels)
	out[LabelTask] = ""
	out[LabelTaskID] = t.ID
	out[LabelTaskName] = t.FullName()
	out[LabelNodeID] = nodeID
	out[LabelServiceID] = t.ServiceID
	out[LabelServiceName] = t.ServiceAnnotations.Name
	return out
}

// resourceEnv tells the process which generic resources it was given: DOCKER_RESOURCE_KIND=VALUE[,VALUE].
func resourceEnv(rs []swarm.GenericResource) []string {
	values := map[string][]string{}
	for _, r := range rs {
		switch {
		case r.NamedResourceSpec != nil:
			values[r.NamedResourceSpec.Kind] = append(values[r.NamedResourceSpec.Kind], r.NamedResourceSpec.Value)
		case r.DiscreteResourceSpec != nil:
			values[r.DiscreteResourceSpec.Kind] = append(values[r.DiscreteResourceSpec.Kind], strconv.FormatInt(r.DiscreteResourceSpec.Value, 10))
		}
	}
	var env []string
	for _, kind := range slices.Sorted(maps.Keys(values)) {
		env = append(env, "DOCKER_RESOURCE_"+strings.ToUpper(kind)+"="+strings.Join(values[kind], ","))
	}
	return env
}

// grant gives what a container asks for beyond the ordinary, or says what of it the node does not allow. The scheduler
// looks after that; but a node is the last to say what runs on it.
func grant(spec *swarm.ContainerSpec, allowed cluster.Allowance) (cluster.Extras, error) {
	x, err := cluster.ParseExtras(spec.Labels)
	if err != nil {
		return x, err
	}
	need := cluster.Needs(spec)
	if allowed.Covers(need) {
		return x, nil
	}
	var missing []string
	for _, q := range []struct {
		words string
		not   bool
	}{{"privileged containers", need.Privileged && !allowed.Privileged}, {"devices", need.Devices && !allowed.Devices}, {"GPUs", need.GPUs && !allowed.GPUs}} {
		if q.not {
			missing = append(missing, q.words)
		}
	}
	return x, fmt.Errorf("this node does not allow %s", strings.Join(missing, ", "))
}

func limits(t *cluster.Task, x cluster.Extras) container.Resources {
	r := container.Resources{Ulimits: t.Spec.ContainerSpec.Ulimits, Devices: x.Devices, DeviceRequests: x.GPUs}
	if t.Spec.Resources == nil || t.Spec.Resources.Limits == nil {
		return r
	}
	l := t.Spec.Resources.Limits
	r.NanoCPUs, r.Memory = l.NanoCPUs, l.MemoryBytes
	if l.Pids > 0 {
		pids := l.Pids
		r.PidsLimit = &pids
	}
	return r
}

func logConfig(t *cluster.Task) container.LogConfig {
	if t.Spec.LogDriver == nil {
		return container.LogConfig{}
	}
	return container.LogConfig{Type: t.Spec.LogDriver.Name, Config: maps.Clone(t.Spec.LogDriver.Options)}
}

// extraHosts turns lines of hosts(5), "IP name [alias...]", into "name:IP". Aliases are dropped, as in Swarm.
func extraHosts(lines []string) []string {
	var out []string
	for _, l := range lines {
		if f := strings.Fields(l); len(f) > 1 {
			out = append(out, f[1]+":"+f[0])
		}
	}
	return out
}

func securityOptions(p *swarm.Privileges) []string {
	if p == nil {
		return nil
	}
	var out []string
	if c := p.CredentialSpec; c != nil {
		switch {
		case c.Registry != "":
			out = append(out, "credentialspec=registry://"+c.Registry)
		case c.File != "":
			out = append(out, "credentialspec=file://"+c.File)
		}
	}
	if s := p.SELinuxContext; s != nil {
		if s.Disable {
			out = append(out, "label=disable")
		}
		for _, kv := range [][2]string{{"user", s.User}, {"role", s.Role}, {"level", s.Level}, {"type", s.Type}} {
			if kv[1] != "" {
				out = append(out, "label="+kv[0]+":"+kv[1])
			}
		}
	}
	if s := p.Seccomp; s != nil {
		switch s.Mode {
		case swarm.SeccompModeUnconfined:
			out = append(out, "seccomp=unconfined")
		case swarm.SeccompModeCustom:
			out = append(out, "seccomp="+string(s.Profile))
		}
	}
	if a := p.AppArmor; a != nil && a.Mode == swarm.AppArmorModeDisabled {
		out = append(out, "apparmor=unconfined")
	}
	if p.NoNewPrivileges {
		out = append(out, "no-new-privileges=true")
	}
	return out
}

// hostPorts gives the port mappings of ports published in host mode; ingress ports are the mesh's.
func hostPorts(t *cluster.Task) (nat.PortSet, nat.PortMap) {
	var set nat.PortSet
	var bindings nat.PortMap
	for _, p := range endpointPorts(t) {
		if p.PublishMode != swarm.PortConfigPublishModeHost {
			continue
		}
		port := containerPort(p)
		var binding nat.PortBinding
		if p.PublishedPort != 0 {
			binding.HostPort = strconv.FormatUint(uint64(p.PublishedPort), 10)
		}
		if set == nil {
			set, bindings = nat.PortSet{}, nat.PortMap{}
		}
		set[port] = struct{}{}
		bindings[port] = append(bindings[port], binding)
	}
	return set, bindings
}

func endpointPorts(t *cluster.Task) []swarm.PortConfig {
	switch {
	case t.Endpoint == nil:
		return nil
	case len(t.Endpoint.Ports) > 0:
		return t.Endpoint.Ports
	}
	return t.Endpoint.Spec.Ports
}

func containerPort(p swarm.PortConfig) nat.Port {
	proto := p.Protocol
	if proto == "" {
		proto = swarm.PortConfigProtocolTCP
	}
	return nat.Port(strconv.FormatUint(uint64(p.TargetPort), 10) + "/" + string(proto))
}

// connect fills in the networks of the task.
func (c *Container) connect(t *cluster.Task, n Node, networks map[string]string) error {
	for _, a := range t.NetworksAttachments {
		if name, ok := predefined(a.Network); ok {
			// Swarm puts such a task on the engine's own network and on no other.
			c.Host.NetworkMode = container.NetworkMode(name)
			c.Networks = nil
			return nil
		}
		name, ok := networks[a.Network.ID]
		if !ok {
			return fmt.Errorf("network %s of task %s is not on this node", a.Network.Spec.Name, t.ID)
		}
		e := network.EndpointSettings{}
		if a.Network.Spec.Ingress {
			e.GwPriority = 1 // replies to the mesh leave as they came; engines before 28 do not read this
		}
		for _, cfg := range t.Spec.Networks {
			if cfg.Target == a.Network.ID || cfg.Target == a.Network.Spec.Name {
				if !n.Names { // otherwise the engine would answer for the service with the local replica alone
					e.Aliases = slices.Clone(cfg.Aliases)
				}
				e.DriverOpts = maps.Clone(cfg.DriverOpts)
			}
		}
		if n.FixedAddresses {
			for _, text := range a.Addresses {
				p, err := netip.ParsePrefix(text)
				if err != nil {
					return fmt.Errorf("address %q of task %s on network %s: %w", text, t.ID, a.Network.Spec.Name, err)
				}
				if p.Addr().Is4() {
					e.IPAMConfig = &network.EndpointIPAMConfig{IPv4Address: p.Addr().String()}
				}
			}
		}
		c.Networks = append(c.Networks, Connection{Network: name, Endpoint: e})
	}
	if len(c.Networks) > 0 {
		c.Host.NetworkMode = container.NetworkMode(c.Networks[0].Network)
	}
	if len(c.Networks) > 1 {
		c.looseSources()
	}
	return nil
}

// looseSources lets a container with several networks take what the mesh sends it with the client's own address.
// The engine's default route may lead through another network than ingress (engines before 28 choose by name); where
// the host's strict source check (rp_filter=1) is inherited, such packets would be dropped. The kernel uses the larger
// of the values for "all" and for the device, and 2 means: any way back will do.
func (c *Container) looseSources() {
	const key = "net.ipv4.conf.all.rp_filter"
	if _, set := c.Host.Sysctls[key]; set {
		return
	}
	if c.Host.Sysctls == nil {
		c.Host.Sysctls = map[string]string{}
	}
	c.Host.Sysctls[key] = "2"
}
