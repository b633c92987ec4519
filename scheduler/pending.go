package scheduler

// Groups that fit nowhere are asked about again with every pass. Visiting all nodes each time would make every event
// of a large cluster cost a scan, so the verdicts of the last visit are remembered and only those of nodes that have
// changed since are asked for again. The answer is the same as without memory.

const (
	// maxPending is how many groups are remembered; each takes a byte a node.
	maxPending = 64
	// changeLog is how many changes of nodes are remembered, a power of two.
	changeLog = 1 << 14
)

// pendingKey tells groups apart.
type pendingKey struct {
	service versionedService
	view    string
}

// pending is what is remembered of a group that fits nowhere.
type pending struct {
	demand *demand
	// upTo is the number of changes seen.
	upTo uint64
	// verdicts are the first filters failed, by slot; none for slots without a node.
	verdicts []Filter
	count    tally
}

// touch notes that something about the node changed.
func (a *Accounts) touch(nd *node) {
	if len(a.pending) == 0 {
		return // nobody remembers anything that could have changed
	}
	a.changes[a.changed%changeLog] = nd.slot
	a.changed++
}

// remember keeps the verdicts about a group that fits nowhere, and counts them.
func (a *Accounts) remember(d *demand, count *tally) {
	m := &pending{demand: d, upTo: a.changed, verdicts: make([]Filter, len(a.slots))}
	for _, nd := range a.sorted() {
		m.judge(d, nd)
	}
	*count = m.count
	if len(a.pending) >= maxPending {
		clear(a.pending) // who is still waiting will be back; keeping the right ones is not worth a list
	}
	if a.changes == nil {
		a.changes = make([]int32, changeLog)
	}
	a.pending[d.key] = m
}

// judge asks for the verdict on a node again.
func (m *pending) judge(d *demand, nd *node) {
	v := &m.verdicts[nd.slot]
	m.count[*v]--
	if *v = filterNone; nd.obj != nil {
		*v = d.failing(nd)
	}
	m.count[*v]++
	m.count[filterNone] = 0
}

// stillPending says whether the group is known to fit nowhere, and gives the verdicts counted. False only means that
// it has to be tried.
func (a *Accounts) stillPending(d *demand, count *tally) bool {
	m := a.pending[d.key]
	if m == nil {
		return false
	}
	if a.changed-m.upTo > uint64(min(changeLog, len(a.slots))) || len(m.verdicts) != len(a.slots) || !m.demand.equal(d) {
		delete(a.pending, d.key)
		return false
	}
	for ; m.upTo != a.changed; m.upTo++ {
		slot := a.changes[m.upTo%changeLog]
		nd := a.slots[slot]
		switch {
		case nd == nil:
			m.count[m.verdicts[slot]]--
			m.verdicts[slot] = filterNone
			m.count[filterNone] = 0
			continue
		case nd.obj == nil:
			m.judge(d, nd)
			continue
		}
		if m.judge(d, nd); m.verdicts[slot] == filterNone {
			delete(a.pending, d.key)
			return false
		}
	}
	*count = m.count
	return true
}
