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
// A round whose answer does not come is asked for again, and an answer to any of its attempts ends it: where a round trip takes
// longer than the wait for it, the answer to the first comes all the same.
type readRounds struct {
	boot, seq uint64
	waiting   []*readRequest
	asked     []askedRead // under way, by first
	age       int         // ticks since the latest attempt
}

// askedRead is a request with the first attempt that was made for it. What the leader answers to that one or to a later one is
// as new as the request wants it.
type askedRead struct {
	first uint64
	*readRequest
}

// readRetryTicks is how long an attempt is waited for before another is made: the leader may have changed or a message been dropped.
const readRetryTicks = 3

// next begins a round if none is under way.
func (r *readRounds) next(node *raft.RawNode) {
	if len(r.asked) == 0 && len(r.waiting) > 0 {
		r.ask(node)
	}
}

// ask makes an attempt, for those who wait as well.
func (r *readRounds) ask(node *raft.RawNode) {
	r.seq++
	r.age = 0
	for _, req := range r.waiting {
		r.asked = append(r.asked, askedRead{r.seq, req})
	}
	r.waiting = nil
	node.ReadIndex(proposalID{r.boot, r.seq}.append(nil))
}

func (r *readRounds) answer(states []raft.ReadState) {
	for _, st := range states {
		if len(st.RequestCtx) != 16 {
			continue
		}
		id := parseProposalID(st.RequestCtx)
		if id.boot != r.boot {
			continue // asked for before this member was started
		}
		r.asked = slices.DeleteFunc(r.asked, func(a askedRead) bool {
			if a.first > id.seq {
				return false
			}
			a.end(st.Index, nil)
			return true
		})
	}
}

func (r *readRounds) tick(node *raft.RawNode) {
	if r.age++; r.age >= readRetryTicks && len(r.asked) > 0 {
		r.ask(node)
	}
}

func (r *readRounds) all() []*readRequest {
	all := slices.Clone(r.waiting)
	for _, a := range r.asked {
		all = append(all, a.readRequest)
	}
	return all
}
