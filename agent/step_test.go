package agent

import (
	"testing"

	"github.com/docker/docker/api/types/swarm"
)

// TestNextStep is the stepping table of swarm-semantics.md, 2.3: a row a state, a column a desired state.
func TestNextStep(t *testing.T) {
	desired := []swarm.TaskState{swarm.TaskStateReady, swarm.TaskStateRunning, swarm.TaskStateComplete, swarm.TaskStateShutdown, swarm.TaskStateRemove}
	for state, want := range map[swarm.TaskState][5]step{
		swarm.TaskStateNew:       {stepAccept, stepAccept, stepAccept, stepStop, stepStop},
		swarm.TaskStatePending:   {stepAccept, stepAccept, stepAccept, stepStop, stepStop},
		swarm.TaskStateAssigned:  {stepAccept, stepAccept, stepAccept, stepStop, stepStop},
		swarm.TaskStateAccepted:  {stepEnter, stepEnter, stepEnter, stepStop, stepStop},
		swarm.TaskStatePreparing: {stepPrepare, stepPrepare, stepPrepare, stepStop, stepStop},
		swarm.TaskStateReady:     {stepNone, stepLeave, stepLeave, stepStop, stepStop},
		swarm.TaskStateStarting:  {stepNone, stepStart, stepStart, stepStop, stepStop},
		swarm.TaskStateRunning:   {stepNone, stepWait, stepWait, stepStop, stepStop},
		swarm.TaskStateComplete:  {stepNone, stepNone, stepNone, stepNone, stepNone},
		swarm.TaskStateShutdown:  {stepNone, stepNone, stepNone, stepNone, stepNone},
		swarm.TaskStateFailed:    {stepNone, stepNone, stepNone, stepNone, stepNone},
		swarm.TaskStateRejected:  {stepNone, stepNone, stepNone, stepNone, stepNone},
		swarm.TaskStateOrphaned:  {stepNone, stepNone, stepNone, stepNone, stepNone},
	} {
		for i, d := range desired {
			if got := next(state, d); got != want[i] {
				t.Errorf("%s, desired %s: %s, want %s", state, d, got, want[i])
			}
		}
	}
}

func TestWhatNeverStartedIsRejected(t *testing.T) {
	for state, want := range map[swarm.TaskState]swarm.TaskState{
		swarm.TaskStateAssigned: swarm.TaskStateRejected, swarm.TaskStatePreparing: swarm.TaskStateRejected, swarm.TaskStateReady: swarm.TaskStateRejected,
		swarm.TaskStateStarting: swarm.TaskStateFailed, swarm.TaskStateRunning: swarm.TaskStateFailed,
	} {
		if got := failed(state); got != want {
			t.Errorf("%s: %s, want %s", state, got, want)
		}
	}
}
