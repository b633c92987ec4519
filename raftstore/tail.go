package raftstore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// standing gives those of the entries read from the log, all beyond the snapshot, that stand. An entry takes the place of all from
// its index on, but reading begins at the snapshot, and passes over one below it that did so: what a leader wrote alone
// before it was deposed would come back, after the entries of its successor which were in its place. A member that then vouches
// for it could elect one that lacks what has been acknowledged.
func (d *disk) standing(entries []*raftpb.Entry, snapshot *walpb.Snapshot) ([]*raftpb.Entry, error) {
	if len(entries) == 0 {
		return nil, nil
	}
	last, err := d.last(snapshot)
	if err != nil {
		return nil, err
	}
	n := slices.IndexFunc(entries, func(e *raftpb.Entry) bool { return e.GetIndex() > last })
	if n < 0 {
		return entries, nil
	}
	return entries[:n], nil
}

// last reads the whole log for the index behind which nothing stands: that of the last entry that was written; or that of the
// snapshot, if it is a leader's that took the place of a log which was another, and nothing was written since.
func (d *disk) last(snapshot *walpb.Snapshot) (last uint64, err error) {
	names, err := filepath.Glob(filepath.Join(walDir(d.dir), "*.wal"))
	if err != nil {
		return 0, err
	}
	at, under := snapshot.GetIndex(), uint64(0) // under is the term of the entry there, 0 for none
	for _, name := range names {                // in their order
		err := eachRecord(name, func(rec *walpb.Record) {
			switch rec.GetType() {
			case wal.EntryType:
				e := wal.MustUnmarshalEntry(rec.GetData())
				if last = e.GetIndex(); last == at {
					under = e.GetTerm()
				}
			case wal.SnapshotType:
				var s walpb.Snapshot
				if proto.Unmarshal(rec.GetData(), &s) == nil && s.GetIndex() == at && under != 0 && under != s.GetTerm() {
					last = at
				}
			}
		})
		if err != nil {
			return 0, fmt.Errorf("write-ahead log %s: %w", name, err)
		}
	}
	return last, nil
}

// eachRecord gives the records of a segment up to its end, or to where it is torn.
func eachRecord(name string, do func(*walpb.Record)) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	dec := wal.NewDecoder(fileutil.NewFileReader(f))
	rec := &walpb.Record{}
	for {
		err := dec.Decode(rec)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if rec.GetType() == wal.CrcType {
			dec.UpdateCRC(rec.GetCrc())
		}
		do(rec)
	}
}
