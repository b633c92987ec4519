package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miniswarm/miniswarm/cluster"
)

var otherKey = bytes.Repeat([]byte{'k'}, KeySize)

// reopens says whether the directory of a member that has ended opens with these keys alone, and what it holds.
func reopens(t *testing.T, m *member, key []byte, older ...[]byte) (objects int, err error) {
	t.Helper()
	cfg := m.cfg
	cfg.Dir, cfg.Bootstrap, cfg.Transport, cfg.Key, cfg.OlderKeys = m.dir, false, Alone(), key, older
	s, err := Open(cfg)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	return s.Snapshot().Len(cluster.KindConfig), nil
}

// TestAfterRekeyingTheOldKeyIsOfNoUse: with members of every kind, on an idle store and on one that is being written.
func TestAfterRekeyingTheOldKeyIsOfNoUse(t *testing.T) {
	for _, busy := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			g := newGroup(t, 1, func(c *Config) { c.SnapshotEvery, c.KeepEntries = 50, 5 })
			g.grow(3)
			for i := range 70 {
				g.leader().mustPut(fmt.Sprint("before", i))
			}
			g.settle()
			stop, writers := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(writers)
				for i := 0; busy; i++ {
					select {
					case <-stop:
						return
					default:
						g.leader().mustPut(fmt.Sprint("meanwhile", i))
					}
				}
			}()
			for _, m := range g.members {
				if err := m.Rekey(t.Context(), otherKey); err != nil {
					t.Fatal(err)
				}
				if err := m.Rekey(t.Context(), otherKey); err != nil { // as after a crash before the old key was forgotten
					t.Fatal(err)
				}
			}
			close(stop)
			<-writers
			g.leader().mustPut("after")
			g.settle()
			want := g.leader().Snapshot().Len(cluster.KindConfig)
			for _, m := range g.members {
				m.kill()
				if n, err := reopens(t, m, testKey); !errors.Is(err, errSealed) {
					t.Errorf("busy %v: the old key opens %d objects (%v)", busy, n, err)
				}
				m.cfg.Key = otherKey
				m.restart()
			}
			g.settle()
			if got := g.leader().Snapshot().Len(cluster.KindConfig); got != want {
				t.Errorf("busy %v: %d objects after the restart, want %d", busy, got, want)
			}
		})
	}
}

// TestACrashWhileRekeyingNeedsBothKeys: what lies on disk between the first record under the new key and the end.
func TestACrashWhileRekeyingNeedsBothKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, nil)
		g.grow(1)
		m := g.leader()
		m.mustPut("before")
		work := appendWork{rekey: otherKey, rekeyed: make(chan rekeyed, 1)}
		m.appends.push(work)
		if r := <-work.rekeyed; r.err != nil {
			t.Fatal(r.err)
		}
		m.mustPut("after")
		m.kill()
		for _, one := range [][]byte{testKey, otherKey} {
			if _, err := reopens(t, m, one); !errors.Is(err, errSealed) {
				t.Errorf("half of the keys opens it: %v", err)
			}
		}
		m.cfg.Key, m.cfg.OlderKeys = otherKey, [][]byte{testKey}
		m = m.restart()
		g.settle()
		if err := m.Rekey(t.Context(), otherKey); err != nil {
			t.Fatal(err)
		}
		m.kill()
		m.cfg.OlderKeys = nil
		m = m.restart()
		g.settle()
		if n := m.Snapshot().Len(cluster.KindConfig); n != 2 {
			t.Errorf("%d objects, want 2", n)
		}
	})
}

// TestASnapshotThatBeganUnderTheOldKey is on its way from the leader while the key changes.
func TestASnapshotThatBeganUnderTheOldKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, func(c *Config) { c.SnapshotEvery, c.KeepEntries = 20, 5 })
		g.grow(1)
		m := g.leader()
		for i := range 30 {
			m.mustPut(fmt.Sprint("a", i))
		}
		synctest.Wait()
		index := m.snapshotIndex()
		if err := m.disk.seal.use(otherKey); err != nil {
			t.Fatal(err)
		}
		snap, err := m.storage.MemoryStorage.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time there is nothing to do
			if err := m.disk.reseal(snap.GetMetadata().GetTerm(), index); err != nil {
				t.Fatal(err)
			}
			seal, err := newSealer(otherKey)
			if err != nil {
				t.Fatal(err)
			}
			if _, state, err := loadSnapshot(snapDir(m.disk.dir), snap.GetMetadata().GetTerm(), index, seal); err != nil || state.Snapshot().Len(cluster.KindConfig) == 0 {
				t.Errorf("the snapshot does not open with the new key alone: %v", err)
			}
		}
		g.end()
	})
}

// TestRekeyingWithoutRoomForASnapshot fails, once for each call, and succeeds when there is room.
func TestRekeyingWithoutRoomForASnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full, tries := true, 0
		noRoom := errors.New("no room")
		g := newGroup(t, 1, func(c *Config) {
			c.Hooks.At = func(p Point) error {
				if p != SnapshotWritten || !full {
					return nil
				}
				tries++
				return noRoom
			}
		})
		g.grow(1)
		m := g.leader()
		m.mustPut("a")
		synctest.Wait()
		for n := 1; n <= 2; n++ {
			if err := m.Rekey(t.Context(), otherKey); !errors.Is(err, noRoom) {
				t.Errorf("rekeying: %v, want %v", err, noRoom)
			}
			time.Sleep(time.Second)
			if tries != n {
				t.Errorf("%d snapshots were tried for %d calls", tries, n)
			}
		}
		full = false
		if err := m.Rekey(t.Context(), otherKey); err != nil {
			t.Error(err)
		}
	})
}

func TestRekeyingAStoreThatStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, nil)
		g.grow(1)
		m := g.leader()
		if err := m.Rekey(t.Context(), []byte("short")); err == nil {
			t.Error("a key of five bytes")
		}
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if err := m.Rekey(t.Context(), otherKey); !errors.Is(err, ErrStopped) {
			t.Errorf("rekeying a store that has stopped: %v", err)
		}
	})
}
