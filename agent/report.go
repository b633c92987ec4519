package agent

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster/protocol"
)

const (
	// gather is how long a first change waits for company, ackPatience how long a batch waits for the one before it to
	// be stored. Together they bound how late the leader hears of a change.
	gather      = 10 * time.Millisecond
	ackPatience = 40 * time.Millisecond
)

// reporter keeps the latest status of every task. Each session is told all of them once, and then what changes; a
// status that was sent but not acknowledged when a session ended is therefore sent again by the next.
type reporter struct {
	mu     sync.Mutex
	latest map[string]swarm.TaskStatus // guarded by mu; by task id
	dirty  map[string]bool             // guarded by mu; not sent in this session
	acked  uint64                      // guarded by mu; last batch stored in this session
	change chan struct{}               // capacity 1: something became dirty or was acknowledged
}

func newReporter() *reporter {
	return &reporter{latest: map[string]swarm.TaskStatus{}, dirty: map[string]bool{}, change: make(chan struct{}, 1)}
}

func (r *reporter) poke() {
	select {
	case r.change <- struct{}{}:
	default:
	}
}

// put takes the newest status of a task.
func (r *reporter) put(id string, st swarm.TaskStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.latest[id] = st
	r.dirty[id] = true
	r.poke()
}

// know takes a status that needs no report unless a new session begins.
func (r *reporter) know(id string, st swarm.TaskStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.latest[id] = st
}

// forget drops a task that the managers no longer know.
func (r *reporter) forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.latest, id)
	delete(r.dirty, id)
}

// begin starts a session: everything is to be told.
func (r *reporter) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.acked = 0
	for id := range r.latest {
		r.dirty[id] = true
	}
	r.poke()
}

func (r *reporter) ack(seq uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.acked = max(r.acked, seq)
	r.poke()
}

func (r *reporter) pending() (dirty int, acked uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.dirty), r.acked
}

// takeDirty gives what has not been sent, by task id.
func (r *reporter) takeDirty() []protocol.TaskStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]protocol.TaskStatus, 0, len(r.dirty))
	for _, id := range slices.Sorted(maps.Keys(r.dirty)) {
		out = append(out, protocol.TaskStatus{ID: id, Status: r.latest[id]})
	}
	clear(r.dirty)
	return out
}

// run sends batches through one session until ctx ends or send fails.
func (r *reporter) run(ctx context.Context, send func(protocol.FromAgent) error) error {
	var seq uint64
	for {
		dirty, acked := r.pending()
		if dirty == 0 {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-r.change:
			}
			continue
		}
		if !pauseFor(ctx, gather) {
			return context.Cause(ctx)
		}
		for patience := time.After(ackPatience); acked < seq; _, acked = r.pending() {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-r.change:
				continue
			case <-patience:
			}
			break
		}
		if batch := r.takeDirty(); len(batch) > 0 {
			seq++
			if err := send(protocol.FromAgent{Status: &protocol.Status{Seq: seq, Tasks: batch}}); err != nil {
				return err
			}
		}
	}
}
