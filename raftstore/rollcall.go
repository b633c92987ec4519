package raftstore

import (
	"context"
	"fmt"
)

// rollCall has the members answer: whoever is silent until the deadline does not count as reachable any more, though it was heard
// a moment before it was asked.
type rollCall struct {
	missing  map[uint64]bool // raft ids that have yet to answer
	deadline uint64          // tick
	done     chan error
}

// RollCall asks every voter that counts as reachable for a word. It returns when all have answered, which takes a round trip, or else
// after an election timeout; who has been silent since the call is unreachable ([Store.Reachable]) until it is heard again. On the
// leader only.
//
// It comes before decisions that the group must survive, such as a removal: who died within the last election timeout would be
// counted among the living by what was heard before. What dies after its answer no check can know of.
func (s *Store) RollCall(ctx context.Context) error {
	if err := s.view.notLeader(); err != nil {
		return err
	}
	done := make(chan error, 1)
	if !s.inbox.put(func(in *inboxItems) {
		in.calls = append(in.calls, func(l *loop) { l.callRoll(done) })
	}) {
		return ErrStopped
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("ask the other managers for a word: %w", context.Cause(ctx))
	case <-s.loopDone:
		return ErrStopped
	}
}

func (l *loop) callRoll(done chan error) {
	if !l.role.leads {
		done <- &ErrNotLeader{}
		return
	}
	call := &rollCall{missing: map[uint64]bool{}, deadline: l.ticks + uint64(l.s.cfg.ElectionTicks), done: done}
	for _, id := range l.s.voters() {
		if id != l.s.self && l.reachable(id) {
			call.missing[id] = true
		}
	}
	if len(call.missing) == 0 {
		done <- nil
		return
	}
	l.rollCalls = append(l.rollCalls, call)
	l.reads.ask(l.node) // has every member sent a heartbeat at once
}

// answered strikes a member off the lists.
func (l *loop) answered(id uint64) {
	l.endRollCalls(func(call *rollCall) bool {
		delete(call.missing, id)
		return len(call.missing) == 0
	})
}

// expireRollCalls ends those that have waited long enough, and takes the silent for unreachable.
func (l *loop) expireRollCalls() {
	l.endRollCalls(func(call *rollCall) bool {
		if l.ticks < call.deadline {
			return false
		}
		for id := range call.missing {
			delete(l.heard, id)
		}
		l.noteReachable()
		return true
	})
}

func (l *loop) endRollCalls(over func(*rollCall) bool) {
	left := l.rollCalls[:0]
	for _, call := range l.rollCalls {
		if over(call) {
			call.done <- nil
		} else {
			left = append(left, call)
		}
	}
	clear(l.rollCalls[len(left):])
	l.rollCalls = left
}

// failRollCalls ends all of them with an error.
func (l *loop) failRollCalls(err error) {
	for _, call := range l.rollCalls {
		call.done <- err
	}
	l.rollCalls = nil
}
