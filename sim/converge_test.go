package sim

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/agent/docker"
	"github.com/miniswarm/miniswarm/cluster"
)

const (
	// history is the cluster's task history limit.
	history = 3
	// convergence is how long a cluster without faults may take until everything is as it was ordered.
	convergence = 30 * time.Second
)

// play builds a cluster, troubles it, lets it converge and ends it.
func (w *world) play(ctx context.Context, o options) (r result) {
	size := w.stream(0)
	life, end := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer func() {
		for _, h := range w.hosts {
			h.wanted.Store(false)
		}
		end()
		running.Wait()
		time.Sleep(hastily + time.Second) // what a broken world had scheduled
		w.mu.Lock()
		defer w.mu.Unlock()
		r.trace, r.violations = strings.Join(w.lines, "\n"), w.violations
	}()
	if err := w.build(size); err != nil {
		w.violate("build: %v", err)
		return r
	}
	if err := w.assemble(life, &running); err != nil {
		w.violate("assemble: %v", err)
		return r
	}
	w.trace("%d managers and %d workers are ready; messages of their own: %v; roles change: %v", w.managers, len(w.hosts)-w.managers, w.messages != nil, w.changing)
	running.Go(func() { w.checks.run(life) })

	cl := &clients{w: w}
	op := &operator{w: w, rand: w.stream(1)}
	work, rest := context.WithCancel(ctx)
	var workers sync.WaitGroup
	for i := range 3 {
		workers.Go(func() { cl.client(work, i) })
	}
	workers.Go(func() { op.run(work) })
	if w.changing {
		mv := &mover{w: w, rand: w.stream(3)}
		workers.Go(func() { mv.run(work) })
	}
	w.trouble(ctx, w.plan(w.stream(2), o.faults))
	_ = pause(ctx, 2*time.Second)
	rest()
	workers.Wait()

	w.trace("the troubles are over")
	r.converged = w.settle(ctx, cl, op)
	r.acked, r.ops = cl.acked+op.acked, len(cl.history)+op.ops
	r.history = cl.history
	return r
}

// settle waits for the cluster to converge, tells how long that took, and holds it against what was acknowledged.
func (w *world) settle(ctx context.Context, cl *clients, op *operator) (took time.Duration) {
	begin := time.Now()
	if w.changing {
		w.wait(10*time.Second, func() bool { return w.leader() != nil })
		w.rejoin()
	}
	for _, n := range w.hosts[w.managers:] {
		if !w.wait(30*time.Second, func() bool {
			l := w.leader()
			return l != nil && op.availability(ctx, l.h, n, swarm.NodeAvailabilityActive) == "done"
		}) {
			w.violate("I5: %s cannot be made active", n)
		}
	}
	ok := w.converged()
	took = time.Since(begin)
	if !ok {
		return took
	}
	cl.conclude(ctx)
	w.kept(op)
	w.accounted()
	w.bounded()
	w.agreed()
	w.grow(ctx, op)
	if w.converged() {
		time.Sleep(calmAfter + 5*time.Second) // for the checks that need a cluster that is well
	}
	return took
}

// converged waits until the cluster is as it was ordered (I5).
func (w *world) converged() bool {
	why := ""
	begin := time.Now()
	if !w.wait(convergence, func() bool { why = w.lacks(); return why == "" }) {
		w.violate("I5: %s after the last fault %s", convergence, why)
		return false
	}
	w.trace("converged after %s", time.Since(begin))
	return true
}

