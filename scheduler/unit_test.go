package scheduler

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"github.com/docker/docker/api/types/swarm"
	"github.com/google/go-cmp/cmp"
	"github.com/miniswarm/miniswarm/cluster"
)

func TestParseConstraints(t *testing.T) {
	for _, tt := range []struct {
		in, want, err string
	}{
		{in: "node.labels.zone==a", want: "node.labels.zone==a"},
		{in: " node.role !=  manager ", want: "node.role!=manager"},
		{in: "a_b-c.d9 == x:1-2_3 4.*(5)?+[6]\\^$|/", want: "a_b-c.d9==x:1-2_3 4.*(5)?+[6]\\^$|/"},
		{in: "_x==1", want: "_x==1"},
		{in: "a.b==c!=d", err: "value 'c!=d' is invalid"},
		{in: "a.b!=c==d", err: "key 'a.b!=c' is invalid"},
		{in: "node.id", err: "constraint expected one operator from ==, !="},
		{in: "", err: "constraint expected one operator from ==, !="},
		{in: "node.id=x", err: "constraint expected one operator from ==, !="},
		{in: "==x", err: "key '' is invalid"},
		{in: "x==y", err: "key 'x' is invalid"},
		{in: "1a==y", err: "key '1a' is invalid"},
		{in: "no de==y", err: "key 'no de' is invalid"},
		{in: "node.id==", err: "value '' is invalid"},
		{in: "node.id==a>b", err: "value 'a>b' is invalid"},
		{in: "node.id==zoë", err: "value 'zoë' is invalid"},
	} {
		cs, err := ParseConstraints([]string{tt.in})
		got, gotErr := "", ""
		if err != nil {
			gotErr = err.Error()
		} else {
			got = cs[0].String()
		}
		if got != tt.want || gotErr != tt.err {
			t.Errorf("ParseConstraints(%q) = %q, %q; want %q, %q", tt.in, got, gotErr, tt.want, tt.err)
		}
	}
}

func TestMeetsConstraints(t *testing.T) {
	n := newNode("theid")
	n.Role = swarm.NodeRoleManager
	n.Spec.Role = swarm.NodeRoleWorker // the wish, which nobody asks
	n.Status.Addr = "10.1.2.3"
	n.Spec.Labels = map[string]string{"Zone": "A"}
	n.Description.Hostname = "Host"
	n.Description.Platform = swarm.Platform{OS: "linux", Architecture: "x86_64"}
	n.Description.Engine.Labels = map[string]string{"disk": "ssd"}
	v6 := newNode("six")
	v6.Status.Addr = "2001:db8::2"
	bare := &cluster.Node{}
	for _, tt := range []struct {
		constraint string
		node       *cluster.Node
		want       bool
	}{
		{"node.id==THEID", n, true},
		{"node.id!=theid", n, false},
		{"NODE.hostname==host", n, true},
		{"node.hostname==hos", n, false},
		{"node.hostname!=x", bare, true},
		{"node.role==manager", n, true},
		{"node.role==worker", n, false},
		{"node.platform.os==Linux", n, true},
		{"node.platform.arch==x86_64", n, true},
		{"node.platform.arch==amd64", n, false},
		{"node.labels.Zone==a", n, true},
		{"Node.Labels.Zone==a", n, true},
		{"node.labels.zone==a", n, false}, // the label's own name keeps its case
		{"node.labels.zone!=a", n, true},
		{"node.labels.==a", n, false},
		{"node.labels.x!=a", bare, true},
		{"engine.labels.disk==ssd", n, true},
		{"engine.labels.disk!=ssd", n, false},
		{"engine.labels.disk==ssd", bare, false},
		{"node.ip==10.1.2.3", n, true},
		{"node.ip!=10.1.2.3", n, false},
		{"node.ip==10.1.0.0/16", n, true},
		{"node.ip==10.1.99.99/16", n, true},
		{"node.ip!=10.2.0.0/16", n, true},
		{"node.ip==10.2.0.0/16", n, false},
		{"node.ip==2001:db8::2", v6, true},
		{"node.ip==2001:db8::/32", v6, true},
		{"node.ip==10.1.2.300", n, false},
		{"node.ip!=10.1.2.300", n, false}, // malformed never matches
		{"node.ip!=10.1.2.3", bare, true},
		{"node.ip==10.0.0.0/8", bare, false},
		{"node.color==red", n, false},
		{"node.color!=red", n, false}, // nor does what is not known
		{"not a constraint", n, true}, // held back by the API, not here
	} {
		if got := New().MeetsConstraints([]string{tt.constraint}, tt.node); got != tt.want {
			t.Errorf("%s on %s: %t, want %t", tt.constraint, tt.node.ID, got, tt.want)
		}
		cs, err := ParseConstraints([]string{tt.constraint})
		if err == nil && !tt.want && cs[0].explain(tt.node) == "" {
			t.Errorf("%s says nothing", tt.constraint)
		}
	}
	a := New()
	if !a.MeetsConstraints(nil, n) || !a.MeetsConstraints([]string{"node.id==theid", "node.role==manager"}, n) ||
		a.MeetsConstraints([]string{"node.id==theid", "node.role==worker"}, n) {
		t.Error("constraints are not all asked for")
	}
}

