package plan

// segmentMAC is a machine on a segment we share.
type segmentMAC struct {
	device string
	mac    MAC
}

// taken says for which node each neighbour is taken. It may be several: two daemons on one machine, or a node and a dead one whose
// address it has now. Connections are kept apart by the node, so that a change ends those there are. There is one only to the
// node that a probe has found there, and, from one that is dead, to one that comes and so has no connections. Frames that were
// nobody's are rather those of a node that is alive, which may send some before a probe has found it there.
func (b *builder) taken(prev *State) map[segmentMAC]string {
	marks, known := map[segmentMAC]uint32{}, map[uint32]bool{}
	if prev != nil {
		for _, p := range prev.Table.Peers {
			marks[segmentMAC{p.Device, p.MAC}] = p.Mark
		}
		for _, r := range prev.Rules {
			known[r.Mark] = true
		}
	}
	taken, best := map[segmentMAC]string{}, map[segmentMAC]int{}
	for _, p := range b.in.Peers {
		gw, ok := p.Gateways[b.ingress.ID]
		if !ok || !b.ingress.Subnet.Contains(gw) || p.Direct == nil {
			continue
		}
		at, mark := segmentMAC{p.Direct.Device, p.Direct.MAC}, MarkServing|markDirect|hostBits(gw, b.ingress.Subnet)
		rank := 1
		switch former := marks[at] == mark; {
		case p.Direct.Proven && former:
			rank = 7
		case p.Direct.Proven:
			rank = 6
		case former && p.Alive:
			rank = 5
		case p.Alive && !known[mark]:
			rank = 4
		case former:
			rank = 3
		case p.Alive:
			rank = 2
		}
		if rank > best[at] {
			taken[at], best[at] = p.ID, rank
		}
	}
	return taken
}
