package orchestrator

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/scheduler"
)

// pass is the state of one call of Next: what it will change, and the cluster as it will be.
type pass struct {
	*Planner
	snap *cluster.Snapshot
	now  time.Time
	ids  cluster.IDs

	networkChanges []cluster.Change
	nodeChanges    []cluster.Change
	edits          map[*service]*cluster.Service // services to be written
	edited         []*service                    // the same, in order
	patches        map[string]*patch             // stored tasks to be changed, by id
	patched        []*patch                      // the same, in order
	created        []*cluster.Task

	// attached has the nodes whose attachments the pass has looked at, as they will be.
	attached map[*node]map[string]string
	// placing has the tasks that need a place, by service.
	placing map[*service]*placing

	// undo and booked take back, at the end, what the pass has booked in the planner for its own use.
	undo   []func()
	booked []booking
	// drawnIDs are ids for them, nearly in order.
	drawnIDs []string

	slotTasks []*cluster.Task // a buffer
	// retried is set when tasks that had waited were tried again.
	retried bool

	changes   int // the number of changes so far, to see whether a step made any
	decisions []Decision
}

// patch is one stored task as the pass changes it.
type patch struct {
	stored *cluster.Task
	task   *cluster.Task // as it will be
	remove bool
	// whole is set when the task is written as a whole, because something changes that patches do not carry.
	whole bool
	diff  cluster.TaskPatch
}

// Next computes what is to be done at the time now in the cluster of snap, which must be exactly what was observed. ids
// gives the ids of new tasks. The planner expects to see what was committed of the plan as events before the next call;
// a plan that was not committed, or only a part of which was, is made anew, so nothing is lost by dropping one.
func (p *Planner) Next(snap *cluster.Snapshot, now time.Time, ids cluster.IDs) Plan {
	x := &pass{Planner: p, snap: snap, now: now, ids: ids,
		edits:    make(map[*service]*cluster.Service),
		patches:  make(map[string]*patch),
		attached: make(map[*node]map[string]string),
		placing:  make(map[*service]*placing)}
	x.wake()
	x.allocateNetworks()
	x.lookAtNodes()
	for _, s := range x.takeDirty() {
		x.lookAtService(s)
	}
	x.place()
	x.attachNodes()
	return x.finish()
}

// Next computes the plan for a cluster that nothing is known about beforehand, as a new leader, a dry run and a
// simulation do. It costs what exists.
func Next(snap *cluster.Snapshot, now time.Time, ids cluster.IDs) Plan {
	p := New(Options{})
	p.Reset(snap)
	return p.Next(snap, now, ids)
}

// wake marks what was to be looked at by now.
func (x *pass) wake() {
	var lost []*node
	for {
		key, ok := x.timers.due(x.now)
		if !ok {
			break
		}
		if key.service == "" {
			lost = append(lost, x.byNumber[key.slot])
			continue
		}
		if s := x.services[key.service]; s != nil {
			if key.slot != wholeService {
				s.dirty[key.slot] = struct{}{}
			}
			x.dirty[s] = struct{}{}
		}
	}
	x.orphanTasksOf(lost)
}

// takeDirty empties the list of services to look at, oldest first.
func (x *pass) takeDirty() []*service {
	if x.freed {
		for s := range x.unserved {
			x.reconsider(s)
		}
	}
	list := slices.SortedFunc(maps.Keys(x.dirty), byAge)
	clear(x.dirty)
	return list
}

// lookAtService brings one service nearer to what its spec wants.
func (x *pass) lookAtService(s *service) {
	before := x.changes
	switch {
	case s.obj == nil:
		x.removeService(s)
	default:
		if s.reallocate {
			x.allocateService(s)
		}
		s.matchUpdate()
		x.lookAtSlots(s)
		switch s.mode {
		case replicated:
			x.fit(s)
		case replicatedJob:
			x.fitJob(s)
		}
		if s.mode.job() {
			x.tellStandstill(s)
		} else {
			x.advanceUpdate(s)
		}
	}
	if x.changes != before {
		// What the pass wants is not yet so: if it is never committed, the next pass must want it again.
		x.dirty[s] = struct{}{}
	}
}

// removeService ends the tasks of a service that is gone (swarm-semantics.md, 4.2).
func (x *pass) removeService(s *service) {
	clear(s.dirty)
	s.all = false
	x.timers.drop(s.id)
	if s.tasks == 0 {
		delete(x.services, s.id)
		delete(x.waiting, s)
		return
	}
	d := Decision{Kind: ScaleDown, ServiceID: s.id, Reason: "the service was removed"}
	for t := range x.snap.TasksOfService(s.id) {
		if x.discard(x.view(t)) {
			d.Tasks = append(d.Tasks, t.ID)
		}
	}
	if len(d.Tasks) > 0 {
		x.decide(d)
	}
}