func TestFilterText(t *testing.T) {
	for f := filterNone + 1; f < filterCount; f++ {
		b, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		var back Filter
		if err := json.Unmarshal(b, &back); err != nil || back != f {
			t.Errorf("%s came back as %s, %v", b, back, err)
		}
	}
	var f Filter
	if err := f.UnmarshalText([]byte("colour")); err == nil {
		t.Error("an unknown filter was accepted")
	}
	if got := Filter(99).String() + filterNone.words(1); got != "filter(99)" {
		t.Error(got)
	}
}

func TestSize(t *testing.T) {
	for bytes, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 512 << 20: "512 MiB", -1 << 30: "-1 GiB",
		3 << 40: "3 TiB", 5000 << 40: "5000 TiB"} {
		if got := size(bytes); got != want {
			t.Errorf("size(%d) = %q, want %q", bytes, got, want)
		}
	}
	// Where rounding would hide the difference, the bytes are shown.
	n := newNode("a")
	n.Description.Resources.MemoryBytes = 1<<30 - 1
	task := newTask("s", "t", "")
	task.Spec.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{MemoryBytes: 1 << 30}}
	a := New()
	a.SetNode(n)
	d := a.Explain(task, t0)
	if got, want := d.Table[0].Filters[1].Detail, "needs 1073741824, 1073741823 free"; got != want {
		t.Errorf("detail %q, want %q", got, want)
	}
}

func TestGenericCornerCases(t *testing.T) {
	named := func(kind, value string) swarm.GenericResource {
		return swarm.GenericResource{NamedResourceSpec: &swarm.NamedGenericResource{Kind: kind, Value: value}}
	}
	count := func(kind string, n int64) swarm.GenericResource {
		return swarm.GenericResource{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: kind, Value: n}}
	}
	for _, tt := range []struct {
		name string
		have []swarm.GenericResource
		want []swarm.GenericResource
		fits int // tasks
	}{
		{"asked by name", []swarm.GenericResource{named("gpu", "a")}, []swarm.GenericResource{named("gpu", "a")}, 0},
		{"asked twice", []swarm.GenericResource{count("gpu", 4)}, []swarm.GenericResource{count("gpu", 1), count("gpu", 1)}, 2},
		{"nothing of what is there", []swarm.GenericResource{count("gpu", 4)}, []swarm.GenericResource{count("gpu", 0)}, 5},
		{"nothing of what is not there", nil, []swarm.GenericResource{count("gpu", 0)}, 0},
		{"names, the second time the same", []swarm.GenericResource{named("gpu", "a"), named("gpu", "a"), named("gpu", "b")},
			[]swarm.GenericResource{count("gpu", 1)}, 2},
		{"both kinds, the first decides", []swarm.GenericResource{count("gpu", 1), named("gpu", "a"), named("gpu", "b")},
			[]swarm.GenericResource{count("gpu", 1)}, 1},
		{"both kinds, names first", []swarm.GenericResource{named("gpu", "a"), count("gpu", 5)},
			[]swarm.GenericResource{count("gpu", 1)}, 1},
		{"an empty entry", []swarm.GenericResource{{}, count("gpu", 1)}, []swarm.GenericResource{count("gpu", 1)}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode("a")
			n.Description.Resources.GenericResources = tt.have
			task := newTask("s", "t", "")
			task.Spec.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{GenericResources: tt.want}}
			a := New()
			a.SetNode(n)
			if got := len(a.Place(Group{task, 5}, t0).Placements); got != tt.fits {
				t.Errorf("%d tasks fit, want %d", got, tt.fits)
			}
			a.Rollback()
			if d := a.Explain(task, t0); d.Table[0].Fits != (tt.fits > 0) {
				t.Errorf("explained as %+v", d.Table[0])
			}
		})
	}
}

