package orchestrator

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// lookAtSlots evaluates the slots of a service in which something changed, or all of them.
func (x *pass) lookAtSlots(s *service) {
	if !s.all {
		nums := slices.AppendSeq(make([]int, 0, len(s.dirty)), maps.Keys(s.dirty))
		clear(s.dirty)
		x.sortSlots(s, nums)
		var tasks []*cluster.Task
		for _, num := range nums {
			tasks = x.tasksOf(s, num, tasks[:0])
			x.lookAtSlot(s, num, tasks)
		}
		return
	}
	s.all = false
	clear(s.dirty)
	s.forgetSlots()
	if s.mode.perNode() {
		x.lookAtAllNodes(s)
		return
	}
	var tasks []*cluster.Task
	for t := range x.snap.TasksOfService(s.id) {
		if len(tasks) > 0 && tasks[0].Slot != t.Slot {
			x.lookAtSlot(s, tasks[0].Slot, tasks)
			tasks = tasks[:0]
		}
		tasks = append(tasks, t)
	}
	if len(tasks) > 0 {
		x.lookAtSlot(s, tasks[0].Slot, tasks)
	}
}

// sortSlots orders slots by number, those of a global service by the ids of the nodes: numbers are given by chance.
func (x *pass) sortSlots(s *service, nums []int) {
	if !s.mode.perNode() {
		slices.Sort(nums)
		return
	}
	slices.SortFunc(nums, func(a, b int) int { return cmp.Compare(x.byNumber[a].id, x.byNumber[b].id) })
}

// tasksOf appends the stored tasks of a slot to buf.
func (x *pass) tasksOf(s *service, num int, buf []*cluster.Task) []*cluster.Task {
	if !s.mode.perNode() {
		return slices.AppendSeq(buf, x.snap.TasksOfSlot(s.id, num))
	}
	for t := range x.snap.TasksOfNode(x.byNumber[num].id) {
		if t.ServiceID == s.id {
			buf = append(buf, t)
		}
	}
	return buf
}

// slot is one slot while a pass looks at it.
type slot struct {
	*service
	num int
	// node is the node of a global service's or job's slot, nil otherwise.
	node *node
	// tasks are the slot's tasks as they will be, newest first, without those that are to be removed.
	tasks []*cluster.Task
	// before are a job's tasks of earlier runs that have not stopped yet.
	before []*cluster.Task
	// next is when time alone makes it worth looking again.
	next time.Time
}

func (sl *slot) again(at time.Time) {
	if sl.next.IsZero() || at.Before(sl.next) {
		sl.next = at
	}
}

// lookAtSlot brings one slot nearer to what it should be: it restarts what ended, releases what was held back, ends
// what an update has replaced, and forgets old history. What it learns about the slot it notes in the service.
func (x *pass) lookAtSlot(s *service, num int, stored []*cluster.Task) {
	before := x.changes
	sl := slot{service: s, num: num, tasks: x.slotTasks[:0]}
	for _, t := range stored {
		t := x.view(t)
		switch {
		case t == nil:
		case t.DesiredState == swarm.TaskStateRemove:
			x.discard(t)
			sl.keepBefore(x.view(t))
		case !s.current(t):
			if x.discard(t) {
				x.because(ScaleDown, s, t.ID, "the job is run again")
			}
			sl.keepBefore(x.view(t))
		case !t.Wanted() && cluster.Before(t.Status.State, swarm.TaskStateAssigned):
			sl.tasks = append(sl.tasks, x.shutdown(t))
		case t.Live() && x.node(t.NodeID).obj == nil && !s.mode.perNode():
			sl.tasks = append(sl.tasks, x.orphan(t))
		default:
			sl.tasks = append(sl.tasks, t)
		}
	}
	newestFirst(sl.tasks)
	if s.mode.perNode() {
		sl.node = x.byNumber[num]
	}
	switch {
	case s.mode.job():
		x.superviseJob(&sl)
	case sl.node != nil:
		x.superviseOnNode(&sl)
	default:
		x.supervise(&sl)
	}
	x.release(&sl)
	x.converge(&sl)
	x.trim(&sl)
	x.note(&sl)
	x.slotTasks = sl.tasks
	if x.changes != before {
		s.dirty[num] = struct{}{}
	}
}

