package orchestrator

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

const defaultMonitor = 5 * time.Second

// updateConfig is how the service wants to be updated, or rolled back while that is under way.
func updateConfig(s *service) swarm.UpdateConfig {
	c := s.obj.Spec.UpdateConfig
	if s.rollingBack() {
		c = s.obj.Spec.RollbackConfig
	}
	if c == nil {
		return swarm.UpdateConfig{Parallelism: 1, Monitor: defaultMonitor}
	}
	set := *c
	set.Monitor = cmp.Or(set.Monitor, defaultMonitor)
	return set
}

// outdated says whether a task has to make way for one of the service's present spec (swarm-semantics.md, 4.8).
func (x *pass) outdated(s *service, t *cluster.Task) bool {
	v := s.verdictOf(t)
	switch {
	case v == verdict{}:
		return false
	case v.different:
		return true
	case v.credentials && !(t.Wanted() && hasImage(t)):
		return true
	}
	return v.placement && (x.nodes[t.NodeID].lost() || !x.meetsConstraints(s.obj, x.nodes[t.NodeID]))
}

func hasImage(t *cluster.Task) bool {
	return !cluster.Before(t.Status.State, swarm.TaskStateReady) && !cluster.Terminal(t.Status.State)
}

// converge ends, in a slot with several wanted tasks, those that the update has replaced: at once where tasks are
// stopped first, and when the new one runs where it is started first.
func (x *pass) converge(sl *slot) {
	var keep *cluster.Task
	wanted := 0
	for _, t := range sl.tasks {
		if !t.Wanted() {
			continue
		}
		wanted++
		if x.outdated(sl.service, t) {
			continue
		}
		// The most advanced stays; of equals the older.
		if keep == nil || !cluster.Before(t.Status.State, keep.Status.State) {
			keep = t
		}
	}
	if keep == nil || wanted < 2 {
		return
	}
	startFirst := updateConfig(sl.service).Order == swarm.UpdateOrderStartFirst
	for i, t := range sl.tasks {
		if t == keep || !t.Wanted() {
			continue
		}
		if startFirst && keep.Status.State != swarm.TaskStateRunning && x.outdated(sl.service, t) {
			continue
		}
		sl.tasks[i] = x.shutdown(t)
		x.because(Update, sl.service, t.ID, fmt.Sprintf("slot %s: its successor has taken over", slotName(sl)))
	}
}

func slotName(sl *slot) string {
	if sl.node != nil {
		return sl.node.id
	}
	return fmt.Sprint(sl.num)
}

// byUpdate says whether the update under way has created the task. It creates tasks that replace one and, unlike
// restarts, are not held back until a time.
func (s *service) byUpdate(t *cluster.Task) bool {
	return t.Replaces != "" && !restarted(t) && t.SpecVersion == s.obj.SpecVersion &&
		(t.CreatedAt.IsZero() || !t.CreatedAt.Before(s.started))
}

// noteUpdate notes what became of the slot in the update under way and says whether it still occupies a worker. All of
// that is read from the slot's tasks.
func (x *pass) noteUpdate(sl *slot) (busy bool) {
	s, starting := sl.service, false
	if !s.updating() {
		return false
	}
	for _, t := range sl.tasks {
		if !s.byUpdate(t) {
			continue
		}
		s.touched.put(sl.num, true)
		s.noteFailure(sl.num, t)
		if cluster.Before(t.Status.State, swarm.TaskStateRunning) {
			starting = starting || t.Wanted()
			continue
		}
		end := endedAt(t)
		if end.After(s.startEnds[sl.num]) {
			s.startEnds[sl.num] = end
		}
		if !s.settled.IsZero() && end.After(s.settled) {
			s.settled = end
		}
		if end.After(s.busy[sl.num]) {
			s.busy[sl.num] = end
			busy = true
		}
	}
	if starting {
		s.busy[sl.num] = noTime
	}
	return busy || starting
}

// advanceUpdate starts, continues and completes the update of a service's tasks to its present spec. Each of
// Parallelism workers replaces the task of one slot, waits until the new one runs or has failed, and then for Delay.
// Nothing of this is kept but in the tasks and the service's UpdateStatus, so a new leader goes on where the old one
// ended.
func (x *pass) advanceUpdate(s *service) {
	x.timers.set(timerKey{s.id, wholeService}, noTime)
	switch s.updateState() {
	case swarm.UpdateStatePaused, swarm.UpdateStateRollbackPaused:
		return // until somebody updates or rolls back the service again
	}
	config := updateConfig(s)
	if s.outdated.len() == 0 && !s.updating() || x.stopForFailures(s, config) {
		return
	}
	var next time.Time
	working := 0
	for num, since := range s.busy {
		end := x.past(since).Add(config.Delay)
		switch {
		case since.IsZero():
			working++
		case x.now.Before(end):
			working++
			if next.IsZero() || end.Before(next) {
				next = end
			}
		default:
			delete(s.busy, num)
		}
	}
	if s.outdated.len() == 0 && working == 0 {
		monitor := config.Monitor
		if config.Delay >= monitor {
			monitor = config.Delay + time.Second
		}
		settled := s.settledAt()
		if end := x.past(settled).Add(config.Delay + monitor); !settled.IsZero() && x.now.Before(end) {
			x.timers.set(timerKey{s.id, wholeService}, end)
			return
		}
		x.completeUpdate(s)
		return
	}
	x.timers.set(timerKey{s.id, wholeService}, next)
	if s.outdated.len() == 0 {
		return
	}
	if !x.stateUpdate(s) {
		return
	}
	workers := int(min(config.Parallelism, math.MaxInt32))
	if workers == 0 {
		workers = s.outdated.len() + working
	}
	for _, num := range x.nextOutdated(s, workers-working) {
		x.updateSlot(s, num, config)
	}
}

