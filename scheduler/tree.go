package scheduler

import (
	"cmp"
	"slices"
)

// reset clears the scratch of the branch and those below.
func (b *branch) reset() {
	if b.leaf != nil {
		b.leaf.tasks = 0
	}
	for _, c := range b.children {
		c.reset()
	}
}

// sum adds up the tasks of the service in the branch.
func (b *branch) sum() int {
	if b.leaf != nil {
		b.tasks = b.leaf.tasks
		return b.tasks
	}
	b.tasks = 0
	for _, c := range b.children {
		b.tasks += c.sum()
	}
	return b.tasks
}

// best gives the best node of a branch as things are, nil if none has room.
func (p *placement) best(b *branch) *candidate {
	if b.leaf != nil {
		return p.runOf(b.leaf).best()
	}
	var best *candidate
	for _, c := range b.children {
		if x := p.best(c); x != nil && (best == nil || x.compareFully(best) < 0) {
			best = x
		}
	}
	return best
}

// rankBranches sorts order, the indexes of branches, by the branches' best nodes. Branches without room come last.
func (p *placement) rankBranches(branches []*branch, order []int) {
	best := make([]*candidate, len(branches))
	for i, b := range branches {
		best[i] = p.best(b)
	}
	slices.SortFunc(order, func(i, j int) int {
		switch x, y := best[i], best[j]; {
		case x == nil || y == nil:
			if (x == nil) != (y == nil) {
				return cmp.Compare(boolInt(x == nil), boolInt(y == nil))
			}
			return cmp.Compare(i, j)
		default:
			return cmp.Or(x.compare(y), cmp.Compare(i, j))
		}
	})
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// spread gives a branch up to want tasks, which may be more than are left, and returns how many it took.
//
// Every branch is to end with the same number of the service's tasks. What a branch cannot take goes to the others in
// a further round, and the odd tasks go one each to the branches met first. Swarm leaves their order to chance. A fixed
// order would pile services of one replica up in one branch, so here the branch with the best node comes first.
//
// The share is computed as if branches that have more than it could give some away; where they cannot, the branches
// met first are filled up to it and the tasks may run out. That is how Swarm counts, and what its users see.
func (p *placement) spread(b *branch, want int) int {
	if b.leaf != nil {
		return p.runOf(b.leaf).fill(want)
	}
	took, usable, tasks := 0, len(b.children), b.tasks
	full := make([]bool, len(b.children))
	order := make([]int, len(b.children))
	for i := range order {
		order[i] = i
	}
	for progress := true; took != want && usable > 0 && progress; {
		share, odd := (tasks+want-took)/usable, (tasks+want-took)%usable
		progress = false
		p.rankBranches(b.children, order)
		for _, i := range order {
			c := b.children[i]
			if full[i] || c.tasks > share || c.tasks == share && odd == 0 {
				continue
			}
			progress = true
			part := share - c.tasks
			if odd > 0 {
				part++
			}
			n := p.spread(c, part)
			switch {
			case n < part:
				full[i] = true
				tasks -= c.tasks
				usable--
			case odd > 0:
				odd--
			}
			took += n
		}
	}
	return took
}
