package plan

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var byValue = cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{})}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func node(n int) Node {
	return Node{
		ID: fmt.Sprintf("node%d", n), Alive: true, Underlay: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}),
		Gateways: map[string]netip.Addr{"in": netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), "app": netip.AddrFrom4([4]byte{10, 0, 1, byte(n)})},
	}
}

func backend(task string, on int, a string) Backend {
	return Backend{TaskID: task, NodeID: fmt.Sprintf("node%d", on), Addr: addr(a)}
}

// three nodes, two networks, a service with a replica on node 1 and one on node 2.
func example() Input {
	return Input{
		Self:  node(1),
		Peers: []Node{node(2), node(3)},
		Networks: []Network{
			{ID: "in", Name: "ingress", VNI: 4096, Subnet: netip.MustParsePrefix("10.0.0.0/24"), Ingress: true},
			{ID: "app", Name: "app", VNI: 4097, Subnet: netip.MustParsePrefix("10.0.1.0/24"), MTU: 1400, Internal: true},
		},
		Ports: []PublishedPort{{
			ServiceID: "s1", Name: "web", Protocol: TCP, Published: 80, Target: 8000,
			Backends: []Backend{backend("t1", 1, "10.0.0.11"), backend("t2", 2, "10.0.0.12")},
		}},
	}
}

func build(t *testing.T, in Input, prev *State) State {
	t.Helper()
	s, err := Build(in, prev)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestBuild(t *testing.T) {
	got := build(t, example(), nil)
	in, app := "msb-in", "msb-app"
	mac := func(s string) MAC { return GatewayMAC(addr(s)) }
	want := State{
		Overlays: []Overlay{
			{ID: "app", Name: "app", Bridge: app, Device: "msv-app", VNI: 4097, Local: addr("192.0.2.1"), Port: 4789,
				Subnet: netip.MustParsePrefix("10.0.1.0/24"), Gateway: addr("10.0.1.1"), MTU: 1400, Internal: true},
			{ID: "in", Name: "ingress", Bridge: in, Device: "msv-in", VNI: 4096, Local: addr("192.0.2.1"), Port: 4789,
				Subnet: netip.MustParsePrefix("10.0.0.0/24"), Gateway: addr("10.0.0.1"), MAC: mac("10.0.0.1"), MTU: 1450, Ingress: true},
		},
		Forwards: []Forward{
			{Device: "msv-app", Peer: addr("192.0.2.2")}, {Device: "msv-app", Peer: addr("192.0.2.3")},
			{Device: "msv-in", MAC: mac("10.0.0.2"), Peer: addr("192.0.2.2")}, {Device: "msv-in", MAC: mac("10.0.0.3"), Peer: addr("192.0.2.3")},
		},
		Neighbors: []Neighbor{
			{Device: "msv-in", Addr: addr("10.0.0.2"), MAC: mac("10.0.0.2")}, {Device: "msv-in", Addr: addr("10.0.0.3"), MAC: mac("10.0.0.3")},
		},
		Routes: []Route{
			{Table: MainTable, Dst: netip.MustParsePrefix("10.0.0.12/32"), Via: addr("10.0.0.2"), Device: "msv-in"},
			{Table: MarkServing | 2, Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: addr("10.0.0.2"), Device: "msv-in"},
			{Table: MarkServing | 3, Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: addr("10.0.0.3"), Device: "msv-in"},
		},
		Rules: []Rule{
			{Priority: 4200, FromHere: true, Goto: 4202}, {Priority: 4200, Mask: MarkSideMask, Goto: 4202},
			{Priority: 4201, Mark: MarkServing | 2, Mask: 0xffffffff, Table: MarkServing | 2},
			{Priority: 4201, Mark: MarkServing | 3, Mask: 0xffffffff, Table: MarkServing | 3},
			{Priority: 4202},
		},
		Sysctls: []Sysctl{
			{"net/ipv4/conf/all/send_redirects", "0"},
			{"net/ipv4/conf/msb-app/arp_announce", "2"}, {"net/ipv4/conf/msb-app/route_localnet", "1"}, {"net/ipv4/conf/msb-app/rp_filter", "0"}, {"net/ipv4/conf/msb-app/send_redirects", "0"},
			{"net/ipv4/conf/msb-in/arp_announce", "2"}, {"net/ipv4/conf/msb-in/route_localnet", "1"}, {"net/ipv4/conf/msb-in/rp_filter", "0"}, {"net/ipv4/conf/msb-in/send_redirects", "0"},
			{"net/ipv4/conf/msv-in/route_localnet", "1"}, {"net/ipv4/conf/msv-in/rp_filter", "0"},
			{"net/ipv4/ip_forward", "1"},
		},
		Table: Table{
			Base:    Base{Ingress: netip.MustParsePrefix("10.0.0.0/24"), Bridge: in, Source: addr("192.0.2.1"), VXLANPort: 4789},
			Guarded: []string{app, in, "msv-in"},
			Inside:  []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("10.0.1.0/24"), netip.MustParsePrefix("127.0.0.0/8")},
			Loops:   []Loop{{Src: addr("192.0.2.2"), Dst: addr("10.0.0.12")}},
			Peers:   []PeerMark{{"msv-in", mac("10.0.0.2"), MarkServing | 2}, {"msv-in", mac("10.0.0.3"), MarkServing | 3}},
			Ports: []Port{{PortKey: PortKey{Protocol: TCP, Port: 80}, Backends: []netip.AddrPort{
				netip.MustParseAddrPort("10.0.0.12:8000"), netip.MustParseAddrPort("10.0.0.11:8000")}}},
		},
		Backends: []netip.Addr{addr("10.0.0.11"), addr("10.0.0.12")},
	}
	if d := cmp.Diff(want, got, byValue); d != "" {
		t.Errorf("state (-want +got):\n%s", d)
	}
}

