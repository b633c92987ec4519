package raftstore

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"

	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// confKind is what a change does to the group.
type confKind string

const (
	confAdd     confKind = "add"     // as a learner
	confPromote confKind = "promote" // from learner to voter
	confRemove  confKind = "remove"
	confAddress confKind = "address"
)

// confChange travels in the log with raft's own description of the change.
type confChange struct {
	Boot, Seq uint64
	Kind      confKind
	Member    protocol.Member
}

// raftChange gives the change in raft's terms.
func (c confChange) raftChange() (*raftpb.ConfChange, error) {
	context, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	typ := map[confKind]raftpb.ConfChangeType{
		confAdd: raftpb.ConfChangeAddLearnerNode, confPromote: raftpb.ConfChangeAddNode,
		confRemove: raftpb.ConfChangeRemoveNode, confAddress: raftpb.ConfChangeUpdateNode,
	}[c.Kind]
	return &raftpb.ConfChange{Type: typ.Enum(), NodeId: proto.Uint64(c.Member.RaftID), Context: context}, nil
}

func decodeConf(e *raftpb.Entry) (*raftpb.ConfChange, confChange, error) {
	var change confChange
	if e.GetType() != raftpb.EntryConfChange {
		return nil, change, fmt.Errorf("membership change of type %s: written by a newer version of miniswarm", e.GetType())
	}
	cc := &raftpb.ConfChange{}
	if err := proto.Unmarshal(e.Data, cc); err != nil {
		return nil, change, fmt.Errorf("membership change: %w", err)
	}
	if err := json.Unmarshal(cc.Context, &change); err != nil {
		return nil, change, fmt.Errorf("membership change: %w", err)
	}
	return cc, change, nil
}

// reconfigure tells raft that a change is applied, on the loop's goroutine.
func (s *Store) reconfigure(cc *raftpb.ConfChange) (*raftpb.ConfState, error) {
	done := make(chan *raftpb.ConfState, 1)
	if !s.inbox.put(func(in *inboxItems) {
		in.calls = append(in.calls, func(l *loop) { done <- l.node.ApplyConfChange(cc) })
	}) {
		return nil, ErrStopped
	}
	select {
	case conf := <-done:
		return conf, nil
	case <-s.loopDone:
		return nil, ErrStopped
	}
}

// confRequest asks the loop to propose a change when raft will take it. check decides, with the loop's knowledge, whether it may be.
type confRequest struct {
	change confChange
	check  func(*loop) error
	p      *proposal
}

func (c *confRequest) end(err error) { c.p.end(proposalResult{err: err}) }

// changeMembers proposes the next change if none is under way.
func (l *loop) changeMembers() {
	for len(l.confs) > 0 && !l.confPending {
		c := l.confs[0]
		if !l.role.leads || l.stopping > 0 {
			l.confs = l.confs[1:]
			err := l.s.view.notLeader()
			if err == nil {
				err = &ErrNotLeader{}
			}
			c.end(err)
			continue
		}
		if !l.caughtUp {
			return
		}
		l.confs = l.confs[1:]
		if err := l.proposeConf(c); err != nil {
			c.end(err)
		}
	}
}

func (l *loop) proposeConf(c *confRequest) error {
	if err := c.check(l); err != nil {
		return err
	}
	cc, err := c.change.raftChange()
	if err != nil {
		return fmt.Errorf("change members: %w", err)
	}
	l.s.pending.add([]*proposal{c.p})
	if err := l.node.ProposeConfChange(cc); err != nil {
		l.s.pending.take(c.p.seq)
		return &ErrNotLeader{} // leadership is being handed over
	}
	l.confPending = true
	return nil
}

func (s *Store) changeMember(ctx context.Context, kind confKind, m protocol.Member, check func(*loop) error) error {
	if err := s.view.notLeader(); err != nil {
		return err
	}
	p := &proposal{seq: s.seq.Add(1), done: make(chan proposalResult, 1)}
	c := &confRequest{change: confChange{s.boot, p.seq, kind, m}, check: check, p: p}
	if !s.inbox.put(func(in *inboxItems) { in.confs = append(in.confs, c) }) {
		return ErrStopped
	}
	select {
	case r := <-p.done:
		return r.err
	case <-ctx.Done():
		return fmt.Errorf("change members, which may still happen: %w", context.Cause(ctx))
	case <-s.done:
		return ErrStopped
	}
}

