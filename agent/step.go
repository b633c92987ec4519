package agent

import (
	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// step is one move of a task.
type step uint8

const (
	stepNone    step = iota // nothing to do until the desired state changes
	stepAccept              // -> ACCEPTED
	stepEnter               // ACCEPTED -> PREPARING
	stepPrepare             // networks, image, container; -> READY
	stepLeave               // READY -> STARTING
	stepStart               // -> RUNNING, healthy if it has a health check
	stepWait                // until the container ends; -> COMPLETE or FAILED
	stepStop                // -> SHUTDOWN
)

var stepNames = [...]string{"none", "accept", "enter", "prepare", "leave", "start", "wait", "stop"}

func (s step) String() string { return stepNames[s] }

// next gives the step of a task by its state and the state the managers want (swarm-semantics.md, 2.3). Preparing,
// starting and running go on once begun; accepting, and starting what is ready, need a desired state beyond.
func next(state, desired swarm.TaskState) step {
	s, d := cluster.Rank(state), cluster.Rank(desired)
	switch {
	case d >= cluster.Rank(swarm.TaskStateShutdown):
		if cluster.Terminal(state) {
			return stepNone
		}
		return stepStop
	case s > d:
		return stepNone
	}
	switch state {
	case swarm.TaskStatePreparing:
		return stepPrepare
	case swarm.TaskStateStarting:
		return stepStart
	case swarm.TaskStateRunning:
		return stepWait
	}
	if s == d {
		return stepNone
	}
	switch state {
	case swarm.TaskStateNew, swarm.TaskStateAllocated, swarm.TaskStatePending, swarm.TaskStateAssigned:
		return stepAccept
	case swarm.TaskStateAccepted:
		return stepEnter
	case swarm.TaskStateReady:
		return stepLeave
	}
	return stepNone
}

// done gives the state and Swarm's message after a step that succeeded.
func (s step) done() (swarm.TaskState, string) {
	switch s {
	case stepAccept:
		return swarm.TaskStateAccepted, "accepted"
	case stepEnter:
		return swarm.TaskStatePreparing, "preparing"
	case stepPrepare:
		return swarm.TaskStateReady, "prepared"
	case stepLeave:
		return swarm.TaskStateStarting, "starting"
	case stepStart:
		return swarm.TaskStateRunning, "started"
	case stepWait:
		return swarm.TaskStateComplete, "finished"
	}
	return swarm.TaskStateShutdown, "shutdown"
}

// failed gives the state after a step that failed for good: what never started is rejected.
func failed(state swarm.TaskState) swarm.TaskState {
	if cluster.Before(state, swarm.TaskStateStarting) {
		return swarm.TaskStateRejected
	}
	return swarm.TaskStateFailed
}
