package scheduler

import (
	"slices"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"github.com/miniswarm/miniswarm/cluster"
)

// Group is a number of interchangeable tasks: same service, same spec version.
type Group struct {
	// Task stands for all of them. It is not placed yet; its networks and ports are allocated.
	Task *cluster.Task
	// N is how many there are.
	N int
}

// Placement is a node for one task.
type Placement struct {
	NodeID string
	// GenericResources is what the task may use of the node's, to be stored in the task; nil if it asked for none.
	GenericResources []swarm.GenericResource
}

// Result is what became of a group.
type Result struct {
	// Placements are the nodes for the first len(Placements) tasks of the group; which task gets which is up to the
	// caller. There are fewer than the group has tasks if the rest fits nowhere.
	Placements []Placement
	// Explanation is Swarm's text for the tasks that fit nowhere, fit for Status.Err: "no suitable node (...)". Empty
	// if all fit.
	Explanation string
	// Decision says why, in its small form.
	Decision Decision
}

// noSuitableNode is how Swarm begins to explain that tasks fit nowhere.
const noSuitableNode = "no suitable node"

// journal lists what is booked provisionally. It holds few pointers, because a pass may book a million tasks.
type journal struct {
	groups []bookedGroup
	// nodes are the bookings of all groups: so many tasks on the node of that slot. A node on which something is booked
	// keeps its slot.
	nodes  []slotCount
	claims []bookedClaims
}

// bookedGroup are the bookings of one group; its nodes and claims are those from the group before up to the given ends.
type bookedGroup struct {
	of            *demand
	nodes, claims int
}

// bookedClaims are generic resources given to one task.
type bookedClaims struct {
	slot   int32
	claims []swarm.GenericResource
}

// placement is the state of placing one group.
type placement struct {
	*demand
	a *Accounts
	// bad holds the failures of this service and version per slot where they reach the limit.
	bad map[int32]int32

	left       int
	placements []Placement
	// runs are the runs of the leaves looked at, in the order they were.
	runs []*run

	// passed says that some node passed all filters; fails counts, as Swarm does, the nodes found full since a node
	// last passed.
	passed bool
	fails  tally
	// examined and rejected count what the search looked at.
	examined int
	rejected tally
}

// Place finds nodes for up to g.N tasks and books them. The same books give the same answer.
func (a *Accounts) Place(g Group, now time.Time) Result {
	p := placement{a: a, demand: a.demandOf(g.Task), left: max(g.N, 0)}
	if p.left > 0 && !a.stillPending(p.demand, &p.rejected) {
		p.bad = a.badNodes(g.Task, now)
		p.start()
		p.spread(&p.view.root, p.left)
		if !p.passed {
			a.remember(p.demand, &p.rejected)
		}
	}
	res := Result{Placements: p.placements}
	if p.left > 0 {
		res.Explanation = p.explanation()
	}
	p.decide(&res.Decision, g, now)
	res.Decision.Explanation = res.Explanation
	p.finish()
	return res
}

// badNodes gives the nodes where tasks of this service and version failed too often lately.
func (a *Accounts) badNodes(t *cluster.Task, now time.Time) map[int32]int32 {
	var bad map[int32]int32
	for slot, at := range a.failures[versionOf(t)] {
		if n := recentFailures(at, now); n >= failureLimit {
			if bad == nil {
				bad = make(map[int32]int32)
			}
			bad[slot] = n
		}
	}
	return bad
}

