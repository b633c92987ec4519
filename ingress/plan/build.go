package plan

import (
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
)

// Build computes the State that in asks for. prev is the State that was built
// before, or nil; it only decides the order of backends within a port, so that one
// backend that comes or goes changes one or two slots, and for which of several nodes
// a neighbour is taken that may be any of them.
//
// The error joins what had to be left out and why; the State is everything else
// and should be applied all the same.
func Build(in Input, prev *State) (State, error) {
	b := builder{in: in, port: in.VXLANPort}
	if b.port == 0 {
		b.port = DefaultVXLANPort
	}
	if !in.Self.Underlay.Is4() {
		return State{}, fmt.Errorf("node %s: data path address %v: only IPv4 is supported", in.Self.ID, in.Self.Underlay)
	}
	b.in.Peers = slices.SortedFunc(slices.Values(in.Peers), func(x, y Node) int { return cmp.Compare(x.ID, y.ID) })
	b.overlays()
	b.peers(prev)
	b.published(prev)
	b.virtuals(prev)
	b.sysctls()
	b.out.Sort()
	return b.out, errors.Join(b.errs...)
}

// builder gathers one State.
type builder struct {
	in      Input
	port    uint16
	out     State
	ingress *Overlay
	// segments are the devices that neighbours are reached by directly.
	segments []string
	errs     []error
}

func (b *builder) leaveOut(format string, args ...any) {
	b.errs = append(b.errs, fmt.Errorf(format, args...))
}

// overlays plans bridge and VXLAN device of each network and the entries that
// lead to its other nodes.
func (b *builder) overlays() {
	nets := slices.SortedFunc(slices.Values(b.in.Networks), func(x, y Network) int { return cmp.Compare(x.ID, y.ID) })
	inside := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	vni := map[uint32]string{}
	for _, n := range nets {
		gw, ok := b.in.Self.Gateways[n.ID]
		if err := checkNetwork(n, gw, ok); err != nil {
			b.leaveOut("network %s (%s) left out: %w", n.Name, n.ID, err)
			continue
		}
		if other, taken := vni[n.VNI]; taken {
			b.leaveOut("network %s (%s) left out: VNI %d is that of network %s", n.Name, n.ID, n.VNI, other)
			continue
		}
		vni[n.VNI] = n.ID
		o := Overlay{
			ID: n.ID, Name: n.Name, Bridge: BridgeName(n.ID), Device: VXLANName(n.ID),
			VNI: n.VNI, Local: b.in.Self.Underlay, Port: b.port, Subnet: n.Subnet.Masked(), Gateway: gw,
			MTU: cmp.Or(n.MTU, DefaultMTU), Internal: n.Internal, Ingress: n.Ingress,
		}
		if n.Ingress && b.ingress != nil {
			b.leaveOut("network %s (%s) is not used for published ports: %s is the ingress network already", n.Name, n.ID, b.ingress.Name)
			o.Ingress = false
		}
		if o.Ingress {
			o.MAC = GatewayMAC(gw)
			b.ingress = &o
		}
		b.out.Overlays = append(b.out.Overlays, o)
		inside = append(inside, o.Subnet)
		b.neighbours(o)
	}
	b.out.Table.Inside = disjoint(inside)
}

func checkNetwork(n Network, gw netip.Addr, ok bool) error {
	switch {
	case n.ID == "":
		return errors.New("it has no id")
	case n.VNI == 0 || n.VNI >= 1<<24:
		return fmt.Errorf("VNI %d is outside 1..%d", n.VNI, 1<<24-1)
	case !n.Subnet.Addr().Is4():
		return fmt.Errorf("subnet %v: only IPv4 is supported", n.Subnet)
	case !ok:
		return errors.New("this node has no address in it")
	case !n.Subnet.Contains(gw):
		return fmt.Errorf("this node's address %v is outside subnet %v", gw, n.Subnet)
	case n.Ingress && n.Subnet.Bits() < 10:
		return fmt.Errorf("subnet %v of the ingress network is larger than a /10", n.Subnet)
	}
	return nil
}