func TestBuildDoesNotDependOnOrder(t *testing.T) {
	in := example()
	in.Ports = append(in.Ports, PublishedPort{ServiceID: "s2", Name: "dns", Protocol: UDP, Published: 53, Target: 53})
	want := build(t, in, nil)
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 0))
		r.Shuffle(len(in.Peers), func(i, j int) { in.Peers[i], in.Peers[j] = in.Peers[j], in.Peers[i] })
		r.Shuffle(len(in.Networks), func(i, j int) { in.Networks[i], in.Networks[j] = in.Networks[j], in.Networks[i] })
		r.Shuffle(len(in.Ports), func(i, j int) { in.Ports[i], in.Ports[j] = in.Ports[j], in.Ports[i] })
		for _, p := range in.Ports {
			r.Shuffle(len(p.Backends), func(i, j int) { p.Backends[i], p.Backends[j] = p.Backends[j], p.Backends[i] })
		}
		if got := build(t, in, nil); !reflect.DeepEqual(got, want) {
			t.Fatalf("seed %d: %s", seed, cmp.Diff(want, got, byValue))
		}
	}
}

func TestWhoIsServed(t *testing.T) {
	serving := func(s State) []string {
		var all []string
		for _, a := range s.Table.Ports[0].Backends {
			all = append(all, a.String())
		}
		slices.Sort(all)
		return all
	}
	for _, c := range []struct {
		name         string
		change       func(*Input)
		serving      []string
		connections  int // addresses that may keep theirs
		routedBackTo int // peers whose replies find back
	}{
		{"all well", func(*Input) {}, []string{"10.0.0.11:8000", "10.0.0.12:8000"}, 2, 2},
		{"draining takes no new connections", func(in *Input) { in.Ports[0].Backends[1].Draining = true }, []string{"10.0.0.11:8000"}, 2, 2},
		{"a dead node takes none and keeps none, but may still send", func(in *Input) { in.Peers[0].Alive = false }, []string{"10.0.0.11:8000"}, 1, 2},
		{"a node that left", func(in *Input) { in.Peers = in.Peers[1:] }, []string{"10.0.0.11:8000"}, 1, 1},
		{"a node that is not on the ingress network", func(in *Input) { delete(in.Peers[0].Gateways, "in") }, []string{"10.0.0.11:8000"}, 1, 1},
		{"nobody", func(in *Input) { in.Ports[0].Backends = nil }, nil, 0, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := example()
			c.change(&in)
			s := build(t, in, nil)
			if got := serving(s); !slices.Equal(got, c.serving) {
				t.Errorf("serving %v, want %v", got, c.serving)
			}
			if len(s.Backends) != c.connections || len(s.Table.Peers) != c.routedBackTo {
				t.Errorf("%d backends may keep connections and %d peers get replies, want %d and %d", len(s.Backends), len(s.Table.Peers), c.connections, c.routedBackTo)
			}
		})
	}
}

