package raftstore

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/server/v3/storage/wal"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// written gives a store that has acknowledged n objects, with a snapshot and several segments, as a crash left it: the
// directory, and a configuration for a copy of it.
func written(t *testing.T, n int) (original string, cfg Config) {
	t.Helper()
	g := newGroup(t, 1, func(c *Config) { c.SnapshotEvery, c.Tick = 100, 10e6 })
	g.grow(1)
	m := g.leader()
	for i := range n {
		m.mustPut(fmt.Sprintf("object%d", i))
	}
	g.wait("the last snapshot", func() bool {
		// In this order: when the last is there and no other is left, those before it have been deleted.
		last := m.Status().SnapshotIndex+100 > uint64(n)
		names, err := filepath.Glob(filepath.Join(m.dir, "snap", "*.snap"))
		return err == nil && len(names) == 1 && last
	})
	m.kill()
	cfg = m.cfg
	cfg.Dir, cfg.Bootstrap, cfg.Transport = m.dir, false, Alone()
	return m.cfg.Dir, cfg
}

func newest(t *testing.T, dir, pattern string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(names) == 0 {
		t.Fatalf("no %s in %s (%v)", pattern, dir, err)
	}
	return slices.Max(names)
}

func change(t *testing.T, path string, edit func([]byte) []byte) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, edit(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

// used is the length of a preallocated segment without the zeros at its end.
func used(b []byte) int { return len(bytes.TrimRight(b, "\x00")) }

// recordAfter is where the first record of a segment from that offset on begins. A record is its length, whose highest
// byte tells the padding, and the content.
func recordAfter(b []byte, offset int) int {
	at := 0
	for at < offset {
		head := binary.LittleEndian.Uint64(b[at:])
		at += 8 + int(head&(1<<56-1)) + int(head>>56&7)
	}
	return at
}

func TestATornTailIsCutOff(t *testing.T) {
	_, cfg := written(t, 250)
	tail := newest(t, cfg.Dir, "wal/*.wal")
	change(t, tail, func(b []byte) []byte {
		// A record of 2000 bytes was being written, and its last sectors did not reach the disk.
		end := (used(b) + 7) / 8 * 8
		copy(b[end:], []byte{0xd0, 0x07, 0, 0, 0, 0, 0, 0})
		copy(b[end+8:], bytes.Repeat([]byte{0xab}, 600))
		return b
	})
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	g := newGroup(t, 1, nil)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	m := g.start(cfg)
	g.leader()
	if got := m.Snapshot().Len(cluster.KindConfig); got != 250 {
		t.Errorf("%d objects after the repair, want all 250 that were acknowledged", got)
	}
	m.mustPut("after")
}

func TestDamageIsNamed(t *testing.T) {
	for name, c := range map[string]struct {
		file string
		edit func([]byte) []byte
		want []string
	}{
		"flipped bit in the log":       {"wal/*.wal", func(b []byte) []byte { b[used(b)*2/3] ^= 4; return b }, []string{".wal", "offset"}},
		"flipped bit in the snapshot":  {"snap/*.snap", func(b []byte) []byte { b[len(b)/2] ^= 4; return b }, []string{".snap", "offset", "checksum"}},
		"snapshot cut short":           {"snap/*.snap", func(b []byte) []byte { return b[:len(b)-10] }, []string{".snap", "offset"}},
		"snapshot of another version":  {"snap/*.snap", func(b []byte) []byte { return append([]byte("x"), b...) }, []string{".snap", "version"}},
		"snapshot without its last":    {"snap/*.snap", func(b []byte) []byte { return b[:len(snapMagic)] }, []string{".snap", "offset"}},
		"log without acknowledged end": {"wal/*.wal", func(b []byte) []byte { clear(b[recordAfter(b, used(b)/2):]); return b }, []string{".snap", "wal", "damaged"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, cfg := written(t, 250)
			change(t, newest(t, cfg.Dir, c.file), c.edit)
			s, err := Open(cfg)
			if err == nil {
				s.Close()
				t.Fatal("the damage was not noticed")
			}
			for _, want := range append(c.want, cfg.Dir) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
	t.Run("missing snapshot", func(t *testing.T) {
		_, cfg := written(t, 250)
		lost := newest(t, cfg.Dir, "snap/*.snap")
		if err := os.Remove(lost); err != nil {
			t.Fatal(err)
		}
		if s, err := Open(cfg); err == nil || !strings.Contains(err.Error(), lost) {
			if err == nil {
				s.Close()
			}
			t.Errorf("error is %v, want one that names %s", err, lost)
		}
	})
	t.Run("unfinished snapshot", func(t *testing.T) {
		_, cfg := written(t, 10)
		left := filepath.Join(cfg.Dir, "snap", "123.tmp")
		if err := os.WriteFile(left, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := os.Stat(left); err == nil {
			t.Error("what an interrupted snapshot left is still there")
		}
	})
}

func TestNothingIsInTheClear(t *testing.T) {
	dir, _ := written(t, 250)
	files := 0
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		files++
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte("object1")) {
			t.Errorf("%s shows the name of an object", path)
		}
		if info, ierr := e.Info(); ierr != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v (%v)", path, info.Mode(), ierr)
		}
		return err
	})
	if err != nil || files < 2 {
		t.Errorf("%d files, %v", files, err)
	}
}

func TestSnapshotsKeepEverything(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	seal, err := newSealer(testKey)
	if err != nil {
		t.Fatal(err)
	}
	for round := range 20 {
		state := cluster.NewState()
		index := uint64(10)
		for _, k := range cluster.Kinds() {
			for i := range r.IntN(200) {
				o, _ := cluster.NewObject(k)
				fill(r, elemOf(o))
				rename(o, fmt.Sprint(k, i))
				index++
				if _, err := state.Apply(&cluster.Txn{Changes: []cluster.Change{cluster.CreateOf(o)}}, index); err != nil {
					t.Fatal(err)
				}
			}
		}
		if round == 0 { // more than one chunk
			if _, err := state.Apply(manyTasks(20_000, 0), index+1); err != nil {
				t.Fatal(err)
			}
		}
		snap := state.Snapshot()
		meta := snapshotMeta{Index: snap.Index(), Term: 3, Members: []protocol.Member{{RaftID: 1, NodeID: "n1", Addr: "a"}, {RaftID: 2, NodeID: "n2", Learner: true}},
			Removed: []uint64{7, 9}, Modified: map[cluster.Kind]uint64{}}
		for _, k := range cluster.Kinds() {
			meta.Modified[k] = snap.Modified(k)
		}
		dir := t.TempDir()
		f, err := createSnapshotFile(dir, meta.Term, meta.Index, seal)
		if err != nil {
			t.Fatal(err)
		}
		if err := encodeSnapshot(meta, snap, f.put); err != nil {
			t.Fatal(err)
		}
		if err := f.commit(); err != nil {
			t.Fatal(err)
		}
		gotMeta, got, err := loadSnapshot(dir, meta.Term, meta.Index, seal)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if diff := cmp.Diff(gotMeta, meta); diff != "" {
			t.Errorf("got - want +\n%s", diff)
		}
		if digest(t, got.Snapshot()) != digest(t, snap) || got.Index() != snap.Index() {
			t.Fatalf("seed %d: the restored state differs", seed)
		}
		for _, k := range cluster.Kinds() {
			if got.Snapshot().Modified(k) != snap.Modified(k) {
				t.Errorf("the table %s was modified at %d, want %d", k, got.Snapshot().Modified(k), snap.Modified(k))
			}
		}
	}
}

// rename gives the object a unique id and name.
func rename(o cluster.Object, id string) {
	v := elemOf(o)
	for v.Field(0).Kind() == reflect.Struct { // the embedded type of Docker's
		v = v.Field(0)
	}
	v.FieldByName("ID").SetString(id)
	if spec := v.FieldByName("Spec"); spec.IsValid() && spec.FieldByName("Name").IsValid() {
		spec.FieldByName("Name").SetString(id)
	}
}

func FuzzDecodeSnapshot(f *testing.F) {
	state := cluster.NewState()
	if _, err := state.Apply(manyTasks(5, 0), 10); err != nil {
		f.Fatal(err)
	}
	err := encodeSnapshot(snapshotMeta{Index: 10, Term: 1}, state.Snapshot(), func(chunk []byte, _ bool) error {
		f.Add(bytes.Clone(chunk))
		return nil
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, chunk []byte) {
		chunks := [][]byte{chunk}
		_, _, _ = decodeSnapshot(func() ([]byte, error) {
			if len(chunks) == 0 {
				return nil, errShort
			}
			c := chunks[0]
			chunks = chunks[1:]
			return c, nil
		})
	})
}

func TestSegmentsAreSmallInTests(t *testing.T) {
	if wal.SegmentSizeBytes > 1<<20 {
		t.Errorf("segments have %d bytes: the tests of bounded disks say nothing", wal.SegmentSizeBytes)
	}
}

// TestALogFromAnEarlierDayIsNamed: a manager whose disk was put back to an older copy has forgotten what it acknowledged. It
// must not go on as if nothing was, and says what to do.
func TestALogFromAnEarlierDayIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, nil)
		g.grow(3)
		m := g.follower()
		g.leader().mustPut("a")
		g.settle()
		m.kill()
		old := t.TempDir()
		if err := os.CopyFS(old, os.DirFS(m.dir)); err != nil {
			t.Fatal(err)
		}
		m = m.restart()
		for i := range 20 {
			g.leader().mustPut(fmt.Sprint("b", i))
		}
		g.settle()
		m.kill()
		m.dir = old
		m = m.restart()
		err := m.gone()
		if err == nil || !strings.Contains(err.Error(), "join it again") || !strings.Contains(err.Error(), old) {
			t.Errorf("the member ended with %v, want an error that names the directory and says what to do", err)
		}
		g.leader().mustPut("c")
	})
}
