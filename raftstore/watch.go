package raftstore

import (
	"cmp"
	"slices"

	"github.com/miniswarm/miniswarm/cluster"
)

// Watch is a view of the tables at one moment and everything that changed since, without gap.
type Watch struct {
	// Start is the state before the first event.
	Start *cluster.Snapshot

	view   *view
	events chan []cluster.Event
	err    error // guarded by view.mu; set before events is closed
}

// Watch begins a watch. Events come in batches, one for each group of transactions that became visible together; up to
// buffer batches (at least one) wait for the reader. A reader that falls further behind finds the channel closed and
// [Watch.Err] to be [ErrLagged], as does one whose manager had to load a snapshot from the leader. Batches are shared between watches
// and must not be modified.
func (s *Store) Watch(buffer int) *Watch {
	v := s.view
	v.mu.Lock()
	defer v.mu.Unlock()
	w := &Watch{Start: v.snapshot(), view: v, events: make(chan []cluster.Event, max(buffer, 1))}
	v.watches[w] = struct{}{}
	if v.stopped != nil {
		v.endLocked(w, v.stopped)
	}
	return w
}

// Events gives the batches in order. It is closed when the watch has ended; see [Watch.Err].
func (w *Watch) Events() <-chan []cluster.Event { return w.events }

// Err says why the watch has ended: ErrLagged, ErrStopped, or nil if it was closed or has not ended.
func (w *Watch) Err() error {
	w.view.mu.Lock()
	defer w.view.mu.Unlock()
	return w.err
}

// Close ends the watch. It may be called more than once, and must be called at least once by who began it.
func (w *Watch) Close() {
	w.view.mu.Lock()
	defer w.view.mu.Unlock()
	w.view.endLocked(w, nil)
}

// feedLocked hands events to the watch, but for those that its start has already: the tables are ahead of what is
// published while a batch is being applied.
func (v *view) feedLocked(w *Watch, events []cluster.Event) {
	if start := w.Start.Index(); events[0].Index <= start {
		at, _ := slices.BinarySearchFunc(events, start+1, func(e cluster.Event, index uint64) int { return cmp.Compare(e.Index, index) })
		if events = events[at:]; len(events) == 0 {
			return
		}
	}
	select {
	case w.events <- events:
	default:
		v.endLocked(w, ErrLagged)
	}
}

func (v *view) endLocked(w *Watch, err error) {
	if _, on := v.watches[w]; !on {
		return
	}
	delete(v.watches, w)
	w.err = err
	close(w.events)
}
