package cluster

import "github.com/docker/docker/api/types/swarm"

// stateRank gives each task state its place in the life of a task. The numbers are swarmkit's, so that they can be
// compared with its documentation; only their order matters here.
var stateRank = map[swarm.TaskState]int{
	swarm.TaskStateNew:       0,
	swarm.TaskStateAllocated: 32,
	swarm.TaskStatePending:   64,
	swarm.TaskStateAssigned:  192,
	swarm.TaskStateAccepted:  256,
	swarm.TaskStatePreparing: 320,
	swarm.TaskStateReady:     384,
	swarm.TaskStateStarting:  448,
	swarm.TaskStateRunning:   512,
	swarm.TaskStateComplete:  576,
	swarm.TaskStateShutdown:  640,
	swarm.TaskStateFailed:    704,
	swarm.TaskStateRejected:  768,
	swarm.TaskStateRemove:    800,
	swarm.TaskStateOrphaned:  832,
}

// Rank orders task states: a larger rank is later in a task's life. An unknown state ranks below NEW, so that it can
// never override a known one.
func Rank(s swarm.TaskState) int {
	if r, ok := stateRank[s]; ok {
		return r
	}
	return -1
}

// ValidState says whether s is a word that Docker knows for a task's state.
func ValidState(s swarm.TaskState) bool { _, ok := stateRank[s]; return ok }

// Before says whether state a comes strictly before state b in a task's life.
func Before(a, b swarm.TaskState) bool { return Rank(a) < Rank(b) }

// Terminal says whether a task in state s has ended for good: everything after RUNNING.
func Terminal(s swarm.TaskState) bool { return Rank(s) > Rank(swarm.TaskStateRunning) }

// Wanted says whether the managers want the task to run (or, for a job, to run to its end): its desired state is not
// past COMPLETE. Swarm calls such a task active or runnable.
func (t *Task) Wanted() bool { return Rank(t.DesiredState) <= Rank(swarm.TaskStateComplete) }

// Live says whether the task may have a container: it was given to a node and has not been seen to end.
func (t *Task) Live() bool {
	return t.NodeID != "" && !Terminal(t.Status.State) && Rank(t.Status.State) >= Rank(swarm.TaskStateAssigned)
}

// Running says whether the task was last seen RUNNING and is still wanted.
func (t *Task) Running() bool {
	return t.Status.State == swarm.TaskStateRunning && t.Wanted()
}
