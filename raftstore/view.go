package raftstore

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// Leadership says who leads, as far as this member knows.
type Leadership struct {
	// Leader is true when this member leads and has applied everything that was committed before its term: what it
	// reads then is not older than any acknowledged write.
	Leader bool
	// Term is raft's. A leader that finds another term than the one it has worked under was deposed in between.
	Term uint64
	// LeaderID, LeaderNodeID and LeaderAddr are the present leader's, zero when there is none or it is not known.
	LeaderID     uint64
	LeaderNodeID string
	LeaderAddr   string
	// FormerNodeID is the node that this member followed before, and FormerHeard when its manager was last heard from here.
	// They are zero where this member led itself. While this member leads they do not change.
	FormerNodeID string
	FormerHeard  time.Time
}

// view is what the store shows to the outside: how far it is, who leads, who is a member. The raft loop and the applier write
// it, everybody reads it, and whoever waits for a change waits here.
type view struct {
	// snapshot gives the tables as they are. It may be called with mu held.
	snapshot func() *cluster.Snapshot

	mu sync.Mutex // guards all below

	// applied and appliedTerm belong to the last applied entry, which may be one without a transaction.
	applied, appliedTerm uint64
	members              *membership
	role                 role
	leadership           Leadership

	watches map[*Watch]struct{}
	waiters []indexWaiter
	leaders []chan Leadership
	// stopped is why the store has ended, nil while it has not.
	stopped error
}

// role is the raft loop's word on elections.
type role struct {
	term, leader uint64
	leads        bool
	// former is the node of the leader that was followed before the present one, "" where this member led; formerHeard is
	// when it was last heard from.
	former      string
	formerHeard time.Time
}

// membership is who belongs to the group. Values are replaced, never modified.
type membership struct {
	// members are in the order of their raft ids.
	members []protocol.Member
	// removed are the raft ids of former members.
	removed []uint64
}

// member gives the member with that raft id.
func (m *membership) member(id uint64) (protocol.Member, bool) {
	for _, o := range m.members {
		if o.RaftID == id {
			return o, true
		}
	}
	return protocol.Member{}, false
}

type indexWaiter struct {
	index uint64
	done  chan struct{}
}

func newView(snapshot func() *cluster.Snapshot, applied, term uint64, members *membership) *view {
	return &view{snapshot: snapshot, applied: applied, appliedTerm: term, members: members, watches: map[*Watch]struct{}{}}
}

// publish tells how far the tables are. events are those since the last time.
func (v *view) publish(applied, term uint64, members *membership, events []cluster.Event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.applied, v.appliedTerm, v.members = applied, term, members
	if len(events) > 0 {
		for w := range v.watches {
			v.feedLocked(w, events)
		}
	}
	v.waiters = slices.DeleteFunc(v.waiters, func(w indexWaiter) bool {
		if w.index <= applied {
			close(w.done)
		}
		return w.index <= applied
	})
	v.leadershipLocked()
}

// replace tells of a state that no events lead to: it came as a snapshot from the leader. Watches end.
func (v *view) replace(applied, term uint64, members *membership) {
	v.publish(applied, term, members, nil)
	v.mu.Lock()
	defer v.mu.Unlock()
	for w := range v.watches {
		v.endLocked(w, ErrLagged)
	}
}

func (v *view) setRole(r role) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.role = r
	v.leadershipLocked()
}

// leadershipLocked works out who leads and tells those who want to know when it has changed.
func (v *view) leadershipLocked() {
	l := Leadership{Term: v.role.term, LeaderID: v.role.leader, FormerNodeID: v.role.former, FormerHeard: v.role.formerHeard}
	l.Leader = v.role.leads && v.appliedTerm == v.role.term
	if m, ok := v.members.member(l.LeaderID); ok {
		l.LeaderNodeID, l.LeaderAddr = m.NodeID, m.Addr
	}
	if l == v.leadership {
		return
	}
	v.leadership = l
	for _, c := range v.leaders {
		replaceValue(c, l)
	}
}

// replaceValue puts l in the channel of capacity 1 in place of what the reader has not fetched. The caller is the only
// sender.
func replaceValue(c chan Leadership, l Leadership) {
	select {
	case <-c:
	default:
	}
	c <- l
}

// leaderChanges gives a channel with the latest leadership, and an end to it.
func (v *view) leaderChanges() (changes <-chan Leadership, end func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	c := make(chan Leadership, 1)
	c <- v.leadership
	if v.stopped != nil {
		close(c)
	} else {
		v.leaders = append(v.leaders, c)
	}
	return c, func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.leaders = slices.DeleteFunc(v.leaders, func(o chan Leadership) bool { return o == c })
	}
}

// notLeader is the error for who wants to write here. It is nil while this member leads, even if it has not caught up.
func (v *view) notLeader() *ErrNotLeader {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.role.leads {
		return nil
	}
	l := v.leadership
	return &ErrNotLeader{Leader: l.LeaderID, NodeID: l.LeaderNodeID, Addr: l.LeaderAddr}
}

// waitApplied waits until the entry at index is applied and gives a snapshot from then or later.
func (v *view) waitApplied(ctx context.Context, index uint64) (*cluster.Snapshot, error) {
	v.mu.Lock()
	if v.applied >= index || v.stopped != nil {
		defer v.mu.Unlock()
		return v.snapshot(), v.stopped
	}
	w := indexWaiter{index, make(chan struct{})}
	v.waiters = append(v.waiters, w)
	v.mu.Unlock()
	select {
	case <-w.done:
	case <-ctx.Done():
		v.mu.Lock()
		v.waiters = slices.DeleteFunc(v.waiters, func(o indexWaiter) bool { return o.done == w.done })
		v.mu.Unlock()
		return nil, context.Cause(ctx)
	}
	return v.snapshot(), v.stoppedErr()
}

// stop wakes everybody who waits.
func (v *view) stop(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.stopped = err
	v.role = role{term: v.role.term}
	v.leadershipLocked()
	for _, w := range v.waiters {
		close(w.done)
	}
	for w := range v.watches {
		v.endLocked(w, err)
	}
	for _, c := range v.leaders {
		close(c)
	}
	v.waiters, v.leaders = nil, nil
}

func (v *view) stoppedErr() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.stopped
}

func (v *view) membership() *membership {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.members
}