// Two daemons may share a machine: nothing that the kernel knows by the machine may be there twice.
func TestTwoPeersOnOneMachine(t *testing.T) {
	in := example()
	direct := &Direct{Device: "eth0", MAC: MAC{2, 0, 0, 0, 0, 9}, Proven: true}
	in.Peers[1].Underlay = in.Peers[0].Underlay
	in.Peers[0].Direct, in.Peers[1].Direct = direct, direct
	s := build(t, in, nil)
	keys := map[string]bool{}
	note := func(key string) {
		if keys[key] {
			t.Errorf("%s is there twice", key)
		}
		keys[key] = true
	}
	for _, p := range s.Table.Peers {
		note(fmt.Sprint("peer ", p.Device, p.MAC))
	}
	for _, l := range s.Table.Loops {
		note(fmt.Sprint("loop ", l))
	}
	for _, f := range s.Forwards {
		note(fmt.Sprint("forward ", f))
	}
	for _, r := range s.Routes {
		note(fmt.Sprint("route ", r.Table, r.Dst))
	}
	for _, r := range s.Rules {
		note(fmt.Sprint("rule ", r))
	}
	if n := len(s.Table.Peers); n != 3 { // each by its overlay address, and the machine by its own
		t.Errorf("%d ways to recognise a peer, want 3: %v", n, s.Table.Peers)
	}
}

// A neighbour that may be several nodes stays the one that it was, in whose zone its connections are, unless it is proven to be another,
// or it is dead and the other is new.
func TestForWhichNodeANeighbourIsTaken(t *testing.T) {
	const nobody, first, second = -1, 0, 1 // by their ids
	for _, c := range []struct {
		name   string
		before [2]*Direct // nil for a node that is not here yet
		after  [2]*Direct
		dead   [2]bool
		was    int
		is     int
	}{
		{"another takes a dead one's address", [2]*Direct{{MAC: MAC{1}}, {MAC: MAC{2}}}, [2]*Direct{{MAC: MAC{2}}, {MAC: MAC{2}}}, [2]bool{true, false}, second, second},
		{"the same, and it falls silent as well", [2]*Direct{{MAC: MAC{1}}, {MAC: MAC{2}}}, [2]*Direct{{MAC: MAC{2}}, {MAC: MAC{2}}}, [2]bool{true, true}, second, second},
		{"a new one has a dead one's address", [2]*Direct{{MAC: MAC{2}}, nil}, [2]*Direct{{MAC: MAC{2}}, {MAC: MAC{2}}}, [2]bool{true, false}, first, second},
		{"a dead one becomes known", [2]*Direct{nil, {MAC: MAC{2}}}, [2]*Direct{{MAC: MAC{2}}, {MAC: MAC{2}}}, [2]bool{true, false}, second, second},
		{"a second daemon comes", [2]*Direct{nil, {MAC: MAC{2}, Proven: true}}, [2]*Direct{{MAC: MAC{2}}, {MAC: MAC{2}, Proven: true}}, [2]bool{}, second, second},
		{"a second daemon comes before the first has answered", [2]*Direct{nil, {MAC: MAC{2}}}, [2]*Direct{{MAC: MAC{2}}, {MAC: MAC{2}}}, [2]bool{}, second, second},
		{"the first daemon stops", [2]*Direct{{MAC: MAC{2}, Proven: true}, {MAC: MAC{2}}}, [2]*Direct{{MAC: MAC{2}}, {MAC: MAC{2}}}, [2]bool{true, false}, first, first},
		{"the other is proven to be there", [2]*Direct{{MAC: MAC{2}, Proven: true}, {MAC: MAC{2}}}, [2]*Direct{{MAC: MAC{2}}, {MAC: MAC{2}, Proven: true}}, [2]bool{}, first, second},
		{"it was proven, and is no more", [2]*Direct{{MAC: MAC{2}}, {MAC: MAC{2}, Proven: true}}, [2]*Direct{{MAC: MAC{2}}, {MAC: MAC{2}}}, [2]bool{}, second, second},
		{"one has a dead one's address before its frames are known", [2]*Direct{{MAC: MAC{1}}, {MAC: MAC{1}}}, [2]*Direct{{MAC: MAC{2}}, {MAC: MAC{2}}}, [2]bool{true, false}, nobody, second},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := example()
			all := in.Peers[:2]
			plan := func(direct [2]*Direct, dead [2]bool, prev *State) State {
				in.Peers = nil
				for i, d := range direct {
					if d != nil {
						p := all[i]
						p.Direct, p.Alive = &Direct{Device: "eth0", MAC: d.MAC, Proven: d.Proven}, !dead[i]
						in.Peers = append(in.Peers, p)
					}
				}
				return build(t, in, prev)
			}
			check := func(when string, s State, want int) {
				if want == nobody {
					return
				}
				gw := all[want].Gateways["in"]
				mark := MarkServing | markDirect | hostBits(gw, netip.MustParsePrefix("10.0.0.0/24"))
				if at := slices.IndexFunc(s.Table.Peers, func(p PeerMark) bool { return p.MAC == MAC{2} }); at < 0 || s.Table.Peers[at].Mark != mark {
					t.Errorf("%s: not taken for %s: %v", when, all[want].ID, s.Table.Peers)
				}
			}
			before := plan(c.before, [2]bool{}, nil)
			check("before", before, c.was)
			after := plan(c.after, c.dead, &before)
			check("after", after, c.is)
			check("later", plan(c.after, c.dead, &after), c.is)
		})
	}
}

