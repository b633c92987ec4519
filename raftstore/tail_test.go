package raftstore

import (
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// deposeWithTail cuts the leader off and has it write entries that nobody else gets, until the others have a leader of their own. It
// gives the former leader and where its log ended then.
func (g *group) deposeWithTail(entries int) (old *member, lost uint64) {
	g.t.Helper()
	old = g.leader()
	var others []uint64
	for _, m := range g.members {
		if m != old {
			others = append(others, m.self)
		}
	}
	g.net.Partition([]uint64{old.self}, others)
	for i := range entries {
		go func() { _ = old.put(fmt.Sprint("lost", i)) }()
	}
	time.Sleep(100 * time.Millisecond)
	lost, err := old.storage.LastIndex()
	if err != nil {
		g.t.Fatal(err)
	}
	time.Sleep(5 * time.Second)
	return old, lost
}

// TestALostTailStaysLost: a leader that was cut off has entries on disk that nobody else got, and whose place its successor's took.
// After a snapshot that is in the middle of them they must not come back, whatever they were sealed with.
func TestALostTailStaysLost(t *testing.T) {
	for _, key := range [][]byte{testKey, otherKey} {
		synctest.Test(t, func(t *testing.T) {
			g := newGroup(t, 1, nil)
			g.grow(3)
			old, lost := g.deposeWithTail(30)
			g.leader().mustPut("kept")
			g.net.Partition()
			g.settle()
			last, err := old.storage.LastIndex()
			if err != nil || last >= lost {
				t.Fatalf("the tail to %d was not lost: the log ends at %d, %v", lost, last, err)
			}
			if err := old.Rekey(t.Context(), key); err != nil { // which takes a snapshot of everything
				t.Fatal(err)
			}
			old.kill()
			cfg := old.cfg
			cfg.Dir, cfg.Bootstrap, cfg.Transport, cfg.Key = old.dir, false, Alone(), key
			s, err := Open(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if now, err := s.storage.LastIndex(); err != nil || now != last || s.snapshotIndex() != last {
				t.Errorf("the log ended at %d, and at %d after a restart (snapshot at %d, %v)", last, now, s.snapshotIndex(), err)
			}
		})
	}
}

// TestASnapshotTakesThePlaceOfAnotherLog: of a member whose log was another than the leader's, up to beyond the snapshot, nothing stays.
func TestASnapshotTakesThePlaceOfAnotherLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, func(c *Config) { c.SnapshotEvery, c.KeepEntries = 10, 2 })
		g.grow(3)
		old, lost := g.deposeWithTail(60)
		for i := range 25 {
			g.leader().mustPut(fmt.Sprint("kept", i))
		}
		g.net.Partition()
		g.settle()
		last, err := old.storage.LastIndex()
		if err != nil || last >= lost {
			t.Fatalf("the tail to %d was not lost: the log ends at %d, %v", lost, last, err)
		}
		old.kill()
		cfg := old.cfg
		cfg.Dir, cfg.Bootstrap, cfg.Transport = old.dir, false, Alone()
		s, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if now, err := s.storage.LastIndex(); err != nil || now != last {
			t.Errorf("the log ended at %d, and at %d after a restart (snapshot at %d, %v)", last, now, s.snapshotIndex(), err)
		}
	})
}

// TestWhatStandsInALog writes entries and snapshots as members do, and reads what is beyond the latest snapshot.
func TestWhatStandsInALog(t *testing.T) {
	type write struct{ term, from, to uint64 } // entries; a snapshot where from is 0
	for name, c := range map[string]struct {
		writes []write
		want   string // terms of the entries beyond the snapshot
	}{
		"entries":                                       {[]write{{1, 1, 4}}, "[1 1 1 1]"},
		"entries in the place of others":                {[]write{{1, 1, 4}, {2, 3, 3}}, "[1 1 2]"},
		"a snapshot of one's own":                       {[]write{{1, 1, 6}, {1, 0, 4}}, "[1 1]"},
		"a tail that was lost below the snapshot":       {[]write{{1, 1, 8}, {2, 3, 4}, {2, 0, 4}}, "[]"},
		"and entries after it":                          {[]write{{1, 1, 8}, {2, 3, 4}, {2, 0, 4}, {2, 5, 6}}, "[2 2]"},
		"a tail that was lost across the snapshot":      {[]write{{1, 1, 8}, {2, 3, 6}, {2, 0, 4}}, "[2 2]"},
		"a tail of a later term than what replaced":     {[]write{{5, 1, 8}, {3, 3, 4}, {3, 0, 4}}, "[]"},
		"a leader's snapshot in a log that was another": {[]write{{1, 1, 8}, {2, 0, 4}}, "[]"},
		"and entries after that":                        {[]write{{1, 1, 8}, {2, 0, 4}, {2, 5, 5}}, "[2]"},
		"a leader's snapshot beyond the log":            {[]write{{1, 1, 3}, {2, 0, 9}, {2, 10, 10}}, "[2]"},
		"several snapshots":                             {[]write{{1, 1, 6}, {1, 0, 4}, {2, 6, 7}, {2, 0, 6}}, "[2]"},
	} {
		t.Run(name, func(t *testing.T) {
			seal, err := newSealer(testKey)
			if err != nil {
				t.Fatal(err)
			}
			dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
			d, err := createDisk(dir, diskID{RaftID: 1, NodeID: "n1"}, seal, log)
			if err != nil {
				t.Fatal(err)
			}
			commit := uint64(0)
			for _, w := range c.writes {
				var entries []*raftpb.Entry
				if w.from == 0 {
					commit = w.to
					if err := d.record(&raftpb.SnapshotMetadata{Index: proto.Uint64(w.to), Term: proto.Uint64(w.term), ConfState: raftpb.EnsureConfState(nil)}); err != nil {
						t.Fatal(err)
					}
				}
				for i := w.from; w.from > 0 && i <= w.to; i++ {
					entries = append(entries, &raftpb.Entry{Term: proto.Uint64(w.term), Index: proto.Uint64(i), Type: raftpb.EntryNormal.Enum(), Data: []byte("x")})
				}
				if err := d.save(&raftpb.HardState{Term: proto.Uint64(9), Vote: proto.Uint64(0), Commit: proto.Uint64(commit)}, entries); err != nil {
					t.Fatal(err)
				}
			}
			if err := d.close(); err != nil {
				t.Fatal(err)
			}
			d, l, err := openDisk(dir, seal, log)
			if err != nil {
				t.Fatal(err)
			}
			defer d.close()
			terms := []uint64{}
			for _, e := range l.entries {
				terms = append(terms, e.GetTerm())
			}
			if got := fmt.Sprint(terms); got != c.want {
				t.Errorf("beyond the snapshot at %d stand %s, want %s", l.snapshot.GetIndex(), got, c.want)
			}
		})
	}
}
