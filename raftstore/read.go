package raftstore

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/raft/v3"

	"github.com/miniswarm/miniswarm/cluster"
)

// Read gives a state that has every write acknowledged, by any member, before Read was called. It works on followers too and
// costs one round trip between the leader and a majority, shared with other reads, but no write. Without a leader it
// waits for one as long as ctx permits.
func (s *Store) Read(ctx context.Context) (*cluster.Snapshot, error) {
	r := &readRequest{done: make(chan readResult, 1)}
	if !s.inbox.put(func(in *inboxItems) { in.reads = append(in.reads, r) }) {
		return nil, ErrStopped
	}
	select {
	case res := <-r.done:
		if res.err != nil {
			return nil, res.err
		}
		snap, err := s.view.waitApplied(ctx, res.index)
		if err != nil {
			return nil, fmt.Errorf("read: %w", err)
		}
		return snap, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("read: no majority of the managers answers: %w", context.Cause(ctx))
	}
}

// Stale gives what this member has applied, at once and without asking anybody, and for how long it has known of no leader: what
// has been committed since then it may not have. Shortly after a word of the leader only what is on its way is missing. known is
// false for a member that has not heard of any leader since it was opened.
func (s *Store) Stale() (snap *cluster.Snapshot, age time.Duration, known bool) {
	snap = s.Snapshot()
	if at := s.ledAt.Load(); at != nil {
		return snap, time.Since(*at), true
	}
	return snap, 0, false
}

type readRequest struct{ done chan readResult }

type readResult struct {
	index uint64
	err   error
}

func (r *readRequest) end(index uint64, err error) { r.done <- readResult{index, err} }

// readRounds asks the leader for a read index, one round at a time: those who come while a round is under way share the next.
type readRounds struct {
	boot, seq uint64
	waiting   []*readRequest
	rounds    map[uint64][]*readRequest // under way, by seq
	age       int                       // ticks since the latest round began
}

// readRetryTicks is how long a round may take before it counts as lost: the leader changed or a message was dropped.
const readRetryTicks = 3

func (r *readRounds) next(node *raft.RawNode) {
	if len(r.rounds) == 0 && len(r.waiting) > 0 {
		r.seq++
		r.age = 0
		r.rounds[r.seq], r.waiting = r.waiting, nil
		node.ReadIndex(proposalID{r.boot, r.seq}.append(nil))
	}
}

func (r *readRounds) answer(states []raft.ReadState) {
	for _, st := range states {
		if len(st.RequestCtx) != 16 {
			continue
		}
		id := parseProposalID(st.RequestCtx)
		for _, req := range r.rounds[id.seq] {
			req.end(st.Index, nil)
		}
		delete(r.rounds, id.seq)
	}
}

func (r *readRounds) tick(node *raft.RawNode) {
	if r.age++; r.age >= readRetryTicks && len(r.rounds) > 0 {
		r.waiting = r.all()
		clear(r.rounds)
		r.next(node)
	}
}

func (r *readRounds) all() []*readRequest {
	all := slices.Clone(r.waiting)
	for _, reqs := range r.rounds {
		all = append(all, reqs...)
	}
	return all
}

// wakeAll has the leader send every member a heartbeat at once: a round of its own that nobody waits for.
func (r *readRounds) wakeAll(node *raft.RawNode) {
	r.seq++
	node.ReadIndex(proposalID{r.boot, r.seq}.append(nil))
}
