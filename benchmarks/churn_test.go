package main

import (
	"os"
	"testing"

	"github.com/miniswarm/miniswarm/raftstore"
)

// Services that come and go leave nothing (I11): what a manager holds after many is what it held after some. `bin/benchmarks churn`
// does the same ten thousand times, on a disk.
func TestServicesThatComeAndGoLeaveNothing(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "churn") // the disk is not what is tested, and its syncs would take most of the time
	if err != nil {
		dir = t.TempDir()
	}
	defer os.RemoveAll(dir)
	c := churn{First: 250, Last: 1250, Dir: dir}
	if testing.Short() {
		c.First, c.Last = 100, 400
	}
	all, err := c.run(t.Context(), func(cfg *raftstore.Config) { cfg.SnapshotEvery, cfg.KeepEntries = 500, 100 })
	if err != nil {
		t.Fatal(err)
	}
	first, last := all[0], all[1]
	t.Logf("after %d: %s", first.Cycles, first)
	t.Logf("after %d: %s", last.Cycles, last)
	if last.Objects != first.Objects {
		t.Errorf("%d objects in the store, were %d", last.Objects, first.Objects)
	}
	if last.Heap > first.Heap+4<<20 {
		t.Errorf("heap has grown from %s to %s", mib(first.Heap), mib(last.Heap))
	}
	if last.Routines > first.Routines+2 {
		t.Errorf("%d goroutines, were %d", last.Routines, first.Routines)
	}
	// Two segments at the most, one of them prepared, and a snapshot of little.
	if last.Entries > 700 || last.Disk > 150<<20 {
		t.Errorf("%d entries in memory, %s on disk", last.Entries, mib(last.Disk))
	}
}
