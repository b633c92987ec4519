package agent

import (
	"time"

	"github.com/docker/docker/api/types/swarm"
)

// Status is how an agent is at a moment.
type Status struct {
	// Leader is the address of the leader with which there is a session, "" without one.
	Leader string
	// Heard is when the leader was last heard from; when the last session ended, if there is none now; zero if there has
	// been none.
	Heard time.Time
	// Sessions counts the sessions so far.
	Sessions uint64
	// Tasks counts the tasks of this node by their state.
	Tasks map[swarm.TaskState]int
	// Routing says how far the data plane is.
	Routing Routing
}

// Routing is how far a node's data plane is.
type Routing struct {
	// Known says that there is a table to apply, from a leader or from disk, Applied that the kernel has it.
	Known, Applied bool
	// Err is why the last attempt failed, nil if it did not.
	Err error
	// Working is for how long the present attempt has been under way, 0 between attempts.
	Working time.Duration
}

// Status tells how the agent is. It is cheap and waits for nobody.
func (a *Agent) Status() Status {
	st := Status{Tasks: a.worker.states(), Routing: a.mesh.status()}
	a.mu.Lock()
	st.Sessions, st.Heard = a.opened, a.parted
	s := a.session
	a.mu.Unlock()
	if s != nil {
		st.Leader = s.leader
		s.mu.Lock()
		st.Heard = s.heard
		s.mu.Unlock()
	}
	return st
}

// states counts tasks by their state.
func (w *worker) states() map[swarm.TaskState]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	count := map[swarm.TaskState]int{}
	for _, r := range w.tasks {
		_, st := r.current()
		count[st.State]++
	}
	return count
}

// status tells how far the data plane is.
func (k *meshKeeper) status() Routing {
	k.mu.Lock()
	defer k.mu.Unlock()
	r := Routing{Known: k.known, Applied: k.applied, Err: k.err}
	if !k.begun.IsZero() {
		r.Working = time.Since(k.begun)
	}
	return r
}

// began and ended bracket an attempt to apply the table. waiting says that no route depends on what is missing.
func (k *meshKeeper) began() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.begun = time.Now()
}

func (k *meshKeeper) ended(applied, waiting bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.begun = time.Time{}
	if waiting {
		err = nil
	}
	k.err = err
	k.applied = err == nil && (applied || k.applied)
}
