package raftstore

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/miniswarm/miniswarm/cluster"
)

// proposal is a transaction on its way through the log. The proposing member keeps the transaction itself, so that it
// need not decode what it has just encoded.
type proposal struct {
	seq  uint64
	txn  *cluster.Txn
	data []byte
	done chan proposalResult // capacity 1; gets one value, from whoever takes the proposal out of the books
}

type proposalResult struct {
	index uint64
	// before is the index of the transaction applied before this one.
	before uint64
	err    error
}

func (p *proposal) end(r proposalResult) { p.done <- r }

// pendingProposals are those in the log whose result is not known.
type pendingProposals struct {
	mu sync.Mutex
	m  map[uint64]*proposal
}

func (b *pendingProposals) add(ps []*proposal) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.m == nil {
		b.m = map[uint64]*proposal{}
	}
	for _, p := range ps {
		b.m[p.seq] = p
	}
}

// take takes the proposal out of the books; nil if it is not in them.
func (b *pendingProposals) take(seq uint64) *proposal {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.m[seq]
	delete(b.m, seq)
	return p
}

func (b *pendingProposals) failAll(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.m {
		p.end(proposalResult{err: err})
	}
	clear(b.m)
}

// Update lets build make a transaction from the latest state, and stores it. It works on the leader only; elsewhere it
// gives an [*ErrNotLeader]. When another write came between, which the transaction's versions and guards tell
// ([cluster.Retryable]), build is called again with the newer state, as long as ctx permits; build must not change anything
// but its result. An error of build's own ends the update, and a nil or empty transaction commits nothing; both only after
// a majority has confirmed that the state which build saw has all that was acknowledged before the call, for a leader that was
// deposed without knowing it would refuse, or find done, what is not so any more.
//
// The result is the log index of the transaction, or of the state that needed none. Snapshots taken after Update returns
// have it. An error that is not a [*cluster.TxnError], [*ErrNotLeader], [ErrTooLarge] or build's own leaves open whether the
// transaction was or will be applied.
func (s *Store) Update(ctx context.Context, build func(*cluster.Snapshot) (*cluster.Txn, error)) (uint64, error) {
	snap, err := s.leaderSnapshot(ctx)
	if err != nil {
		return 0, err
	}
	confirmed := false // snap has all that was acknowledged before the call
	for {
		txn, err := build(snap)
		if err != nil || txn == nil || len(txn.Changes) == 0 {
			if confirmed {
				return snap.Index(), err
			}
			latest, unknown := s.latest(ctx)
			if unknown != nil {
				return 0, unknown
			}
			if latest.Index() == snap.Index() {
				return snap.Index(), err
			}
			// What has come meanwhile may decide otherwise. What comes after that need not be waited for: it may never end.
			snap, confirmed = latest, true
			continue
		}
		r := s.propose(ctx, txn)
		// A conflict with the very state that build saw would repeat itself for ever.
		if r.err == nil || !cluster.Retryable(r.err) || r.before == snap.Index() || ctx.Err() != nil {
			return r.index, r.err
		}
		if snap, err = s.leaderSnapshot(ctx); err != nil {
			return 0, err
		}
		confirmed = true // the transaction that was refused went through the log, behind all of that
	}
}

// Propose stores a transaction, with the same errors as [Store.Update] and without a second try. The transaction belongs to the store
// from now on and must not be changed. One without a time gets the present time.
func (s *Store) Propose(ctx context.Context, txn *cluster.Txn) (uint64, error) {
	if txn == nil || len(txn.Changes) == 0 {
		return s.Snapshot().Index(), nil
	}
	r := s.propose(ctx, txn)
	return r.index, r.err
}

