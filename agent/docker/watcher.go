package docker

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/docker/docker/api/types/events"
)

const (
	minReopen = 50 * time.Millisecond
	maxReopen = time.Second
	// recheckEvery wakes all controllers in case the engine dropped an event for a subscriber that was slow.
	recheckEvery = time.Minute
)

// Watcher follows the engine's events for the containers of one node and wakes those who wait for a container. Being
// woken means "look again", nothing more: an event may be reported twice, and after a break of the stream everyone is
// woken.
type Watcher struct {
	// Opened is called whenever the stream stands, so at first and after each absence of the engine; nil: nothing is.
	// Set it before Run. It must return quickly.
	Opened func()

	engine Engine
	nodeID string
	log    *slog.Logger

	mu    sync.Mutex
	subs  map[string]map[*Subscription]struct{} // guarded by mu; by task id
	epoch uint64                                // guarded by mu; 0 while the stream is down
	last  uint64                                // guarded by mu; the epoch last used
}

// NewWatcher gives a watcher; it is of use while Run runs.
func NewWatcher(e Engine, nodeID string, log *slog.Logger) *Watcher {
	return &Watcher{engine: e, nodeID: nodeID, log: log, subs: map[string]map[*Subscription]struct{}{}}
}

// Subscription wakes one who waits for a task's container.
type Subscription struct {
	// C receives after something happened, at most one value for any number of happenings.
	C <-chan struct{}

	c      chan struct{}
	w      *Watcher
	taskID string
}

// Subscribe waits for events of the container of a task, whether it exists already or not. Close the subscription.
func (w *Watcher) Subscribe(taskID string) *Subscription {
	c := make(chan struct{}, 1)
	s := &Subscription{C: c, c: c, w: w, taskID: taskID}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.subs[taskID] == nil {
		w.subs[taskID] = map[*Subscription]struct{}{}
	}
	w.subs[taskID][s] = struct{}{}
	return s
}

// Close ends the subscription.
func (s *Subscription) Close() {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	delete(s.w.subs[s.taskID], s)
	if len(s.w.subs[s.taskID]) == 0 {
		delete(s.w.subs, s.taskID)
	}
}

func (s *Subscription) wake() {
	select {
	case s.c <- struct{}{}:
	default:
	}
}

// Epoch numbers the unbroken stretches of the event stream; 0 while there is none. Between two moments of one epoch
// nothing has happened unseen, and the engine was there all the time.
func (w *Watcher) Epoch() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.epoch
}

// Run follows the stream, opening it again whenever it breaks, until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	recheck := make(chan struct{})
	go func() {
		defer close(recheck)
		w.recheck(ctx)
	}()
	defer func() { <-recheck }()
	pause := minReopen
	for {
		err := w.engine.Events(ctx, LabelNodeID, w.nodeID, func() { pause = minReopen; w.opened() }, w.event)
		w.closed()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if pause == minReopen {
			w.log.Warn("lost the engine's events; tasks go on, and are looked at again when it is back", "err", err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
		pause = min(2*pause, maxReopen)
	}
}

func (w *Watcher) recheck(ctx context.Context) {
	t := time.NewTicker(recheckEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			w.mu.Lock()
			w.wakeAllLocked()
			w.mu.Unlock()
		}
	}
}

func (w *Watcher) opened() {
	if w.Opened != nil {
		w.Opened()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last++
	w.epoch = w.last
	w.wakeAllLocked()
}

func (w *Watcher) closed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.epoch = 0
}

func (w *Watcher) wakeAllLocked() {
	for _, subs := range w.subs {
		for s := range subs {
			s.wake()
		}
	}
}

func (w *Watcher) event(m events.Message) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for s := range w.subs[m.Actor.Attributes[LabelTaskID]] {
		s.wake()
	}
}
