package raftstore

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/miniswarm/miniswarm/cluster"
)

// disk is one member's directory: wal/ with etcd's write-ahead log and snap/ with snapshots. The data of entries is
// sealed; terms, votes and indices are not.
//
// A snapshot counts from the moment the log has a record of it: the file is made durable first. Whatever is older than
// the newest snapshot that counts is deleted afterwards.
type disk struct {
	dir  string
	seal *sealer
	log  *slog.Logger
	wal  *wal.WAL
	id   diskID
	// synced is told how long each write of entries took; nil is not.
	synced func(time.Duration)
}

// diskID is written at the head of each segment of the log.
type diskID struct {
	Format    int
	RaftID    uint64
	NodeID    string
	ClusterID string `json:",omitempty"`
}

const diskFormat = 1

// loaded is what a directory held.
type loaded struct {
	state   *raftpb.HardState
	entries []*raftpb.Entry
	// snapshot is the newest one, its index 0 if there is none yet.
	snapshot *walpb.Snapshot
}

// blank says that nothing was ever written: not even a vote.
func (l *loaded) blank() bool {
	return l.snapshot.GetIndex() == 0 && len(l.entries) == 0 && raft.IsEmptyHardState(l.state)
}

func walDir(dir string) string  { return filepath.Join(dir, "wal") }
func snapDir(dir string) string { return filepath.Join(dir, "snap") }

// Exists says whether dir holds a store.
func Exists(dir string) bool { return wal.Exist(walDir(dir)) }

// Room says whether the file system of a store's directory has room for its log to go on, as an error that names it if not. It makes
// and removes an empty segment.
func Room(dir string) error {
	f, err := os.CreateTemp(dir, "*.tmp")
	if err != nil {
		return fmt.Errorf("room for the log: %w", err)
	}
	err = fileutil.Preallocate(f, wal.SegmentSizeBytes, true)
	if err := errors.Join(err, f.Close(), os.Remove(f.Name())); err != nil {
		return fmt.Errorf("room for the log in %s: %w", dir, err)
	}
	return nil
}

// Spare is how many bytes a store in dir that runs gives back when it ends: the segment that it has made for later.
func Spare(dir string) (n uint64) {
	names, _ := filepath.Glob(filepath.Join(walDir(dir), "*.tmp")) // the pattern is well-formed
	for _, name := range names {
		if fi, err := os.Stat(name); err == nil {
			n += uint64(fi.Size())
		}
	}
	return n
}

// createDisk makes an empty store in dir.
func createDisk(dir string, id diskID, seal *sealer, log *slog.Logger) (*disk, error) {
	id.Format = diskFormat
	if err := os.MkdirAll(snapDir(dir), 0o700); err != nil {
		return nil, fmt.Errorf("create store: %w", err)
	}
	meta, err := json.Marshal(id)
	if err != nil {
		return nil, fmt.Errorf("create store: %w", err)
	}
	w, err := wal.Create(walLogger(log), walDir(dir), meta)
	if err != nil {
		return nil, fmt.Errorf("create write-ahead log %s: %w", walDir(dir), err)
	}
	return &disk{dir: dir, seal: seal, log: log, wal: w, id: id}, nil
}

// openDisk opens the store in dir and reads the log from the newest snapshot on.
func openDisk(dir string, seal *sealer, log *slog.Logger) (*disk, *loaded, error) {
	d := &disk{dir: dir, seal: seal, log: log}
	if err := removeTemporary(snapDir(dir)); err != nil {
		return nil, nil, err
	}
	if err := d.checkEnd(); err != nil {
		return nil, nil, err
	}
	l, err := d.replay(wal.Open)
	if errors.Is(err, io.ErrUnexpectedEOF) && d.tornTail() {
		// The last write was torn by a crash; it was never acknowledged to anyone.
		log.Warn("write-ahead log ends in the middle of a record, cutting it off", "dir", walDir(dir), "err", err)
		if !wal.Repair(walLogger(log), walDir(dir)) {
			return nil, nil, fmt.Errorf("repair write-ahead log: %w", d.locate(err))
		}
		l, err = d.replay(wal.Open)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open write-ahead log: %w", d.locate(err))
	}
	if err := d.check(l); err != nil {
		return nil, nil, errors.Join(err, d.wal.Close())
	}
	return d, l, nil
}