// orphan ends a task whose node was removed from the cluster: nobody will ever report about it.
func (x *pass) orphan(t *cluster.Task) *cluster.Task {
	return x.report(t, swarm.TaskStateOrphaned, "Task belonged to a node that has been deleted", t.Status.Err)
}

// note brings what the service knows about the slot up to date.
func (x *pass) note(sl *slot) {
	s, num := sl.service, sl.num
	s.forgetSlot(num)
	x.timers.set(timerKey{s.id, num}, sl.next)
	if s.mode.job() {
		x.noteJob(sl)
		return
	}
	var wanted, current int
	for _, t := range sl.tasks {
		if t.Wanted() {
			wanted++
			if !x.outdated(sl.service, t) {
				current++
			}
		}
	}
	present := wanted > 0
	outdated := wanted > 0 && current == 0
	if wanted == 0 && len(sl.tasks) > 0 && !s.rollingBack() && !x.mayRestart(sl.tasks[0], sl.tasks) {
		present = true // the last task was not to be restarted: it stays the slot's last word until the spec changes
		outdated = x.outdated(sl.service, sl.tasks[0])
	}
	s.known.put(num, len(sl.tasks) > 0)
	s.occupied.put(num, present)
	s.outdated.put(num, outdated)
	busy := x.noteUpdate(sl)
	if wanted == 1 && current == 1 && !busy {
		s.plain.put(num, slices.ContainsFunc(sl.tasks, func(t *cluster.Task) bool {
			return t.DesiredState == s.mode.goal() && t.Live() && !t.CreatedAt.IsZero()
		}))
	}
}

// trim forgets the oldest of a slot's finished tasks beyond the number that is kept (swarm-semantics.md, 2.5). The
// newest task always stays: it tells why the slot is as it is.
func (x *pass) trim(sl *slot) {
	if len(sl.tasks) == 0 {
		return
	}
	limit := x.historyLimit
	if limit < 0 {
		return
	}
	if n := attempts(sl.tasks[0]); n > 0 && n <= countedAttempts {
		limit = n + 1
	}
	if len(sl.tasks) <= limit {
		return
	}
	for _, t := range sl.history() {
		if len(sl.tasks) <= limit {
			return
		}
		x.remove(t)
		x.because(Forget, sl.service, t.ID, "older than the task history that is kept")
		sl.tasks = slices.DeleteFunc(sl.tasks, func(o *cluster.Task) bool { return o.ID == t.ID })
	}
}

// history are the finished tasks of the slot but the newest, those that are to be forgotten first at the beginning.
func (sl *slot) history() []*cluster.Task {
	list := slices.DeleteFunc(slices.Clone(sl.tasks[1:]), func(t *cluster.Task) bool { return t.Wanted() || !finished(t) })
	slices.SortStableFunc(list, func(a, b *cluster.Task) int { return endedAt(a).Compare(endedAt(b)) })
	if sl.mode.job() {
		return sl.jobHistory(list)
	}
	return list
}

// endedAt is when the task's latest status was stored, by the leader's clock where it is known.
func endedAt(t *cluster.Task) time.Time {
	if !t.AppliedAt.IsZero() {
		return t.AppliedAt
	}
	return t.Status.Timestamp
}

// fit makes the number of a replicated service's slots what it should be (swarm-semantics.md, 4.2).
func (x *pass) fit(s *service) {
	var refilled map[int]bool
	switch want, have := s.replicas(), s.occupied.len(); {
	case want > have:
		refilled = x.grow(s, 1, want-have, fmt.Sprintf("scaled from %d to %d", have, want))
	case want < have:
		x.shrink(s, want)
	}
	x.bury(s, refilled)
}

