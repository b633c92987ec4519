package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/agent/docker"
	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/trouble"
)

const (
	minRetry = 100 * time.Millisecond
	maxRetry = time.Second
)

// errNewGoal interrupts a step because something else is wanted now.
var errNewGoal = errors.New("the desired state has changed")

// controller is what a runner asks of docker.Controller; see there.
type controller interface {
	Prepare(ctx context.Context) error
	Start(ctx context.Context) error
	Wait(ctx context.Context) error
	Shutdown(ctx context.Context) error
	Remove(ctx context.Context) error
	Discard() error
	Status() (swarm.ContainerStatus, swarm.PortStatus)
}

// runner moves one task. run is its goroutine; the other methods may be called from anywhere.
type runner struct {
	ctl    controller // nil for a task that can never run
	log    *slog.Logger
	report func(*cluster.Task, swarm.TaskStatus)
	// verify makes run look once whether the container of an ended task really does not run.
	verify bool

	goal chan struct{} // capacity 1: desired or leaving has changed
	done chan struct{} // closed when run has returned

	mu        sync.Mutex
	task      *cluster.Task           // guarded by mu; replaced when its desired state changes
	status    swarm.TaskStatus        // guarded by mu
	leaving   bool                    // guarded by mu; the task is no longer assigned: stop, remove, end
	interrupt context.CancelCauseFunc // guarded by mu; of the step in progress, nil if it is not to be interrupted
	moved     chan struct{}           // guarded by mu; closed and replaced when status or leaving changes
}

func newRunner(t *cluster.Task, status swarm.TaskStatus, ctl controller, log *slog.Logger, report func(*cluster.Task, swarm.TaskStatus)) *runner {
	return &runner{ctl: ctl, log: log, report: report, task: t, status: status, goal: make(chan struct{}, 1), done: make(chan struct{}), moved: make(chan struct{})}
}

// current gives the task and its status.
func (r *runner) current() (*cluster.Task, swarm.TaskStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.task, r.status
}

