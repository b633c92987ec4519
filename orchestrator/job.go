package orchestrator

import (
	"fmt"
	"slices"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// Jobs are services whose tasks run to their end (swarm-semantics.md, 4.5 and 4.6). Every change of the specification
// is another run, a JobIteration: tasks of earlier runs are removed, and the work of each slot is done once more. What a
// slot of a job goes through is otherwise what those of services do, so that this file has the differences only: when a
// slot's work is done, what is tried again, and how many slots of a replicated job are worked on at a time.

// iteration is the run that a job is in, 0 for a service that is none.
func iteration(s *cluster.Service) uint64 {
	if s.JobStatus == nil {
		return 0
	}
	return s.JobStatus.JobIteration.Index
}

// current says whether the task belongs to the present run of a job. All tasks of other services do.
func (s *service) current(t *cluster.Task) bool {
	return !s.mode.job() || t.JobIteration != nil && t.JobIteration.Index == iteration(s.obj)
}

// keepBefore notes what is still left of a task that is to be forgotten.
func (sl *slot) keepBefore(t *cluster.Task) {
	if t != nil && sl.mode.job() {
		sl.before = append(sl.before, t)
	}
}

func hasCompleted(t *cluster.Task) bool { return t.Status.State == swarm.TaskStateComplete }

// hasFailed says whether the task ended by itself and without success.
func hasFailed(t *cluster.Task) bool {
	return t.Status.State == swarm.TaskStateFailed || t.Status.State == swarm.TaskStateRejected
}

// superviseJob brings the tasks of one slot of a job nearer to one success.
func (x *pass) superviseJob(sl *slot) {
	switch {
	case sl.node != nil && sl.node.obj == nil:
		x.superviseOnNode(sl) // which forgets them
	case slices.ContainsFunc(sl.tasks, hasCompleted):
		// A node that was believed lost may report a success when its work is being done again.
		for i, t := range sl.tasks {
			if t.Wanted() && !hasCompleted(t) {
				sl.tasks[i] = x.shutdown(t)
				x.because(ScaleDown, sl.service, t.ID, "the work has been done by another task")
			}
		}
	case sl.node != nil:
		x.superviseOnNode(sl)
	default:
		x.supervise(sl)
	}
}

// MayRunAgain applies the restart policy of a job's task that has ended or lost its node; slot has all tasks of its slot
// in this run. A success is never repeated: condition "any" means "on-failure". Only failures count as attempts, for a
// task whose node went did nothing wrong; but with condition "none", what was once begun is not begun again.
func MayRunAgain(t *cluster.Task, slot []*cluster.Task) bool {
	policy := t.Spec.RestartPolicy
	switch {
	case hasCompleted(t):
		return false
	case policy == nil:
		return true
	case policy.Condition == swarm.RestartPolicyConditionNone:
		return cluster.Before(t.Status.State, swarm.TaskStateStarting)
	case attempts(t) == 0, !hasFailed(t):
		return true
	case attempts(t) > countedAttempts:
		return carried(t) < attempts(t)
	}
	since, count := countedFrom(t), 0
	for _, o := range slot {
		if o.ID != t.ID && hasFailed(o) && endedAt(o).After(since) && !lostBefore(o, slot) {
			count++
		}
	}
	return count < attempts(t)
}

// lostBefore says whether a task of the slot had been given up with its node, and replaced, before it was seen to fail: a
// machine that was without power says so of whatever ran on it.
func lostBefore(t *cluster.Task, slot []*cluster.Task) bool {
	return slices.ContainsFunc(slot, func(o *cluster.Task) bool {
		return o.Replaces == t.ID && !o.CreatedAt.IsZero() && o.CreatedAt.Before(endedAt(t))
	})
}

// jobHistory leaves out, of what could be forgotten of a job's slot, its success and the failures that tell how often the
// restart policy has been used.
func (sl *slot) jobHistory(list []*cluster.Task) []*cluster.Task {
	var lost, others, failures []*cluster.Task
	for _, t := range list {
		switch {
		case hasCompleted(t):
		case !hasFailed(t):
			others = append(others, t)
		case lostBefore(t, sl.tasks):
			lost = append(lost, t) // before the task that replaced it, which tells that it is such a one
		default:
			failures = append(failures, t)
		}
	}
	if n := attempts(sl.tasks[0]); n > 0 && n <= countedAttempts {
		failures = failures[:max(0, len(failures)-n)]
	}
	return slices.Concat(lost, others, failures)
}

// tellEnd adds to the error of a job's task that it was the last one: nothing else in "service ps" would tell that from a
// failure that is tried again.
func (x *pass) tellEnd(sl *slot, t *cluster.Task) {
	if !hasFailed(t) {
		return
	}
	why := "restart condition " + string(swarm.RestartPolicyConditionNone)
	if n := attempts(t); n > 0 && t.Spec.RestartPolicy.Condition != swarm.RestartPolicyConditionNone {
		why = fmt.Sprintf("%d restarts are allowed", n)
		if n == 1 {
			why = "1 restart is allowed"
		}
	}
	i := slices.Index(sl.tasks, t)
	sl.tasks[i] = x.report(t, t.Status.State, t.Status.Message, fmt.Sprintf("%s; not tried again: %s", t.Status.Err, why))
}

// noteJob brings what the service knows about a job's slot up to date.
func (x *pass) noteJob(sl *slot) {
	s, num := sl.service, sl.num
	var wanted []*cluster.Task
	for _, t := range sl.tasks {
		if t.Wanted() {
			wanted = append(wanted, t)
		}
	}
	completed := slices.ContainsFunc(sl.tasks, hasCompleted)
	over := !completed && len(wanted) == 0 && len(sl.tasks) > 0 && !x.mayRestart(sl.tasks[0], sl.tasks)
	done := completed || over
	s.known.put(num, len(sl.tasks)+len(sl.before) > 0)
	s.occupied.put(num, done || len(wanted) > 0)
	s.done.put(num, done)
	s.over.put(num, over)
	s.leaving.put(num, slices.ContainsFunc(sl.before, x.mayRun))
	if len(wanted) == 1 && !done {
		t := wanted[0]
		s.plain.put(num, t.DesiredState == s.mode.goal() && t.Live() && !t.CreatedAt.IsZero())
	}
}

// completions gives how many slots a replicated job has, and how many may be worked on at a time.
func (s *service) completions() (total, concurrent int) {
	j := s.obj.Spec.Mode.ReplicatedJob
	concurrent = 1
	if j.MaxConcurrent != nil {
		concurrent = int(*j.MaxConcurrent)
	}
	total = concurrent
	if j.TotalCompletions != nil {
		total = int(*j.TotalCompletions)
	}
	return total, concurrent
}

// patience is until when the tasks of a job's present run wait for those of earlier runs to stop.
func (x *pass) patience(s *service) time.Time {
	if s.obj.JobStatus == nil {
		return noTime
	}
	return x.past(s.obj.JobStatus.LastExecution).Add(x.stopTimeout)
}

// fitJob starts work in further slots of a replicated job: as many as have not been worked on, and as may be at a time.
// Tasks of an earlier run count until they have stopped, so that no more than MaxConcurrent containers run; but like
// whatever replaces something, the new run does not wait for them for ever.
func (x *pass) fitJob(s *service) {
	x.timers.set(timerKey{s.id, wholeService}, noTime)
	leaving := s.leaving.len()
	if until := x.patience(s); leaving > 0 && x.now.Before(until) {
		x.timers.set(timerKey{s.id, wholeService}, until)
	} else {
		leaving = 0
	}
	total, concurrent := s.completions()
	working := s.occupied.len() - s.done.len()
	if n := min(concurrent-working-leaving, total-s.occupied.len()); n > 0 {
		x.grow(s, 0, n, fmt.Sprintf("%d of %d done or under way, %d at a time", s.occupied.len(), total, concurrent))
	}
}

// tellStandstill says in a job's UpdateStatus that it has come to an end that is none: what is not done is not tried again.
// It is said as of an update that is paused, for that ends every command that waits for the job.
func (x *pass) tellStandstill(s *service) {
	message := ""
	if stands := s.over.len() > 0 && s.occupied.len() == s.done.len(); stands && s.mode == globalJob {
		message = fmt.Sprintf("completed on %d nodes, not tried again on %d", s.done.len()-s.over.len(), s.over.len())
	} else if stands {
		if total, _ := s.completions(); s.done.len() == total {
			message = fmt.Sprintf("%d of %d completed, %d not tried again", total-s.over.len(), total, s.over.len())
		}
	}
	said := ""
	if s.obj.UpdateStatus != nil {
		said = s.obj.UpdateStatus.Message
	}
	if message != "" {
		message = "the job has ended: " + message + "; update the service to run it again"
	}
	if message == said {
		return
	}
	c := x.edit(s)
	if message == "" { // a node has come, or come back
		c.UpdateStatus = nil
		return
	}
	at := x.now
	c.UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateStatePaused, StartedAt: &at, Message: message}
	x.decide(Decision{Kind: GiveUp, ServiceID: s.id, Reason: message})
}
