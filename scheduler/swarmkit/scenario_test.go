package swarmkit

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// scenario is a cluster in some state, and a group of tasks that want a place in it.
type scenario struct {
	nodes []*cluster.Node
	// running are on nodes; those in failing fail before the group is placed.
	running, failing []*cluster.Task
	group            *cluster.Task
	n                int
}

var (
	zones = []string{"a", "b", "c"}
	racks = []string{"1", "2"}
)

func pick[T any](r *rand.Rand, xs ...T) T { return xs[r.IntN(len(xs))] }

func newScenario(seed uint64) *scenario {
	r := rand.New(rand.NewPCG(seed, 7))
	s := &scenario{n: 1 + r.IntN(12)}
	if r.IntN(10) == 0 {
		s.n = 1 + r.IntN(60)
	}
	for i := range 1 + r.IntN(14) {
		s.nodes = append(s.nodes, newNode(r, fmt.Sprintf("n%02d", i)))
	}
	s.group = newGroup(r)
	others := []*cluster.Task{newGroup(r), newGroup(r)}
	id := 0
	taken := map[string]bool{} // host ports and generic resources, by node
	on := func(of *cluster.Task, service string, n *cluster.Node) *cluster.Task {
		id++
		t := *of
		t.ID, t.ServiceID, t.NodeID, t.Slot = fmt.Sprintf("t%03d", id), service, n.ID, id
		t.Status.State = pick(r, swarm.TaskStateRunning, swarm.TaskStateRunning, swarm.TaskStateAssigned, swarm.TaskStateStarting)
		settle(&t, n, taken)
		if r.IntN(10) == 0 {
			t.DesiredState = swarm.TaskStateShutdown
		}
		return &t
	}
	for _, n := range s.nodes {
		for range r.IntN(4) {
			if r.IntN(2) == 0 {
				s.running = append(s.running, on(s.group, s.group.ServiceID, n))
			} else {
				i := r.IntN(len(others))
				s.running = append(s.running, on(others[i], fmt.Sprint("other", i), n))
			}
		}
		// Five failures within five minutes put a node last, four do not.
		if r.IntN(5) == 0 {
			for range 3 + r.IntN(4) {
				t := on(s.group, s.group.ServiceID, n)
				t.DesiredState = swarm.TaskStateRunning
				s.failing = append(s.failing, t)
			}
		}
	}
	return s
}

func newNode(r *rand.Rand, id string) *cluster.Node {
	n := &cluster.Node{}
	n.ID = id
	n.Role = pick(r, swarm.NodeRoleManager, swarm.NodeRoleWorker)
	n.Spec.Role = n.Role
	n.Spec.Availability, n.Status.State = swarm.NodeAvailabilityActive, swarm.NodeStateReady
	n.Spec.Labels = map[string]string{"zone": pick(r, zones...), "rack": pick(r, racks...)}
	if r.IntN(4) == 0 {
		delete(n.Spec.Labels, "zone")
	}
	n.Status.Addr = fmt.Sprintf("10.0.%d.%d", r.IntN(2), 1+r.IntN(200))
	d := &n.Description
	d.Hostname = "host-" + id
	d.Platform = pick(r, swarm.Platform{OS: "linux", Architecture: "x86_64"}, swarm.Platform{OS: "linux", Architecture: "aarch64"}, swarm.Platform{OS: "windows", Architecture: "amd64"}, swarm.Platform{})
	d.Engine.EngineVersion = "28"
	d.Engine.Labels = map[string]string{"disk": pick(r, "ssd", "hdd")}
	d.Engine.Plugins = pick(r, nil, []swarm.PluginDescription{{Type: "Log", Name: "json-file"}, {Type: "Volume", Name: "fast"}},
		[]swarm.PluginDescription{{Type: "Log", Name: "json-file"}, {Type: "Log", Name: "fluentd"}, {Type: "Volume", Name: "local"}})
	d.Resources = swarm.Resources{NanoCPUs: r.Int64N(9) * 1e9, MemoryBytes: r.Int64N(17) << 20}
	switch r.IntN(4) {
	case 0:
		d.Resources.GenericResources = []swarm.GenericResource{{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: "gpu", Value: 1 + r.Int64N(4)}}}
	case 1:
		for i := range 1 + r.IntN(4) {
			d.Resources.GenericResources = append(d.Resources.GenericResources, swarm.GenericResource{NamedResourceSpec: &swarm.NamedGenericResource{Kind: "gpu", Value: fmt.Sprint("g", i)}})
		}
	}
	if r.IntN(7) == 0 {
		n.Spec.Availability = pick(r, swarm.NodeAvailabilityDrain, swarm.NodeAvailabilityPause)
	}
	if r.IntN(7) == 0 {
		n.Status.State = pick(r, swarm.NodeStateDown, swarm.NodeStateUnknown, swarm.NodeStateDisconnected)
	}
	return n
}

