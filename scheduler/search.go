package scheduler

// search finds the members of a leaf that pass all filters, best first, as they were before the group was placed. It
// walks no further than it is asked to.
//
// Members without recent failures come first, by how many tasks of the service they run: first those without any, by
// walking the leaf from the least loaded node on. Those with some are few, or, for a service that runs nearly
// everywhere, found by walking the leaf again for each number of tasks that occurs. Nodes where the service failed too
// often come last.
type search struct {
	p    *placement
	leaf *leaf

	// rounds are the numbers of the service's tasks to walk the leaf for, in ascending order; at is the present one.
	rounds []int32
	at     int
	walk   cursor
	// sorted are candidates that need no walking: the nodes of one round, or those with tasks of the service, or those
	// with failures.
	sorted ranking
	// own and failing are sources to be put into sorted when the rounds are over.
	own, failing ranking
}

// maxRounds is the number of rounds from which on it is cheaper to gather all nodes with tasks and sort them.
const maxRounds = 8

// rare says how many members there must be for each node of a round to pick the nodes instead of walking for them.
const rare = 16

// start prepares the search. own and failing have been filled where they need to be.
func (s *search) start() {
	s.rounds, s.at = append(s.rounds[:0], 0), 0
	if svc := s.p.service; svc != nil && svc.many != nil {
		for n, nodes := range svc.having {
			if nodes > 0 {
				s.rounds = append(s.rounds, int32(n))
			}
		}
		if len(s.rounds) > maxRounds {
			s.rounds = s.rounds[:1]
			s.gather()
		}
	}
	s.round()
}

// gather collects the leaf's nodes with tasks of the service.
func (s *search) gather() {
	for c := (cursor{leaf: s.leaf}); ; {
		nd := c.next()
		if nd == nil {
			break
		}
		if n := s.p.service.count(nd.slot); n > 0 && s.p.bad[nd.slot] == 0 {
			s.own = append(s.own, candidate{node: nd, service: n, total: nd.active})
		}
	}
}

// round begins to look for the nodes of the first of the rounds.
func (s *search) round() {
	s.walk = cursor{leaf: s.leaf}
	svc, n := s.p.service, s.rounds[s.at]
	if svc == nil || svc.many == nil || s.p.view.root.leaf == nil {
		return
	}
	nodes := len(s.p.a.order) - svc.nodes
	if n > 0 {
		nodes = int(svc.having[n])
	}
	if nodes*rare > len(s.leaf.nodes) {
		return
	}
	s.walk.leaf = nil
	svc.grow(len(s.p.a.slots))
	for slot, count := range svc.many {
		if nd := s.p.a.slots[slot]; count == n && nd != nil && s.p.view.where[slot].member() && s.p.bad[nd.slot] == 0 {
			s.sorted = append(s.sorted, candidate{node: nd, service: n, total: nd.active})
		}
	}
	s.sorted.init()
}

// step gives the next member that is not ruled out by nothing but the filters, and false at the end. The node of the
// candidate is nil for one that does not belong here.
func (s *search) step() (candidate, bool) {
	switch {
	case len(s.sorted) > 0:
		return s.sorted.pop(), true
	case s.walk.leaf != nil:
		if nd := s.walk.next(); nd == nil {
			s.walk.leaf = nil
		} else if n := s.rounds[s.at]; s.p.service.count(nd.slot) == n && s.p.bad[nd.slot] == 0 {
			return candidate{node: nd, service: n, total: nd.active}, true
		}
		return candidate{}, true
	case s.at+1 < len(s.rounds):
		s.at++
		s.round()
		return candidate{}, true
	case len(s.own) > 0:
		s.sorted, s.own = s.own, nil
	case len(s.failing) > 0:
		s.sorted, s.failing = s.failing, nil
	default:
		return candidate{}, false
	}
	s.sorted.init()
	return candidate{}, true
}

// next finds the next candidate. It looks at up to limit nodes.
func (s *search) next(limit int) (candidate, bool) {
	for ; limit > 0; limit-- {
		c, ok := s.step()
		if !ok {
			break
		}
		if c.node == nil {
			continue
		}
		s.p.examined++
		if c.room, c.first = s.p.room(c.node, c.service); c.room > 0 {
			return c, true
		}
		s.p.rejected[c.first]++
	}
	return candidate{}, false
}

// ranking is a heap of candidates, best first, whose rooms have not been computed yet.
type ranking []candidate

func (h ranking) init() {
	for i := len(h)/2 - 1; i >= 0; i-- {
		h.down(i)
	}
}

func (h ranking) down(i int) {
	for {
		best, l, r := i, 2*i+1, 2*i+2
		if l < len(h) && h[l].compareFully(&h[best]) < 0 {
			best = l
		}
		if r < len(h) && h[r].compareFully(&h[best]) < 0 {
			best = r
		}
		if best == i {
			return
		}
		h[i], h[best] = h[best], h[i]
		i = best
	}
}

func (h *ranking) pop() candidate {
	old := *h
	top := old[0]
	old[0] = old[len(old)-1]
	*h = old[:len(old)-1]
	h.down(0)
	return top
}
