package orchestrator

import (
	"cmp"
	"slices"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// service is what the planner keeps about one service between passes. It mirrors the store: everything in it can be
// computed from the service's tasks, and is corrected slot by slot as their changes are observed.
type service struct {
	id string
	// obj is the service as stored, nil once it was removed and while only its tasks are known.
	obj  *cluster.Service
	mode mode
	// tasks is the number of stored tasks.
	tasks int
	// versions has the spec versions of the stored tasks.
	versions map[uint64]specVersion
	// verdicts compare the versions that have been met with the present spec.
	verdicts map[uint64]verdict

	// The slots by number. A replicated service's are 1, 2, 3 ..., a replicated job's 0, 1, 2 ...; those of a global
	// service or job are the nodes, by the number the planner gave them.
	known    bits // has any task
	occupied bits // counts as present: has a wanted task, or its last task must not be restarted
	plain    bits // one wanted task of the present spec with nothing pending about it: its progress is of no interest
	outdated bits // its task has an older spec and waits for its turn to be updated
	done     bits // a job's: its work was done, or is not tried again; occupied as well
	over     bits // a job's: its work is not tried again; done as well
	leaving  bits // a job's: a task of an earlier run has not stopped yet
	// busy has the slots that occupy a worker of the update: with the time when their new task ended its start, zero
	// while it is starting.
	busy map[int]time.Time
	// startEnds has when the latest new task of this update in each slot ended its start, settled the latest of these times
	// if that is known.
	startEnds map[int]time.Time
	settled   time.Time
	// touched has the slots in which this update has created a task, failures those in which such tasks failed early.
	touched  bits
	failures map[int]failures
	// ran is when tasks of this update were first seen RUNNING.
	ran map[string]time.Time
	// started is the UpdateStatus.StartedAt that all of this belongs to.
	started time.Time

	// dirty has the slots to look at again, unless all have to be.
	dirty map[int]struct{}
	all   bool
	// reruled is set when the constraints have changed.
	reruled bool
	// pending has the wanted tasks that have no place yet.
	pending map[string]struct{}
	// reallocate is set when the endpoint has to be looked at again; unallocated says why ports or virtual IPs could
	// not be had, "" when they are complete.
	reallocate  bool
	unallocated string
}

type mode uint8

const (
	replicated mode = iota
	global
	replicatedJob
	globalJob
)

// perNode says that each node is a slot.
func (m mode) perNode() bool { return m == global || m == globalJob }

// job says that tasks are to run to their end.
func (m mode) job() bool { return m == replicatedJob || m == globalJob }

// goal is the desired state of a task that nothing holds back.
func (m mode) goal() swarm.TaskState {
	if m.job() {
		return swarm.TaskStateComplete
	}
	return swarm.TaskStateRunning
}

func modeOf(s *cluster.Service) mode {
	switch m := s.Spec.Mode; {
	case m.Global != nil:
		return global
	case m.ReplicatedJob != nil:
		return replicatedJob
	case m.GlobalJob != nil:
		return globalJob
	}
	return replicated
}

// specVersion counts the tasks made from one version of the spec; sample is one of them, for its template.
type specVersion struct {
	tasks  int
	sample *cluster.Task
}

func newService(id string) *service {
	return &service{id: id, versions: make(map[uint64]specVersion), dirty: make(map[int]struct{}),
		pending: make(map[string]struct{}), busy: make(map[int]time.Time), startEnds: make(map[int]time.Time), failures: make(map[int]failures), ran: make(map[string]time.Time)}
}

// byAge orders services from the oldest to the youngest, who came first has the port; before them those that are gone,
// because what they leave may serve others.
func byAge(a, b *service) int {
	switch {
	case a.obj == nil && b.obj == nil:
		return cmp.Compare(a.id, b.id)
	case a.obj == nil:
		return -1
	case b.obj == nil:
		return 1
	}
	return cmp.Or(a.obj.CreatedAt.Compare(b.obj.CreatedAt), cmp.Compare(a.id, b.id))
}

// forgetSlot clears everything known about a slot.
func (s *service) forgetSlot(num int) {
	s.known.put(num, false)
	s.occupied.put(num, false)
	s.plain.put(num, false)
	s.outdated.put(num, false)
	s.done.put(num, false)
	s.over.put(num, false)
	s.leaving.put(num, false)
	s.touched.put(num, false)
	delete(s.busy, num)
	delete(s.failures, num)
	if at, ok := s.startEnds[num]; ok {
		delete(s.startEnds, num)
		if at.Equal(s.settled) {
			s.settled = noTime
		}
	}
}

// forgetSlots clears everything known about all slots.
func (s *service) forgetSlots() {
	s.known.clear()
	s.occupied.clear()
	s.plain.clear()
	s.outdated.clear()
	s.done.clear()
	s.over.clear()
	s.leaving.clear()
	s.forgetUpdate()
}

// forgetUpdate clears what is known about the progress of an update.
func (s *service) forgetUpdate() {
	s.touched.clear()
	clear(s.busy)
	clear(s.failures)
	clear(s.startEnds)
	s.settled = noTime
}

// settledAt is the latest time at which a new task of the update ended its start, zero if none has.
func (s *service) settledAt() time.Time {
	if s.settled.IsZero() {
		for _, at := range s.startEnds {
			if at.After(s.settled) {
				s.settled = at
			}
		}
	}
	return s.settled
}

// replicas is the wanted number of tasks of a replicated service.
func (s *service) replicas() int {
	if r := s.obj.Spec.Mode.Replicated; r != nil && r.Replicas != nil {
		return int(*r.Replicas)
	}
	return 1
}

// updateState is the state of the update, "" when there is none.
func (s *service) updateState() swarm.UpdateState {
	if s.obj.UpdateStatus == nil {
		return ""
	}
	return s.obj.UpdateStatus.State
}

// updating says whether an update or a rollback is under way.
func (s *service) updating() bool {
	st := s.updateState()
	return st == swarm.UpdateStateUpdating || st == swarm.UpdateStateRollbackStarted
}

// matchUpdate forgets what was noted about another update than the one under way.
func (s *service) matchUpdate() {
	started := noTime
	if s.updating() && s.obj.UpdateStatus.StartedAt != nil {
		started = *s.obj.UpdateStatus.StartedAt
	}
	if !s.started.Equal(started) || !s.updating() {
		s.started = started
		s.forgetUpdate()
		clear(s.ran)
	}
}

// rollingBack is the phase in which slots that gave up are filled again (swarm-semantics.md, 2.4).
func (s *service) rollingBack() bool { return s.updateState() == swarm.UpdateStateRollbackStarted }

// verdict says how the spec a task was made from differs from the service's present one, as far as a task can tell.
// The zero verdict is: not at all.
type verdict struct {
	// different: the task has to be replaced.
	different bool
	// placement: only where it may run differs, so that a task on a node that fits may stay.
	placement bool
	// credentials: only those for the registry differ, which a task that has its image does not need.
	credentials bool
}

// compare judges any task made from one version of the spec (swarm-semantics.md, 4.8, "dirty").
func compare(t *cluster.Task, s *cluster.Service) verdict {
	if t.SpecVersion == s.SpecVersion {
		return verdict{}
	}
	different, placement := t.Differs(s)
	if different {
		return verdict{different: true}
	}
	return verdict{placement: placement, credentials: t.RegistryAuth != s.RegistryAuth}
}

// verdictOf is compare, remembered.
func (s *service) verdictOf(t *cluster.Task) verdict {
	if t.SpecVersion == s.obj.SpecVersion {
		return verdict{}
	}
	v, ok := s.verdicts[t.SpecVersion.Index]
	if !ok {
		v = compare(t, s.obj)
		s.verdicts[t.SpecVersion.Index] = v
	}
	return v
}

// setObject takes over the service as stored now and says whether every slot has to be judged again. A change of the
// number of replicas alone does not, which is why scaling costs what is added and not what is there. Another run of a
// job begins anew in each slot.
func (s *service) setObject(obj *cluster.Service) (rejudge bool) {
	was := s.obj
	s.obj, s.mode = obj, modeOf(obj)
	if was == nil {
		s.verdicts = make(map[uint64]verdict)
		return true
	}
	if (was.UpdateStatus != nil && was.UpdateStatus.State == swarm.UpdateStateRollbackStarted) != s.rollingBack() ||
		iteration(was) != iteration(obj) {
		rejudge = true
	}
	if was.SpecVersion == obj.SpecVersion {
		return rejudge
	}
	for _, v := range s.verdicts {
		rejudge = rejudge || v != verdict{}
	}
	s.reruled = s.reruled || !slices.Equal(constraints(was), constraints(obj))
	s.verdicts = make(map[uint64]verdict)
	for index, v := range s.versions {
		now := compare(v.sample, obj)
		s.verdicts[index] = now
		rejudge = rejudge || now != verdict{}
	}
	// Which nodes belong to a global service depends on its constraints.
	return rejudge || s.mode.perNode()
}

func constraints(s *cluster.Service) []string {
	if p := s.Spec.TaskTemplate.Placement; p != nil {
		return p.Constraints
	}
	return nil
}

// addTask counts a stored task in (1) or out (-1).
func (s *service) addTask(t *cluster.Task, delta int) {
	s.tasks += delta
	v := s.versions[t.SpecVersion.Index]
	v.tasks += delta
	if v.sample == nil {
		v.sample = t
	}
	if v.tasks == 0 {
		delete(s.versions, t.SpecVersion.Index)
		delete(s.verdicts, t.SpecVersion.Index)
		return
	}
	s.versions[t.SpecVersion.Index] = v
}

// networks gives the attachments of tasks made from the template: its own, or where it has none those that the service
// has in the place where Docker kept them before.
func networks(template *swarm.TaskSpec, s *cluster.Service) []swarm.NetworkAttachmentConfig {
	if len(template.Networks) > 0 {
		return template.Networks
	}
	return s.Spec.Networks //lint:ignore SA1019 old clients still send it, and it has to work
}