// AddMember adds a member to the group; m needs NodeID and Addr. On the leader only. The newcomer is a learner, which takes part in no
// decision, until it has caught up; then the leader makes it a voter by itself. A node that is a member already keeps its
// raft id and gets the new address. The result has the raft id to open the newcomer's store with.
func (s *Store) AddMember(ctx context.Context, m protocol.Member) (protocol.Member, error) {
	if m.NodeID == "" || m.Addr == "" {
		return m, fmt.Errorf("add member: node id %q and address %q must be given", m.NodeID, m.Addr)
	}
	members := s.view.membership().members
	if i := slices.IndexFunc(members, func(o protocol.Member) bool { return o.NodeID == m.NodeID }); i >= 0 {
		known := members[i]
		if known.Addr != m.Addr {
			if err := s.UpdateMemberAddr(ctx, known.RaftID, m.Addr); err != nil {
				return m, err
			}
			known.Addr = m.Addr
		}
		return known, nil
	}
	m.RaftID, m.Learner = newRaftID(), true
	check := func(l *loop) error {
		for _, o := range l.s.view.membership().members {
			if o.NodeID == m.NodeID || o.RaftID == m.RaftID {
				return fmt.Errorf("node %s is being added already", m.NodeID)
			}
		}
		return nil
	}
	if err := s.changeMember(ctx, confAdd, m, check); err != nil {
		return m, fmt.Errorf("add member %s: %w", m.NodeID, err)
	}
	return m, nil
}

// RemoveMember removes a member for good: its raft id is never used again, and it is told when it next calls. It gives
// [ErrQuorum] if too few of the others answer now ([Store.RollCall]) to go on without it. On the leader only; asked to remove
// itself, the leader hands leadership over and gives an [*ErrNotLeader], as if the caller had come to a follower.
func (s *Store) RemoveMember(ctx context.Context, raftID uint64) error {
	if raftID == s.self {
		if err := s.view.notLeader(); err != nil {
			return err
		}
		if len(s.voters()) < 2 {
			return fmt.Errorf("remove member %x: %w", raftID, ErrQuorum)
		}
		if err := s.TransferLeadership(ctx, 0); err != nil {
			return err
		}
		if err := s.view.notLeader(); err != nil {
			return err
		}
		return &ErrNotLeader{}
	}
	if err := s.RollCall(ctx); err != nil {
		return fmt.Errorf("remove member %x: %w", raftID, err)
	}
	check := func(l *loop) error { return l.mayRemove(raftID) }
	m, _ := s.view.membership().member(raftID)
	m.RaftID = raftID
	if err := s.changeMember(ctx, confRemove, m, check); err != nil {
		return fmt.Errorf("remove member %x: %w", raftID, err)
	}
	return nil
}

// mayRemove is Swarm's rule (swarm-semantics.md, 7.3): without the member, the reachable ones must be a majority of the
// group as it is now.
func (l *loop) mayRemove(raftID uint64) error {
	m, ok := l.s.view.membership().member(raftID)
	if !ok {
		return ErrNoMember
	}
	if m.Learner {
		return nil
	}
	voters := l.s.voters()
	reachable := 0
	for _, id := range voters {
		if id != raftID && l.reachable(id) {
			reachable++
		}
	}
	if reachable < (len(voters)-1)/2+1 {
		return ErrQuorum
	}
	return nil
}

func (s *Store) voters() (ids []uint64) {
	for _, m := range s.view.membership().members {
		if !m.Learner {
			ids = append(ids, m.RaftID)
		}
	}
	return ids
}

// UpdateMemberAddr changes where the others reach a member. On the leader only.
func (s *Store) UpdateMemberAddr(ctx context.Context, raftID uint64, addr string) error {
	m, ok := s.view.membership().member(raftID)
	if !ok {
		return fmt.Errorf("update member %x: %w", raftID, ErrNoMember)
	}
	m.Addr = addr
	check := func(l *loop) error {
		if now, ok := l.s.view.membership().member(raftID); !ok || now.Learner != m.Learner {
			return fmt.Errorf("the member has changed meanwhile: %w", ErrNoMember)
		}
		return nil
	}
	if err := s.changeMember(ctx, confAddress, m, check); err != nil {
		return fmt.Errorf("update member %x: %w", raftID, err)
	}
	return nil
}

