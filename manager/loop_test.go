package manager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/orchestrator"
	"github.com/miniswarm/miniswarm/raftstore"
)

// pieces is a store that takes transactions of up to limit changes.
type pieces struct {
	Store
	limit int
	sizes []int
	times []time.Time
	err   error
}

func (p *pieces) Propose(_ context.Context, txn *cluster.Txn) (uint64, error) {
	if p.err != nil {
		return 0, p.err
	}
	if len(txn.Changes) > p.limit {
		return 0, fmt.Errorf("store: %w", raftstore.ErrTooLarge)
	}
	p.sizes, p.times = append(p.sizes, len(txn.Changes)), append(p.times, txn.Time)
	return 1, nil
}

func TestAPlanIsStoredInPiecesThatFit(t *testing.T) {
	for _, c := range []struct {
		changes, piece, limit int
		want                  []int
	}{
		{changes: 0, piece: 10, limit: 10},
		{changes: 7, piece: 10, limit: 10, want: []int{7}},
		{changes: 25, piece: 10, limit: 10, want: []int{10, 10, 5}},
		{changes: 25, piece: 10, limit: 3, want: []int{2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1}},
	} {
		store, now := &pieces{limit: c.limit}, time.Unix(1, 0)
		l := &loop{store: store, piece: c.piece}
		if err := l.commit(t.Context(), now, make([]cluster.Change, c.changes)); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
		if !slices.Equal(store.sizes, c.want) {
			t.Errorf("%d changes in pieces of %d, limit %d: stored %v, want %v", c.changes, c.piece, c.limit, store.sizes, c.want)
		}
		for _, at := range store.times {
			if at.Before(now) {
				t.Errorf("stored at %v, before the plan was made at %v", at, now)
			}
		}
	}
	l := &loop{store: &pieces{limit: 0}, piece: 8}
	if err := l.commit(t.Context(), time.Now(), make([]cluster.Change, 3)); !errors.Is(err, raftstore.ErrTooLarge) {
		t.Errorf("one change that is too large: %v", err)
	}
}

// frozen is a store whose state never changes and which refuses everything as out of date.
type frozen struct {
	pieces
	snap *cluster.Snapshot
}

func (f *frozen) Snapshot() *cluster.Snapshot { return f.snap }

type silent struct{}

func (silent) Events() <-chan []cluster.Event { return nil }

// TestARefusedPlanIsNotTriedWithoutPause: a refusal that repeats must not keep a processor busy.
func TestARefusedPlanIsNotTriedWithoutPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		state := cluster.NewState()
		svc := &cluster.Service{}
		one := uint64(1)
		svc.ID, svc.Spec.Name, svc.Spec.Mode.Replicated = "web", "web", &swarm.ReplicatedService{Replicas: &one}
		if _, err := state.Apply(&cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.CreateOf(svc)}}, 1); err != nil {
			t.Fatal(err)
		}
		store := &frozen{snap: state.Snapshot()}
		tries := 0
		store.err = &cluster.TxnError{Kind: cluster.KindService, Err: cluster.ErrOutOfSequence}
		l := &loop{store: store, planner: orchestrator.New(orchestrator.Options{}), watch: silent{}, began: func() {}, ended: func(int) {}, ids: cluster.SeededIDs(1),
			logger: slog.New(slog.DiscardHandler), decisions: newDecisionLog(), now: func() time.Time { tries++; return time.Now() }}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.run(ctx, store.snap); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the loop ended with %v", err)
		}
		if tries < 2 || tries > 12 {
			t.Errorf("planned %d times in a second", tries)
		}
	})
}