// lacks says what is not as it was ordered, "" when all is.
func (w *world) lacks() string {
	snap := w.leaderSnapshot()
	if snap == nil {
		return "there is no leader"
	}
	for _, h := range w.hosts {
		if h.process() == nil {
			return h.String() + " has no daemon"
		}
		if n := snap.Node(h.id()); n == nil || n.Status.State != swarm.NodeStateReady {
			return h.String() + " is not ready"
		}
	}
	if why := w.misplaced(snap); why != "" {
		return why
	}
	for _, g := range w.managing() {
		if g.store.Snapshot().Index() < snap.Index() {
			return g.h.String() + " lags"
		}
	}
	expected := map[string]*host{}
	for s := range snap.Services() {
		running, wanted := wantedTasks(snap, s.ID)
		n := len(w.hosts)
		if s.Spec.Mode.Replicated != nil {
			n = int(*s.Spec.Mode.Replicated.Replicas)
		}
		if job := s.Spec.Mode.ReplicatedJob; job != nil {
			if n, want := completed(snap, s), int(*job.TotalCompletions); n != want {
				return fmt.Sprintf("of job %s %d have completed, ordered are %d", s.Spec.Name, n, want)
			}
			continue
		}
		if s.Spec.TaskTemplate.ContainerSpec.Image == sick || s.UpdateStatus != nil && s.UpdateStatus.State == swarm.UpdateStatePaused {
			continue // what it should come to is a matter of chance
		}
		if len(running) != n || len(wanted) != n {
			return fmt.Sprintf("of %s run %d and are wanted %d, ordered are %d", s.Spec.Name, len(running), len(wanted), n)
		}
		if u := s.UpdateStatus; u != nil && (u.State == swarm.UpdateStateUpdating || u.State == swarm.UpdateStateRollbackStarted) {
			return fmt.Sprintf("%s is %s", s.Spec.Name, u.State)
		}
		for _, t := range running {
			expected[t.ID] = w.hostOf(t.NodeID)
		}
	}
	for id, h := range expected {
		if !h.runs(id) {
			return fmt.Sprintf("%s does not run task %s", h, id)
		}
	}
	for _, h := range w.hosts {
		for _, c := range h.running() {
			t := snap.Task(c.Labels[docker.LabelTaskID])
			if t == nil || !t.Wanted() {
				return fmt.Sprintf("%s runs %s, which is not wanted", h, c.Name)
			}
		}
		if why := w.routes(snap, h); why != "" {
			return why
		}
	}
	return ""
}

// completed counts the slots of a job's present run in which a task has ended well. It may be more than one task, where the
// node of the first was believed lost.
func completed(snap *cluster.Snapshot, s *cluster.Service) int {
	slots := map[int]bool{}
	for t := range snap.TasksOfService(s.ID) {
		if t.Status.State == swarm.TaskStateComplete && t.JobIteration != nil && s.JobStatus != nil && t.JobIteration.Index == s.JobStatus.JobIteration.Index {
			slots[t.Slot] = true
		}
	}
	return len(slots)
}

// routes says what the data plane of a host lacks: it must lead to every running replica of what is published, and nowhere
// else.
func (w *world) routes(snap *cluster.Snapshot, h *host) string {
	have := h.mesh.backends()
	for s := range snap.Services() {
		if s.Spec.EndpointSpec == nil || len(s.Spec.EndpointSpec.Ports) == 0 {
			continue
		}
		running, _ := wantedTasks(snap, s.ID)
		for _, t := range running {
			if _, ok := have[s.ID][t.ID]; !ok {
				return fmt.Sprintf("%s does not lead to task %s of %s", h, t.ID, s.Spec.Name)
			}
		}
		if len(have[s.ID]) > len(running) {
			return fmt.Sprintf("%s leads to %d replicas of %s, %d run", h, len(have[s.ID]), s.Spec.Name, len(running))
		}
	}
	return ""
}

func (w *world) hostOf(nodeID string) *host {
	for _, h := range w.hosts {
		if h.id() == nodeID {
			return h
		}
	}
	return nil
}

func (h *host) runs(taskID string) bool {
	for _, c := range h.running() {
		if c.Labels[docker.LabelTaskID] == taskID {
			return true
		}
	}
	return false
}