// leaderSnapshot is the state to build on: that of a leader that has applied everything from before its term.
func (s *Store) leaderSnapshot(ctx context.Context) (*cluster.Snapshot, error) {
	v := s.view
	v.mu.Lock()
	ready, stopped := v.leadership.Leader, v.stopped
	v.mu.Unlock()
	if stopped != nil {
		return nil, stopped
	}
	if ready {
		return s.Snapshot(), nil
	}
	if err := v.notLeader(); err != nil {
		return nil, err
	}
	changes, end := v.leaderChanges()
	defer end()
	for {
		select {
		case l, ok := <-changes:
			if !ok {
				return nil, ErrStopped
			}
			if l.Leader {
				return s.Snapshot(), nil
			}
			if err := v.notLeader(); err != nil {
				return nil, err
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for leadership: %w", context.Cause(ctx))
		}
	}
}

// latest is the state as a majority has it now. Unlike [Store.Read] it does not wait for another leader when this member
// ceases to lead.
func (s *Store) latest(ctx context.Context) (*cluster.Snapshot, error) {
	changes, end := s.view.leaderChanges()
	defer end()
	r := &readRequest{done: make(chan readResult, 1)}
	if !s.inbox.put(func(in *inboxItems) { in.reads = append(in.reads, r) }) {
		return nil, ErrStopped
	}
	for {
		select {
		case res := <-r.done:
			if res.err != nil {
				return nil, res.err
			}
			return s.view.waitApplied(ctx, res.index)
		case _, ok := <-changes:
			if !ok {
				return nil, ErrStopped
			}
			if err := s.view.notLeader(); err != nil {
				return nil, err
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("no majority of the managers answers: %w", context.Cause(ctx))
		}
	}
}

func (s *Store) propose(ctx context.Context, txn *cluster.Txn) proposalResult {
	if err := s.view.notLeader(); err != nil {
		return proposalResult{err: err}
	}
	if txn.Time.IsZero() {
		stamped := *txn
		stamped.Time = s.cfg.Now()
		txn = &stamped
	}
	p := &proposal{seq: s.seq.Add(1), txn: txn, done: make(chan proposalResult, 1)}
	var err error
	if p.data, err = encodeEntry(proposalID{s.boot, p.seq}, txn); err != nil {
		return proposalResult{err: fmt.Errorf("store change: %w", err)}
	}
	if len(p.data) > MaxTxnBytes {
		return proposalResult{err: fmt.Errorf("store %d changes of %d bytes, the limit is %d: %w", len(txn.Changes), len(p.data), MaxTxnBytes, ErrTooLarge)}
	}
	defer observe(s.cfg.Timings.Commit, time.Now())
	size := int64(len(p.data))
	if err := s.room.Acquire(ctx, size); err != nil {
		return proposalResult{err: fmt.Errorf("store change: the log is busy: %w", context.Cause(ctx))}
	}
	defer s.room.Release(size)
	if !s.inbox.put(func(in *inboxItems) { in.proposals = append(in.proposals, p) }) {
		return proposalResult{err: ErrStopped}
	}
	select {
	case r := <-p.done:
		return r
	case <-ctx.Done():
		return proposalResult{err: fmt.Errorf("store change, which may still happen: %w", context.Cause(ctx))}
	case <-s.done:
		select {
		case r := <-p.done:
			return r
		default:
			return proposalResult{err: ErrStopped}
		}
	}
}

// propose hands proposals to raft, all in one message so that they share messages and writes.
func (l *loop) propose(ps []*proposal) {
	if l.stopping > 0 {
		l.reject(ps)
		return
	}
	entries := make([]*raftpb.Entry, len(ps))
	for i, p := range ps {
		entries[i] = &raftpb.Entry{Data: p.data}
		p.data = nil
	}
	l.s.pending.add(ps)
	err := l.node.Step(&raftpb.Message{Type: raftpb.MsgProp.Enum(), From: &l.s.self, Entries: entries})
	if err == nil {
		return
	}
	// Dropped: this member does not lead, or is handing leadership over. Nothing was added to the log.
	for _, p := range ps {
		l.s.pending.take(p.seq)
	}
	l.reject(ps)
}

func (l *loop) reject(ps []*proposal) {
	err := l.s.view.notLeader()
	if err == nil {
		err = &ErrNotLeader{} // on its way to another member, not known to have arrived
	}
	for _, p := range ps {
		p.end(proposalResult{err: err})
	}
}
