package scheduler

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"
	gocmp "github.com/google/go-cmp/cmp"
	"github.com/miniswarm/miniswarm/cluster"
)

var (
	seeds    = flag.Int("seeds", 600, "number of random scenarios")
	fromSeed = flag.Uint64("seed", 1, "first seed of the random scenarios")
)

// dump writes all that the accounts hold in a canonical form.
func (a *Accounts) dump() string {
	var b strings.Builder
	for _, id := range slices.Sorted(maps.Keys(a.byID)) {
		nd := a.byID[id]
		fmt.Fprintf(&b, "node %s known=%t ready=%t cap=%d/%d used=%d/%d tasks=%d active=%d\n", id, nd.obj != nil, nd.ready,
			nd.cpu, nd.mem, nd.usedCPU, nd.usedMem, nd.tasks, nd.active)
		for _, k := range slices.Sorted(maps.Keys(nd.generic)) {
			g := nd.generic[k]
			fmt.Fprintf(&b, "  generic %s named=%t %v %d taken %v %d\n", k, g.named, g.names, g.count, g.takenNames, g.taken)
		}
		ports := slices.SortedFunc(maps.Keys(nd.ports), func(x, y hostPort) int {
			return cmp.Or(cmp.Compare(x.port, y.port), cmp.Compare(x.protocol, y.protocol))
		})
		for _, p := range ports {
			fmt.Fprintf(&b, "  port %d/%s %v\n", p.port, p.protocol, nd.ports[p])
		}
	}
	for _, id := range slices.Sorted(maps.Keys(a.services)) {
		s := a.services[id]
		var per []string
		s.each(func(slot, n int32) { per = append(per, fmt.Sprintf("%s:%d", a.slots[slot].id, n)) })
		slices.Sort(per)
		fmt.Fprintf(&b, "service %s on %d: %v\n", id, s.nodes, per)
	}
	var failures []string
	for key, byNode := range a.failures {
		for slot, at := range byNode {
			failures = append(failures, fmt.Sprintf("failures %v %s %d\n", key, a.slots[slot].id, len(at)))
		}
	}
	slices.Sort(failures)
	return b.String() + strings.Join(failures, "")
}

// verify checks that every view is what building it anew would give.
func (a *Accounts) verify(t *testing.T) {
	t.Helper()
	members := func(l *leaf) string {
		var b strings.Builder
		for c := (cursor{leaf: l}); ; {
			nd := c.next()
			if nd == nil {
				return b.String()
			}
			fmt.Fprintf(&b, "%s:%d ", nd.id, nd.active)
		}
	}
	var leaves func(br *branch, path string, out map[string]string)
	leaves = func(br *branch, path string, out map[string]string) {
		if br.leaf != nil {
			out[path] = members(br.leaf)
			if br.leaf.run != nil {
				t.Errorf("leaf %s has a run left over", path)
			}
		}
		for _, c := range br.children {
			leaves(c, path+"/"+c.value, out)
		}
	}
	for _, v := range a.views {
		if v.stale {
			continue
		}
		fresh := &view{key: v.key, rules: v.rules}
		fresh.build(a)
		got, want := map[string]string{}, map[string]string{}
		leaves(&v.root, "", got)
		leaves(&fresh.root, "", want)
		for path, m := range want {
			if m == "" && got[path] == "" {
				delete(want, path)
				delete(got, path)
			}
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Errorf("view %q is not what it should be (-want +got):\n%s", v.key, diff)
		}
		if v.failing != fresh.failing {
			t.Errorf("view %q counts %v failing, should be %v", v.key, v.failing, fresh.failing)
		}
	}
}

// scenario drives the accounts and the twin through the same random life.
type scenario struct {
	r        *rand.Rand
	a        *Accounts
	w        *twin
	services []*cluster.Task // templates
	now      time.Time
	ids      int
	// many is the number of nodes that there can be.
	many int
}

func newScenario(r *rand.Rand, many int) *scenario {
	s := &scenario{r: r, a: New(), w: newTwin(), now: t0, many: many}
	for _, driver := range []string{"overlay", "local"} { // networks are called by their drivers
		s.a.SetNetwork(&cluster.Network{Network: swarm.Network{ID: driver, Spec: swarm.NetworkSpec{DriverConfiguration: &swarm.Driver{Name: driver}}}})
	}
	return s
}

func (s *scenario) anyNode() string { return fmt.Sprintf("n%02d", s.r.IntN(s.many)) }

func pick[T any](r *rand.Rand, xs ...T) T { return xs[r.IntN(len(xs))] }

