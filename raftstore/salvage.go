package raftstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// Salvaged is all that one member knows of its group, as a new group can be founded on it with [Found].
type Salvaged struct {
	// State has the tables. They belong to whoever has the Salvaged.
	State *cluster.State
	// NodeID and RaftID are the member's, zero in what was read by [ReadExport].
	NodeID string
	RaftID uint64
	// Index and Term belong to the last entry that is in State, Committed is up to where the member knew that a majority had
	// it. Entries between the two may have been acknowledged all the same: followers hear of a commit after the writer.
	Index, Term, Committed uint64
	// Members are the group's in the order of their raft ids, Removed the raft ids of former ones.
	Members []protocol.Member
	Removed []uint64
}

// LastChange is when the newest object of the tables was written, by the clock of the leader of that time; zero if there is none.
func (s *Salvaged) LastChange() (last time.Time) {
	snap := s.State.Snapshot()
	for _, k := range cluster.Kinds() {
		for o := range snap.Objects(k) {
			if at := o.ObjectMeta().UpdatedAt; at.After(last) {
				last = at
			}
		}
	}
	return last
}

// salvageTries bounds how often a store is read that looks damaged in another way each time.
const salvageTries = 20

// Salvage reads the store in dir to the last whole entry of its log, committed or not. It changes nothing on disk, so that it may be
// used while a store runs there: that shows what it would give if it ended now. What a crash cut off in the middle of writing is passed
// over; any other damage is an error that names file and offset.
//
// All entries count, because whoever has lost the others cannot know which of the last ones a majority had: one that was not
// committed had no answer yet, or the answer that its outcome is not known, and may happen; one that was may have been
// acknowledged, and must not be lost.
//
// older are keys that were in use before key and may still be needed; see [Config].
func Salvage(dir string, key []byte, log *slog.Logger, older ...[]byte) (*Salvaged, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	seal, err := newSealer(key, older...)
	if err != nil {
		return nil, fmt.Errorf("salvage store: %w", err)
	}
	if !Exists(dir) {
		return nil, fmt.Errorf("salvage store: %s holds none", dir)
	}
	d := &disk{dir: dir, seal: seal, log: log}
	s, err := d.salvage()
	// A store that writes meanwhile shows torn records, and files that go, but hardly twice the same ones; damage stays where it is.
	for last, tries := "", 1; err != nil && err.Error() != last && tries < salvageTries; tries++ {
		last = err.Error()
		s, err = d.salvage()
	}
	if err != nil {
		return nil, fmt.Errorf("salvage store: %w", err)
	}
	return s, nil
}

func (d *disk) salvage() (*Salvaged, error) {
	l, err := d.replay(wal.OpenForRead)
	if err != nil {
		return nil, d.locate(err)
	}
	_ = d.wal.Close() // it was only read; this ends what may be open and has nothing to say
	if err := d.whole(); err != nil {
		return nil, err
	}
	if err := d.check(l); err != nil {
		return nil, err
	}
	s := &Salvaged{State: cluster.NewState(), NodeID: d.id.NodeID, RaftID: d.id.RaftID, Term: l.snapshot.GetTerm(), Committed: l.state.GetCommit()}
	meta := snapshotMeta{}
	if s.Index = l.snapshot.GetIndex(); s.Index > 0 {
		if meta, s.State, err = loadSnapshot(snapDir(d.dir), s.Term, s.Index, d.seal); err != nil {
			return nil, err
		}
	}
	members := map[uint64]protocol.Member{}
	for _, m := range meta.Members {
		members[m.RaftID] = m
	}
	s.Removed = meta.Removed
	pool := newInternPool()
	for _, e := range l.entries {
		if err := s.apply(e, members, pool); err != nil {
			return nil, fmt.Errorf("write-ahead log %s: entry %d of term %d: %w", walDir(d.dir), e.GetIndex(), e.GetTerm(), err)
		}
	}
	s.Members = slices.SortedFunc(maps.Values(members), func(a, b protocol.Member) int { return cmp.Compare(a.RaftID, b.RaftID) })
	s.Committed = max(s.Committed, l.snapshot.GetIndex())
	return s, nil
}

// whole makes sure that nothing but the end of the last segment is torn: reading without writing stops at the first tear. A store
// that runs may be writing the last record just now, so one that nothing follows is none, whatever it looks like.
func (d *disk) whole() error {
	names, err := filepath.Glob(filepath.Join(walDir(d.dir), "*.wal"))
	if err != nil {
		return err
	}
	slices.Sort(names)
	for i, name := range names {
		at, crc, bad := firstBadRecord(name)
		if bad != nil && i == len(names)-1 {
			segment, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			if !hidesOthers(segment, int(at), crc) {
				return nil
			}
		}
		if bad != nil {
			return fmt.Errorf("%s: record at offset %d: %w", name, at, bad)
		}
	}
	return d.checkEnd()
}

