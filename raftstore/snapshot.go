package raftstore

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/trouble"
)

// snapshotPolicy decides when the applier takes a snapshot: after a number of entries, or when they outgrow the tables.
type snapshotPolicy struct {
	every          uint64
	entries, bytes uint64 // applied since the last snapshot
	size           uint64 // of the last snapshot
	wanted         bool   // a follower needs one that is newer than the last
	busy           bool   // one is being written
	writer         sync.WaitGroup
}

func (p *snapshotPolicy) begin(uint64)      { p.entries, p.bytes = 0, 0 }
func (p *snapshotPolicy) applied(bytes int) { p.entries++; p.bytes += uint64(bytes) }
func (p *snapshotPolicy) due() bool {
	return !p.busy && (p.wanted || p.entries >= p.every || p.bytes >= max(snapshotAfter, 2*p.size))
}
func (p *snapshotPolicy) wait() { p.writer.Wait() }

// writtenSnapshot is how writing a snapshot ended.
type writtenSnapshot struct {
	index uint64
	size  int64
	err   error
}

// maybeSnapshot begins a snapshot if one is due. Writing it goes on beside the applier, from an immutable view.
func (a *applier) maybeSnapshot() {
	p := &a.snapshots
	if covers := a.coverage() && !p.busy; !covers && !p.due() || a.index == 0 {
		return
	}
	p.busy = true
	p.wanted = false
	p.begin(a.index)
	snap := a.snapshot()
	meta := snapshotMeta{Index: a.index, Term: a.term, Members: a.membership().members, Removed: a.membership().removed, Modified: modified(snap)}
	conf := proto.Clone(a.conf).(*raftpb.ConfState)
	p.writer.Go(func() {
		w := &writtenSnapshot{index: meta.Index}
		w.size, w.err = a.s.writeSnapshot(meta, conf, snap)
		a.s.applies.push(applyWork{written: w})
	})
}

// modified gives the log indices at which the tables last changed.
func modified(snap *cluster.Snapshot) map[cluster.Kind]uint64 {
	at := map[cluster.Kind]uint64{}
	for _, k := range cluster.Kinds() {
		at[k] = snap.Modified(k)
	}
	return at
}

func (a *applier) snapshotWritten(w *writtenSnapshot) {
	a.snapshots.busy = false
	if errors.Is(w.err, ErrStopped) {
		return
	}
	if w.err != nil {
		// The log still has everything; the next attempt follows after as many entries again.
		a.s.storage.asked.Store(0)
		a.s.log.Error("snapshot not written", "index", w.index, "err", w.err)
		for _, c := range a.coverages {
			c.done <- fmt.Errorf("snapshot at index %d: %w", w.index, w.err)
		}
		a.coverages = nil
		return
	}
	a.snapshots.size = uint64(w.size)
}

// writeSnapshot makes a snapshot durable, then forgets what it makes superfluous in memory and on disk.
func (s *Store) writeSnapshot(meta snapshotMeta, conf *raftpb.ConfState, snap *cluster.Snapshot) (int64, error) {
	f, err := createSnapshotFile(snapDir(s.disk.dir), meta.Term, meta.Index, s.disk.seal)
	if err != nil {
		return 0, err
	}
	put := func(chunk []byte, last bool) error {
		if s.hasFailed() {
			return ErrStopped
		}
		return f.put(chunk, last)
	}
	if err := encodeSnapshot(meta, snap, put); err != nil {
		return 0, errors.Join(err, f.abort())
	}
	if err := f.commit(); err != nil {
		return 0, err
	}
	if err := s.at(SnapshotWritten); err != nil {
		return f.size, err
	}
	work := appendWork{recorded: make(chan error, 1), record: &raftpb.SnapshotMetadata{ConfState: conf, Index: proto.Uint64(meta.Index), Term: proto.Uint64(meta.Term)}}
	s.appends.push(work)
	select {
	case err := <-work.recorded:
		if err != nil {
			return f.size, err // the appender has stopped the store
		}
	case <-s.appendsDone:
		return f.size, ErrStopped
	}
	if err := s.at(SnapshotRecorded); err != nil {
		return f.size, err
	}
	s.snapMu.Lock()
	defer s.snapMu.Unlock()
	if s.snapshotIndex() >= meta.Index {
		return f.size, nil // the leader sent a newer one meanwhile; the next purge takes care of the file
	}
	if _, err := s.storage.CreateSnapshot(meta.Index, conf, nil); err != nil {
		return f.size, fmt.Errorf("raft storage: %w", err)
	}
	s.log.Debug("snapshot written", "index", meta.Index, "bytes", f.size)
	if err := s.compact(meta.Index); err != nil {
		return f.size, err
	}
	return f.size, s.disk.purge(meta.Index, s.keepSnapshots.Load())
}