// newGroup is a task with random demands of every kind that there is a filter or a preference for.
func newGroup(r *rand.Rand) *cluster.Task {
	one := func(n int) bool { return r.IntN(n) == 0 }
	t := &cluster.Task{}
	t.ServiceID, t.Slot = "service", 1
	t.SpecVersion.Index = 5
	t.DesiredState, t.Status.State = swarm.TaskStateRunning, swarm.TaskStatePending
	t.Status.Timestamp = time.Now()
	c := &swarm.ContainerSpec{Image: "image"}
	t.Spec.ContainerSpec = c
	p := &swarm.Placement{}
	for range r.IntN(3) {
		if one(2) {
			p.Constraints = append(p.Constraints, pick(r, "node.labels.zone==a", "node.labels.zone!=b", "node.labels.none!=x", "node.labels.rack==1", "node.role==worker", "node.role!=worker", "engine.labels.disk==ssd",
				"node.hostname!=host-n03", "node.id!=n02", "node.ip==10.0.1.0/24", "node.ip!=10.0.0.0/25", "node.platform.os==linux", "node.platform.arch!=aarch64"))
		}
	}
	if one(2) {
		for range 1 + r.IntN(3) {
			p.Preferences = append(p.Preferences, swarm.PlacementPreference{Spread: &swarm.SpreadOver{SpreadDescriptor: pick(r, "node.labels.zone", "node.labels.rack", "engine.labels.disk", "node.labels.none")}})
		}
	}
	if one(4) {
		p.MaxReplicas = uint64(1 + r.IntN(4))
	}
	if one(5) {
		p.Platforms = pick(r, []swarm.Platform{{OS: "linux", Architecture: "amd64"}}, []swarm.Platform{{OS: "linux", Architecture: "arm64"}, {OS: "linux", Architecture: "amd64"}}, []swarm.Platform{{OS: "linux"}})
	}
	if one(2) {
		t.Spec.Placement = p
	}
	if one(6) {
		t.Spec.LogDriver = &swarm.Driver{Name: pick(r, "fluentd", "json-file", "none")}
	}
	if one(6) {
		c.Mounts = []mount.Mount{{Type: mount.TypeVolume, Source: "v", Target: "/v", VolumeOptions: &mount.VolumeOptions{DriverConfig: &mount.Driver{Name: pick(r, "fast", "local", "nosuch")}}}}
	}
	if one(2) {
		res := &swarm.Resources{NanoCPUs: r.Int64N(2) * 1e9, MemoryBytes: r.Int64N(4) << 20}
		if one(3) {
			res.GenericResources = []swarm.GenericResource{{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: "gpu", Value: 1 + r.Int64N(2)}}}
		}
		t.Spec.Resources = &swarm.ResourceRequirements{Reservations: res}
	}
	if one(6) {
		t.Endpoint = &swarm.Endpoint{Ports: []swarm.PortConfig{{PublishMode: swarm.PortConfigPublishModeHost, Protocol: pick(r, swarm.PortConfigProtocolTCP, swarm.PortConfigProtocolUDP), PublishedPort: uint32(80 + r.IntN(2)), TargetPort: 80}}}
	}
	return t
}

// settle takes from a task that is on a node already what no scheduler would have given it there: a host port or generic
// resources that another one has.
func settle(t *cluster.Task, n *cluster.Node, taken map[string]bool) {
	if t.Endpoint != nil {
		p := t.Endpoint.Ports[0]
		key := fmt.Sprint(n.ID, p.PublishedPort, p.Protocol)
		if taken[key] {
			t.Endpoint = nil
		}
		taken[key] = true
	}
	if t.Spec.Resources == nil || len(t.Spec.Resources.Reservations.GenericResources) == 0 {
		return
	}
	wants := t.Spec.Resources.Reservations.GenericResources[0].DiscreteResourceSpec
	for _, g := range n.Description.Resources.GenericResources {
		name := "" // of a discrete resource
		if g.NamedResourceSpec != nil {
			name = g.NamedResourceSpec.Value
		}
		switch key := n.ID + name; {
		case taken[key] || int64(len(t.GenericResources)) == wants.Value:
		case name != "":
			taken[key] = true
			t.GenericResources = append(t.GenericResources, g)
		case g.DiscreteResourceSpec.Value >= wants.Value:
			taken[key] = true
			t.GenericResources = []swarm.GenericResource{{DiscreteResourceSpec: wants}}
			return
		}
	}
	if int64(len(t.GenericResources)) == wants.Value {
		return
	}
	for _, g := range t.GenericResources { // too few of them
		taken[n.ID+g.NamedResourceSpec.Value] = false
	}
	t.GenericResources = nil
	without := *t.Spec.Resources.Reservations
	without.GenericResources = nil
	t.Spec.Resources = &swarm.ResourceRequirements{Reservations: &without}
}