func TestWhatCannotBePlannedIsNamedAndTheRestIsPlanned(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Input)
		want   string
	}{
		{"no address in a network", func(in *Input) { delete(in.Self.Gateways, "app") }, "network app (app) left out: this node has no address in it"},
		{"an address outside", func(in *Input) { in.Self.Gateways["app"] = addr("10.9.9.9") }, "address 10.9.9.9 is outside subnet 10.0.1.0/24"},
		{"no VNI", func(in *Input) { in.Networks[1].VNI = 0 }, "VNI 0 is outside"},
		{"the same VNI", func(in *Input) { in.Networks[1].VNI = 4096 }, "VNI 4096 is that of network"},
		{"IPv6", func(in *Input) { in.Networks[1].Subnet = netip.MustParsePrefix("fd00::/64") }, "only IPv4"},
		{"two ingress networks", func(in *Input) { in.Networks[1].Ingress = true }, "is the ingress network already"},
		{"an ingress network too large to number its nodes", func(in *Input) { in.Networks[0].Subnet = netip.MustParsePrefix("10.0.0.0/8") }, "larger than a /10"},
		{"no ingress network", func(in *Input) { in.Networks[0].Ingress = false }, "port 80/tcp of service web left out: this node has no ingress network"},
		{"a protocol without ports", func(in *Input) { in.Ports[0].Protocol = 132 }, "not a port the mesh can publish"},
		{"one port for two services", func(in *Input) {
			in.Ports = append(in.Ports, PublishedPort{ServiceID: "s2", Name: "other", Protocol: TCP, Published: 80, Target: 1})
		}, "port 80/tcp of service other left out: service web publishes it already"},
		{"a replica elsewhere", func(in *Input) { in.Ports[0].Backends[0].Addr = addr("172.17.0.2") }, "task t1 of service web left out: address 172.17.0.2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := example()
			c.change(&in)
			s, err := Build(in, nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if len(s.Overlays) == 0 {
				t.Error("nothing was planned")
			}
		})
	}
	in := example()
	in.Self.Underlay = addr("fd00::1")
	if _, err := Build(in, nil); err == nil {
		t.Error("a node without an IPv4 address was planned for")
	}
}

