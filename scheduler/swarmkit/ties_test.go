package swarmkit

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/docker/docker/api/types/swarm"
)

// draws is how often the rules are followed with ties decided by lot.
const draws = 5000

// allowed are the answers that swarmkit's rules allow whatever is done about nodes that tie, as canonical writes them.
//
// Swarmkit takes nodes that tie in the order in which its heap leaves them, which had them from a map. Few nodes come out of a
// map in few orders, and when a branch is visited again, its heap starts from the order of before: so that some orders never
// occur, and asking again does not help. They are no rule either, for they depend on how many nodes are in the heap. Which node
// comes first may decide more than names: the last one before those that failed too often gets all that it has room for.
func (s *scenario) allowed(t *testing.T) map[string]bool {
	t.Helper()
	rules, r, out := s.rules(t), rand.New(rand.NewPCG(1, 1)), map[string]bool{}
	for range draws {
		out[s.canonical(answer{perNode: rules.follow(s.n, r)})] = true
	}
	return out
}

// place is a node as the rules see it.
type place struct {
	id string
	// failures counts only from five on, service are the tasks of the service on the node, others those of other services,
	// room is how many tasks of the group it takes, given how many it has got of them.
	failures, service, others, room, given int
}

// less ranks nodes as swarmkit's nodeLess does.
func (p *place) less(o *place) bool {
	switch service, than := p.service+p.given, o.service+o.given; {
	case p.failures != o.failures:
		return p.failures < o.failures
	case service != than:
		return service < than
	default:
		return service+p.others < than+o.others
	}
}

// fork is a branch of the tree of preferences, with branches or nodes below it.
type fork struct {
	tasks int
	next  map[string]*fork
	nodes []*place
}

// rules writes down what the rules know of a scenario. What fits on a node alone is asked of swarmkit.
func (s *scenario) rules(t *testing.T) *fork {
	t.Helper()
	root := &fork{}
	for _, n := range s.nodes {
		p := &place{id: n.ID}
		var failed int
		if p.service, failed = s.had(n.ID); failed >= 5 {
			p.failures = failed
		}
		for _, o := range s.running {
			if o.NodeID == n.ID && o.ServiceID != s.group.ServiceID && o.DesiredState == swarm.TaskStateRunning {
				p.others++
			}
		}
		alone, group, placement := *s, *s.group, swarm.Placement{}
		if with := group.Spec.Placement; with != nil {
			placement = *with
		}
		placement.Constraints = append(slices.Clone(placement.Constraints), "node.id=="+n.ID)
		group.Spec.Placement, alone.group = &placement, &group
		p.room = alone.swarmkit(t).perNode[n.ID]

		at := root
		for _, value := range s.path(n) {
			at.tasks += p.service
			if at.next == nil {
				at.next = map[string]*fork{}
			}
			if at.next[value] == nil {
				at.next[value] = &fork{}
			}
			at = at.next[value]
		}
		at.tasks += p.service
		at.nodes = append(at.nodes, p)
	}
	return root
}

// follow places n tasks, with ties and the order of branches decided by lot, and says how many every node got.
func (f *fork) follow(n int, r *rand.Rand) map[string]int {
	f.each(func(p *place) { p.given = 0 })
	f.subtree(n, &n, r)
	got := map[string]int{}
	f.each(func(p *place) {
		if p.given > 0 {
			got[p.id] = p.given
		}
	})
	return got
}

func (f *fork) each(do func(*place)) {
	for _, p := range f.nodes {
		do(p)
	}
	for _, b := range f.next {
		b.each(do)
	}
}

// subtree follows swarmkit's scheduleNTasksOnSubtree: n tasks are wanted here, left there are.
func (f *fork) subtree(n int, left *int, r *rand.Rand) int {
	if f.next == nil {
		return f.leaf(n, left, r)
	}
	took, tasks, full := 0, f.tasks, map[*fork]bool{}
	for converging := true; took != n && len(full) < len(f.next) && converging; {
		usable := len(f.next) - len(full)
		share, odd := (tasks+n-took)/usable, (tasks+n-took)%usable
		converging = false
		branches := slices.Sorted(maps.Keys(f.next))
		r.Shuffle(len(branches), func(i, j int) { branches[i], branches[j] = branches[j], branches[i] })
		for _, value := range branches {
			b := f.next[value]
			if full[b] || b.tasks > share || b.tasks == share && odd == 0 {
				continue
			}
			converging = true
			part := share - b.tasks
			if odd > 0 {
				part++
			}
			got := b.subtree(part, left, r)
			if got < part {
				full[b] = true
				tasks -= b.tasks
			} else if odd > 0 {
				odd--
			}
			took += got
		}
	}
	return took
}

// leaf follows swarmkit's scheduleNTasksOnNodes.
func (f *fork) leaf(n int, left *int, r *rand.Rand) int {
	nodes := slices.DeleteFunc(slices.Clone(f.nodes), func(p *place) bool { return p.given >= p.room })
	r.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	slices.SortStableFunc(nodes, func(a, b *place) int {
		switch {
		case a.less(b):
			return -1
		case b.less(a):
			return 1
		}
		return 0
	})
	took := 0
	for at := 0; len(nodes) > 0 && took < n && *left > 0; took, *left = took+1, *left-1 {
		for skipped := 0; nodes[at%len(nodes)].given >= nodes[at%len(nodes)].room; skipped++ {
			if skipped == len(nodes) {
				return took
			}
			at++
		}
		p := nodes[at%len(nodes)]
		p.given++
		if at+1 >= len(nodes) || nodes[at+1].less(p) {
			at++
		}
	}
	return took
}