// stateUpdate says in the service's UpdateStatus that the update is under way, and whether it may go on: not while there
// are no ports or addresses for the tasks of the new spec. Swarm stops the old tasks all the same.
func (x *pass) stateUpdate(s *service) bool {
	state, word := swarm.UpdateStateUpdating, "update"
	if s.rollingBack() {
		state, word = swarm.UpdateStateRollbackStarted, "rollback"
	}
	message := word + " in progress"
	if s.unallocated != "" {
		message = word + " waits: " + s.unallocated
	}
	status := swarm.UpdateStatus{State: state}
	if s.updating() {
		status = *s.obj.UpdateStatus
	} else {
		at := x.now
		status.StartedAt = &at
	}
	// The words of whoever asked for a rollback stay.
	if status.Message == "" || s.unallocated != "" || strings.HasPrefix(status.Message, word+" waits: ") {
		status.Message = message
	}
	if !s.updating() || status.Message != s.obj.UpdateStatus.Message {
		x.edit(s).UpdateStatus = &status
	}
	return s.unallocated == ""
}

// nextOutdated gives the first n slots that wait for their update.
func (x *pass) nextOutdated(s *service, n int) []int {
	var nums []int
	for num := s.outdated.next(0); num >= 0 && (s.mode.perNode() || len(nums) < n); num = s.outdated.next(num + 1) {
		nums = append(nums, num)
	}
	if s.mode.perNode() {
		x.sortSlots(s, nums)
	}
	return nums[:max(0, min(n, len(nums)))]
}

// updateSlot replaces the task of one slot by one of the present spec.
func (x *pass) updateSlot(s *service, num int, config swarm.UpdateConfig) {
	var tasks []*cluster.Task
	for _, t := range x.tasksOf(s, num, nil) {
		if t = x.view(t); t != nil && t.DesiredState != swarm.TaskStateRemove {
			tasks = append(tasks, t)
		}
	}
	if len(tasks) == 0 {
		return // nothing is stored yet
	}
	newestFirst(tasks)
	stays := (*cluster.Task)(nil)
	if config.Order == swarm.UpdateOrderStartFirst {
		for _, t := range tasks {
			// A task that has no place serves nobody: no need to keep it.
			if t.Wanted() && t.Live() && (stays == nil || cluster.Before(stays.Status.State, t.Status.State)) {
				stays = t
			}
		}
	}
	t := x.newTask(s, num)
	t.Replaces = tasks[0].ID
	x.because(Update, s, t.ID, fmt.Sprintf("%s: the task's spec is not the service's any more", cmp.Or(config.Order, swarm.UpdateOrderStopFirst)))
	for _, old := range tasks {
		switch {
		case old == stays:
			t.Replaces = old.ID
		case old.Wanted():
			old = x.shutdown(old)
			if stays == nil && x.mayRun(old) {
				t.Replaces, t.DesiredState = old.ID, swarm.TaskStateReady
			}
		case stays == nil && t.DesiredState != swarm.TaskStateReady && x.mayRun(old):
			t.Replaces, t.DesiredState = old.ID, swarm.TaskStateReady
		}
	}
	s.outdated.put(num, false)
	s.plain.put(num, false)
	s.busy[num] = noTime
	s.dirty[num] = struct{}{}
	if t.DesiredState == swarm.TaskStateReady {
		x.timers.set(timerKey{s.id, num}, x.now.Add(x.stopTimeout))
	}
}

// completeUpdate ends an update of which nothing is left to do.
func (x *pass) completeUpdate(s *service) {
	status := *s.obj.UpdateStatus
	at := x.now
	status.CompletedAt = &at
	status.State, status.Message = swarm.UpdateStateCompleted, "update completed"
	if s.rollingBack() {
		status.State, status.Message = swarm.UpdateStateRollbackCompleted, "rollback completed"
	}
	x.edit(s).UpdateStatus = &status
	x.decide(Decision{Kind: Update, ServiceID: s.id, Reason: status.Message})
}

// sortTasks orders tasks that wait for a place: by version, then as their slots are numbered.
func sortTasks(tasks []*cluster.Task) {
	slices.SortFunc(tasks, func(a, b *cluster.Task) int {
		return cmp.Or(cmp.Compare(a.SpecVersion.Index, b.SpecVersion.Index), cmp.Compare(a.Slot, b.Slot),
			a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
}