// compact forgets entries in memory before the snapshot, but for those a follower that is a little behind may need.
// While a snapshot is on its way to a follower, it will need all entries after that one: nothing is forgotten then.
func (s *Store) compact(index uint64) error {
	if s.sending.Load() > 0 {
		return nil
	}
	first, err := s.storage.FirstIndex()
	if err != nil {
		return fmt.Errorf("raft storage: %w", err)
	}
	keep := s.keepEntries.Load()
	if index <= keep || index-keep < first {
		return s.compactBytes(first, index)
	}
	return s.compactBytes(index-keep, index)
}

// compactBytes keeps entries from about first to index, fewer if they are large.
func (s *Store) compactBytes(first, index uint64) error {
	oldest, err := s.storage.FirstIndex()
	if err != nil {
		return fmt.Errorf("raft storage: %w", err)
	}
	if index < oldest {
		return nil
	}
	first = max(first, oldest)
	entries, err := s.storage.Entries(first, index+1, noLimit)
	if err != nil {
		return fmt.Errorf("raft storage: %w", err)
	}
	kept := 0
	at := first - 1 // entries up to here go
	for _, e := range slices.Backward(entries) {
		if kept += len(e.Data); kept > maxKeptBytes {
			at = e.GetIndex()
			break
		}
	}
	if err := s.storage.Compact(at); err != nil && !errors.Is(err, raft.ErrCompacted) {
		return fmt.Errorf("raft storage: %w", err)
	}
	return nil
}

const noLimit = ^uint64(0)

// OpenSnapshot implements [Local].
func (s *Store) OpenSnapshot(index uint64) (SnapshotSource, error) {
	s.snapMu.Lock()
	defer s.snapMu.Unlock()
	snap, err := s.storage.MemoryStorage.Snapshot()
	if err != nil {
		return nil, fmt.Errorf("raft storage: %w", err)
	}
	if have := snap.GetMetadata().GetIndex(); have != index {
		return nil, fmt.Errorf("open snapshot: the one at index %d has been replaced by the one at %d", index, have)
	}
	path := filepath.Join(snapDir(s.disk.dir), snapshotName(snap.GetMetadata().GetTerm(), index))
	return openSnapshotFile(path, index, s.disk.seal)
}

// SnapshotSent implements [Local].
func (s *Store) SnapshotSent(raftID uint64, err error) {
	s.sending.Add(-1)
	known, _ := s.unsent.LoadOrStore(raftID, &trouble.Log{})
	unsent := known.(*trouble.Log)
	if err == nil {
		unsent.Over(s.cfg.Now())
	} else if tell, lasting := unsent.Again(s.cfg.Now(), ""); tell {
		s.log.Warn("snapshot not sent", "member", hexID(raftID), "since", lasting, "err", err)
	}
	status := raft.SnapshotFinish
	if err != nil {
		status = raft.SnapshotFailure
	}
	s.inbox.put(func(in *inboxItems) {
		in.calls = append(in.calls, func(l *loop) { l.node.ReportSnapshot(raftID, status) })
	})
}

// ReceiveSnapshot implements [Local].
func (s *Store) ReceiveSnapshot(m *raftpb.Message, next func() ([]byte, error)) error {
	meta := m.GetSnapshot().GetMetadata()
	if m.GetType() != raftpb.MsgSnap || meta.GetIndex() == 0 || m.GetTo() != s.self {
		return errors.New("receive snapshot: the message does not announce one for this member")
	}
	if s.snapshotIndex() >= meta.GetIndex() {
		return s.Receive(m) // raft answers that it needs none
	}
	f, err := createSnapshotFile(snapDir(s.disk.dir), meta.GetTerm(), meta.GetIndex(), s.disk.seal)
	if err != nil {
		return fmt.Errorf("receive snapshot: %w", err)
	}
	if err := copyChunks(f, next); err != nil {
		return errors.Join(fmt.Errorf("receive snapshot %d: %w", meta.GetIndex(), err), f.abort())
	}
	if err := f.commit(); err != nil {
		return fmt.Errorf("receive snapshot: %w", err)
	}
	return s.Receive(m)
}

// copyChunks puts chunks into the file; which one is the last is known one chunk later.
func copyChunks(f *snapshotFile, next func() ([]byte, error)) error {
	chunk, err := next()
	for err == nil {
		var after []byte
		after, err = next()
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if perr := f.put(chunk, err != nil); perr != nil {
			return perr
		}
		chunk = after
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	if f.n == 0 {
		return errShort
	}
	return nil
}