// start counts the service's tasks per branch, and opens the runs of the leaves where some nodes come later in the
// search than walking would find them.
func (p *placement) start() {
	root := &p.view.root
	dense := p.service != nil && p.service.many != nil
	if root.leaf == nil || !dense {
		root.reset()
		p.service.each(func(slot, count int32) {
			at := p.view.position(slot)
			if at.leaf == nil {
				return // a node that was removed
			}
			at.leaf.tasks += int(count)
			if !dense && at.fails == filterNone && p.bad[slot] == 0 {
				nd := p.a.slots[slot]
				s := &p.runOf(at.leaf).search
				s.own = append(s.own, candidate{node: nd, service: count, total: nd.active})
			}
		})
		root.sum()
	}
	for slot, n := range p.bad {
		if at := p.view.position(slot); at.member() {
			nd := p.a.slots[slot]
			s := &p.runOf(at.leaf).search
			s.failing = append(s.failing, candidate{node: nd, failures: n, service: p.service.count(slot), total: nd.active})
		}
	}
}

// runOf gives the run of a leaf, opening it if needed.
func (p *placement) runOf(l *leaf) *run {
	if l.run == nil {
		l.run = p.a.takeRun()
		l.run.p, l.run.leaf = p, l
		l.run.search.p, l.run.search.leaf = p, l
		p.runs = append(p.runs, l.run)
	}
	return l.run
}

// takeRun gives a run whose slices can be used again.
func (a *Accounts) takeRun() *run {
	if k := len(a.runs); k > 0 {
		r := a.runs[k-1]
		a.runs = a.runs[:k-1]
		return r
	}
	return &run{}
}

// The spare room that is kept for the next group or pass.
const (
	maxSpareRuns       = 64
	maxSpareCandidates = 1 << 14
	maxSpareBookings   = 1 << 16
)

// putRun takes back a run.
func (a *Accounts) putRun(r *run) {
	if len(a.runs) >= maxSpareRuns || cap(r.cands) > maxSpareCandidates || cap(r.search.own) > maxSpareCandidates {
		return
	}
	clear(r.cands)
	*r = run{cands: r.cands[:0], ring: r.ring[:0], search: search{rounds: r.search.rounds[:0]}}
	a.runs = append(a.runs, r)
}

// place notes that the next task goes to the node.
func (p *placement) place(nd *node) {
	pl := Placement{NodeID: nd.id}
	if len(p.generic) > 0 {
		pl.GenericResources = nd.choose(p.generic)
		nd.claim(pl.GenericResources, 1)
		p.a.journal.claims = append(p.a.journal.claims, bookedClaims{nd.slot, pl.GenericResources})
	}
	if p.placements == nil {
		p.placements = make([]Placement, 0, p.left)
	}
	p.placements = append(p.placements, pl)
	p.left--
}

// book enters in the accounts what a candidate was given.
func (p *placement) book(c *candidate) {
	if c.placed == 0 {
		return
	}
	if p.service == nil {
		p.service = p.a.open(p.serviceID)
	}
	p.a.journal.nodes = append(p.a.journal.nodes, slotCount{c.node.slot, c.placed})
	p.a.enter(c.node, p.demand, p.service, c.placed)
}

// finish books everything and closes the runs.
func (p *placement) finish() {
	for _, r := range p.runs {
		r.each(p.book)
		r.leaf.run = nil
		p.a.putRun(r)
	}
	p.a.journal.end(p.demand)
}

// end closes the bookings of a group.
func (j *journal) end(of *demand) {
	nodes := 0
	if k := len(j.groups); k > 0 {
		nodes = j.groups[k-1].nodes
	}
	if len(j.nodes) > nodes { // claims come only with tasks
		j.groups = append(j.groups, bookedGroup{of, len(j.nodes), len(j.claims)})
	}
}

// enter adds n tasks, or takes off -n, without the generic resources.
func (a *Accounts) enter(nd *node, d *demand, s *service, n int32) {
	nd.usedCPU += int64(n) * d.cpu
	nd.usedMem += int64(n) * d.mem
	for _, p := range d.ports {
		nd.holdPort(p, d.holder, n)
	}
	nd.tasks += n
	a.addActiveOf(s, nd, n)
}