// replay reads the log and leaves d.wal as open gave it, ready to append if it may.
func (d *disk) replay(open func(*zap.Logger, string, *walpb.Snapshot) (*wal.WAL, error)) (*loaded, error) {
	snaps, err := wal.ValidSnapshotEntries(walLogger(d.log), walDir(d.dir))
	if err != nil {
		return nil, err
	}
	l := &loaded{snapshot: &walpb.Snapshot{}}
	if len(snaps) > 0 {
		l.snapshot = slices.MaxFunc(snaps, func(a, b *walpb.Snapshot) int { return cmp.Compare(a.GetIndex(), b.GetIndex()) })
	}
	w, err := open(walLogger(d.log), walDir(d.dir), l.snapshot)
	if err != nil {
		return nil, err
	}
	var meta []byte
	meta, l.state, l.entries, err = w.ReadAll()
	if err != nil {
		// Closing may fail for the same reason; the first error says more.
		_ = w.Close()
		return nil, err
	}
	if l.entries, err = d.standing(l.entries, l.snapshot); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	if err := json.Unmarshal(meta, &d.id); err != nil {
		return nil, errors.Join(fmt.Errorf("description of the member: %w", err), w.Close())
	}
	d.wal = w
	return l, nil
}

// check refuses a log that cannot be used and opens its entries.
func (d *disk) check(l *loaded) error {
	if d.id.Format != diskFormat {
		return fmt.Errorf("%s has format %d, this miniswarm reads format %d: upgrade it", walDir(d.dir), d.id.Format, diskFormat)
	}
	last := l.snapshot.GetIndex()
	for _, e := range l.entries {
		last = e.GetIndex()
		if len(e.Data) == 0 {
			continue
		}
		plain, err := d.seal.open(e.Data, place(sealEntry, e.GetTerm(), e.GetIndex()))
		if err != nil {
			return fmt.Errorf("write-ahead log %s: entry %d of term %d: %w", walDir(d.dir), e.GetIndex(), e.GetTerm(), err)
		}
		e.Data = plain
	}
	if commit := l.state.GetCommit(); commit > last {
		return fmt.Errorf("write-ahead log %s ends at index %d, but %d was committed: it is damaged; remove this manager and join it again", walDir(d.dir), last, commit)
	}
	return nil
}

// locate finds the file and offset of the first record that cannot be read and puts them before err.
func (d *disk) locate(err error) error {
	names, lerr := filepath.Glob(filepath.Join(walDir(d.dir), "*.wal"))
	if lerr != nil || len(names) == 0 {
		return fmt.Errorf("%s: %w", walDir(d.dir), err)
	}
	for _, name := range names {
		if at, _, bad := firstBadRecord(name); bad != nil {
			return fmt.Errorf("%s: record at offset %d: %w; restore the file or remove this manager and join it again", name, at, err)
		}
	}
	return fmt.Errorf("%s: %w", walDir(d.dir), err)
}

// tornTail says whether the log is unreadable because of a torn write at its end.
func (d *disk) tornTail() bool {
	names, err := filepath.Glob(filepath.Join(walDir(d.dir), "*.wal"))
	if err != nil || len(names) == 0 {
		return false
	}
	for i, name := range names {
		at, crc, bad := firstBadRecord(name)
		if bad == nil {
			continue
		}
		segment, err := os.ReadFile(name)
		return err == nil && i == len(names)-1 && torn(segment, int(at), crc)
	}
	return true // each for itself is sound: the sum of all is checked when they are read again
}