func TestHostPorts(t *testing.T) {
	web := func(proto swarm.PortConfigProtocol, mode swarm.PortConfigPublishMode, port uint32) *cluster.Task {
		t := newTask("web", "t", "")
		t.Endpoint = &swarm.Endpoint{Ports: []swarm.PortConfig{{Protocol: proto, PublishMode: mode, PublishedPort: port}}}
		return t
	}
	host, tcp := swarm.PortConfigPublishModeHost, swarm.PortConfigProtocolTCP
	a := New()
	a.SetNode(newNode("a"))
	on := func(t *cluster.Task, id string) *cluster.Task {
		c := *t
		c.ID, c.NodeID, c.Status.State = id, "a", swarm.TaskStateRunning
		return &c
	}
	first, second := on(web(tcp, host, 80), "t1"), on(web("", host, 80), "t2")
	a.SetTask(nil, first)
	a.SetTask(nil, second)
	for _, tt := range []struct {
		what string
		task *cluster.Task
		fits bool
	}{
		{"the same port", web(tcp, host, 80), false},
		{"no protocol means tcp", web("", host, 80), false},
		{"another protocol", web(swarm.PortConfigProtocolUDP, host, 80), true},
		{"another port", web(tcp, host, 81), true},
		{"a port of the mesh", web(tcp, swarm.PortConfigPublishModeIngress, 80), true},
		{"a port to be chosen by the engine", web(tcp, host, 0), true},
	} {
		if _, why := a.Check(tt.task, "a", t0); (why == "") != tt.fits {
			t.Errorf("%s: %q", tt.what, why)
		}
		a.Rollback()
	}
	// Swarm would free the port with the first of the two that leaves.
	a.SetTask(first, nil)
	if _, why := a.Check(web(tcp, host, 80), "a", t0); why == "" {
		t.Error("the port of a running task was given away")
	}
	a.SetTask(second, nil)
	if _, why := a.Check(web(tcp, host, 80), "a", t0); why != "" {
		t.Errorf("a free port is %s", why)
	}
	d := a.Explain(web(tcp, host, 80), t0)
	if got, want := d.Table[0].Filters[1].Detail, "host port 80/tcp held by service web task t"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestPlugins(t *testing.T) {
	task := newTask("s", "t", "")
	task.NetworksAttachments = []swarm.NetworkAttachment{
		{Network: swarm.Network{DriverState: swarm.Driver{Name: "overlay"}}},
		{Network: swarm.Network{DriverState: swarm.Driver{Name: "weave"}}},
		{Network: swarm.Network{}},
	}
	task.Spec.LogDriver = &swarm.Driver{Name: "gelf"}
	for _, tt := range []struct {
		what    string
		version string
		plugins []swarm.PluginDescription
		fits    bool
	}{
		{"an engine that says nothing of itself", "", nil, true},
		{"no plugins", "28", nil, false},
		{"the network, and no log plugins known", "28", []swarm.PluginDescription{{Type: "Network", Name: "weave:latest"}}, true},
		{"the network, but another log driver", "28", []swarm.PluginDescription{{Type: "Network", Name: "weave"}, {Type: "Log", Name: "x"}}, false},
		{"a name that only begins alike", "28", []swarm.PluginDescription{{Type: "Network", Name: "weave2"}}, false},
		{"another kind of plugin", "28", []swarm.PluginDescription{{Type: "Volume", Name: "weave"}}, false},
	} {
		n := newNode("a")
		n.Description.Engine.EngineVersion, n.Description.Engine.Plugins = tt.version, tt.plugins
		a := New()
		a.SetNode(n)
		if _, why := a.Check(task, "a", t0); (why == "") != tt.fits {
			t.Errorf("%s: %q", tt.what, why)
		}
	}
}

func TestBitset(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, size := range []int{1, 63, 64, 65, 5000, 70_000} {
		b, want := newBitset(size), map[int32]bool{}
		for range 200 {
			i := int32(r.IntN(size))
			if r.IntN(3) == 0 {
				b.remove(i)
				delete(want, i)
			} else {
				b.add(i)
				want[i] = true
			}
		}
		var got []int32
		for i := b.next(0); i >= 0; i = b.next(i + 1) {
			got = append(got, i)
		}
		for _, i := range got {
			if !want[i] {
				t.Errorf("size %d: %d is no member", size, i)
			}
		}
		if len(got) != len(want) || b.n != len(want) || !slices.IsSorted(got) {
			t.Errorf("size %d: walked %d of %d members, counted %d", size, len(got), len(want), b.n)
		}
	}
}

// TestLevelService compares with the twin where a service runs on most nodes: level, level but for a few, and uneven.
func TestLevelService(t *testing.T) {
	for seed := range uint64(30) {
		s := newScenario(rand.New(rand.NewPCG(seed, 2)), 90)
		tmpl := s.template("s")
		s.services = []*cluster.Task{tmpl}
		for i := range 90 {
			s.setNode(s.node(fmt.Sprintf("n%02d", i)))
		}
		spread := []int{1, 2, 30}[seed%3]
		for id := range s.w.nodes {
			n := s.r.IntN(spread)
			if seed%2 == 0 {
				n++
			}
			if s.r.IntN(40) == 0 {
				n = max(0, n-1)
			}
			for range n {
				c := *tmpl
				c.Spec.Resources, c.Endpoint = nil, nil
				c.ID, c.NodeID, c.Status.State = s.id(), id, swarm.TaskStateRunning
				s.setTask(nil, &c)
			}
		}
		for range 4 {
			s.pass(t)
		}
	}
}

// TestManyViews has more placements than views are kept.
func TestManyViews(t *testing.T) {
	a := New()
	for i := range 3 * maxViews {
		n := newNode(fmt.Sprint("n", i))
		n.Spec.Labels = map[string]string{"own": strconv.Itoa(i)}
		a.SetNode(n)
	}
	for range 2 {
		for i := range 3 * maxViews {
			task := newTask("s", "t", "")
			task.Spec.Placement = &swarm.Placement{Constraints: []string{"node.labels.own==" + strconv.Itoa(i)}}
			res := a.Place(Group{task, 1}, t0)
			if diff := cmp.Diff([]Placement{{NodeID: fmt.Sprint("n", i)}}, res.Placements); diff != "" {
				t.Fatal(diff)
			}
			a.verify(t)
		}
	}
	if len(a.views) != maxViews {
		t.Errorf("%d views are kept, want %d", len(a.views), maxViews)
	}
	a.Rollback()
	a.verify(t)
}

// TestManyPending has more groups that fit nowhere than are remembered.
func TestManyPending(t *testing.T) {
	a := New()
	a.SetNode(newNode("a"))
	for range 2 {
		for i := range maxPending + 10 {
			task := newTask(fmt.Sprint("s", i), "t", "")
			task.Spec.Placement = &swarm.Placement{Constraints: []string{"node.id==b"}}
			res := a.Place(Group{task, 3}, t0)
			if want := "no suitable node (scheduling constraints not satisfied on 1 node)"; res.Explanation != want {
				t.Fatalf("%q, want %q", res.Explanation, want)
			}
		}
	}
	if len(a.pending) > maxPending {
		t.Errorf("%d groups are remembered", len(a.pending))
	}
	// More changes than are remembered.
	for range changeLog + 1 {
		task := newTask("x", "x", "a")
		a.SetTask(nil, task)
		a.SetTask(task, nil)
	}
	a.SetNode(newNode("b"))
	task := newTask("s70", "t", "")
	task.Spec.Placement = &swarm.Placement{Constraints: []string{"node.id==b"}}
	if res := a.Place(Group{task, 1}, t0); len(res.Placements) != 1 {
		t.Error(res.Explanation)
	}
}

// TestSmallDecision has more winners than the small form names.
func TestSmallDecision(t *testing.T) {
	a := New()
	for i := range 20 {
		a.SetNode(newNode(fmt.Sprintf("n%02d", i)))
	}
	a.SetIndex(7)
	d := a.Place(Group{newTask("web", "t", ""), 15}, t0).Decision
	want := `service web: 15 of 15 placed, from the state at index 7
20 nodes, 16 examined
winner n00 +1: 0 of the service, 0 in all
winner n01 +1: 0 of the service, 0 in all
winner n02 +1: 0 of the service, 0 in all
winner n03 +1: 0 of the service, 0 in all
winner n04 +1: 0 of the service, 0 in all
winner n05 +1: 0 of the service, 0 in all
winner n06 +1: 0 of the service, 0 in all
winner n07 +1: 0 of the service, 0 in all
and 7 more
runner-up n15: 0 of the service, 0 in all
`
	if diff := cmp.Diff(want, d.Text()); diff != "" {
		t.Error(diff)
	}
	if a.Booked() == 0 || a.Nodes() != 20 {
		t.Errorf("%d booked, %d nodes", a.Booked(), a.Nodes())
	}
	a.Rollback()
	if a.Booked() != 0 {
		t.Errorf("%d booked after rolling back", a.Booked())
	}
}

// TestFailuresAreForgotten checks that the record of failures does not grow for ever.
func TestFailuresAreForgotten(t *testing.T) {
	a := New()
	a.SetNode(newNode("a"))
	at := t0
	for i := range 1000 {
		task := newTask(fmt.Sprint("s", i), "t", "a")
		bad := *task
		bad.Status.State, bad.AppliedAt = swarm.TaskStateFailed, at
		bad.Status.Timestamp = at.AddDate(1, 0, 0) // the node's clock is a year ahead
		a.SetTask(nil, task)
		a.SetTask(task, &bad)
		a.SetTask(&bad, nil)
		at = at.Add(failureWindow / 10)
	}
	if len(a.failures) > 25 {
		t.Errorf("%d services are on record", len(a.failures))
	}
	if len(a.services) != 0 || a.byID["a"].tasks != 0 {
		t.Error("ended tasks still count")
	}
	global := newTask("g", "t", "a")
	global.Slot, global.Status.State = 0, swarm.TaskStateFailed
	a.SetTask(nil, global)
	if a.failures[versionOf(global)] != nil {
		t.Error("a global task's failure is on record")
	}
}
