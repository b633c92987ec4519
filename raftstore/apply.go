package raftstore

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// applyWork is one thing for the applier to do: committed entries, a snapshot from the leader, or the news that its own
// snapshot is written or wanted.
type applyWork struct {
	m *raftpb.Message

	restore  *raftpb.SnapshotMetadata
	restored chan struct{}

	written *writtenSnapshot
	// wanted asks for a snapshot now.
	wanted bool
	// covered asks for one from an index on, if there is none, and to be told.
	covered *coverage
}

// applier owns the tables. It applies committed entries in order and publishes the result, a batch at a time. Snapshots are
// made when somebody asks: each makes the next writes copy what they touch, which a bulk change need not pay for when
// nobody looks.
type applier struct {
	s *Store

	mu    sync.Mutex // guards state: taken for each transaction, and by readers for the moment of a snapshot
	state *cluster.State

	members     map[uint64]protocol.Member
	removed     []uint64
	conf        *raftpb.ConfState
	index, term uint64 // of the last applied entry
	pool        *internPool
	shown       *membership // what was published

	// what is to be told once the batch is published
	events  []cluster.Event
	results []finished
	answers []*raftpb.Message

	snapshots snapshotPolicy
	coverages []*coverage
	// leaving is set when this member's own removal was applied.
	leaving bool
	// halted is set when raft has ended and cannot be told of a membership change that comes next: it and all after it are applied after the
	// next start.
	halted bool
}

type finished struct {
	p *proposal
	r proposalResult
}

// publishAfter bounds a batch, so that the first writers in it need not wait for a long log.
const publishAfter = 512

func newApplier(s *Store, state *cluster.State, meta snapshotMeta, conf *raftpb.ConfState) *applier {
	a := &applier{s: s, pool: newInternPool()}
	a.reset(state, meta, conf)
	return a
}

// reset takes over the content of a snapshot.
func (a *applier) reset(state *cluster.State, meta snapshotMeta, conf *raftpb.ConfState) {
	a.state, a.conf, a.index, a.term, a.removed = state, conf, meta.Index, meta.Term, meta.Removed
	a.members, a.shown = map[uint64]protocol.Member{}, nil
	for _, m := range meta.Members {
		a.members[m.RaftID] = m
	}
	a.follow(state.Snapshot().Cluster())
	a.snapshots.begin(meta.Index)
}

// snapshot gives the tables as they are. It may be called from any goroutine.
func (a *applier) snapshot() *cluster.Snapshot {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state.Snapshot()
}

// membership gives the members as an immutable value, the same one until they change.
func (a *applier) membership() *membership {
	if a.shown == nil {
		a.shown = &membership{removed: slices.Clone(a.removed)}
		for _, id := range slices.Sorted(maps.Keys(a.members)) {
			a.shown.members = append(a.shown.members, a.members[id])
		}
	}
	return a.shown
}

// runApplies is the applier's goroutine.
func (s *Store) runApplies() {
	a := s.applier
	defer close(s.appliesDone)
	defer a.snapshots.wait()
	for {
		select {
		case <-s.applies.wake:
		case <-s.failed:
			return
		case <-s.loopDone:
		}
		if err := a.run(s.applies.take()); err != nil {
			s.fail(err)
			return
		}
		select {
		case <-s.loopDone:
			if s.applies.len() == 0 {
				return
			}
			s.applies.notify()
		default:
		}
	}
}

func (a *applier) run(batch []applyWork) error {
	for _, w := range batch {
		switch {
		case w.restore != nil:
			if err := a.restore(w.restore); err != nil {
				return err
			}
			close(w.restored)
		case w.written != nil:
			a.snapshotWritten(w.written)
		case w.wanted:
			a.snapshots.wanted = true
		case w.covered != nil:
			a.coverages = append(a.coverages, w.covered)
		default:
			_ = a.s.at(Apply)
			if err := a.apply(w.m); err != nil {
				return err
			}
		}
	}
	a.publish()
	if a.leaving {
		return ErrRemoved
	}
	a.maybeSnapshot()
	return nil
}

// apply applies the entries of one message.
func (a *applier) apply(m *raftpb.Message) error {
	for _, e := range m.Entries {
		if a.halted {
			return nil
		}
		if e.GetIndex() <= a.index {
			continue // part of a snapshot that came in between
		}
		var err error
		if e.GetType() == raftpb.EntryNormal {
			err = a.applyTxn(e)
		} else {
			err = a.applyConf(e)
		}
		if errors.Is(err, ErrStopped) {
			a.halted = true
			return nil
		}
		if err != nil {
			return fmt.Errorf("apply entry %d of term %d: %w", e.GetIndex(), e.GetTerm(), err)
		}
		a.index, a.term = e.GetIndex(), e.GetTerm()
		a.snapshots.applied(len(e.Data))
		if len(a.results) >= publishAfter {
			a.publish()
		}
	}
	a.answers = append(a.answers, m.Responses...)
	return nil
}

