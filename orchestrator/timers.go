package orchestrator

import (
	"container/heap"
	"time"
)

// wholeService is the slot number under which a service waits as a whole, for the end of an update's delay or monitor.
const wholeService = -1

// timerKey names who waits: one slot of a service, or the service.
type timerKey struct {
	service string
	slot    int
}

// timers remember what has to be looked at again at which time, one time for each key. They are derived from the
// store: whoever evaluates a slot sets or clears its timer, so that a new leader has the same ones.
type timers struct {
	queue timerQueue
	at    map[timerKey]time.Time
}

type timer struct {
	at  time.Time
	key timerKey
}

func newTimers() timers { return timers{at: make(map[timerKey]time.Time)} }

// set makes at the time of key, whatever it was before; the zero time means none.
func (t *timers) set(key timerKey, at time.Time) {
	if at.IsZero() {
		delete(t.at, key)
		return
	}
	if was, ok := t.at[key]; ok && was.Equal(at) {
		return
	}
	t.at[key] = at
	heap.Push(&t.queue, timer{at, key})
	// Entries that were replaced stay in the queue until their time or until they are the greater part of it.
	if len(t.queue) > 2*len(t.at)+64 {
		t.queue = t.queue[:0]
		for k, at := range t.at {
			t.queue = append(t.queue, timer{at, k})
		}
		heap.Init(&t.queue)
	}
}

// drop forgets all times of a service.
func (t *timers) drop(service string) {
	for key := range t.at {
		if key.service == service {
			delete(t.at, key)
		}
	}
}

// due takes one timer whose time has come.
func (t *timers) due(now time.Time) (timerKey, bool) {
	if at := t.first(); at.IsZero() || at.After(now) {
		return timerKey{}, false
	}
	key := heap.Pop(&t.queue).(timer).key
	delete(t.at, key)
	return key, true
}

// first is the earliest time of all, zero if there is none.
func (t *timers) first() time.Time {
	for len(t.queue) > 0 {
		head := t.queue[0]
		if at, ok := t.at[head.key]; ok && at.Equal(head.at) {
			return head.at
		}
		heap.Pop(&t.queue)
	}
	return time.Time{}
}

type timerQueue []timer

func (q timerQueue) Len() int           { return len(q) }
func (q timerQueue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q timerQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *timerQueue) Push(v any)        { *q = append(*q, v.(timer)) }
func (q *timerQueue) Pop() any {
	old := *q
	last := old[len(old)-1]
	*q = old[:len(old)-1]
	return last
}