func (s *scenario) node(id string) *cluster.Node {
	n := newNode(id)
	n.Role = pick(s.r, swarm.NodeRoleManager, swarm.NodeRoleWorker)
	n.Spec.Labels = map[string]string{"zone": pick(s.r, "a", "b", "c"), "rack": pick(s.r, "1", "2")}
	if s.r.IntN(4) == 0 {
		delete(n.Spec.Labels, "zone")
	}
	if s.r.IntN(2) == 0 {
		n.Spec.Labels[cluster.LabelAllow] = pick(s.r, "privileged", "devices,gpus", "privileged,devices,gpus")
	}
	n.NoDataPlane = s.r.IntN(4) == 0
	n.Description.Engine.Labels = map[string]string{"disk": pick(s.r, "ssd", "hdd")}
	n.Description.Engine.EngineVersion = "28"
	n.Description.Engine.Plugins = pick(s.r, nil, []swarm.PluginDescription{{Type: "Log", Name: "json-file"}},
		[]swarm.PluginDescription{{Type: "Log", Name: "json-file"}, {Type: "Log", Name: "fluentd"}})
	n.Description.Platform = pick(s.r, swarm.Platform{OS: "linux", Architecture: "x86_64"},
		swarm.Platform{OS: "linux", Architecture: "arm64"}, swarm.Platform{})
	n.Description.Resources.NanoCPUs = s.r.Int64N(8) * 1e9
	n.Description.Resources.MemoryBytes = s.r.Int64N(16)
	if s.r.IntN(2) == 0 {
		n.Description.Resources.GenericResources = pick(s.r,
			[]swarm.GenericResource{{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: "gpu", Value: 3}}},
			[]swarm.GenericResource{
				{NamedResourceSpec: &swarm.NamedGenericResource{Kind: "gpu", Value: "g1"}},
				{NamedResourceSpec: &swarm.NamedGenericResource{Kind: "gpu", Value: "g2"}},
				{NamedResourceSpec: &swarm.NamedGenericResource{Kind: "gpu", Value: "g3"}},
				{NamedResourceSpec: &swarm.NamedGenericResource{Kind: "gpu", Value: "g4"}},
			})
	}
	if s.r.IntN(6) == 0 {
		n.Spec.Availability = pick(s.r, swarm.NodeAvailabilityDrain, swarm.NodeAvailabilityPause)
	}
	if s.r.IntN(6) == 0 {
		n.Status.State = pick(s.r, swarm.NodeStateDown, swarm.NodeStateUnknown, swarm.NodeStateDisconnected)
	}
	return n
}

// template is a service's task with random demands.
func (s *scenario) template(id string) *cluster.Task {
	t := newTask(id, "", "")
	p := &swarm.Placement{}
	one := func(n int) bool { return s.r.IntN(n) == 0 }
	if one(3) {
		p.Constraints = append(p.Constraints, pick(s.r, "node.labels.zone==a", "node.labels.zone!=b", "node.role==worker",
			"engine.labels.disk==ssd", "node.hostname!=n03"))
	}
	if one(4) {
		p.Constraints = append(p.Constraints, pick(s.r, "node.labels.rack==1", "node.labels.none!=x"))
	}
	if one(2) {
		for range 1 + s.r.IntN(2) {
			p.Preferences = append(p.Preferences, swarm.PlacementPreference{Spread: &swarm.SpreadOver{SpreadDescriptor: pick(s.r,
				"node.labels.zone", "node.labels.rack", "engine.labels.disk", "node.hostname")}})
		}
	}
	if one(4) {
		p.MaxReplicas = uint64(1 + s.r.IntN(3))
	}
	if one(6) {
		p.Platforms = []swarm.Platform{{OS: "linux", Architecture: "amd64"}}
	}
	if one(8) {
		t.Spec.ContainerSpec = &swarm.ContainerSpec{Labels: map[string]string{pick(s.r, cluster.LabelPrivileged, cluster.LabelDevices, cluster.LabelGPUs): "true", "x": "y"}}
	}
	if one(5) {
		t.Spec.LogDriver = &swarm.Driver{Name: pick(s.r, "fluentd", "json-file", "none")}
	}
	if one(2) {
		res := &swarm.Resources{NanoCPUs: s.r.Int64N(2) * 1e9, MemoryBytes: s.r.Int64N(4)}
		if one(3) {
			res.GenericResources = []swarm.GenericResource{{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: "gpu", Value: 1 + s.r.Int64N(2)}}}
		}
		t.Spec.Resources = &swarm.ResourceRequirements{Reservations: res}
	}
	if one(8) {
		t.Endpoint = &swarm.Endpoint{Ports: []swarm.PortConfig{{PublishMode: swarm.PortConfigPublishModeHost,
			Protocol: swarm.PortConfigProtocolTCP, PublishedPort: uint32(80 + s.r.IntN(2)), TargetPort: 80}}}
	}
	if one(8) {
		t.Endpoint = &swarm.Endpoint{Ports: []swarm.PortConfig{{PublishMode: swarm.PortConfigPublishModeIngress, PublishedPort: 90, TargetPort: 80}}}
	}
	if one(4) {
		t.Spec.Networks = []swarm.NetworkAttachmentConfig{{Target: pick(s.r, "overlay", "local")}}
	}
	if one(2) {
		t.Spec.Placement = p
	}
	return t
}