// checkEnd refuses a log that only seems to end where it does: opening it would overwrite what follows.
func (d *disk) checkEnd() error {
	names, err := filepath.Glob(filepath.Join(walDir(d.dir), "*.wal"))
	if err != nil || len(names) == 0 {
		return nil // who opens it says so
	}
	last := names[len(names)-1]
	at, _, bad := firstBadRecord(last)
	if bad != nil {
		return nil
	}
	if blank, err := blankFrom(last, at); err != nil || blank {
		return err
	}
	segment, err := os.ReadFile(last)
	if err != nil {
		return fmt.Errorf("open write-ahead log: %w", err)
	}
	if endsEarly(segment, int(at)) {
		return fmt.Errorf("open write-ahead log: %s: record at offset %d is damaged, and others follow it; restore the file or remove this manager and join it again", last, at)
	}
	return nil
}

// firstBadRecord gives the offset of the first record of a segment that cannot be read, and the checksum of all before it; without
// an error it is the end.
func firstBadRecord(name string) (at int64, crc uint32, err error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	dec := wal.NewDecoder(fileutil.NewFileReader(f))
	rec := &walpb.Record{}
	for {
		crc := dec.LastCRC()
		switch err := dec.Decode(rec); {
		case errors.Is(err, io.EOF):
			return dec.LastOffset(), crc, nil
		case err != nil:
			return dec.LastOffset(), crc, err
		case rec.GetType() == wal.CrcType:
			dec.UpdateCRC(rec.GetCrc())
		}
	}
}

// save makes state and entries durable, in that the call returns after the disk has them. Entries that were saved with
// the same index before are replaced. After an error the store must not be used any more: what reached the disk is
// not known.
func (d *disk) save(state *raftpb.HardState, entries []*raftpb.Entry) error {
	sealed := make([]*raftpb.Entry, len(entries))
	for i, e := range entries {
		sealed[i] = e
		if len(e.Data) > 0 {
			sealed[i] = &raftpb.Entry{Term: e.Term, Index: e.Index, Type: e.Type, Data: d.seal.seal(e.Data, place(sealEntry, e.GetTerm(), e.GetIndex()))}
		}
	}
	if len(entries) > 0 {
		defer observe(d.synced, time.Now())
	}
	if err := d.wal.Save(state, sealed); err != nil {
		return fmt.Errorf("write-ahead log %s: %w", walDir(d.dir), err)
	}
	return nil
}

// sync makes durable what save left to the next write: a hard state with nothing new but the index up to which entries are committed.
func (d *disk) sync() error {
	if err := d.wal.Sync(); err != nil {
		return fmt.Errorf("write-ahead log %s: %w", walDir(d.dir), err)
	}
	return nil
}

// record notes in the log that the snapshot's file is on disk.
func (d *disk) record(meta *raftpb.SnapshotMetadata) error {
	s := &walpb.Snapshot{Index: proto.Uint64(meta.GetIndex()), Term: proto.Uint64(meta.GetTerm()), ConfState: meta.GetConfState()}
	if err := d.wal.SaveSnapshot(s); err != nil {
		return fmt.Errorf("write-ahead log %s: %w", walDir(d.dir), err)
	}
	return nil
}

