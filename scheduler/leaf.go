package scheduler

import "slices"

// leaf keeps some nodes ordered by their number of active tasks, then by id. Taking a node from one number to the next
// costs a few instructions, which is what nearly every change of the cluster comes down to.
type leaf struct {
	// nodes are all nodes of the branch by id; a node's place in it is its rank. Members are those among them that
	// pass the view's filters.
	nodes []*node
	// levels are the numbers of active tasks that occur among members, ascending, each with the ranks of those.
	levels []level
	spare  []*bitset
	// tasks is scratch of the placement under way: this service's tasks on the nodes.
	tasks int
	// run is the state of the placement under way, nil at other times.
	run *run
}

type level struct {
	active int32
	ranks  *bitset
}

func (l *leaf) find(active int32) (int, bool) {
	lo, hi := 0, len(l.levels)
	for lo < hi {
		if mid := (lo + hi) / 2; l.levels[mid].active < active {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo, lo < len(l.levels) && l.levels[lo].active == active
}

func (l *leaf) add(rank, active int32) {
	i, found := l.find(active)
	if !found {
		l.levels = slices.Insert(l.levels, i, level{active, l.empty()})
	}
	l.levels[i].ranks.add(rank)
}

func (l *leaf) empty() *bitset {
	if k := len(l.spare); k > 0 {
		b := l.spare[k-1]
		l.spare = l.spare[:k-1]
		return b
	}
	return newBitset(len(l.nodes))
}

func (l *leaf) remove(rank, active int32) {
	i, found := l.find(active)
	if !found {
		return
	}
	b := l.levels[i].ranks
	if b.remove(rank); b.n == 0 {
		l.levels = slices.Delete(l.levels, i, i+1)
		l.spare = append(l.spare, b)
	}
}

// move observes that a member's number of active tasks changed.
func (l *leaf) move(rank, from, to int32) {
	i, found := l.find(from)
	if !found {
		return
	}
	b := l.levels[i].ranks
	b.remove(rank)
	switch next := i + 1; {
	case to > from && next < len(l.levels) && l.levels[next].active == to:
		l.levels[next].ranks.add(rank)
	case b.n == 0 && (to > from && (next == len(l.levels) || to < l.levels[next].active) ||
		to < from && (i == 0 || to > l.levels[i-1].active)):
		l.levels[i].active = to // the node was alone and stays between its neighbours
		b.add(rank)
	default:
		l.add(rank, to)
	}
	if b.n == 0 {
		i, _ = l.find(from)
		l.levels = slices.Delete(l.levels, i, i+1)
		l.spare = append(l.spare, b)
	}
}

// cursor walks the members of a leaf from the least loaded on. The leaf must not change meanwhile.
type cursor struct {
	leaf  *leaf
	level int
	rank  int32
}

// next gives the next member, nil at the end.
func (c *cursor) next() *node {
	for c.level < len(c.leaf.levels) {
		if r := c.leaf.levels[c.level].ranks.next(c.rank); r >= 0 {
			c.rank = r + 1
			return c.leaf.nodes[r]
		}
		c.level, c.rank = c.level+1, 0
	}
	return nil
}
