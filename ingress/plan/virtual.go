package plan

import (
	"cmp"
	"net/netip"
	"slices"
)

// virtuals plans the virtual addresses of services. Each is an address of the network's
// bridge on every node that takes part, so that a container finds it on its own
// node, whose rules then choose the replica. The replica sees the address of the
// client's node: client and replica share a segment, and an answer straight to the client
// would pass the translation by.
func (b *builder) virtuals(prev *State) {
	bridges := map[string]*Overlay{}
	for i := range b.out.Overlays {
		bridges[b.out.Overlays[i].ID] = &b.out.Overlays[i]
	}
	alive := map[string]bool{b.in.Self.ID: true}
	for _, p := range b.in.Peers {
		alive[p.ID] = p.Alive
	}
	before := map[netip.Addr][]netip.AddrPort{}
	if prev != nil {
		for _, v := range prev.Table.Virtuals {
			before[v.Virtual] = v.Backends
		}
	}
	sorted := slices.SortedFunc(slices.Values(b.in.Virtuals), func(x, y Virtual) int {
		return cmp.Or(cmp.Compare(x.ServiceID, y.ServiceID), cmp.Compare(x.NetworkID, y.NetworkID))
	})
	owner := map[netip.Addr]string{}
	for _, v := range sorted {
		o := bridges[v.NetworkID]
		switch {
		case o == nil || o.Ingress:
			continue // nobody here asks for it
		case !o.Subnet.Contains(v.Addr) || v.Addr == o.Gateway:
			b.leaveOut("virtual address %v of service %s left out: network %s has %v, this node %v", v.Addr, v.Name, o.Name, o.Subnet, o.Gateway)
			continue
		case owner[v.Addr] != "":
			b.leaveOut("virtual address %v of service %s left out: it is that of service %s", v.Addr, v.Name, owner[v.Addr])
			continue
		}
		owner[v.Addr] = cmp.Or(v.Name, v.ServiceID)
		var serving []Backend
		for _, e := range v.Backends {
			// A replica is reached by layer 2, as any container of the network is.
			if !alive[e.NodeID] || !o.Subnet.Contains(e.Addr) {
				continue
			}
			b.out.Backends = append(b.out.Backends, e.Addr)
			if !e.Draining {
				serving = append(serving, e)
			}
		}
		b.out.Addresses = append(b.out.Addresses, Address{Device: o.Bridge, Addr: v.Addr})
		b.out.Table.Virtuals = append(b.out.Table.Virtuals, Port{PortKey: PortKey{Virtual: v.Addr}, Backends: slots(b.in.Self.ID, serving, 0, before[v.Addr])})
	}
}
