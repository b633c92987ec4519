package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// found makes a group of one of what the member's disk has and gives the configuration to open it with.
func found(t *testing.T, m *member, edit ...cluster.Change) Config {
	t.Helper()
	s, err := Salvage(m.dir, m.cfg.Key, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.State.Apply(&cluster.Txn{Time: time.Now(), Changes: edit}, s.Index+1); err != nil {
		t.Fatal(err)
	}
	cfg := m.cfg
	cfg.Dir, cfg.Bootstrap, cfg.Peers = filepath.Join(t.TempDir(), "raft"), false, nil
	self := NewMember(cfg.NodeID, cfg.Addr)
	cfg.RaftID = self.RaftID
	if err := Found(cfg.Dir, cfg.Key, cfg.ClusterID, self, s, nil); err != nil {
		t.Fatal(err)
	}
	cfg.Transport = m.g.transport(cfg.NodeID)
	return cfg
}

// One of three is left. What it had counts, its group of one goes on from there, grows again, and the other two, which
// were a majority of the old group, end as soon as they call it.
func TestASurvivorFoundsAGroupThatTheLostCannotDisturb(t *testing.T) {
	g := newTLSGroup(t, func(c *Config) { c.SnapshotEvery, c.KeepEntries = 50, 10 })
	g.grow(3)
	for i := range 120 { // beyond a snapshot
		g.leader().mustPut(fmt.Sprint("a", i))
	}
	g.settle()
	survivor := g.follower()
	lost := slices.DeleteFunc(slices.Clone(g.members), func(m *member) bool { return m == survivor })
	want, index := digest(t, survivor.Snapshot()), survivor.Status().Applied
	for _, m := range lost {
		m.kill()
	}
	survivor.kill()

	s, err := Salvage(survivor.dir, testKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	if s.Index < index || s.Committed < 50 || s.NodeID != survivor.cfg.NodeID || s.RaftID != survivor.self || len(s.Members) != 3 || digest(t, s.State.Snapshot()) != want {
		t.Errorf("salvaged index %d committed %d of member %x (%s) with %d members, or another state", s.Index, s.Committed, s.RaftID, s.NodeID, len(s.Members))
	}
	if s.LastChange().IsZero() {
		t.Error("nobody knows how old the state is")
	}
	c := &cluster.Cluster{Epoch: 5}
	c.ID = "c"
	cfg := found(t, survivor, cluster.CreateOf(c))
	now := g.start(cfg)
	g.leader().mustPut("b")
	if st := now.Status(); len(st.Members) != 1 || st.RaftID == survivor.self || now.Snapshot().Len(cluster.KindConfig) != 121 {
		t.Errorf("the new group has the members %v and %d objects", st.Members, now.Snapshot().Len(cluster.KindConfig))
	}
	for _, m := range lost {
		back := m.restart()
		select {
		case err := <-back.ended:
			if !errors.Is(err, ErrRemoved) {
				t.Errorf("a lost member that came back ended with %v, want %v", err, ErrRemoved)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("a lost member that came back goes on")
		}
		back.ended <- nil
		_ = back.gone()
	}
	if got := now.Status(); !got.IsLeader || len(got.Members) != 1 {
		t.Errorf("they disturbed: %+v", got)
	}
	g.join("n9")
	g.settle()
	if err := Found(cfg.Dir, testKey, "", NewMember("n1", cfg.Addr), s, nil); err == nil {
		t.Error("a group was founded over another")
	}
}

// What was in the survivor's log and not known to be committed may have been acknowledged.
func TestSalvageKeepsTheWholeLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, nil)
		g.grow(3)
		g.leader().mustPut("a")
		g.settle()
		old := g.leader()
		var others []uint64
		for _, m := range g.members {
			if m != old {
				others = append(others, m.self)
			}
		}
		g.net.Partition([]uint64{old.self}, others)
		if err := old.put("tail"); !errors.Is(err, ErrLeadershipLost) {
			t.Fatalf("a write without a majority: %v", err)
		}
		old.kill()
		s, err := Salvage(old.dir, testKey, nil)
		if err != nil {
			t.Fatal(err)
		}
		if s.State.Snapshot().Config("tail") == nil || s.Committed >= s.Index {
			t.Errorf("index %d, committed %d: the tail is gone", s.Index, s.Committed)
		}
	})
}