// view gives a stored task as the pass has changed it so far, nil if it removes it.
func (x *pass) view(t *cluster.Task) *cluster.Task {
	if len(x.patches) == 0 {
		return t
	}
	if p := x.patches[t.ID]; p != nil {
		if p.remove {
			return nil
		}
		return p.task
	}
	return t
}

// change gives the patch of a task; the caller edits what it gives and calls settle.
func (x *pass) change(t *cluster.Task) *patch {
	p := x.patches[t.ID]
	if p == nil {
		c := *t
		p = &patch{stored: t, task: &c}
		x.patches[t.ID] = p
		x.patched = append(x.patched, p)
	} else {
		c := *p.task
		p.task = &c
	}
	x.changes++
	return p
}

// account tells the scheduler for the length of the pass that a stored task is going to be different, so that what it
// leaves behind counts at once. The observed truth follows with the committed change.
func (x *pass) account(was, is *cluster.Task) {
	if !was.Live() {
		return // it takes nothing up
	}
	if is != nil && cluster.Terminal(is.Status.State) {
		is = nil // a failure is recorded when it is committed, not twice
	}
	x.accounts.SetTask(was, is)
	x.undo = append(x.undo, func() { x.accounts.SetTask(is, was) })
}

// desire moves a task's desired state forward.
func (x *pass) desire(t *cluster.Task, state swarm.TaskState) *cluster.Task {
	p := x.change(t)
	p.task.DesiredState, p.diff.DesiredState = state, state
	if !p.task.Wanted() {
		x.account(t, p.task)
	}
	return p.task
}

// report gives a task an observed state that no agent reports.
func (x *pass) report(t *cluster.Task, state swarm.TaskState, message, err string) *cluster.Task {
	p := x.change(t)
	status := t.Status
	status.Timestamp, status.State, status.Message, status.Err = x.now, state, message, err
	p.task.Status, p.diff.Status = status, &status
	if cluster.Terminal(state) != cluster.Terminal(t.Status.State) {
		x.account(t, p.task)
	}
	return p.task
}

// remove takes a task out of the store.
func (x *pass) remove(t *cluster.Task) {
	p := x.change(t)
	p.remove = true
	x.account(t, nil)
}

// finished says that nothing of the task is left on any node, or ever was: its record can go.
func finished(t *cluster.Task) bool {
	return cluster.Terminal(t.Status.State) || cluster.Before(t.Status.State, swarm.TaskStateAssigned)
}

// discard ends a task and has it forgotten: at once if it has finished, otherwise when it has. It says whether the
// task was still wanted.
func (x *pass) discard(t *cluster.Task) bool {
	if t == nil {
		return false
	}
	wanted := t.Wanted()
	switch {
	case finished(t), x.nodes[t.NodeID] == nil, x.nodes[t.NodeID].obj == nil:
		x.remove(t)
	case t.DesiredState != swarm.TaskStateRemove:
		x.desire(t, swarm.TaskStateRemove)
	}
	return wanted
}

// shutdown ends a task and keeps its record. A task that no node has yet ends at once.
func (x *pass) shutdown(t *cluster.Task) *cluster.Task {
	if t.Wanted() {
		t = x.desire(t, swarm.TaskStateShutdown)
	}
	if cluster.Before(t.Status.State, swarm.TaskStateAssigned) {
		t = x.report(t, swarm.TaskStateShutdown, "shutdown", "")
	}
	return t
}

// edit gives the copy of a service that the pass writes.
func (x *pass) edit(s *service) *cluster.Service {
	c := x.edits[s]
	if c == nil {
		copied := *s.obj
		c = &copied
		x.edits[s] = c
		x.edited = append(x.edited, s)
		x.changes++
	}
	return c
}

// endpoint is what tasks of the service are created with, nil where there is nothing to say.
func (x *pass) endpoint(s *service) *swarm.Endpoint {
	obj := s.obj
	if c := x.edits[s]; c != nil {
		obj = c
	}
	if e := &obj.Endpoint; e.Spec.Mode != "" || len(e.Spec.Ports) > 0 || len(e.VirtualIPs) > 0 {
		return e
	}
	return nil
}

func (x *pass) decide(d Decision) { x.decisions = append(x.decisions, d) }

// because adds a task to the latest decision if that has the same reason, and makes a new one otherwise, so that a
// hundred tasks of one node that failed are one line.
func (x *pass) because(kind Kind, s *service, task, reason string) {
	if k := len(x.decisions) - 1; k >= 0 {
		if d := &x.decisions[k]; d.Kind == kind && d.ServiceID == s.id && d.Reason == reason {
			d.Tasks = append(d.Tasks, task)
			return
		}
	}
	x.decide(Decision{Kind: kind, ServiceID: s.id, Tasks: []string{task}, Reason: reason})
}