// One endpoint that comes, goes or moves is one or two slots, whatever came before.
func TestAChangeOfOneBackendIsASmallDiff(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	in := example()
	in.Ports[0].Backends = nil
	state := build(t, in, nil)
	for step := range 500 {
		b := in.Ports[0].Backends
		if len(b) > 0 && r.IntN(2) == 0 {
			i := r.IntN(len(b))
			in.Ports[0].Backends = slices.Delete(b, i, i+1)
		} else {
			in.Ports[0].Backends = append(b, backend(fmt.Sprintf("t%d", step), 1+r.IntN(3), fmt.Sprintf("10.0.0.%d", 10+step%240)))
		}
		next := build(t, in, &state)
		d := Compare(state, next)
		if n := len(d.Table.Ports); n != 1 {
			t.Fatalf("step %d: %d ports change", step, n)
		}
		if c := d.Table.Ports[0]; len(c.Set)+len(c.Cut) > 2 {
			t.Fatalf("step %d: %d slots change", step, len(c.Set)+len(c.Cut))
		}
		seen := map[netip.AddrPort]bool{}
		for _, a := range next.Table.Ports[0].Backends {
			if seen[a] || !a.IsValid() {
				t.Fatalf("step %d: slots %v", step, next.Table.Ports[0].Backends)
			}
			seen[a] = true
		}
		state = next
	}
}

func TestCompareLeadsFromOneStateToTheOther(t *testing.T) {
	from := build(t, example(), nil)
	if d := Compare(from, from); !d.Empty() {
		t.Errorf("a state differs from itself: %+v", d)
	}
	in := example()
	in.Peers[1].Underlay = addr("192.0.2.33")
	in.Peers[0].Direct = &Direct{Device: "eth0", MAC: MAC{2}, Proven: true}
	to := build(t, in, nil)
	d := Compare(from, to)
	if got := patch(from.Routes, d.Routes); !slices.Equal(got, sortedRoutes(to.Routes)) {
		t.Errorf("routes %v, want %v", got, to.Routes)
	}
	if d.Table.Rebuild || len(d.Table.Ports) != 0 {
		t.Errorf("the table's ports change without reason: %+v", d.Table)
	}
	in.Networks = in.Networks[1:]
	in.Ports = nil
	if d := Compare(from, build(t, in, nil)); !d.Table.Rebuild {
		t.Error("another ingress network must make the table anew")
	}
}

func patch(all []Route, c Change[Route]) []Route {
	all = slices.DeleteFunc(slices.Clone(all), func(r Route) bool { return slices.Contains(c.Del, r) })
	return sortedRoutes(append(all, c.Add...))
}

func sortedRoutes(r []Route) []Route { return sorted(slices.Clone(r), compareRoute) }

func TestRecallFindsWhatTheKernelHolds(t *testing.T) {
	in := example()
	want := map[string]Direct{
		"node2": {Device: "eth0", MAC: MAC{2, 2}, Proven: true}, // it has a backend, routed to directly
		"node3": {Device: "eth0", MAC: MAC{2, 3}},
	}
	for i, p := range in.Peers {
		d := want[p.ID]
		in.Peers[i].Direct = &d
	}
	s := build(t, in, nil)
	if got := Recall(example(), s.Table.Peers, s.Routes); !reflect.DeepEqual(got, want) {
		t.Errorf("recalled %v, want %v", got, want)
	}
	in = example()
	in.Networks = nil
	if got := Recall(in, s.Table.Peers, s.Routes); len(got) != 0 {
		t.Errorf("without an ingress network: %v", got)
	}
}

// What one changed endpoint costs among 1000 services of 10 replicas on 100 nodes:
//
//	go test -run xxx -bench Build ./ingress/plan
func BenchmarkBuildAndCompare(b *testing.B) {
	in := Input{Self: node(1), Networks: []Network{{ID: "in", Name: "ingress", VNI: 4096, Subnet: netip.MustParsePrefix("10.0.0.0/16"), Ingress: true}}}
	for i := range 99 {
		in.Peers = append(in.Peers, node(2+i))
	}
	for s := range 1000 {
		p := PublishedPort{ServiceID: fmt.Sprintf("s%04d", s), Name: "web", Protocol: TCP, Published: uint16(10000 + s), Target: 80}
		for r := range 10 {
			p.Backends = append(p.Backends, Backend{TaskID: fmt.Sprintf("t%d.%d", s, r), NodeID: fmt.Sprintf("node%d", 1+(s+r)%100),
				Addr: netip.AddrFrom4([4]byte{10, 0, byte(10 + s>>3), byte(s&7<<5 + r)})})
		}
		in.Ports = append(in.Ports, p)
	}
	state, err := Build(in, nil)
	if err != nil {
		b.Fatal(err)
	}
	n := 0
	for b.Loop() {
		n++
		in.Ports[500].Backends[3].Draining = n%2 == 1
		next, err := Build(in, &state)
		if err != nil {
			b.Fatal(err)
		}
		if d := Compare(state, next); len(d.Table.Ports) != 1 {
			b.Fatalf("%d ports change", len(d.Table.Ports))
		}
		state = next
	}
}

