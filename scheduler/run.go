package scheduler

import (
	"cmp"
	"slices"
)

// candidate is a node that passes all filters, with what ranks it, as it changes while the group is placed.
type candidate struct {
	node *node
	// failures counts only from failureLimit on, service are the active tasks of this service, total all active tasks.
	failures, service, total int32
	// room is how many further tasks the node takes; first is the filter that fails then.
	room  int32
	first Filter
	// placed is how many tasks of the group the node got.
	placed int32
	// full says that the node was met again without room, which is counted once.
	full bool
}

// compare ranks two nodes; 0 means that Swarm would not care.
func (c *candidate) compare(o *candidate) int {
	if c.failures != o.failures {
		return cmp.Compare(c.failures, o.failures)
	}
	if c.service != o.service {
		return cmp.Compare(c.service, o.service)
	}
	return cmp.Compare(c.total, o.total)
}

// compareFully ranks two nodes and lets the id decide between equals.
func (c *candidate) compareFully(o *candidate) int {
	if r := c.compare(o); r != 0 {
		return r
	}
	return cmp.Compare(c.node.id, o.node.id)
}

// run is the placement of one group on one leaf. It finds candidates from the best on, only as far as they are needed.
type run struct {
	p    *placement
	leaf *leaf
	// cands are the candidates in use in the present visit, in the order they came into use. again are those that were
	// in use in an earlier visit and wait, best first, to be met again; spent are those among them that are full.
	cands, again, spent []candidate
	// ahead is a candidate that was found but not used yet.
	ahead     candidate
	hasAhead  bool
	search    search
	searching bool
	// ring holds the candidates that still take tasks in round robin.
	ring []int32
	// visits counts how often tasks were given to the leaf.
	visits int
}

// peek gives the best node that is not in use in this visit, nil if there is none.
func (r *run) peek() *candidate {
	if !r.searching {
		r.searching = true
		r.search.start()
	}
	if !r.hasAhead {
		r.ahead, r.hasAhead = r.search.next(unlimited)
	}
	switch {
	case len(r.again) > 0 && (!r.hasAhead || r.again[0].compareFully(&r.ahead) < 0):
		return &r.again[0]
	case r.hasAhead:
		return &r.ahead
	}
	return nil
}

// more puts the best node that is not in use into use. It reports whether there was one.
func (r *run) more() bool {
	if r.searching && !r.hasAhead && len(r.again) == 0 { // the usual case, without a detour
		c, ok := r.search.next(unlimited)
		if ok {
			r.cands = append(r.cands, c)
		}
		return ok
	}
	c := r.peek()
	if c == nil {
		return false
	}
	r.cands = append(r.cands, *c)
	if len(r.again) > 0 && c == &r.again[0] {
		r.again = r.again[1:]
	} else {
		r.hasAhead = false
	}
	return true
}

// revisit ranks anew what was used before. Nodes that are full are left out, and counted.
func (r *run) revisit() {
	used := slices.Concat(r.cands, r.again)
	r.cands, r.again, r.ring = r.cands[:0], nil, r.ring[:0]
	for i := range used {
		if used[i].room > 0 {
			r.again = append(r.again, used[i])
			continue
		}
		r.p.fails[used[i].first]++
		r.spent = append(r.spent, used[i])
	}
	slices.SortFunc(r.again, func(a, b candidate) int { return a.compareFully(&b) })
	if r.peek() != nil {
		r.p.fails = tally{}
	}
}

// fill gives the leaf up to want tasks and returns how many it took.
//
// The best node gets tasks until the next one is strictly better, then that one, and so on. Once the last node has its
// turn, the tasks go round robin over all nodes. Only neighbours are compared, so a large group on very uneven nodes
// does not end level; Swarm does it so, and it never matters when starts are equal.
func (r *run) fill(want int) int {
	p := r.p
	want = min(want, p.left)
	if r.visits++; r.visits > 1 {
		r.revisit()
	}
	if want <= 0 || !r.more() {
		return 0
	}
	p.passed = true
	done := 0
	for i := 0; ; {
		r.give(i)
		if done++; done == want {
			return done
		}
		if i+1 == len(r.cands) && !r.more() {
			break
		}
		cur, next := &r.cands[i], &r.cands[i+1]
		switch {
		case next.compare(cur) < 0:
			i++
		case cur.room == 0:
			cur.full = true
			i++
		}
		p.fails = tally{}
	}
	for i := range r.cands {
		if !r.cands[i].full {
			r.ring = append(r.ring, int32(i))
		}
	}
	for len(r.ring) > 0 {
		kept := 0
		for _, i := range r.ring {
			c := &r.cands[i]
			if c.room == 0 {
				p.fails[c.first]++
				continue
			}
			r.ring[kept] = i
			kept++
			p.fails = tally{}
			r.give(int(i))
			if done++; done == want {
				return done
			}
		}
		r.ring = r.ring[:kept]
	}
	return done
}

// best gives the best node of the leaf as things are, nil if none has room.
func (r *run) best() *candidate {
	best := r.peek()
	for i := range r.cands {
		if c := &r.cands[i]; c.room > 0 && (best == nil || c.compareFully(best) < 0) {
			best = c
		}
	}
	return best
}

// each calls f for all candidates that were found.
func (r *run) each(f func(*candidate)) {
	for _, cs := range [][]candidate{r.cands, r.again, r.spent} {
		for i := range cs {
			f(&cs[i])
		}
	}
	if r.hasAhead {
		f(&r.ahead)
	}
}

// give places one task on a candidate.
func (r *run) give(i int) {
	c := &r.cands[i]
	c.service++
	c.total++
	c.room--
	c.placed++
	r.p.place(c.node)
}
