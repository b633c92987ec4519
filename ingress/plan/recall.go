package plan

// Recall finds what a former process knew of neighbours in what it left in the
// kernel: the marks of peers in the table, and the routes. Connections that arrived
// without VXLAN then still find back. The result is by node id.
func Recall(in Input, peers []PeerMark, routes []Route) map[string]Direct {
	var ingress *Network
	for i := range in.Networks {
		if in.Networks[i].Ingress {
			ingress = &in.Networks[i]
		}
	}
	known := map[string]Direct{}
	if ingress == nil {
		return known
	}
	for _, p := range in.Peers {
		gw, ok := p.Gateways[ingress.ID]
		if !ok || !ingress.Subnet.Contains(gw) {
			continue
		}
		mark := MarkServing | markDirect | hostBits(gw, ingress.Subnet)
		for _, m := range peers {
			if m.Mark != mark {
				continue
			}
			d := Direct{Device: m.Device, MAC: m.MAC}
			for _, r := range routes {
				if r.Table == MainTable && r.Via == p.Underlay && r.Device == d.Device && r.Dst.Addr() != gw {
					d.Proven = true
				}
			}
			known[p.ID] = d
		}
	}
	return known
}