func (a *applier) applyTxn(e *raftpb.Entry) error {
	if len(e.Data) == 0 {
		return nil // a new leader's first entry
	}
	if len(e.Data) < entryOverhead {
		return errShort
	}
	var p *proposal
	if id := parseProposalID(e.Data[1:]); id.boot == a.s.boot {
		p = a.s.pending.take(id.seq)
	}
	var txn *cluster.Txn
	if p != nil {
		txn = p.txn
	} else {
		var err error
		if _, txn, err = decodeEntry(e.Data, a.pool); err != nil {
			return err
		}
		txn.OwnTasks = true
	}
	before := a.state.Index()
	a.mu.Lock()
	events, err := a.state.Apply(txn, e.GetIndex())
	a.mu.Unlock()
	a.events = append(a.events, events...)
	for _, e := range events {
		if c, ok := e.New.(*cluster.Cluster); ok {
			a.follow(c)
		}
	}
	if p != nil {
		a.results = append(a.results, finished{p, proposalResult{index: e.GetIndex(), before: before, err: err}})
	}
	return nil // a refused transaction is the proposer's affair
}

// publish shows what was applied and then tells those who wait for it.
func (a *applier) publish() {
	a.s.view.publish(a.index, a.term, a.membership(), a.events)
	for _, f := range a.results {
		f.p.end(f.r)
	}
	if answers := a.answers; len(answers) > 0 {
		a.s.inbox.put(func(in *inboxItems) { in.local = append(in.local, answers...) })
	}
	// Watches keep the events; the others may be used again.
	clear(a.results)
	a.events, a.results, a.answers = nil, a.results[:0], nil
}

// restore replaces the tables by those of a snapshot file.
func (a *applier) restore(meta *raftpb.SnapshotMetadata) error {
	if meta.GetIndex() <= a.index {
		return nil
	}
	head, state, err := loadSnapshot(snapDir(a.s.disk.dir), meta.GetTerm(), meta.GetIndex(), a.s.disk.seal)
	if err != nil {
		return err
	}
	a.publish()
	a.mu.Lock()
	a.reset(state, head, raftpb.EnsureConfState(proto.Clone(meta.GetConfState()).(*raftpb.ConfState)))
	a.mu.Unlock()
	a.s.addresses.follow(a.s, a.membership(), true)
	a.s.view.replace(a.index, a.term, a.membership())
	a.s.log.Info("snapshot from the leader installed", "index", a.index, "term", a.term)
	if err := a.s.disk.purge(a.index, 0); err != nil {
		a.s.log.Warn("delete old logs", "err", err)
	}
	return nil
}

// applyConf applies a change of members. ErrStopped says that raft has ended, and nothing is changed.
func (a *applier) applyConf(e *raftpb.Entry) error {
	cc, change, err := decodeConf(e)
	if err != nil {
		return err
	}
	conf, err := a.s.reconfigure(cc)
	if err != nil {
		return err
	}
	a.conf, a.shown = conf, nil
	a.changeMember(change)
	if change.Kind == confAdd {
		a.s.storage.require(e.GetIndex())
		if a.s.Leadership().Leader {
			a.s.storage.ask() // the newcomer is about to
		}
	}
	a.s.addresses.follow(a.s, a.membership(), true)
	a.s.log.Info("membership changed", "change", change.Kind, "member", hexID(change.Member.RaftID), "node", change.Member.NodeID, "addr", change.Member.Addr)
	if change.Boot == a.s.boot { // others count from one as well
		if p := a.s.pending.take(change.Seq); p != nil {
			a.results = append(a.results, finished{p, proposalResult{index: e.GetIndex()}})
		}
	}
	return nil
}

func (a *applier) changeMember(c confChange) {
	a.removed = c.apply(a.members, a.removed)
	a.leaving = a.leaving || c.Kind == confRemove && c.Member.RaftID == a.s.self
}

// apply changes the members and gives the former members that there are then.
func (c confChange) apply(members map[uint64]protocol.Member, removed []uint64) []uint64 {
	id := c.Member.RaftID
	if c.Kind != confRemove {
		members[id] = c.Member
		return removed
	}
	delete(members, id)
	return remember(removed, id)
}

// remember adds raft ids to those of former members, of which the oldest are forgotten.
func remember(removed []uint64, ids ...uint64) []uint64 {
	removed = slices.Concat(removed, ids)
	return removed[max(len(removed)-maxRemovedMembers, 0):]
}