// purge deletes the snapshots older than the one at index, but for the latest keep of them, and the segments of the log that
// no snapshot needs which is left.
func (d *disk) purge(index, keep uint64) error {
	names, err := fileutil.ReadDir(snapDir(d.dir))
	if err != nil {
		return fmt.Errorf("delete old snapshots: %w", err)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(b, a) }) // the latest first
	newest := index
	for _, name := range names {
		_, i, ok := parseSnapshotName(name)
		if !ok || i >= newest {
			continue
		}
		if keep > 0 {
			keep--
			index = i
			continue
		}
		if err := os.Remove(filepath.Join(snapDir(d.dir), name)); err != nil {
			return fmt.Errorf("delete old snapshots: %w", err)
		}
	}
	if err := d.wal.ReleaseLockTo(index); err != nil {
		return fmt.Errorf("delete old segments: %w", err)
	}
	if names, err = fileutil.ReadDir(walDir(d.dir), fileutil.WithExt(".wal")); err != nil {
		return fmt.Errorf("delete old segments: %w", err)
	}
	// A segment's name tells its first index. The last segment that begins at or before the snapshot is where
	// reading starts.
	first := 0
	for i, name := range names {
		var seq, begin uint64
		if _, err := fmt.Sscanf(name, "%016x-%016x.wal", &seq, &begin); err == nil && begin <= index {
			first = i
		}
	}
	for _, name := range names[:first] {
		if err := os.Remove(filepath.Join(walDir(d.dir), name)); err != nil {
			return fmt.Errorf("delete old segments: %w", err)
		}
	}
	return nil
}

// sizes are the numbers of bytes that log and snapshots take.
func (d *disk) sizes() (log, snapshots int64) {
	return dirSize(walDir(d.dir)), dirSize(snapDir(d.dir))
}

// dirSize is what the files in a directory take; 0 for one that cannot be read.
func dirSize(dir string) (total int64) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			total += info.Size()
		}
	}
	return total
}

func (d *disk) close() error {
	if err := d.wal.Close(); err != nil {
		return fmt.Errorf("close write-ahead log %s: %w", walDir(d.dir), err)
	}
	return nil
}

// removeTemporary deletes what an interrupted snapshot left.
func removeTemporary(dir string) error {
	names, err := fileutil.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("open snapshots: %w", err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, ".tmp") {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				return fmt.Errorf("remove unfinished snapshot: %w", err)
			}
		}
	}
	return nil
}

// bootstrap writes the first snapshot of a new group, whose only member is this one, and the log's record of it. All
// that joins later begins with a snapshot, which carries the members and their addresses.
func (d *disk) bootstrap(meta snapshotMeta, conf *raftpb.ConfState, snap *cluster.Snapshot) error {
	f, err := createSnapshotFile(snapDir(d.dir), meta.Term, meta.Index, d.seal)
	if err != nil {
		return err
	}
	if err := encodeSnapshot(meta, snap, f.put); err != nil {
		return errors.Join(err, f.abort())
	}
	if err := f.commit(); err != nil {
		return err
	}
	if err := d.record(&raftpb.SnapshotMetadata{ConfState: conf, Index: proto.Uint64(meta.Index), Term: proto.Uint64(meta.Term)}); err != nil {
		return err
	}
	return d.save(&raftpb.HardState{Term: proto.Uint64(meta.Term), Vote: proto.Uint64(0), Commit: proto.Uint64(meta.Index)}, nil)
}

// storage fills raft's memory with what was loaded.
func (l *loaded) storage(conf *raftpb.ConfState) (*raft.MemoryStorage, error) {
	ms := raft.NewMemoryStorage()
	if l.snapshot.GetIndex() > 0 {
		s := &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{ConfState: conf, Index: proto.Uint64(l.snapshot.GetIndex()), Term: proto.Uint64(l.snapshot.GetTerm())}}
		if err := ms.ApplySnapshot(s); err != nil {
			return nil, err
		}
	}
	if !raft.IsEmptyHardState(l.state) {
		if err := ms.SetHardState(l.state); err != nil {
			return nil, err
		}
	}
	return ms, ms.Append(l.entries)
}

// confState gives raft's view of members.
func confState(meta snapshotMeta) *raftpb.ConfState {
	cs := raftpb.EnsureConfState(nil)
	for _, m := range meta.Members {
		if m.Learner {
			cs.Learners = append(cs.Learners, m.RaftID)
		} else {
			cs.Voters = append(cs.Voters, m.RaftID)
		}
	}
	slices.Sort(cs.Voters)
	slices.Sort(cs.Learners)
	return cs
}
