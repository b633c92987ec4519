package orchestrator

import (
	"cmp"
	"fmt"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// failures are the tasks that an update created in one slot and that failed early: how many, and which last.
type failures struct {
	count int
	last  *cluster.Task
}

// observeRunning notes when a task of an update was first seen RUNNING: from then on it is monitored.
func (s *service) observeRunning(old, new *cluster.Task) {
	switch {
	case new == nil:
		delete(s.ran, old.ID)
	case s.obj == nil, !s.updating(), new.Replaces == "", new.Status.State != swarm.TaskStateRunning:
	case old == nil || old.Status.State != swarm.TaskStateRunning:
		s.ran[new.ID] = endedAt(new)
	}
}

// failedEarly says whether a task that an update created counts as a failure: it ended by itself before it was RUNNING
// or within Monitor after that, no matter how (swarm-semantics.md, 4.8).
func (s *service) failedEarly(t *cluster.Task) bool {
	switch t.Status.State {
	case swarm.TaskStateFailed, swarm.TaskStateRejected, swarm.TaskStateComplete:
	default:
		return false
	}
	monitor := updateConfig(s).Monitor
	if ran, seen := s.ran[t.ID]; seen {
		return endedAt(t).Sub(ran) <= monitor
	}
	// Either it never ran, or another manager led when it began to: then its whole life is what is known. A failed task
	// keeps the message of the step it was in.
	ran := t.Status.State == swarm.TaskStateComplete || t.Status.Message == "started"
	return !ran || endedAt(t).Sub(t.CreatedAt) <= monitor
}

// noteFailure counts a task of the update that failed early.
func (s *service) noteFailure(num int, t *cluster.Task) {
	if !s.failedEarly(t) {
		return
	}
	f := s.failures[num]
	f.count++
	if f.last == nil || later(t, f.last) {
		f.last = t
	}
	s.failures[num] = f
}

func later(a, b *cluster.Task) bool {
	return cmp.Or(endedAt(a).Compare(endedAt(b)), cmp.Compare(a.ID, b.ID)) > 0
}

// stopForFailures ends an update of which too many tasks failed, as its configuration wants it: nothing more is
// updated, or the previous spec comes back. It says whether it did.
func (x *pass) stopForFailures(s *service, config swarm.UpdateConfig) bool {
	if !s.updating() || len(s.failures) == 0 || config.FailureAction == swarm.UpdateFailureActionContinue {
		return false
	}
	count := 0
	var last *cluster.Task
	for _, f := range s.failures {
		count += f.count
		if last == nil || later(f.last, last) {
			last = f.last
		}
	}
	slots := s.touched.len()
	for num := s.outdated.next(0); num >= 0; num = s.outdated.next(num + 1) {
		if !s.touched.has(num) {
			slots++
		}
	}
	if float32(count)/float32(slots) <= config.MaxFailureRatio {
		return false
	}
	c := x.edit(s)
	status := *s.obj.UpdateStatus
	did := "update paused"
	switch {
	case s.rollingBack():
		did = "rollback paused"
		status.State = swarm.UpdateStateRollbackPaused
	case config.FailureAction == swarm.UpdateFailureActionRollback && c.PreviousSpec != nil:
		did = "update rolled back"
		status.State = swarm.UpdateStateRollbackStarted
		c.Spec, c.SpecVersion, c.RegistryAuth = *c.PreviousSpec, c.PreviousSpecVersion, c.PreviousRegistryAuth
		c.PreviousSpec, c.PreviousSpecVersion, c.PreviousRegistryAuth = nil, swarm.Version{}, ""
	default:
		// Swarm leaves an update that it should roll back to nowhere as "updating" for ever.
		status.State = swarm.UpdateStatePaused
	}
	status.Message = fmt.Sprintf("%s due to failure or early termination of task %s", did, last.ID)
	c.UpdateStatus = &status
	x.decide(Decision{Kind: Update, ServiceID: s.id, Tasks: []string{last.ID}, Reason: status.Message})
	return true
}