// neighbours plans the ways from one overlay to the nodes that take part in it.
// Dead peers keep theirs: being cut off from the manager is no reason to drop what
// a peer sends, and the way costs nothing.
func (b *builder) neighbours(o Overlay) {
	flooded := map[netip.Addr]bool{}
	for _, p := range b.in.Peers {
		gw, ok := p.Gateways[o.ID]
		if !ok || !o.Subnet.Contains(gw) || !p.Underlay.Is4() || p.Underlay == b.in.Self.Underlay {
			continue // a daemon beside us on this machine has no data path of its own
		}
		if !o.Ingress {
			if !flooded[p.Underlay] { // two daemons on one machine are one place to send to
				flooded[p.Underlay] = true
				b.out.Forwards = append(b.out.Forwards, Forward{Device: o.Device, Peer: p.Underlay})
			}
			continue
		}
		mac := GatewayMAC(gw)
		b.out.Forwards = append(b.out.Forwards, Forward{Device: o.Device, MAC: mac, Peer: p.Underlay})
		b.out.Neighbors = append(b.out.Neighbors, Neighbor{Device: o.Device, Addr: gw, MAC: mac})
	}
}

// peers plans how each peer is recognised as an entry node and how replies find
// back to it.
func (b *builder) peers(prev *State) {
	if b.ingress == nil {
		return
	}
	b.out.Table.Base = Base{Ingress: b.ingress.Subnet, Bridge: b.ingress.Bridge, Source: b.in.Self.Underlay, VXLANPort: b.port}
	b.out.Table.Guarded = append(b.out.Table.Guarded, b.ingress.Device)
	for _, o := range b.out.Overlays {
		b.out.Table.Guarded = append(b.out.Table.Guarded, o.Bridge)
	}
	taken := b.taken(prev)
	for _, p := range b.in.Peers {
		gw, ok := p.Gateways[b.ingress.ID]
		if !ok || !b.ingress.Subnet.Contains(gw) {
			continue
		}
		mark := MarkServing | hostBits(gw, b.ingress.Subnet)
		b.wayBack(PeerMark{Device: b.ingress.Device, MAC: GatewayMAC(gw), Mark: mark}, gw)
		if d := p.Direct; d != nil {
			// Only probes are addressed to a peer's own address on this network.
			b.out.Routes = append(b.out.Routes, Route{Table: MainTable, Dst: netip.PrefixFrom(gw, 32), Via: p.Underlay, Device: d.Device})
		}
		if d := p.Direct; d != nil && d.MAC != (MAC{}) {
			b.wayBack(PeerMark{Device: d.Device, MAC: d.MAC, Mark: mark | markDirect}, p.Underlay)
			// Replies find back by the mark of each that the machine may have been taken for.
			if taken[segmentMAC{d.Device, d.MAC}] != p.ID {
				b.out.Table.Peers = b.out.Table.Peers[:len(b.out.Table.Peers)-1]
			}
			if !slices.Contains(b.segments, d.Device) {
				b.segments = append(b.segments, d.Device)
				b.out.Table.Guarded = append(b.out.Table.Guarded, d.Device)
			}
		}
	}
	if len(b.out.Rules) > 0 {
		// Ordinary packets take one step past all peers' rules. So do those made
		// here: a VXLAN packet has the mark of the packet in it, and would go round
		// in circles.
		b.out.Rules = append(b.out.Rules,
			Rule{Priority: rulesBegin, Mask: MarkSideMask, Goto: rulesEnd},
			Rule{Priority: rulesBegin, FromHere: true, Goto: rulesEnd},
			Rule{Priority: rulesEnd})
	}
}

// wayBack plans the three parts of a reply's way: recognise the entry, route what
// is so marked by a table, and the table's only route.
func (b *builder) wayBack(m PeerMark, via netip.Addr) {
	b.out.Table.Peers = append(b.out.Table.Peers, m)
	b.out.Rules = append(b.out.Rules, Rule{Priority: rulesPeers, Mark: m.Mark, Mask: ^uint32(0), Table: m.Mark})
	b.out.Routes = append(b.out.Routes, Route{
		Table: m.Mark, Dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: via, Device: m.Device,
	})
}

