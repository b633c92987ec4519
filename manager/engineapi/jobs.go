package engineapi

import (
	"fmt"
	"strings"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/orchestrator"
)

// isJob says whether a service's tasks are to run to their end.
func isJob(m swarm.ServiceMode) bool { return m.ReplicatedJob != nil || m.GlobalJob != nil }

// runJob begins the first or the next run of a job, which each change of its specification is, whatever it changes
// (swarm-semantics, 1.7). Tasks of earlier runs are told apart by the number.
func runJob(svc *cluster.Service) {
	if !isJob(svc.Spec.Mode) {
		return
	}
	run := swarm.JobStatus{LastExecution: time.Now().UTC()}
	if svc.JobStatus != nil {
		run.JobIteration.Index = svc.JobStatus.JobIteration.Index + 1
	}
	svc.JobStatus = &run
}

// ofThisRun says whether the task belongs to the present run of a job.
func ofThisRun(svc *cluster.Service, t *cluster.Task) bool {
	return t.JobIteration != nil && svc.JobStatus != nil && t.JobIteration.Index == svc.JobStatus.JobIteration.Index
}

// normalizeJob gives absent numbers their meaning: one at a time, and as many as there may be at a time.
func normalizeJob(j *swarm.ReplicatedJob) error {
	if j.MaxConcurrent == nil {
		one := uint64(1)
		j.MaxConcurrent = &one
	}
	if j.TotalCompletions == nil {
		same := *j.MaxConcurrent
		j.TotalCompletions = &same
	}
	switch {
	case int64(*j.MaxConcurrent) < 0:
		return rpcErrorf(invalidArgument, "Maximum concurrent jobs must not be negative")
	case int64(*j.TotalCompletions) < 0:
		return rpcErrorf(invalidArgument, "Total completed jobs must not be negative")
	case *j.MaxConcurrent > maxReplicas:
		return rpcErrorf(invalidArgument, "Maximum concurrent jobs must be at most %d", maxReplicas)
	case *j.TotalCompletions > maxReplicas:
		return rpcErrorf(invalidArgument, "Total completed jobs must be at most %d", maxReplicas)
	}
	return nil
}

// jobSlot is what has become of one slot of a job, or of one node of a global job, in the present run.
type jobSlot struct {
	completed bool
	// wanted is the task that works on it, if any does.
	wanted *cluster.Task
	// newest is the latest of tasks, which are all that there are.
	newest *cluster.Task
	tasks  []*cluster.Task
}

// over says that the slot's work was not done and is not tried again.
func (s *jobSlot) over() bool {
	return !s.completed && s.wanted == nil && !orchestrator.MayRunAgain(s.newest, s.tasks)
}

// jobSlots gives the slots that were ever worked on, in the order of their tasks.
func jobSlots(snap *cluster.Snapshot, svc *cluster.Service) []*jobSlot {
	type key struct {
		slot int
		node string
	}
	var slots []*jobSlot
	byKey := map[key]*jobSlot{}
	for t := range snap.TasksOfService(svc.ID) {
		if !ofThisRun(svc, t) {
			continue
		}
		k := key{slot: t.Slot}
		if svc.Spec.Mode.GlobalJob != nil {
			k.node = t.NodeID
		}
		s := byKey[k]
		if s == nil {
			s = &jobSlot{}
			byKey[k] = s
			slots = append(slots, s)
		}
		s.tasks = append(s.tasks, t)
		if s.newest == nil || t.CreatedAt.After(s.newest.CreatedAt) {
			s.newest = t
		}
		switch {
		case t.Status.State == swarm.TaskStateComplete:
			s.completed = true
		case t.Wanted():
			s.wanted = t
		}
	}
	return slots
}

// jobStatus counts what service ls shows of a job. Each slot counts as completed once: a node that was believed lost may
// have completed one that was begun anew elsewhere. A node where a global job failed for good is still desired, so that
// the list does not call the job complete.
func jobStatus(snap *cluster.Snapshot, svc *cluster.Service) *swarm.ServiceStatus {
	st := &swarm.ServiceStatus{}
	up := func(t *cluster.Task) bool {
		n := snap.Node(t.NodeID)
		return n == nil || n.Status.State != swarm.NodeStateDown
	}
	for _, s := range jobSlots(snap, svc) {
		switch {
		case s.completed:
			st.CompletedTasks++
		case s.over():
			st.DesiredTasks++
		case s.wanted != nil && up(s.wanted):
			st.DesiredTasks++
			if s.wanted.Running() {
				st.RunningTasks++
			}
		}
	}
	if m := svc.Spec.Mode.ReplicatedJob; m != nil {
		st.DesiredTasks = *m.MaxConcurrent
	}
	return st
}

// writeJob says in words how far a job has come, and what of it is not tried again and why.
func writeJob(b *strings.Builder, snap *cluster.Snapshot, svc *cluster.Service) {
	var completed, atWork int
	var over []*cluster.Task
	for _, s := range jobSlots(snap, svc) {
		switch {
		case s.completed:
			completed++
		case s.over():
			over = append(over, s.newest)
		case s.wanted != nil:
			atWork++
		}
	}
	run := svc.JobStatus
	fmt.Fprintf(b, "job iteration %d, begun %s: ", run.JobIteration.Index, run.LastExecution.Format(time.RFC3339))
	if m := svc.Spec.Mode.ReplicatedJob; m != nil {
		fmt.Fprintf(b, "%d of %d completed, %d under way, %d at a time", completed, *m.TotalCompletions, atWork, *m.MaxConcurrent)
	} else {
		fmt.Fprintf(b, "completed on %d nodes, under way on %d", completed, atWork)
	}
	if len(over) > 0 {
		fmt.Fprintf(b, ", %d not tried again", len(over))
	}
	b.WriteString("\n")
	for i, t := range over {
		if i == explainLimit {
			fmt.Fprintf(b, "and %d more that are not tried again\n", len(over)-i)
			break
		}
		writeState(b, snap, t)
	}
}
