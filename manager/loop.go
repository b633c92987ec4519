package manager

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/orchestrator"
	"github.com/miniswarm/miniswarm/raftstore"
	"github.com/miniswarm/miniswarm/trouble"
)

const (
	// maxChanges bounds one transaction. What a pass decides is ordered so that every prefix of it is safe, so a large
	// plan is committed in pieces that neither delay other writers nor make one huge log entry.
	maxChanges = 2000
	// retryPause is the wait after a commit that failed. A newer state, which is the usual reason, ends it at once.
	retryPause = 100 * time.Millisecond
)

// errWatchEnded ends a loop whose events stopped, because it lagged or the store closed.
var errWatchEnded = errors.New("the watch on the store ended")

// events is the gap-free stream of committed changes that a loop follows.
type events interface {
	// Events gives batches in order; it is closed at the end of the watch.
	Events() <-chan []cluster.Event
}

// loop is the leader's one loop: snapshot and time in, changes out, commit, and again when something changed or the
// time has come that the planner named. There is no debounce: everything that was committed meanwhile is taken in
// together, so load makes the passes larger, not more frequent.
type loop struct {
	store     Store
	planner   *orchestrator.Planner
	watch     events
	seen      uint64 // log index of the last event given to the planner
	ids       cluster.IDs
	logger    *slog.Logger
	decisions *decisionLog
	now       func() time.Time
	// began and ended bracket every pass; ended is told how many changes it decided on.
	began   func()
	ended   func(changes int)
	refused trouble.Log // commits that fail
	// piece is how many changes are committed at once: maxChanges, less where these are too large for the store.
	piece int
}

func (l *loop) run(ctx context.Context, start *cluster.Snapshot) error {
	l.planner.Reset(start)
	l.seen, l.piece = start.Index(), maxChanges
	wake := time.NewTimer(0)
	defer wake.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-wake.C:
		case batch, ok := <-l.watch.Events():
			if !ok {
				return errWatchEnded
			}
			l.observe(batch)
		}
		next, err := l.pass(ctx)
		if err != nil {
			return err
		}
		wake.Reset(next)
	}
}

// idle is the longest time between two passes; nothing depends on it, it bounds the damage of a forgotten wake-up.
const idle = time.Minute

// pass plans and commits once. It returns how long to sleep unless something changes.
func (l *loop) pass(ctx context.Context) (time.Duration, error) {
	snap, err := l.catchUp(ctx)
	if err != nil {
		return 0, err
	}
	now := l.now()
	changes := 0
	l.began()
	defer func() { l.ended(changes) }()
	plan := l.planner.Next(snap, now, l.ids)
	changes = len(plan.Changes)
	l.decisions.add(plan.Decisions)
	if err := l.commit(ctx, now, plan.Changes); err != nil {
		switch {
		case ctx.Err() != nil:
			return 0, context.Cause(ctx)
		case !cluster.Retryable(err): // otherwise the newer state is on its way to the planner
			if tell, lasting := l.refused.Again(now, ""); tell {
				l.logger.Warn("a plan could not be committed; it is made anew", "changes", len(plan.Changes), "since", lasting.Round(time.Second), "err", err)
			}
		}
		return retryPause, nil
	}
	l.refused.Over(now)
	if plan.Wake.IsZero() {
		return idle, nil
	}
	return min(max(plan.Wake.Sub(now), 0), idle), nil
}

// commit stores changes in order, in pieces that the store takes.
func (l *loop) commit(ctx context.Context, now time.Time, changes []cluster.Change) error {
	for len(changes) > 0 {
		n := min(len(changes), l.piece)
		_, err := l.store.Propose(ctx, &cluster.Txn{Time: now, Changes: changes[:n], OwnTasks: true})
		switch {
		case err == nil:
			clear(changes[:n]) // what is stored, or was refused, need not be kept from here
			changes = changes[n:]
		case errors.Is(err, raftstore.ErrTooLarge) && n > 1:
			l.piece = n / 2
		default:
			return err
		}
	}
	return nil
}

// catchUp gives the newest snapshot once the planner has observed everything in it. Planning on a state that the
// indexes lag behind could place the same replica twice.
func (l *loop) catchUp(ctx context.Context) (*cluster.Snapshot, error) {
	for {
		select { // what is there already is cheap to take along
		case batch, ok := <-l.watch.Events():
			if !ok {
				return nil, errWatchEnded
			}
			l.observe(batch)
			continue
		default:
		}
		snap := l.store.Snapshot()
		if latestChange(snap) <= l.seen {
			return snap, nil
		}
		for latestChange(snap) > l.seen {
			select {
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			case batch, ok := <-l.watch.Events():
				if !ok {
					return nil, errWatchEnded
				}
				l.observe(batch)
			}
		}
	}
}

func latestChange(snap *cluster.Snapshot) uint64 {
	var last uint64
	for _, k := range cluster.Kinds() {
		last = max(last, snap.Modified(k))
	}
	return last
}

func (l *loop) observe(batch []cluster.Event) {
	for _, ev := range batch {
		l.planner.Observe(ev)
		l.seen = max(l.seen, ev.Index)
	}
}