func (s *Salvaged) apply(e *raftpb.Entry, members map[uint64]protocol.Member, pool *internPool) error {
	s.Index, s.Term = e.GetIndex(), e.GetTerm()
	if e.GetType() != raftpb.EntryNormal {
		_, change, err := decodeConf(e)
		if err == nil {
			s.Removed = change.apply(members, s.Removed)
		}
		return err
	}
	if len(e.Data) == 0 {
		return nil
	}
	_, txn, err := decodeEntry(e.Data, pool)
	if err != nil {
		return err
	}
	txn.OwnTasks = true
	_, err = s.State.Apply(txn, e.GetIndex())
	if _, refused := errors.AsType[*cluster.TxnError](err); refused {
		return nil // by every member alike
	}
	return err
}

// NewMember describes the only member of a group that is to be founded: its raft id was never used before.
func NewMember(nodeID, addr string) protocol.Member {
	return protocol.Member{RaftID: newRaftID(), NodeID: nodeID, Addr: addr}
}

// Found writes the store of a new group to dir, which must not hold one. Its only member is of [NewMember]. The group begins with
// the state of s and goes on with its log indices. It knows all former members as removed: when they come back they are
// told so, and what they send to ids of the old group reaches nobody. s may not be used any more. When Found returns
// everything is on disk; after an error what is in dir is of no use.
func Found(dir string, key []byte, clusterID string, m protocol.Member, s *Salvaged, log *slog.Logger) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	seal, err := newSealer(key)
	if err != nil {
		return fmt.Errorf("found store: %w", err)
	}
	if Exists(dir) {
		return fmt.Errorf("found store: %s holds one already", dir)
	}
	id := diskID{RaftID: m.RaftID, NodeID: m.NodeID, ClusterID: clusterID}
	snap := s.State.Snapshot()
	meta := snapshotMeta{Index: max(s.Index, snap.Index(), 1), Term: max(s.Term, 1), Members: []protocol.Member{m},
		Removed: slices.Clone(s.Removed), Modified: modified(snap)}
	for _, former := range s.Members {
		meta.Removed = remember(meta.Removed, former.RaftID)
	}
	d, err := createDisk(dir, id, seal, log)
	if err != nil {
		return fmt.Errorf("found store: %w", err)
	}
	if err := errors.Join(d.bootstrap(meta, confState(meta), snap), d.close(), syncDir(dir), syncDir(filepath.Dir(dir))); err != nil {
		return fmt.Errorf("found store: %w", err)
	}
	return nil
}

// Needs is how many bytes [Found] takes for s: the log's first segment, the next one, which is made beside it, and the snapshot.
func (s *Salvaged) Needs() (uint64, error) {
	n := 2 * uint64(wal.SegmentSizeBytes)
	snap := s.State.Snapshot()
	err := encodeSnapshot(snapshotMeta{Members: s.Members, Removed: s.Removed, Modified: modified(snap)}, snap, func(chunk []byte, _ bool) error {
		n += uint64(len(chunk))
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("room for a store: %w", err)
	}
	return n, nil
}

// Export is the tables at one moment, for a backup.
type Export struct {
	// Index is the log index of the last transaction in it, Term the term that it was read in.
	Index, Term uint64
	Members     []protocol.Member
	Snapshot    *cluster.Snapshot
	removed     []uint64
}

// Export gives the tables with every write that was acknowledged, by any member, before the call. Writers do not wait for it. It
// works on followers too and needs a leader.
func (s *Store) Export(ctx context.Context) (*Export, error) {
	snap, err := s.Read(ctx)
	if err != nil {
		return nil, fmt.Errorf("export: %w", err)
	}
	m := s.view.membership()
	return &Export{Index: snap.Index(), Term: s.Leadership().Term, Members: m.members, Snapshot: snap, removed: m.removed}, nil
}

// Write hands the export to put in chunks, as [ReadExport] takes them; last marks the last one. A chunk is valid until put returns.
func (e *Export) Write(put func(chunk []byte, last bool) error) error {
	meta := snapshotMeta{Index: e.Index, Term: e.Term, Members: e.Members, Removed: e.removed, Modified: modified(e.Snapshot)}
	if err := encodeSnapshot(meta, e.Snapshot, put); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return nil
}

// ReadExport reads what [Export.Write] wrote; next gives the chunks until io.EOF.
func ReadExport(next func() ([]byte, error)) (*Salvaged, error) {
	meta, state, err := decodeSnapshot(next)
	if err != nil {
		return nil, fmt.Errorf("read export: %w", err)
	}
	return &Salvaged{State: state, Index: meta.Index, Term: meta.Term, Committed: meta.Index, Members: meta.Members, Removed: meta.Removed}, nil
}
