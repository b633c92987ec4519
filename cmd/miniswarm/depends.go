package main

import (
	"context"
	"fmt"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cmd/miniswarm/compose"
)

// awaitCondition waits until a service is as another needs it, and says so. A wait that cannot end is an error.
func (d *deployment) awaitCondition(ctx context.Context, dep compose.Dependency) error {
	id, cl := d.services[dep.Service], d.oc.observer().APIClient
	name := d.opts.Namespace + "_" + dep.Service
	out := &progressPrinter{write: d.oc.Out(), last: make(map[string]string), quiet: d.opts.Quiet}
	tick := time.NewTicker(waitPoll)
	defer tick.Stop()
	for {
		svc, _, err := cl.ServiceInspectWithRaw(ctx, id, swarm.ServiceInspectOptions{})
		if err != nil {
			return fmt.Errorf("wait for service %s: %w", name, err)
		}
		tasks, err := cl.TaskList(ctx, swarm.TaskListOptions{Filters: filterOf("service", id, "_up-to-date", "true")})
		if err != nil {
			return fmt.Errorf("wait for service %s: %w", name, err)
		}
		current := newest(tasks)
		met, wanted, problem := conditionOf(dep.Condition, svc, current)
		if problem != "" {
			return fmt.Errorf("%s: service %s will not be in the condition %s: %s; what depends on it is not deployed ('miniswarm service ps --no-trunc %s' shows more)",
				dep.Place, name, dep.Condition, problem, name)
		}
		if wanted > 0 && met >= wanted {
			out.line(message{ID: name, Status: fmt.Sprintf("%s, %d out of %d tasks", dep.Condition, met, wanted)})
			return nil
		}
		out.line(message{ID: name, Status: fmt.Sprintf("waiting for %s, %d out of %d tasks", dep.Condition, met, wanted)})
		for _, t := range current {
			if t.NodeID == "" && time.Since(t.CreatedAt) > reasonAfter {
				for _, r := range reasons(ctx, cl, t.ID) {
					out.line(r)
				}
				break
			}
		}
		for _, t := range current {
			if t.Status.Err != "" {
				out.line(message{ID: name, Status: fmt.Sprintf("task %d: %s", t.Slot, t.Status.Err)})
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// conditionOf counts the tasks that are in a condition, of those that have to be. problem says why they never will be.
func conditionOf(c compose.Condition, svc swarm.Service, current []swarm.Task) (met, wanted int, problem string) {
	wanted = len(current)
	switch m := svc.Spec.Mode; {
	case m.Replicated != nil && m.Replicated.Replicas != nil:
		wanted = int(*m.Replicated.Replicas)
	case m.ReplicatedJob != nil && m.ReplicatedJob.TotalCompletions != nil:
		wanted = int(*m.ReplicatedJob.TotalCompletions)
	}
	if u := svc.UpdateStatus; u != nil && (u.State == swarm.UpdateStatePaused || u.State == swarm.UpdateStateRollbackPaused) {
		return 0, wanted, fmt.Sprintf("its update is %s: %s", u.State, u.Message)
	}
	for _, t := range current {
		switch state := t.Status.State; {
		case state == swarm.TaskStateComplete && c != compose.Healthy:
			met++
		case state == swarm.TaskStateRunning && c != compose.Completed, state == swarm.TaskStateStarting && c == compose.Started:
			met++
		case ended(state) && over(t):
			return met, wanted, fmt.Sprintf("task %.12s is %s and is not started again: %s", t.ID, state, t.Status.Err)
		}
	}
	return met, wanted, ""
}

// ended says that a task in this state is over.
func ended(s swarm.TaskState) bool {
	switch s {
	case swarm.TaskStateComplete, swarm.TaskStateFailed, swarm.TaskStateRejected, swarm.TaskStateShutdown, swarm.TaskStateOrphaned, swarm.TaskStateRemove:
		return true
	}
	return false
}

// over says that no other task takes the place of one that has ended: its restart policy does not allow it.
func over(t swarm.Task) bool {
	p := t.Spec.RestartPolicy
	if p == nil {
		return false
	}
	return p.Condition == swarm.RestartPolicyConditionNone || p.Condition == swarm.RestartPolicyConditionOnFailure && t.Status.State == swarm.TaskStateComplete ||
		p.MaxAttempts != nil && *p.MaxAttempts > 0 && time.Since(t.Status.Timestamp) > giveUp
}

// giveUp is how long after the end of a task with limited attempts none has followed it, so that none will: the delay
// between attempts of a policy is followed at once by a task that waits it out.
const giveUp = 5 * time.Second