func (s *scenario) setNode(n *cluster.Node) { s.a.SetNode(n); s.w.setNode(n) }
func (s *scenario) setTask(old, new *cluster.Task) {
	s.a.SetTask(old, new)
	s.w.setTask(old, new)
}

func (s *scenario) step(t *testing.T) {
	r := s.r
	s.now = s.now.Add(time.Duration(r.IntN(40)) * time.Second)
	ids := slices.Sorted(maps.Keys(s.w.nodes))
	tasks := slices.Sorted(maps.Keys(s.w.tasks))
	switch k := r.IntN(20); {
	case k < 2 || len(ids) == 0:
		s.setNode(s.node(s.anyNode()))
	case k < 4: // a node's state or availability changes
		c := *s.w.nodes[pick(r, ids...)]
		c.Status.State = pick(r, swarm.NodeStateReady, swarm.NodeStateReady, swarm.NodeStateDown)
		c.Spec.Availability = pick(r, swarm.NodeAvailabilityActive, swarm.NodeAvailabilityActive, swarm.NodeAvailabilityDrain)
		s.setNode(&c)
	case k == 4 && r.IntN(3) == 0:
		id := pick(r, ids...)
		s.a.RemoveNode(id)
		s.w.removeNode(id)
	case k < 10 && len(tasks) > 0: // tasks end, are told to end, or are forgotten
		for range 1 + r.IntN(4) {
			old := s.w.tasks[pick(r, tasks...)]
			if old == nil {
				continue
			}
			c := *old
			switch r.IntN(5) {
			case 0:
				s.setTask(old, nil)
				continue
			case 1:
				c.DesiredState = swarm.TaskStateShutdown
			case 2:
				c.Status.State, c.Status.Timestamp = swarm.TaskStateFailed, s.now
			case 3:
				c.Status.State = swarm.TaskStateRunning
				if old.Status.State == swarm.TaskStateFailed {
					continue
				}
			case 4:
				c.Status.State = swarm.TaskStateShutdown
			}
			s.setTask(old, &c)
		}
	case k < 12 && r.IntN(2) == 0: // a bad node for a service
		id, tmpl := pick(r, ids...), pick(r, s.services...)
		for range 4 + r.IntN(4) {
			c := *tmpl
			c.ID, c.NodeID = s.id(), id
			c.Status.State, c.Status.Timestamp = swarm.TaskStateFailed, s.now
			s.setTask(nil, &c)
			s.setTask(&c, nil)
		}
	default:
		s.pass(t)
	}
}

func (s *scenario) id() string { s.ids++; return fmt.Sprintf("t%05d", s.ids) }

// pass decides for some groups, takes some of it back, rolls back, and commits some of the decisions.
func (s *scenario) pass(t *testing.T) {
	before := s.a.dump()
	var commit []*cluster.Task
	for range 1 + s.r.IntN(3) {
		tmpl := pick(s.r, s.services...)
		if s.r.IntN(6) == 0 {
			c := *tmpl
			c.ID, c.Slot, c.NodeID = s.id(), 0, s.anyNode()
			got, gotWhy := s.a.Check(&c, c.NodeID, s.now)
			want, wantWhy := s.w.check(&c, c.NodeID, s.now)
			if diff := gocmp.Diff(want, got); diff != "" || gotWhy != wantWhy {
				t.Fatalf("check differs: %q, want %q (-want +got):\n%s", gotWhy, wantWhy, diff)
			}
			if gotWhy == "" {
				c.GenericResources, c.Status.State = got.GenericResources, swarm.TaskStateAssigned
				commit = append(commit, &c)
			}
			continue
		}
		n := s.r.IntN(12)
		if s.r.IntN(10) == 0 {
			n = s.r.IntN(4 * s.many)
		}
		want, why := s.w.place(tmpl, n, s.now)
		res := s.a.Place(Group{tmpl, n}, s.now)
		if diff := gocmp.Diff(want, res.Placements); diff != "" {
			t.Fatalf("placing %d of %s differs (-want +got):\n%s", n, tmpl.ServiceID, diff)
		}
		if res.Explanation != why {
			t.Fatalf("placing %d of %s: %q, want %q", n, tmpl.ServiceID, res.Explanation, why)
		}
		if k := s.r.IntN(2*len(res.Placements) + 1); k < len(res.Placements) { // the others find no address
			s.a.Unbook(res.Placements[k:])
			s.w.booked = s.w.booked[:len(s.w.booked)-len(res.Placements)+k]
			res.Placements = res.Placements[:k]
		}
		for _, p := range res.Placements {
			c := *tmpl
			c.ID, c.NodeID, c.GenericResources, c.Status.State = s.id(), p.NodeID, p.GenericResources, swarm.TaskStateAssigned
			commit = append(commit, &c)
		}
		s.explain(t, tmpl)
	}
	s.a.verify(t)
	s.a.Rollback()
	s.w.booked = nil
	if diff := gocmp.Diff(before, s.a.dump()); diff != "" {
		t.Fatalf("rollback left a difference (-before +after):\n%s", diff)
	}
	for _, c := range commit {
		if s.r.IntN(8) > 0 {
			pending := *c
			pending.Status.State = swarm.TaskStatePending
			if c.Slot != 0 {
				pending.NodeID = ""
			}
			s.setTask(nil, &pending)
			s.setTask(&pending, c)
		}
	}
}