// Unbook takes back placements of the latest Place or Check, for which something is wanting that the accounts know
// nothing of: what those tasks would have taken is free for others in the same pass.
func (a *Accounts) Unbook(given []Placement) {
	if len(given) == 0 {
		return
	}
	j := &a.journal
	last := len(j.groups) - 1
	of, before := j.groups[last].of, bookedGroup{}
	if last > 0 {
		before = j.groups[last-1]
	}
	back, claims := make(map[int32]int32), make(map[*swarm.GenericResource]bool)
	for _, pl := range given {
		nd := a.byID[pl.NodeID]
		back[nd.slot]++
		if len(pl.GenericResources) > 0 {
			nd.claim(pl.GenericResources, -1)
			claims[&pl.GenericResources[0]] = true
		}
	}
	s := a.open(of.serviceID)
	for i := before.nodes; i < len(j.nodes); i++ {
		b := &j.nodes[i]
		if n := min(back[b.slot], b.count); n > 0 {
			a.enter(a.slots[b.slot], of, s, -n)
			b.count -= n
			back[b.slot] -= n
		}
	}
	a.close(of.serviceID, s)
	nodes := slices.DeleteFunc(j.nodes[before.nodes:], func(b slotCount) bool { return b.count == 0 })
	j.nodes = j.nodes[:before.nodes+len(nodes)]
	booked := slices.DeleteFunc(j.claims[before.claims:], func(b bookedClaims) bool { return len(b.claims) > 0 && claims[&b.claims[0]] })
	j.claims = j.claims[:before.claims+len(booked)]
	j.groups = j.groups[:last]
	j.end(of)
}

// Rollback takes back everything that Place and Check have booked since the last Rollback. A pass that computes
// decisions ends with it, whether they will be committed or not: what is committed comes back through SetTask.
func (a *Accounts) Rollback() {
	a.rollbackTo(0)
	if cap(a.journal.nodes) > maxSpareBookings {
		a.journal = journal{}
	}
}

// rollbackTo takes back all groups from that one on.
func (a *Accounts) rollbackTo(group int) {
	j := &a.journal
	for len(j.groups) > group {
		last := len(j.groups) - 1
		g, before := j.groups[last], bookedGroup{}
		if last > 0 {
			before = j.groups[last-1]
		}
		for _, c := range j.claims[before.claims:g.claims] {
			a.slots[c.slot].claim(c.claims, -1)
		}
		s := a.open(g.of.serviceID)
		for _, b := range j.nodes[before.nodes:g.nodes] {
			nd := a.slots[b.slot]
			a.enter(nd, g.of, s, -b.count)
			a.release(nd)
		}
		a.close(g.of.serviceID, s)
		clear(j.claims[before.claims:])
		j.groups[last] = bookedGroup{}
		j.groups, j.nodes, j.claims = j.groups[:last], j.nodes[:before.nodes], j.claims[:before.claims]
	}
}

// Booked is the number of tasks that Rollback would take back.
func (a *Accounts) Booked() int {
	n := 0
	for _, b := range a.journal.nodes {
		n += int(b.count)
	}
	return n
}

// explanation says why the tasks that are left fit nowhere.
func (p *placement) explanation() string {
	count := &p.fails
	if !p.passed {
		count = &p.rejected
	}
	if words := count.String(); words != "" {
		return noSuitableNode + " (" + words + ")"
	}
	return noSuitableNode
}

// Check says whether a task fits on the node that was chosen for it from birth, as with global services, and books it
// there if it does. Otherwise it gives Swarm's explanation, which here stands without "no suitable node".
func (a *Accounts) Check(t *cluster.Task, nodeID string, _ time.Time) (Placement, string) {
	nd := a.byID[nodeID]
	if nd == nil || nd.obj == nil {
		return Placement{}, FilterReady.words(1)
	}
	d := a.demandOf(t)
	d.holder.task = t.ID
	if f := d.failing(nd); f != filterNone {
		return Placement{}, f.words(1)
	}
	p := placement{a: a, demand: d, left: 1}
	p.place(nd)
	p.book(&candidate{node: nd, placed: 1})
	a.journal.end(d)
	return p.placements[0], ""
}