// A store writes on while it is read, a record now in this page and then in the next: what looks like damage for that moment is none.
func TestSalvageWhileTheStoreWrites(t *testing.T) {
	g := newGroup(t, 1, func(c *Config) { c.SnapshotEvery, c.Tick = 200, 10e6 })
	g.grow(1)
	m := g.leader()
	m.mustPut("first")
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for i := 0; ctx.Err() == nil; i++ {
			if err := m.put(fmt.Sprint("object", i)); err != nil {
				ended <- err
				return
			}
		}
		ended <- nil
	}()
	for range 100 {
		s, err := Salvage(m.dir, testKey, nil)
		if err != nil {
			t.Fatal(err)
		}
		if s.State.Snapshot().Config("first") == nil {
			t.Fatal("what was written before the reading began is not there")
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// Reading shows what a running store has, and leaves it alone; a torn tail is passed over, other damage named.
func TestSalvageReadsWithoutTouching(t *testing.T) {
	_, cfg := written(t, 250)
	before := contents(t, cfg.Dir)
	s, err := Salvage(cfg.Dir, testKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := s.State.Snapshot().Len(cluster.KindConfig); n != 250 {
		t.Errorf("salvaged %d objects, want 250", n)
	}
	if after := contents(t, cfg.Dir); after != before {
		t.Error("salvaging has changed the directory")
	}
	open, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Salvage(cfg.Dir, testKey, nil); err != nil {
		t.Errorf("while a store is open there: %v", err)
	}
	if err := open.Close(); err != nil {
		t.Fatal(err)
	}
	last := newest(t, cfg.Dir, "wal/*.wal")
	change(t, last, func(b []byte) []byte { return b[:used(b)-3] })
	if s, err = Salvage(cfg.Dir, testKey, nil); err != nil || s.State.Snapshot().Len(cluster.KindConfig) < 248 {
		t.Errorf("with a torn tail: %v", err)
	}
	change(t, newest(t, cfg.Dir, "snap/*.snap"), func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
	if _, err = Salvage(cfg.Dir, testKey, nil); err == nil || !strings.Contains(err.Error(), ".snap: chunk") || !strings.Contains(err.Error(), "offset") {
		t.Errorf("with a damaged snapshot: %v", err)
	}
	if _, err = Salvage(cfg.Dir, make([]byte, KeySize), nil); err == nil {
		t.Error("salvaged with another key")
	}
	if _, err = Salvage(t.TempDir(), testKey, nil); err == nil {
		t.Error("salvaged nothing")
	}
}

func contents(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		b.WriteString(path)
		b.Write(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// An export is what the leader has acknowledged, from any member.
func TestExportsFromAFollower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, nil)
		g.grow(3)
		follower := g.follower()
		g.leader().mustPut("a", "b")
		x, err := follower.Export(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		g.leader().mustPut("later")
		var chunks [][]byte
		if err := x.Write(func(chunk []byte, _ bool) error { chunks = append(chunks, slices.Clone(chunk)); return nil }); err != nil {
			t.Fatal(err)
		}
		s, err := ReadExport(func() ([]byte, error) {
			if len(chunks) == 0 {
				return nil, io.EOF
			}
			c := chunks[0]
			chunks = chunks[1:]
			return c, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if digest(t, s.State.Snapshot()) != digest(t, x.Snapshot) || s.Index != x.Index || len(s.Members) != 3 || s.State.Snapshot().Config("b") == nil {
			t.Errorf("read %d objects at %d of %d members", s.State.Snapshot().Len(cluster.KindConfig), s.Index, len(s.Members))
		}
	})
}

// Members of another life of the cluster are refused whatever their ids are.
func TestEpochsKeepGroupsApart(t *testing.T) {
	cfg := Config{Dir: t.TempDir(), NodeID: "n1", Addr: "n1:1", Bootstrap: true, Key: testKey, Transport: Alone()}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ask := func(epoch string) (int, string) {
		r := httptest.NewRequest(http.MethodGet, pathStream, nil)
		r.Header.Set(headerFrom, "77")
		r.Header.Set(HeaderNode, "n77")
		r.Header.Set(headerTo, strconv.FormatUint(s.self, 16))
		if epoch != "" {
			r.Header.Set(headerEpoch, epoch)
		}
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	if status, _ := ask("5"); status != http.StatusUpgradeRequired {
		t.Errorf("a newcomer without tables answers %d", status)
	}
	c := &cluster.Cluster{Epoch: 0x500000}
	c.ID = "c"
	if _, err := s.applier.state.Apply(&cluster.Txn{Changes: []cluster.Change{cluster.CreateOf(c)}}, 2); err != nil {
		t.Fatal(err)
	}
	for epoch, want := range map[string]int{"": http.StatusUpgradeRequired, "500000": http.StatusUpgradeRequired, "0": http.StatusGone,
		"4fffff": http.StatusGone, "500001": http.StatusConflict, "x": http.StatusBadRequest} {
		if status, text := ask(epoch); status != want {
			t.Errorf("epoch %q: status %d (%s), want %d", epoch, status, text, want)
		}
	}
}

// FuzzSalvagedEntries gives arbitrary bytes as the data of a sealed entry.
func FuzzSalvagedEntries(f *testing.F) {
	good, err := encodeEntry(proposalID{1, 2}, &cluster.Txn{Changes: []cluster.Change{cluster.CreateOf(config("a", 3))}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, false)
	f.Add([]byte(`{}`), true)
	f.Fuzz(func(_ *testing.T, data []byte, conf bool) {
		typ := raftpb.EntryNormal
		if conf {
			typ = raftpb.EntryConfChange
		}
		s := &Salvaged{State: cluster.NewState()}
		_ = s.apply(&raftpb.Entry{Index: new(uint64), Term: new(uint64), Type: &typ, Data: data}, map[uint64]protocol.Member{}, newInternPool())
	})
}