// explain checks that the full form says what placing does.
func (s *scenario) explain(t *testing.T, tmpl *cluster.Task) {
	before := s.a.dump()
	d := s.a.Explain(tmpl, s.now)
	if diff := gocmp.Diff(before, s.a.dump()); diff != "" {
		t.Fatalf("explaining left a difference (-before +after):\n%s", diff)
	}
	booked := len(s.w.booked)
	want, why := s.w.place(tmpl, 1, s.now)
	s.w.booked = s.w.booked[:booked]
	if why != d.Explanation {
		t.Fatalf("explained %q, want %q", d.Explanation, why)
	}
	for _, row := range d.Table {
		n := s.w.nodes[row.NodeID]
		x := s.w.node(n, tmpl, s.now)
		f := x.first(tmpl)
		if row.Fits != (f == 0) || row.ServiceTasks != x.service || row.ActiveTasks != x.total || row.RecentFailures != x.failures {
			t.Fatalf("row of %s is %+v, but first failing filter is %v of %+v", row.NodeID, row, f, x)
		}
		if row.Winner != (len(want) == 1 && want[0].NodeID == row.NodeID) {
			t.Fatalf("row of %s: winner=%t, placed %v", row.NodeID, row.Winner, want)
		}
		first := filterNone
		for _, v := range row.Filters {
			if !v.Passed && first == filterNone {
				first = v.Filter
			}
			if v.Detail == "" {
				t.Fatalf("row of %s: filter %s says nothing", row.NodeID, v.Filter)
			}
		}
		if first != f {
			t.Fatalf("row of %s: first failing filter in words is %s, should be %s: %+v", row.NodeID, first, f, row.Filters)
		}
	}
	if len(d.Table) != len(s.w.nodes) || d.Why == "" {
		t.Fatalf("explained %d of %d nodes, why %q", len(d.Table), len(s.w.nodes), d.Why)
	}
}

// TestAgainstTwin holds the fast algorithm to the slow obvious one, placement by placement and word by word.
func TestAgainstTwin(t *testing.T) {
	n := *seeds
	if testing.Short() {
		n /= 10
	}
	for seed := *fromSeed; seed < *fromSeed+uint64(n); seed++ {
		s := newScenario(rand.New(rand.NewPCG(seed, 1)), 14)
		if seed%20 == 0 {
			s.many = 80 // services on most nodes are kept differently
		}
		ok := t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			for i := range 2 + s.r.IntN(5) {
				s.services = append(s.services, s.template(fmt.Sprint("s", i)))
			}
			for i := range s.r.IntN(s.many) {
				s.setNode(s.node(fmt.Sprintf("n%02d", i)))
			}
			for range 25 {
				s.step(t)
			}
			s.rebuilt(t)
		})
		if !ok {
			t.Fatalf("seed %d failed; run with -seed %d -seeds 1", seed, seed)
		}
	}
}

// rebuilt checks that the accounts hold nothing but what the nodes and tasks that exist account for.
func (s *scenario) rebuilt(t *testing.T) {
	fresh := New()
	for _, id := range slices.Sorted(maps.Keys(s.w.tasks)) {
		fresh.SetTask(nil, s.w.tasks[id])
	}
	for _, n := range s.w.nodes {
		fresh.SetNode(n)
	}
	fresh.failures, s.a.failures = nil, nil // a record of events, not of what exists
	if diff := gocmp.Diff(fresh.dump(), s.a.dump()); diff != "" {
		t.Errorf("accounts differ from those made anew (-anew +kept):\n%s", diff)
	}
}