// hostBits numbers a node by its address on the ingress network.
func hostBits(a netip.Addr, in netip.Prefix) uint32 {
	return number(a.As4()) & (1<<(32-in.Bits()) - 1) & markPeerMask
}

// published plans the ports and a host route to each backend on another node.
func (b *builder) published(prev *State) {
	owner := map[PortKey]string{}
	peers := map[string]*Node{}
	for i := range b.in.Peers {
		peers[b.in.Peers[i].ID] = &b.in.Peers[i]
	}
	before := map[PortKey][]netip.AddrPort{}
	if prev != nil {
		for _, p := range prev.Table.Ports {
			before[p.PortKey] = p.Backends
		}
	}
	sorted := slices.SortedFunc(slices.Values(b.in.Ports), func(x, y PublishedPort) int {
		return cmp.Or(cmp.Compare(x.ServiceID, y.ServiceID), cmp.Compare(x.Protocol, y.Protocol), cmp.Compare(x.Published, y.Published))
	})
	far := map[netip.Addr]*Node{}
	for _, p := range sorted {
		key := PortKey{Protocol: p.Protocol, Port: p.Published}
		switch {
		case b.ingress == nil:
			b.leaveOut("port %s of service %s left out: this node has no ingress network", key, p.Name)
			continue
		case p.Protocol != TCP && p.Protocol != UDP, p.Published == 0, p.Target == 0:
			b.leaveOut("port %s to %d of service %s left out: not a port the mesh can publish", key, p.Target, p.Name)
			continue
		case owner[key] != "":
			b.leaveOut("port %s of service %s left out: service %s publishes it already", key, p.Name, owner[key])
			continue
		}
		owner[key] = cmp.Or(p.Name, p.ServiceID)
		var serving []Backend
		for _, e := range p.Backends {
			if !b.ingress.Subnet.Contains(e.Addr) {
				b.leaveOut("task %s of service %s left out: address %v is not on the ingress network %v", e.TaskID, p.Name, e.Addr, b.ingress.Subnet)
				continue
			}
			peer, isPeer := peers[e.NodeID]
			if e.NodeID != b.in.Self.ID && !isPeer {
				continue // a node that has left the cluster serves no more
			}
			if isPeer {
				if _, ok := peer.Gateways[b.ingress.ID]; !ok {
					continue
				}
				far[e.Addr] = peer
			}
			if isPeer && !peer.Alive {
				continue
			}
			b.out.Backends = append(b.out.Backends, e.Addr)
			if !e.Draining {
				serving = append(serving, e)
			}
		}
		b.out.Table.Ports = append(b.out.Table.Ports, Port{PortKey: key, Backends: slots(b.in.Self.ID, serving, p.Target, before[key])})
	}
	b.out.Routes = slices.Grow(b.out.Routes, len(far))
	b.out.Table.Loops = make([]Loop, 0, len(far))
	for addr, peer := range far {
		// Routes stay for draining backends, whose connections go on.
		r := Route{Table: MainTable, Dst: netip.PrefixFrom(addr, 32), Via: peer.Gateways[b.ingress.ID], Device: b.ingress.Device}
		if d := peer.Direct; d != nil && d.Proven {
			r.Via, r.Device = peer.Underlay, d.Device
		}
		b.out.Routes = append(b.out.Routes, r)
		b.out.Table.Loops = append(b.out.Table.Loops, Loop{Src: peer.Underlay, Dst: addr})
	}
}

