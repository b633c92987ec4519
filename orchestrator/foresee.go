package orchestrator

import (
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// Foreseen is what becomes of a cluster in which every task does as it is told.
type Foreseen struct {
	// Snapshot is the cluster at the end.
	Snapshot *cluster.Snapshot
	// Decisions are those made on the way, in order.
	Decisions []Decision
	// Started and Ended have, of the tasks that did so on the way, the number of the pass in which it was: what has the smaller
	// number happens before.
	Started, Ended map[string]int
	// Settled says that nothing is left to do; otherwise no more passes were allowed.
	Settled bool
}

// Foresee plays on from a state, which it owns and changes: pass after pass, with tasks that start at once, run for ever
// and stop when they are told to. Time goes on only where there is nothing to do but to wait. So it tells what an update
// or a new service comes to, without anything being stored.
//
// more is asked before each pass, and false ends it all. A pass costs what it changes; the first costs what exists.
func Foresee(st *cluster.State, now time.Time, ids cluster.IDs, more func() bool) Foreseen {
	p := New(Options{})
	p.Reset(st.Snapshot())
	out := Foreseen{Started: make(map[string]int), Ended: make(map[string]int)}
	commit := func(changes []cluster.Change) []cluster.Event {
		events, err := st.Apply(&cluster.Txn{Time: now, Changes: changes}, st.Index()+1)
		if err != nil { // the planner plans for the very state that it is applied to
			return nil
		}
		for i := range events {
			p.Observe(events[i])
		}
		return events
	}
	moving := pendingObedience(st.Snapshot())
	for pass := 1; more(); pass++ {
		if obeys := obedience(st.Snapshot(), moving, now); len(obeys) > 0 {
			events := commit(obeys)
			out.note(events, pass)
			moving = changedTasks(events)
		} else {
			moving = nil
		}
		plan := p.Next(st.Snapshot(), now, ids)
		out.Decisions = append(out.Decisions, plan.Decisions...)
		switch {
		case len(plan.Changes) > 0:
			moving = append(moving, changedTasks(commit(plan.Changes))...)
		case len(moving) > 0:
		case plan.Wake.IsZero() || !plan.Wake.After(now):
			out.Settled = true
		default:
			now = plan.Wake
		}
		if out.Settled {
			break
		}
	}
	out.Snapshot = st.Snapshot()
	return out
}

// note remembers which tasks have started and ended in a pass.
func (f *Foreseen) note(events []cluster.Event, pass int) {
	for i := range events {
		t, ok := events[i].New.(*cluster.Task)
		switch {
		case !ok:
		case cluster.Terminal(t.Status.State):
			f.Ended[t.ID] = pass
			fallthrough
		case t.Status.State == swarm.TaskStateRunning:
			if f.Started[t.ID] == 0 {
				f.Started[t.ID] = pass
			}
		}
	}
}

// pendingObedience gives the ids of all tasks, any of which may have something to do.
func pendingObedience(snap *cluster.Snapshot) []string {
	var ids []string
	for t := range snap.Tasks() {
		ids = append(ids, t.ID)
	}
	return ids
}

func changedTasks(events []cluster.Event) []string {
	var ids []string
	for i := range events {
		if events[i].Kind == cluster.KindTask && events[i].New != nil {
			ids = append(ids, events[i].ID())
		}
	}
	return ids
}

// obedience are the reports of tasks that do what is wanted of them.
func obedience(snap *cluster.Snapshot, tasks []string, now time.Time) []cluster.Change {
	var changes []cluster.Change
	for _, id := range tasks {
		t := snap.Task(id)
		if t == nil || t.NodeID == "" || cluster.Terminal(t.Status.State) {
			continue
		}
		if n := snap.Node(t.NodeID); n == nil || n.Status.State != swarm.NodeStateReady {
			continue // nobody is there to do it
		}
		state := t.DesiredState
		if cluster.Before(swarm.TaskStateComplete, state) {
			state = swarm.TaskStateShutdown
		}
		if cluster.Before(t.Status.State, state) {
			st := t.Status
			st.State, st.Timestamp, st.Err = state, now, ""
			changes = append(changes, cluster.PatchTask(id, cluster.TaskPatch{Status: &st, AppliedAt: now}))
		}
	}
	return changes
}