// grow starts n tasks in the lowest slots from first on that are free. It touches no task that exists. It gives the
// slots it took that have a past.
func (x *pass) grow(s *service, first, n int, why string) (refilled map[int]bool) {
	d := Decision{Kind: ScaleUp, ServiceID: s.id, Tasks: make([]string, 0, n), Reason: why}
	x.created = slices.Grow(x.created, n)
	g := x.group(s)
	g.tasks = slices.Grow(g.tasks, n)
	patient := !s.mode.job() || x.now.Before(x.patience(s))
	var buf []*cluster.Task
	for num := s.occupied.gap(first); n > 0; num, n = s.occupied.gap(num+1), n-1 {
		t := x.newTask(s, num)
		d.Tasks = append(d.Tasks, t.ID)
		if !s.known.has(num) {
			continue
		}
		if refilled == nil {
			refilled = make(map[int]bool)
		}
		refilled[num] = true
		// A task that was told to stop and has not yet goes first.
		buf = x.tasksOf(s, num, buf[:0])
		for _, old := range buf {
			if old = x.view(old); old != nil && x.mayRun(old) && patient {
				t.Replaces, t.DesiredState = old.ID, swarm.TaskStateReady
			}
		}
		s.dirty[num] = struct{}{} // looked at again as soon as the task exists
	}
	x.decide(d)
	return refilled
}

// shrink keeps the slots that spread best and ends the others.
func (x *pass) shrink(s *service, want int) {
	type candidate struct {
		num     int
		running bool
		node    string // of the only task, "" otherwise
		copies  int    // earlier candidates on the same node; -1 without node
	}
	var list []candidate
	add := func(num int, tasks []*cluster.Task) {
		if !s.occupied.has(num) {
			return
		}
		c := candidate{num: num, copies: -1}
		n := 0
		for _, t := range tasks {
			if t = x.view(t); t == nil || !t.Wanted() {
				continue
			}
			n++
			c.running = c.running || t.Status.State == swarm.TaskStateRunning
			c.node = t.NodeID
		}
		if n != 1 {
			c.node = ""
		}
		list = append(list, c)
	}
	var tasks []*cluster.Task
	for t := range x.snap.TasksOfService(s.id) {
		if len(tasks) > 0 && tasks[0].Slot != t.Slot {
			add(tasks[0].Slot, tasks)
			tasks = tasks[:0]
		}
		tasks = append(tasks, t)
	}
	if len(tasks) > 0 {
		add(tasks[0].Slot, tasks)
	}
	slices.SortFunc(list, func(a, b candidate) int {
		if a.running != b.running {
			if a.running {
				return -1
			}
			return 1
		}
		return a.num - b.num
	})
	onNode := make(map[string]int)
	for i := range list {
		if c := &list[i]; c.node != "" {
			c.copies = onNode[c.node]
			onNode[c.node]++
		}
	}
	slices.SortStableFunc(list, func(a, b candidate) int {
		if (a.copies < 0) != (b.copies < 0) {
			return b.copies - a.copies
		}
		return a.copies - b.copies
	})
	d := Decision{Kind: ScaleDown, ServiceID: s.id,
		Reason: fmt.Sprintf("scaled from %d to %d", len(list), want)}
	for _, c := range list[min(want, len(list)):] {
		tasks = x.tasksOf(s, c.num, tasks[:0])
		d.Tasks = append(d.Tasks, x.discardSlot(s, c.num, tasks)...)
	}
	x.decide(d)
}

// discardSlot ends all tasks of a slot, those that this pass has created included, and gives the ids of those that were
// wanted.
func (x *pass) discardSlot(s *service, num int, tasks []*cluster.Task) (ended []string) {
	for _, t := range tasks {
		if x.discard(x.view(t)) {
			ended = append(ended, t.ID)
		}
	}
	if g := x.placing[s]; g != nil && slices.ContainsFunc(g.tasks, func(t *cluster.Task) bool { return t.Slot == num }) {
		g.tasks = slices.DeleteFunc(g.tasks, func(t *cluster.Task) bool { return t.Slot == num })
		x.created = slices.DeleteFunc(x.created, func(t *cluster.Task) bool { return t.ServiceID == s.id && t.Slot == num })
	}
	s.forgetSlot(num)
	s.dirty[num] = struct{}{}
	x.timers.set(timerKey{s.id, num}, noTime)
	return ended
}

// bury forgets slots that have nothing but history and were not taken again.
func (x *pass) bury(s *service, refilled map[int]bool) {
	if s.known.len() == s.occupied.len() {
		return
	}
	var tasks []*cluster.Task
	for num := s.known.next(0); num >= 0; num = s.known.next(num + 1) {
		if s.occupied.has(num) || refilled[num] {
			continue
		}
		tasks = x.tasksOf(s, num, tasks[:0])
		for _, t := range tasks {
			x.discard(x.view(t))
		}
		s.forgetSlot(num)
		s.dirty[num] = struct{}{}
	}
}
