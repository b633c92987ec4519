package nft

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// world is a cluster in memory: for each node the state its kernel would have.
type world struct {
	t      *testing.T
	nodes  []plan.Node
	states map[string]plan.State
	rules  map[string]*Fake
}

const ingressID = "in"

func newWorld(t *testing.T, r *rand.Rand, nodes, replicas int) *world {
	w := &world{t: t, states: map[string]plan.State{}, rules: map[string]*Fake{}}
	for i := range nodes {
		n := plan.Node{ID: fmt.Sprintf("n%d", i), Alive: true, Underlay: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}),
			Gateways: map[string]netip.Addr{ingressID: netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})}}
		w.nodes = append(w.nodes, n)
	}
	var all []plan.Backend
	for i := range replicas {
		all = append(all, plan.Backend{TaskID: fmt.Sprint(i), NodeID: w.nodes[r.IntN(nodes)].ID, Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(100 + i)})})
	}
	// Some pairs of nodes are neighbours, some of them with proof.
	direct := map[[2]int]*plan.Direct{}
	for i := range nodes {
		for j := range nodes {
			if i != j && r.IntN(2) == 0 {
				direct[[2]int{i, j}] = &plan.Direct{Device: "eth0", MAC: plan.MAC{2, byte(j)}, Proven: r.IntN(2) == 0}
				direct[[2]int{j, i}] = &plan.Direct{Device: "eth0", MAC: plan.MAC{2, byte(i)}, Proven: r.IntN(2) == 0}
			}
		}
	}
	for i, self := range w.nodes {
		in := plan.Input{Self: self,
			Networks: []plan.Network{{ID: ingressID, Name: "ingress", VNI: 1, Subnet: netip.MustParsePrefix("10.0.0.0/24"), Ingress: true}},
			Ports:    []plan.PublishedPort{{ServiceID: "s", Name: "web", Protocol: plan.TCP, Published: 80, Target: 8000, Backends: all}}}
		for j, p := range w.nodes {
			if i != j {
				p.Direct = direct[[2]int{i, j}]
				in.Peers = append(in.Peers, p)
			}
		}
		state, err := plan.Build(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		w.states[self.ID], w.rules[self.ID] = state, &Fake{}
		if err := w.rules[self.ID].Apply(t.Context(), state.Table); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w *world) node(match func(plan.Node) bool) plan.Node {
	w.t.Helper()
	i := slices.IndexFunc(w.nodes, match)
	if i < 0 {
		w.t.Fatal("a packet went to a node that does not exist")
	}
	return w.nodes[i]
}

// hop follows a route from a node: the node it leads to, and as what the frame
// arrives there.
func (w *world) hop(from plan.Node, r plan.Route) (to plan.Node, device string, mac plan.MAC) {
	if r.Device == "eth0" {
		to = w.node(func(n plan.Node) bool { return n.Underlay == r.Via })
		i := slices.IndexFunc(w.nodes, func(n plan.Node) bool { return n.ID == from.ID })
		return to, "eth0", plan.MAC{2, byte(i)}
	}
	to = w.node(func(n plan.Node) bool { return n.Gateways[ingressID] == r.Via })
	return to, plan.VXLANName(ingressID), plan.GatewayMAC(from.Gateways[ingressID])
}

func route(s plan.State, table uint32, dst netip.Addr) (plan.Route, bool) {
	i := slices.IndexFunc(s.Routes, func(r plan.Route) bool { return r.Table == table && r.Dst.Contains(dst) })
	if i < 0 {
		return plan.Route{}, false
	}
	return s.Routes[i], true
}

// connect follows the first packet of a connection from client through entry and
// its reply back. It returns the backend and whom that saw.
func (w *world) connect(client netip.Addr, entry plan.Node) (backend, seen netip.Addr) {
	w.t.Helper()
	fate := w.rules[entry.ID].Walk(Packet{Device: "eth0", Protocol: plan.TCP, Src: client, Dst: netip.AddrPortFrom(entry.Underlay, 80), ToSelf: true})
	if fate.Verdict != Pass || fate.Mark != plan.MarkEntry || fate.Dst.Port() != 8000 {
		w.t.Fatalf("through %s: %+v", entry.ID, fate)
	}
	backend, seen = fate.Dst.Addr(), client
	r, far := route(w.states[entry.ID], plan.MainTable, backend)
	if fate.Masqueraded {
		seen = w.states[entry.ID].Table.Source
	}
	if !far {
		return backend, seen
	}
	serving, device, mac := w.hop(entry, r)
	if seen == serving.Underlay {
		w.t.Fatalf("%s would take its own address as coming from outside", serving.ID)
	}
	fate = w.rules[serving.ID].Walk(Packet{Device: device, MAC: mac, Protocol: plan.TCP, Src: seen, Dst: fate.Dst})
	if fate.Verdict != Pass || fate.Dst.Addr() != backend || fate.Masqueraded {
		w.t.Fatalf("at %s: %+v", serving.ID, fate)
	}
	mark := ReplyMark(fate.Mark)
	i := slices.IndexFunc(w.states[serving.ID].Rules, func(r plan.Rule) bool { return r.Mark == mark })
	if mark == 0 || i < 0 {
		w.t.Fatalf("%s does not lead replies for %s back to %s (mark %#x)", serving.ID, client, entry.ID, mark)
	}
	back, ok := route(w.states[serving.ID], w.states[serving.ID].Rules[i].Table, client)
	if to, _, _ := w.hop(serving, back); !ok || to.ID != entry.ID {
		w.t.Fatalf("%s leads replies to %s, not to the entry %s", serving.ID, to.ID, entry.ID)
	}
	return backend, seen
}

func TestEveryConnectionThroughEveryNodeFindsABackendAndBack(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		nodes, replicas := 1+r.IntN(8), 1+r.IntN(20)
		t.Run(fmt.Sprintf("seed %d: %d nodes, %d replicas", seed, nodes, replicas), func(t *testing.T) {
			w := newWorld(t, r, nodes, replicas)
			outside := netip.MustParseAddr("203.0.113.9")
			for _, entry := range w.nodes {
				answered := map[netip.Addr]int{}
				for range 3 * replicas {
					backend, seen := w.connect(outside, entry)
					if seen != outside {
						t.Fatalf("the client's address was lost through %s", entry.ID)
					}
					answered[backend]++
				}
				for b, n := range answered {
					if n != 3 {
						t.Errorf("through %s: %v answered %d of %d, want 3 each", entry.ID, b, n, 3*replicas)
					}
				}
				for _, client := range w.nodes { // nodes as clients, also of themselves
					for range replicas {
						w.connect(client.Underlay, entry)
					}
				}
			}
		})
	}
}