// begun waits until the task has been started, or has ended without that. False: it ended without, or its runner or ctx
// did.
func (r *runner) begun(ctx context.Context) bool {
	for {
		r.mu.Lock()
		st, moved := r.status, r.moved
		r.mu.Unlock()
		if !cluster.Before(st.State, swarm.TaskStateRunning) {
			return st.ContainerStatus != nil && st.ContainerStatus.ContainerID != ""
		}
		select {
		case <-moved:
		case <-r.done:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// want takes a newer version of the task. Only its desired state counts, and only forward.
func (r *runner) want(t *cluster.Task) (changed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	desired := t.DesiredState
	if cluster.Terminal(t.Status.State) && !cluster.Terminal(r.status.State) && t.Wanted() {
		// The managers have given the task up (ORPHANED while we were away), so that it may run elsewhere by now.
		desired = swarm.TaskStateShutdown
	}
	if !cluster.Before(r.task.DesiredState, desired) {
		return false
	}
	c := *t
	c.DesiredState = desired
	r.task = &c
	r.pokeLocked()
	return true
}

// leave makes the runner stop and remove the container and end.
func (r *runner) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.leaving {
		r.leaving = true
		r.movedLocked()
		r.pokeLocked()
	}
}

// isLeaving says whether the task has been taken away from this node.
func (r *runner) isLeaving() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leaving
}

func (r *runner) movedLocked() {
	close(r.moved)
	r.moved = make(chan struct{})
}

func (r *runner) pokeLocked() {
	select {
	case r.goal <- struct{}{}:
	default:
	}
	if r.interrupt != nil {
		r.interrupt(errNewGoal)
	}
}

// run moves the task until ctx ends, or until it has left and its container is gone, which removed says.
func (r *runner) run(ctx context.Context) (removed bool) {
	defer close(r.done)
	if r.verify && r.ctl != nil {
		r.insist(ctx, "stop", r.ctl.Shutdown)
		r.discard()
	}
	for pause := minRetry; ctx.Err() == nil; {
		r.mu.Lock()
		leaving, s := r.leaving, next(r.status.State, r.task.DesiredState)
		r.mu.Unlock()
		if leaving {
			return r.remove(ctx)
		}
		if s == stepNone {
			select {
			case <-ctx.Done():
			case <-r.goal:
			}
			continue
		}
		if r.take(ctx, s) {
			pause = minRetry
			continue
		}
		select {
		case <-ctx.Done():
		case <-r.goal:
		case <-time.After(pause):
		}
		pause = min(2*pause, maxRetry)
	}
	return false
}

// take does one step. It says whether to go on at once: false after an error that a repetition may cure.
func (r *runner) take(ctx context.Context, s step) bool {
	err := r.perform(ctx, s)
	state, message := s.done()
	switch {
	case err == nil:
		r.advance(state, message)
	case errors.Is(err, errNewGoal):
	case ctx.Err() != nil:
	case errors.Is(err, docker.ErrUnavailable), errors.Is(err, docker.ErrOccupied), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		r.note(err)
		return false
	case s == stepStop:
		r.log.Error("a container could not be stopped; tried again until it is", "err", err)
		r.note(err)
		return false
	default:
		if r.halted(ctx, s, err) {
			r.fail(err)
		}
	}
	return true
}

// halted makes sure that nothing runs of a task whose step has failed, because another task takes its place: an engine
// that refuses to describe a container has not stopped it. False: ctx ended first.
func (r *runner) halted(ctx context.Context, s step, err error) bool {
	if _, ended := errors.AsType[*docker.ExitError](err); ended || s != stepStart && s != stepWait {
		return true
	}
	return r.insist(ctx, "stop", r.ctl.Shutdown)
}

// perform does the work of a step. All but stopping are interrupted by a new goal.
func (r *runner) perform(ctx context.Context, s step) error {
	if s == stepAccept || s == stepEnter || s == stepLeave {
		return nil
	}
	if s == stepStop {
		if r.ctl == nil {
			return nil
		}
		return r.ctl.Shutdown(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.mu.Lock()
	// A goal that changed since this step was chosen has been looked at by nobody yet.
	stale := r.leaving || next(r.status.State, r.task.DesiredState) != s
	r.interrupt = cancel
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.interrupt = nil
		r.mu.Unlock()
	}()
	if stale {
		return errNewGoal
	}
	var err error
	switch s {
	case stepPrepare:
		err = r.ctl.Prepare(ctx)
	case stepStart:
		err = r.ctl.Start(ctx)
	case stepWait:
		err = r.ctl.Wait(ctx)
	}
	if err != nil && errors.Is(context.Cause(ctx), errNewGoal) {
		return errNewGoal
	}
	return err
}

// advance moves the status forward.
func (r *runner) advance(state swarm.TaskState, message string) {
	r.set(func(st *swarm.TaskStatus) { st.State, st.Message, st.Err = state, message, "" })
}

// fail ends the task. Its message stays that of the last state it reached, as in Swarm.
func (r *runner) fail(err error) {
	r.set(func(st *swarm.TaskStatus) { st.State, st.Err = failed(st.State), err.Error() })
	r.log.Info("task failed", "err", err)
}

// note shows why a step is being repeated. A task that runs is not bothered.
func (r *runner) note(err error) {
	_, st := r.current()
	if st.Err != err.Error() && st.State != swarm.TaskStateRunning {
		r.set(func(st *swarm.TaskStatus) { st.Err = err.Error() })
	}
}

func (r *runner) set(change func(*swarm.TaskStatus)) {
	r.mu.Lock()
	st := r.status
	change(&st)
	st.Timestamp = time.Now().UTC()
	if r.ctl != nil && !cluster.Before(st.State, swarm.TaskStateStarting) && st.State != swarm.TaskStateRejected {
		cs, ports := r.ctl.Status()
		st.ContainerStatus, st.PortStatus = &cs, ports
	}
	r.status = st
	r.movedLocked()
	t := r.task
	r.mu.Unlock()
	r.log.Debug("task state", "state", st.State, "err", st.Err)
	r.report(t, st)
	if cluster.Terminal(st.State) {
		r.discard()
	}
}

// discard lets go of what only a container that runs needs. What fails here is tried again when the task is removed.
func (r *runner) discard() {
	if r.ctl == nil {
		return
	}
	if err := r.ctl.Discard(); err != nil {
		r.log.Warn("left-overs of a task that has ended", "err", err)
	}
}

// remove stops the container politely and removes it.
func (r *runner) remove(ctx context.Context) bool {
	if r.ctl == nil {
		return true
	}
	if _, st := r.current(); !cluster.Terminal(st.State) {
		err := r.ctl.Shutdown(ctx)
		for errors.Is(err, docker.ErrUnavailable) && pauseFor(ctx, maxRetry) {
			err = r.ctl.Shutdown(ctx)
		}
		if err != nil && ctx.Err() == nil {
			r.log.Warn("a container could not be stopped politely; it is removed by force", "err", err)
		}
	}
	return r.insist(ctx, "remove", r.ctl.Remove)
}

// insist repeats op until it succeeds or ctx ends.
func (r *runner) insist(ctx context.Context, what string, op func(context.Context) error) bool {
	var refused trouble.Log
	for {
		err := op(ctx)
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		if !errors.Is(err, docker.ErrUnavailable) {
			if tell, _ := refused.Again(time.Now(), err.Error()); tell {
				r.log.Warn("the engine refused; tried again", "operation", what, "err", err)
			}
		}
		if !pauseFor(ctx, maxRetry) {
			return false
		}
	}
}

// pauseFor waits; false if ctx ended first.
func pauseFor(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