// slots orders backends. Those of before keep their slot as far as there are
// enough; a gap is filled from behind or by a new one. New ones come in an order that
// differs from node to node, so that nodes do not all send their first connection
// to the same replica.
func slots(self string, serving []Backend, target uint16, before []netip.AddrPort) []netip.AddrPort {
	now := make([]netip.AddrPort, 0, len(serving))
	for _, e := range serving {
		now = append(now, netip.AddrPortFrom(e.Addr, target))
	}
	waiting := newcomers(now, before)
	if len(waiting) == 0 && len(newcomers(before, now)) == 0 {
		return before // the usual case, for all ports but one
	}
	place := map[netip.AddrPort]uint64{} // differs from node to node
	for i, a := range now {
		if _, ok := waiting[a]; ok {
			h := fnv.New64a()
			h.Write([]byte(self + "/" + serving[i].TaskID))
			place[a] = h.Sum64()
		}
	}
	fresh := slices.SortedFunc(maps.Keys(place), func(x, y netip.AddrPort) int {
		return cmp.Or(cmp.Compare(place[x], place[y]), x.Compare(y))
	})
	current := map[netip.AddrPort]bool{}
	for _, a := range now {
		current[a] = true
	}
	out := make([]netip.AddrPort, len(current))
	var behind []netip.AddrPort
	for i, a := range before {
		switch {
		case !current[a]:
		case i < len(out):
			out[i] = a
		default:
			behind = append(behind, a)
		}
	}
	fill := append(behind, fresh...)
	for i := range out {
		if !out[i].IsValid() {
			out[i], fill = fill[0], fill[1:]
		}
	}
	return out
}

// newcomers are those of now that were not there before.
func newcomers(now, before []netip.AddrPort) map[netip.AddrPort]struct{} {
	const few = 32 // up to which looking through is quicker than a map
	there := func(a netip.AddrPort) bool { return slices.Contains(before, a) }
	if len(before) > few {
		known := make(map[netip.AddrPort]struct{}, len(before))
		for _, a := range before {
			known[a] = struct{}{}
		}
		there = func(a netip.AddrPort) bool { _, ok := known[a]; return ok }
	}
	var fresh map[netip.AddrPort]struct{}
	for _, a := range now {
		if !there(a) {
			if fresh == nil {
				fresh = map[netip.AddrPort]struct{}{}
			}
			fresh[a] = struct{}{}
		}
	}
	return fresh
}

// sysctls plans the kernel settings the ways above need.
func (b *builder) sysctls() {
	set := func(key, value string) { b.out.Sysctls = append(b.out.Sysctls, Sysctl{Key: key, Value: value}) }
	set("net/ipv4/ip_forward", "1")
	if len(b.out.Overlays) > 0 {
		// A device sends redirects if it or "all" says so. Devices of others keep
		// what they say themselves.
		set("net/ipv4/conf/all/send_redirects", "0")
	}
	for _, o := range b.out.Overlays {
		// A container answers from its address on the ingress network also where its
		// default route is by another one.
		set("net/ipv4/conf/"+o.Bridge+"/rp_filter", "0")
		set("net/ipv4/conf/"+o.Bridge+"/send_redirects", "0") // packets leave where they came from
		// A virtual address is every node's. Asking for somebody else's in its name would move it to this node.
		set("net/ipv4/conf/"+o.Bridge+"/arp_announce", "2")
		if o.Ingress {
			set("net/ipv4/conf/"+o.Device+"/rp_filter", "0") // clients from beyond the entry node
		}
	}
	for _, dev := range b.out.Table.Guarded {
		// 127.0.0.1 of this node as a client: packets leave by the ingress network, and
		// replies come by whatever network the container has its default route by.
		set("net/ipv4/conf/"+dev+"/route_localnet", "1")
	}
	for _, dev := range b.segments {
		set("net/ipv4/conf/"+dev+"/rp_filter", "2") // clients of the entry node may be elsewhere
		set("net/ipv4/conf/"+dev+"/send_redirects", "0")
	}
}

// disjoint drops prefixes that lie within another one.
func disjoint(ps []netip.Prefix) []netip.Prefix {
	ps = slices.Clone(ps)
	slices.SortFunc(ps, comparePrefix)
	var out []netip.Prefix
	for _, p := range ps {
		if len(out) == 0 || !out[len(out)-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}