func TestWalkRefusesAndDrops(t *testing.T) {
	var f Fake
	table := sample()
	if err := f.Apply(t.Context(), table); err != nil {
		t.Fatal(err)
	}
	self := netip.MustParseAddr("192.0.2.1")
	for _, c := range []struct {
		name   string
		packet Packet
		want   Verdict
	}{
		{"a port that is not published", Packet{Device: "eth0", Protocol: plan.TCP, Dst: netip.AddrPortFrom(self, 22), ToSelf: true}, Pass},
		{"a port without backends", Packet{Device: "eth0", Protocol: plan.TCP, Dst: netip.AddrPortFrom(self, 81), ToSelf: true}, Refused},
		{"the middle of a connection nobody knows", Packet{Device: "eth0", Protocol: plan.TCP, Dst: netip.AddrPortFrom(self, 80), ToSelf: true, Established: true}, Refused},
		{"passing by", Packet{Device: "eth0", Protocol: plan.TCP, Dst: netip.MustParseAddrPort("198.51.100.1:80")}, Pass},
		{"a container addressed from outside", Packet{Device: "eth0", Protocol: plan.TCP, Dst: netip.MustParseAddrPort("10.0.0.11:22")}, Dropped},
		{"a container addressed by its neighbour", Packet{Device: "msb-ingress", Protocol: plan.TCP, Dst: netip.MustParseAddrPort("10.0.0.11:22")}, Pass},
		{"a container addressed by a peer", Packet{Device: "eth0", MAC: plan.MAC{2, 1, 2, 3, 4, 5}, Protocol: plan.TCP, Dst: netip.MustParseAddrPort("10.0.0.11:8000")}, Pass},
		{"loopback from outside", Packet{Device: "eth0", Protocol: plan.TCP, Dst: netip.MustParseAddrPort("127.0.0.1:80"), ToSelf: true}, Pass},
		{"loopback from a device where it is routed", Packet{Device: "msb-ingress", Protocol: plan.TCP, Dst: netip.MustParseAddrPort("127.0.0.1:80"), ToSelf: true}, Dropped},
	} {
		if got := f.Walk(c.packet).Verdict; got != c.want {
			t.Errorf("%s: verdict %d, want %d", c.name, got, c.want)
		}
	}
}
