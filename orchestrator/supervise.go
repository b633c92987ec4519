package orchestrator

import (
	"fmt"
	"math"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

const defaultRestartDelay = 5 * time.Second

// attempts is the limit of restarts that the task's policy sets, 0 for none.
func attempts(t *cluster.Task) int {
	if p := t.Spec.RestartPolicy; p != nil && p.MaxAttempts != nil {
		return int(min(*p.MaxAttempts, math.MaxInt32)) // as good as none, and no overflow
	}
	return 0
}

func restartDelay(t *cluster.Task) time.Duration {
	if p := t.Spec.RestartPolicy; p != nil && p.Delay != nil {
		return *p.Delay
	}
	return defaultRestartDelay
}

// countedAttempts is the largest limit of restarts that is counted in the tasks of the slot, for which these are kept. Under a
// larger one each task carries the number on to the next, so that a limit of a million keeps no million tasks.
const countedAttempts = 100

// carried is the number of restarts that led to the task, as far as they count under the window of its policy. A window is
// not moved along with the time but begun anew when it is over: to move it, each restart would have to be remembered.
func carried(t *cluster.Task) int {
	if since := countedFrom(t); since != noTime && t.AttemptsSince.Before(since) {
		return 0
	}
	return t.Attempts
}

// carry notes in t, which takes old's place, how many restarts there were; counts says that this is one.
func (x *pass) carry(t, old *cluster.Task, counts bool) {
	if attempts(t) <= countedAttempts {
		return
	}
	t.AttemptsSince = x.now
	if n := carried(old); n > 0 && t.SpecVersion == old.SpecVersion {
		t.Attempts, t.AttemptsSince = n, old.AttemptsSince
	}
	if counts {
		t.Attempts++
	}
}

// restarted says whether the task was created by the restart policy. Only such tasks carry a StartAfter, which makes
// the history of restarts part of the store.
func restarted(t *cluster.Task) bool { return !t.StartAfter.IsZero() }

// mayRestart applies the task's restart policy (swarm-semantics.md, 4.7); slot has all tasks of its slot.
func (x *pass) mayRestart(t *cluster.Task, slot []*cluster.Task) bool {
	if t.JobIteration != nil {
		return MayRunAgain(t, slot)
	}
	policy := t.Spec.RestartPolicy
	if policy == nil {
		return true
	}
	switch {
	case policy.Condition == swarm.RestartPolicyConditionNone:
		return false
	case policy.Condition == swarm.RestartPolicyConditionOnFailure && t.Status.State == swarm.TaskStateComplete:
		return false
	}
	limit := attempts(t)
	switch {
	case limit == 0:
		return true
	case limit > countedAttempts:
		return carried(t) < limit
	}
	since, count := countedFrom(t), 0
	for _, o := range slot {
		if restarted(o) && o.SpecVersion == t.SpecVersion && (o.CreatedAt.IsZero() || o.CreatedAt.After(since)) {
			count++
		}
	}
	return count < limit
}

// countedFrom is the time from which on attempts count for the task's restart policy, zero for all.
func countedFrom(t *cluster.Task) time.Time {
	if p := t.Spec.RestartPolicy; p != nil && p.Window != nil && *p.Window > 0 {
		return endedAt(t).Add(-*p.Window)
	}
	return noTime
}

// trouble says why a wanted task cannot go on where it is, "" if it can.
func (x *pass) trouble(t *cluster.Task) string {
	if cluster.Terminal(t.Status.State) {
		return endOf(t)
	}
	if t.NodeID == "" {
		return ""
	}
	switch n := x.nodes[t.NodeID]; {
	case n == nil || n.obj == nil:
		return "its node was removed"
	case n.lost():
		return fmt.Sprintf("node %s is down", hostname(n))
	case !n.valid():
		return fmt.Sprintf("node %s is drained", hostname(n))
	}
	return ""
}

func hostname(n *node) string {
	if h := n.obj.Description.Hostname; h != "" {
		return h
	}
	return n.id
}

// endOf says how a task ended.
func endOf(t *cluster.Task) string {
	reason := "task " + string(t.Status.State)
	if t.Status.State == swarm.TaskStateComplete {
		reason = "task ended with exit code 0"
	}
	if t.Status.Err != "" {
		reason += ": " + t.Status.Err
	}
	return reason
}

// mayRun says whether the task may have something running that whoever takes its place should wait for.
func (x *pass) mayRun(t *cluster.Task) bool { return t.Live() && !x.nodes[t.NodeID].lost() }

// supervise restarts what ended or lost its node in a slot.
func (x *pass) supervise(sl *slot) {
	var broken *cluster.Task
	why := ""
	healthy := false // a wanted task of the present spec goes on
	for _, t := range sl.tasks {
		if !t.Wanted() {
			continue
		}
		reason := x.trouble(t)
		if reason == "" {
			healthy = healthy || !x.outdated(sl.service, t)
			continue
		}
		// Of several, the newest is the one to go on from.
		if broken == nil {
			broken, why = t, reason
		}
	}
	if broken == nil {
		return
	}
	if cluster.Terminal(broken.Status.State) && broken.DesiredState == swarm.TaskStateReady && x.now.Before(x.startOf(broken)) {
		// It ended before it was its time to start. To restart it now would be a tight loop.
		sl.again(x.startOf(broken))
		return
	}
	ended := cluster.Terminal(broken.Status.State) && broken.Status.State != swarm.TaskStateOrphaned
	if healthy {
		why += "; another task of the slot goes on"
	}
	for i, t := range sl.tasks {
		if t.Wanted() && x.trouble(t) != "" {
			sl.tasks[i] = x.shutdown(t)
			if t == broken {
				broken = sl.tasks[i]
			} else {
				x.because(ScaleDown, sl.service, t.ID, x.trouble(t))
			}
		}
	}
	if healthy || !x.restart(sl, broken, ended, why) {
		if !healthy && sl.mode.job() {
			x.tellEnd(sl, broken)
		}
		x.because(GiveUp, sl.service, broken.ID, why)
	}
}

// restart puts a new task in the place of old, which has been told to stop, if old's policy allows it. ended says that
// old ended by itself.
func (x *pass) restart(sl *slot, old *cluster.Task, ended bool, why string) bool {
	if !x.mayRestart(old, sl.tasks) {
		return false
	}
	t := x.newTask(sl.service, sl.num)
	t.Replaces = old.ID
	delay := time.Duration(0)
	if ended {
		// A task whose node went did nothing wrong. Swarm delays its successor all the same when the node is down; here
		// noticing that was wait enough.
		delay = restartDelay(old)
	}
	t.StartAfter = x.now.Add(delay)
	x.carry(t, old, old.JobIteration == nil || hasFailed(old) && !lostBefore(old, sl.tasks))
	wait := x.mayRun(old)
	if old.DesiredState == swarm.TaskStateShutdown && x.wasHeldBack(old) {
		// old never started. What it waited for is what t waits for.
		if start := x.startOf(old); t.StartAfter.Before(start) {
			t.StartAfter = start
		}
		if before := x.task(old.Replaces); before != nil && x.mayRun(before) {
			t.Replaces, wait = before.ID, true
		}
	}
	if wait || x.now.Before(t.StartAfter) {
		t.DesiredState = swarm.TaskStateReady
		x.scheduleRelease(sl, t)
	}
	if delay > 0 {
		why = fmt.Sprintf("%s; starts again in %s", why, delay)
	}
	x.because(Restart, sl.service, t.ID, why)
	sl.tasks = append([]*cluster.Task{t}, sl.tasks...)
	return true
}

// wasHeldBack says whether a stored task was still waiting for its release when the pass began.
func (x *pass) wasHeldBack(t *cluster.Task) bool {
	if p := x.patches[t.ID]; p != nil {
		return p.stored.DesiredState == swarm.TaskStateReady
	}
	return t.DesiredState == swarm.TaskStateReady
}

// task finds a stored task as the pass has changed it, nil if there is none.
func (x *pass) task(id string) *cluster.Task {
	if id == "" {
		return nil
	}
	if t := x.snap.Task(id); t != nil {
		return x.view(t)
	}
	return nil
}

// release lets the tasks run that were held back until a delay was over and their predecessor had stopped.
func (x *pass) release(sl *slot) {
	for i, t := range sl.tasks {
		if t.DesiredState != swarm.TaskStateReady || cluster.Terminal(t.Status.State) || t.CreatedAt.IsZero() {
			continue
		}
		if start := x.startOf(t); x.now.Before(start) {
			sl.again(start)
			continue
		}
		why := "its delay is over"
		if before := x.task(t.Replaces); before != nil && x.mayRun(before) {
			timeout := x.past(t.CreatedAt).Add(x.stopTimeout)
			if x.now.Before(timeout) {
				sl.again(timeout)
				continue
			}
			why = fmt.Sprintf("the task it replaces has not stopped within %s", x.stopTimeout)
		} else if t.Replaces != "" {
			why = "the task it replaces has stopped"
		}
		sl.tasks[i] = x.desire(t, sl.mode.goal())
		x.because(Release, sl.service, t.ID, why)
	}
}

// scheduleRelease has the slot looked at again when a task created now may be released by time alone.
func (x *pass) scheduleRelease(sl *slot, t *cluster.Task) {
	if x.now.Before(t.StartAfter) {
		sl.again(t.StartAfter)
		return
	}
	sl.again(x.now.Add(x.stopTimeout))
}