// TransferLeadership hands leadership to the member with that raft id, 0 for the one that is furthest, and waits until
// this member does not lead any more. On the leader only. It gives up when an election timeout passes without success.
func (s *Store) TransferLeadership(ctx context.Context, to uint64) error {
	if err := s.view.notLeader(); err != nil {
		return err
	}
	if to == s.self {
		return nil
	}
	changes, end := s.view.leaderChanges()
	defer end()
	begun := make(chan error, 1)
	if !s.inbox.put(func(in *inboxItems) {
		in.calls = append(in.calls, func(l *loop) { begun <- l.transfer(to) })
	}) {
		return ErrStopped
	}
	timeout := 2 * time.Duration(s.cfg.ElectionTicks) * s.cfg.Tick
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no other member took over within %v", timeout))
	defer cancel()
	for {
		select {
		case err := <-begun:
			if err != nil {
				return fmt.Errorf("transfer leadership: %w", err)
			}
			begun = nil
		case l, ok := <-changes:
			if !ok {
				return ErrStopped
			}
			if l.LeaderID != 0 && l.LeaderID != s.self {
				return nil
			}
		case <-ctx.Done():
			return fmt.Errorf("transfer leadership: %w", context.Cause(ctx))
		}
	}
}

func (l *loop) transfer(to uint64) error {
	if to == 0 {
		to = l.successor()
	}
	m, ok := l.s.view.membership().member(to)
	if !ok || m.Learner {
		return fmt.Errorf("no other voter can take over: %w", ErrNoMember)
	}
	l.node.TransferLeader(to)
	return nil
}

// promote makes a voter of a learner that has caught up, one at a time.
func (l *loop) promote() {
	if l.confPending || len(l.confs) > 0 || !l.caughtUp || l.stopping > 0 {
		return
	}
	committed := l.s.committed.Load()
	var ready uint64
	l.node.WithProgress(func(id uint64, typ raft.ProgressType, pr tracker.Progress) {
		if typ == raft.ProgressTypeLearner && pr.State == tracker.StateReplicate && pr.Match+promoteWithin >= committed && l.reachable(id) {
			ready = id
		}
	})
	m, ok := l.s.view.membership().member(ready)
	if !ok || !m.Learner {
		return
	}
	m.Learner = false
	p := &proposal{seq: l.s.seq.Add(1), done: make(chan proposalResult, 1)}
	l.confs = append(l.confs, &confRequest{change: confChange{l.s.boot, p.seq, confPromote, m}, check: func(*loop) error { return nil }, p: p})
}

// Member implements [Local].
func (s *Store) Member() protocol.Member {
	if m, ok := s.view.membership().member(s.self); ok && m.Addr == s.cfg.Addr {
		return m
	}
	return protocol.Member{RaftID: s.self, NodeID: s.cfg.NodeID, Addr: s.cfg.Addr}
}

// Epoch implements [Local].
func (s *Store) Epoch() (epoch uint64, known bool) {
	if c := s.Snapshot().Cluster(); c != nil {
		return c.Epoch, true
	}
	return 0, false
}

// Boot implements [Local].
func (s *Store) Boot() uint64 { return s.boot }

// Receive implements [Local].
func (s *Store) Receive(m *raftpb.Message) error {
	if m.GetTo() != s.self {
		return nil // for someone who had this address before
	}
	if slices.Contains(s.view.membership().removed, m.GetFrom()) {
		return ErrRemoved
	}
	s.inbox.put(func(in *inboxItems) {
		if len(in.remote) < maxInboxMessages {
			in.remote = append(in.remote, m)
		}
	})
	return nil
}

// Unreachable implements [Local].
func (s *Store) Unreachable(raftID uint64) {
	s.inbox.put(func(in *inboxItems) {
		in.calls = append(in.calls, func(l *loop) { l.node.ReportUnreachable(raftID) })
	})
}

// Gone implements [Local].
func (s *Store) Gone(raftID uint64) {
	s.inbox.put(func(in *inboxItems) {
		in.calls = append(in.calls, func(l *loop) { l.gone(raftID) })
	})
}

// Removed implements [Local].
func (s *Store) Removed() { s.fail(ErrRemoved) }