// newTask makes a task of the service's present spec for a slot. Spec, annotations, endpoint and credentials are
// shared by all tasks of one spec version.
func (x *pass) newTask(s *service, num int) *cluster.Task {
	t := new(cluster.Task)
	t.ID = x.nextID()
	t.ServiceID = s.id
	t.Spec = s.obj.Spec.TaskTemplate
	t.SpecVersion = s.obj.SpecVersion
	t.ServiceAnnotations = s.obj.Spec.Annotations
	t.RegistryAuth = s.obj.RegistryAuth
	if s.unallocated == "" {
		t.Endpoint = x.endpoint(s)
	}
	t.DesiredState = s.mode.goal()
	if s.mode.job() {
		t.JobIteration = &swarm.Version{Index: iteration(s.obj)}
	}
	t.Status = swarm.TaskStatus{Timestamp: x.now, State: swarm.TaskStateNew, Message: "created"}
	if s.mode.perNode() {
		t.NodeID = x.byNumber[num].id
	} else {
		t.Slot, t.Numbered = num, s.mode == replicatedJob
	}
	x.created = append(x.created, t)
	x.changes++
	g := x.group(s)
	g.tasks = append(g.tasks, t)
	return t
}

// nextID gives the id of a new task. Where there are many, ids are drawn in blocks and given nearly in order: tasks that
// are neighbours in the plan, and so in a transaction, are then neighbours in the tables, which copy each leaf of their
// trees that a transaction touches.
func (x *pass) nextID() string {
	if len(x.drawnIDs) == 0 {
		n := len(x.created)
		if n < manyIDs {
			return x.ids.Next()
		}
		x.drawnIDs = make([]string, n)
		for i := range x.drawnIDs {
			x.drawnIDs[i] = x.ids.Next()
		}
		x.drawnIDs = cluster.Gather(x.drawnIDs)
	}
	id := x.drawnIDs[0]
	x.drawnIDs = x.drawnIDs[1:]
	return id
}

// manyIDs is the number of new tasks from which on the rest of a pass gets its ids nearly in order.
const manyIDs = 1000

// finish puts the changes in order and takes back what the pass booked for itself.
func (x *pass) finish() Plan {
	plan := Plan{Decisions: x.decisions}
	n := len(x.networkChanges) + len(x.nodeChanges) + len(x.edited) + len(x.patched) + len(x.created)
	if n > 0 {
		plan.Changes = make([]cluster.Change, 0, n)
	}
	plan.Changes = append(plan.Changes, x.networkChanges...)
	plan.Changes = append(plan.Changes, x.nodeChanges...)
	for _, s := range x.edited {
		plan.Changes = append(plan.Changes, cluster.UpdateOf(x.edits[s]))
	}
	for _, p := range x.patched {
		switch {
		case p.remove:
		case p.whole:
			plan.Changes = append(plan.Changes, cluster.UpdateOf(p.task))
		default:
			plan.Changes = append(plan.Changes, cluster.PatchTask(p.stored.ID, p.diff))
		}
	}
	for _, p := range x.patched {
		if p.remove {
			plan.Changes = append(plan.Changes, cluster.RemoveOf(p.stored))
		}
	}
	for _, t := range x.created {
		plan.Changes = append(plan.Changes, cluster.CreateOf(t))
	}
	for _, f := range slices.Backward(x.undo) {
		f()
	}
	x.accounts.Rollback()
	for _, b := range x.booked {
		b.pool.release(b.at)
	}
	if x.retried && len(plan.Changes) > 0 {
		x.roomier = true // what became of the retry rests on changes that are not committed yet
	}
	x.fresh = false
	plan.Wake = x.timers.first()
	return plan
}

// newestFirst orders the stored tasks of a slot from the latest created. Leaders' clocks may differ, or stand still: what
// nobody has replaced is the newest whatever they say.
func newestFirst(tasks []*cluster.Task) {
	slices.SortFunc(tasks, func(a, b *cluster.Task) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	for i, t := range tasks {
		if slices.ContainsFunc(tasks, func(o *cluster.Task) bool { return o.Replaces == t.ID }) {
			continue
		}
		copy(tasks[1:i+1], tasks[:i])
		tasks[0] = t
		return
	}
}

// Explain gives the scheduler's full account for a task: every node, every filter with its numbers, the ranking.
func (p *Planner) Explain(t *cluster.Task, now time.Time) scheduler.Decision {
	return p.accounts.Explain(t, now)
}
