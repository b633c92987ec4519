package raftstore

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// TestASnapshotFromTheLeaderIsOnDiskBeforeItIsAcknowledged: a follower that was far behind is killed when it is about to write the
// first entry after a snapshot. The leader counts on what it has acknowledged.
func TestASnapshotFromTheLeaderIsOnDiskBeforeItIsAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var doomed atomic.Pointer[member]
		var from atomic.Uint64
		g := newGroup(t, 1, func(c *Config) {
			c.SnapshotEvery, c.KeepEntries = 20, 5
			node := c.NodeID
			c.Hooks.At = func(p Point) error {
				if m := doomed.Load(); m != nil && m.cfg.NodeID == node && p == Append && m.Snapshot().Index() > from.Load() {
					return ErrCrash
				}
				return nil
			}
		})
		g.grow(3)
		slow := g.follower()
		var others []uint64
		for _, m := range g.members {
			if m != slow {
				others = append(others, m.self)
			}
		}
		g.net.Partition([]uint64{slow.self}, others)
		for i := range 100 {
			g.leader().mustPut(fmt.Sprint("a", i))
		}
		from.Store(slow.Snapshot().Index())
		doomed.Store(slow)
		g.net.Partition()
		if err := slow.gone(); !errors.Is(err, ErrCrash) {
			t.Fatal(err)
		}
		doomed.Store(nil)
		had := slow.Snapshot().Index()
		if had < from.Load()+50 {
			t.Fatalf("it was killed at index %d, before it had a snapshot", had)
		}
		g.net.Partition([]uint64{slow.self}, others)
		slow = slow.restart()
		if got := slow.Snapshot().Index(); got < had {
			t.Errorf("it has index %d after the restart and had acknowledged %d", got, had)
		}
		g.net.Partition()
		g.settle()
	})
}