// A virtual address leads to the living replicas on its network; those that drain keep what they have, those that
// are elsewhere are no matter of ours.
func TestVirtuals(t *testing.T) {
	in := example()
	in.Peers[1].Alive = false
	draining := backend("t3", 2, "10.0.1.13")
	draining.Draining = true
	in.Virtuals = []Virtual{
		{ServiceID: "s1", Name: "web", NetworkID: "app", Addr: addr("10.0.1.50"), Backends: []Backend{
			backend("t1", 1, "10.0.1.11"), backend("t2", 2, "10.0.1.12"), draining, backend("t4", 3, "10.0.1.14"), backend("t5", 4, "10.0.1.15"), backend("t6", 1, "10.9.9.9"),
		}},
		{ServiceID: "s2", Name: "idle", NetworkID: "app", Addr: addr("10.0.1.51")},
		{ServiceID: "s3", Name: "elsewhere", NetworkID: "far", Addr: addr("10.0.2.50")},
		{ServiceID: "s4", Name: "front", NetworkID: "in", Addr: addr("10.0.0.50")},
	}
	got := build(t, in, nil)
	if d := cmp.Diff([]Address{{"msb-app", addr("10.0.1.50")}, {"msb-app", addr("10.0.1.51")}}, got.Addresses, byValue); d != "" {
		t.Errorf("addresses (-want +got):\n%s", d)
	}
	want := []Port{
		{PortKey: PortKey{Virtual: addr("10.0.1.50")}, Backends: got.Table.Virtuals[0].Backends},
		{PortKey: PortKey{Virtual: addr("10.0.1.51")}},
	}
	if d := cmp.Diff(want, got.Table.Virtuals, byValue); d != "" {
		t.Errorf("virtual addresses (-want +got):\n%s", d)
	}
	serving := slices.Clone(got.Table.Virtuals[0].Backends)
	slices.SortFunc(serving, netip.AddrPort.Compare)
	if d := cmp.Diff([]netip.AddrPort{netip.AddrPortFrom(addr("10.0.1.11"), 0), netip.AddrPortFrom(addr("10.0.1.12"), 0)}, serving, byValue); d != "" {
		t.Errorf("backends (-want +got):\n%s", d)
	}
	if !slices.Contains(got.Backends, addr("10.0.1.13")) || slices.Contains(got.Backends, addr("10.0.1.14")) {
		t.Errorf("connections are kept to %v", got.Backends)
	}
	for what, v := range map[string]Virtual{
		"is that of service web": {ServiceID: "t", Name: "thief", NetworkID: "app", Addr: addr("10.0.1.50")},
		"network app has":        {ServiceID: "t", Name: "stray", NetworkID: "app", Addr: addr("10.0.9.50")},
		"this node 10.0.1.1":     {ServiceID: "t", Name: "gateway", NetworkID: "app", Addr: addr("10.0.1.1")},
	} {
		bad := in
		bad.Virtuals = append(slices.Clone(in.Virtuals), v)
		state, err := Build(bad, nil)
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", v.Name, err)
		}
		if d := Compare(got, state); !d.Empty() {
			t.Errorf("%s changed something: %+v", v.Name, d)
		}
	}
	// One replica more changes one slot, and the address stays.
	in.Virtuals[0].Backends = append(in.Virtuals[0].Backends, backend("t7", 1, "10.0.1.17"))
	d := Compare(got, build(t, in, &got))
	if !d.Addresses.Empty() || len(d.Table.Virtuals) != 1 || len(d.Table.Virtuals[0].Set) != 1 || !d.Forwards.Empty() {
		t.Errorf("one more replica: %+v", d)
	}
}
