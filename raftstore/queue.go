package raftstore

import "sync"

// queue hands items from any number of goroutines to one, in order and without ever blocking them. It is bounded by
// what raft hands out, not by itself.
type queue[T any] struct {
	mu    sync.Mutex
	items []T
	// wake holds a token while there may be something to take.
	wake chan struct{}
}

func newQueue[T any]() *queue[T] { return &queue[T]{wake: make(chan struct{}, 1)} }

func (q *queue[T]) push(items ...T) {
	q.mu.Lock()
	q.items = append(q.items, items...)
	q.mu.Unlock()
	q.notify()
}

func (q *queue[T]) notify() {
	select {
	case q.wake <- struct{}{}:
	default: // a token is there already
	}
}

// take empties the queue.
func (q *queue[T]) take() []T {
	q.mu.Lock()
	defer q.mu.Unlock()
	items := q.items
	q.items = nil
	return items
}

func (q *queue[T]) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items)
}
