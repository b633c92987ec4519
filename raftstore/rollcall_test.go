package raftstore

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestARemovalIsJudgedByWhoAnswersNow: of seven members three die, and within the second in which they still count as heard another
// is to be removed. The four that are left are the majority of seven; the three that would be left are none of six.
func TestARemovalIsJudgedByWhoAnswersNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, nil)
		g.grow(7)
		leader := g.leader()
		time.Sleep(time.Second)
		others := slices.DeleteFunc(slices.Clone(g.members), func(m *member) bool { return m == leader })
		for _, m := range others[:3] {
			m.kill()
		}
		if err := leader.RemoveMember(t.Context(), others[3].self); !errors.Is(err, ErrQuorum) {
			t.Errorf("removing the fourth: %v, want %v", err, ErrQuorum)
		}
		for _, m := range others[:3] {
			if leader.Reachable(m.self) {
				t.Errorf("%x is dead and counts as reachable", m.self)
			}
		}
		if err := leader.RemoveMember(t.Context(), others[0].self); err != nil {
			t.Errorf("removing a dead one: %v", err)
		}
		leader.mustPut("a")
		if n := len(leader.Status().Members); n != 6 {
			t.Errorf("%d members are left, want 6", n)
		}
	})
}

func TestARollCallEndsWithTheLastAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, nil)
		g.grow(3)
		leader, follower := g.leader(), g.follower()
		time.Sleep(time.Second)
		asked := time.Now()
		if err := leader.RollCall(t.Context()); err != nil {
			t.Error(err)
		}
		if took := time.Since(asked); took > leader.cfg.Tick {
			t.Errorf("all answer, and it took %v", took)
		}
		var notLeader *ErrNotLeader
		if err := follower.RollCall(t.Context()); !errors.As(err, &notLeader) {
			t.Errorf("asked of a follower: %v", err)
		}

		// A leader that is cut off waits, and is deposed meanwhile.
		var rest []uint64
		for _, m := range g.members {
			if m != leader {
				rest = append(rest, m.self)
			}
		}
		g.net.Partition([]uint64{leader.self}, rest)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := leader.RollCall(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with a deadline before any answer: %v", err)
		}
		if err := leader.RollCall(t.Context()); err != nil && !errors.As(err, &notLeader) {
			t.Errorf("of a leader that is cut off: %v", err)
		}
		for _, id := range rest {
			if leader.Reachable(id) {
				t.Errorf("%x counts as reachable", id)
			}
		}
	})
}
