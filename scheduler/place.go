package scheduler

import (
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

// booking is one provisional entry in the accounts: n tasks on a node.
type booking struct {
	node      *node
	serviceID string
	n         int32
	cpu, mem  int64 // of all n
	ports     []hostPort
	holder    portHolder
	claims    []swarm.GenericResource
}

// placement is the state of placing one group.
type placement struct {
	demand
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

	holder portHolder
}

// Place finds nodes for up to g.N tasks and books them. The same books give the same answer.
func (a *Accounts) Place(g Group, now time.Time) Result {
	p := placement{a: a, demand: a.demandOf(g.Task), left: max(g.N, 0)}
	p.bad = a.badNodes(g.Task, now)
	p.holder = portHolder{service: g.Task.ServiceAnnotations.Name}
	p.start()
	if g.N > 0 {
		p.spread(&p.view.root, p.left)
	}
	res := Result{Placements: p.placements}
	if p.left > 0 {
		res.Explanation = p.explanation()
	}
	res.Decision = p.decision(g, now)
	res.Decision.Explanation = res.Explanation
	p.finish()
	return res
}

// badNodes gives the nodes where tasks of this service and version failed too often lately.
func (a *Accounts) badNodes(t *cluster.Task, now time.Time) map[int32]int32 {
	var bad map[int32]int32
	for slot, at := range a.failures[versionedService{t.ServiceID, t.SpecVersion.Index}] {
		if n := recentFailures(at, now); n >= failureLimit {
			if bad == nil {
				bad = make(map[int32]int32)
			}
			bad[slot] = n
		}
	}
	return bad
}

// start opens the runs of the leaves that hold tasks of the service or bad nodes, and counts tasks per branch.
func (p *placement) start() {
	p.view.root.reset()
	place := func(slot int32) *position {
		if int(slot) >= len(p.view.where) {
			return &position{}
		}
		return &p.view.where[slot]
	}
	p.service.each(func(slot, count int32) {
		at := place(slot)
		if at.leaf == nil {
			return // no object: a node that was removed
		}
		at.leaf.tasks += int(count)
		if at.fails == filterNone && p.bad[slot] == 0 {
			nd := p.a.slots[slot]
			r := p.runOf(at.leaf)
			r.own = append(r.own, candidate{node: nd, service: count, total: nd.active})
		}
	})
	for slot, n := range p.bad {
		if at := place(slot); at.member() {
			nd := p.a.slots[slot]
			r := p.runOf(at.leaf)
			r.failing = append(r.failing, candidate{node: nd, failures: n, service: p.service.count(slot), total: nd.active})
		}
	}
	p.view.root.sum()
}

// runOf gives the run of a leaf, opening it if needed.
func (p *placement) runOf(l *leaf) *run {
	if l.run == nil {
		l.run = &run{p: p, leaf: l, walk: cursor{leaf: l}}
		p.runs = append(p.runs, l.run)
	}
	return l.run
}

// place notes that the next task goes to the node.
func (p *placement) place(nd *node) {
	pl := Placement{NodeID: nd.id}
	if len(p.generic) > 0 {
		pl.GenericResources = nd.choose(p.generic)
		nd.claim(pl.GenericResources, 1)
		p.a.journal = append(p.a.journal, booking{node: nd, claims: pl.GenericResources})
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
	n := int64(c.placed)
	b := booking{node: c.node, serviceID: p.serviceID, n: c.placed, cpu: n * p.cpu, mem: n * p.mem, ports: p.ports, holder: p.holder}
	p.a.enter(&b, 1)
	p.a.journal = append(p.a.journal, b)
	c.placed = 0
}

// finish books everything and closes the runs.
func (p *placement) finish() {
	for _, r := range p.runs {
		r.leaf.run = nil
	}
	for _, r := range p.runs {
		r.each(p.book)
	}
}

// enter adds a booking to the accounts (sign 1) or takes it off (sign -1).
func (a *Accounts) enter(b *booking, sign int32) {
	nd := b.node
	nd.usedCPU += int64(sign) * b.cpu
	nd.usedMem += int64(sign) * b.mem
	for _, p := range b.ports {
		nd.holdPort(p, b.holder, sign)
	}
	if sign < 0 {
		nd.claim(b.claims, -1)
	}
	if b.n != 0 {
		nd.tasks += sign * b.n
		a.addActive(nd, b.serviceID, sign*b.n)
	}
}

// Rollback takes back everything that Place and Check have booked since the last Rollback. A pass that computes
// decisions ends with it, whether they will be committed or not: what is committed comes back through SetTask.
func (a *Accounts) Rollback() { a.rollbackTo(0) }

func (a *Accounts) rollbackTo(mark int) {
	for i := len(a.journal) - 1; i >= mark; i-- {
		b := &a.journal[i]
		a.enter(b, -1)
		a.release(b.node)
	}
	clear(a.journal[mark:])
	a.journal = a.journal[:mark]
}

// Booked is the number of entries that Rollback would take back.
func (a *Accounts) Booked() int { return len(a.journal) }

// explanation says why the tasks that are left fit nowhere.
func (p *placement) explanation() string {
	count := p.fails
	if !p.passed {
		count = tally{}
		for _, nd := range p.a.sorted() {
			count[p.failing(nd)]++
		}
		count[filterNone] = 0
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
	if f := d.failing(nd); f != filterNone {
		return Placement{}, f.words(1)
	}
	p := placement{a: a, demand: d, left: 1, holder: portHolder{service: t.ServiceAnnotations.Name, task: t.ID}}
	p.place(nd)
	p.book(&candidate{node: nd, placed: 1})
	return p.placements[0], ""
}