// kept: what the operator was told is done is done, and nothing else is (I1).
func (w *world) kept(op *operator) {
	l := w.led()
	if l == nil {
		return
	}
	snap := l.store.Snapshot()
	for i, b := range op.services {
		got := spec{}
		svc := snap.ServiceNamed(serviceName(i))
		if svc != nil {
			got = specOf(svc.Spec)
		}
		ok := got == b.sure
		for _, late := range b.late {
			ok = ok || got == late
		}
		if svc != nil && svc.UpdateStatus != nil && strings.HasPrefix(string(svc.UpdateStatus.State), "rollback") {
			ok = ok || got.exists
		}
		if !ok {
			w.violate("I1: %s is %+v; acknowledged was %+v, possible are also %+v", serviceName(i), got, b.sure, b.late)
		}
	}
}

// accounted: every container of ours belongs to a task, and the one that is not ours was not touched (I10).
func (w *world) accounted() {
	l := w.led()
	if l == nil {
		return
	}
	snap := l.store.Snapshot()
	for _, h := range w.hosts {
		untouched := false
		for _, c := range h.engine.Instances() {
			switch {
			case c.Name == foreign:
				untouched = true
			case c.Labels[docker.LabelTaskID] == "":
				w.violate("I10: %s has container %s, which nobody made", h, c.Name)
			case snap.Task(c.Labels[docker.LabelTaskID]) == nil && c.Running:
				w.violate("I10: %s runs container %s, whose task is gone", h, c.Name)
			}
		}
		if !untouched {
			w.violate("I10: the container on %s that is not ours is gone", h)
		}
	}
}

// bounded: history, logs and disks have the size that they may have (I11).
func (w *world) bounded() {
	l := w.led()
	if l == nil {
		return
	}
	snap := l.store.Snapshot()
	bySlot := map[string]int{}
	for t := range snap.Tasks() {
		if cluster.Terminal(t.Status.State) {
			bySlot[t.ServiceID+"."+t.SlotName()]++
		}
	}
	for slot, n := range bySlot {
		if n > history+2 {
			w.violate("I11: slot %s has %d ended tasks, the limit is %d", slot, n, history)
		}
	}
	for _, g := range w.managing() {
		st := g.store.Status()
		if st.LogEntries > snapshotEvery+keepEntries+200 || st.DiskBytes > 8<<20 {
			w.violate("I11: %s has %d entries in memory and %d bytes on disk", g.h, st.LogEntries, st.DiskBytes)
		}
	}
}

// agreed: all managers have the same at the end (I3).
func (w *world) agreed() {
	same := func() bool {
		digests := map[string]bool{}
		for _, g := range w.managing() {
			d, err := g.store.Snapshot().Digest()
			if err != nil {
				w.violate("I3: %v", err)
			}
			digests[d] = true
		}
		return len(digests) == 1
	}
	if !w.wait(20*time.Second, same) {
		w.violate("I3: the managers do not come to have the same")
	}
}

// grow scales a service up: what ran runs on (I6).
func (w *world) grow(ctx context.Context, op *operator) {
	for i := range op.services {
		l := w.led()
		if l == nil {
			return
		}
		snap := l.store.Snapshot()
		svc := snap.ServiceNamed(serviceName(i))
		if svc == nil || svc.Spec.Mode.Replicated == nil || svc.Spec.TaskTemplate.ContainerSpec.Image == sick || svc.UpdateStatus != nil && svc.UpdateStatus.State == swarm.UpdateStatePaused {
			continue
		}
		before, _ := wantedTasks(snap, svc.ID)
		n := uint64(len(before) + 3)
		op.change(ctx, l.h, i, func(s *swarm.ServiceSpec, want *spec) { s.Mode.Replicated.Replicas, want.replicas = &n, n })
		if !w.wait(30*time.Second, func() bool {
			s := w.leaderSnapshot()
			if s == nil || s.Service(svc.ID) == nil {
				return false
			}
			running, _ := wantedTasks(s, svc.ID)
			return len(running) == int(n)
		}) {
			w.violate("I5: %s does not grow to %d replicas", serviceName(i), n)
		}
		for _, t := range before {
			if !w.hostOf(t.NodeID).runs(t.ID) {
				w.violate("I6: growing %s ended task %s on %s", serviceName(i), t.ID, w.hostOf(t.NodeID))
			}
		}
		return
	}
}
