package raftstore

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/miniswarm/miniswarm/cluster"
)

// set writes the cluster object with settings of the log.
func (m *member) set(every, keep, snapshots uint64) {
	m.g.t.Helper()
	c := &cluster.Cluster{}
	c.ID, c.Spec.Name = "c1", cluster.ClusterName
	c.Spec.Raft.SnapshotInterval, c.Spec.Raft.LogEntriesForSlowFollowers, c.Spec.Raft.KeepOldSnapshots = every, keep, &snapshots
	ch := cluster.CreateOf(c)
	if old := m.Snapshot().Cluster(); old != nil {
		c.Meta = old.Meta
		ch = cluster.UpdateOf(c)
	}
	if _, err := m.Propose(m.g.t.Context(), &cluster.Txn{Changes: []cluster.Change{ch}}); err != nil {
		m.g.t.Fatal(err)
	}
}

// fill writes n objects one after the other, each in an entry of its own.
func (m *member) fill(name string, n int) {
	m.g.t.Helper()
	for i := range n {
		m.mustPut(fmt.Sprint(name, i))
	}
	synctest.Wait()
}

func (m *member) snapshotFiles() []string {
	names, err := filepath.Glob(filepath.Join(m.disk.dir, "snap", "*.snap"))
	if err != nil {
		m.g.t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

// TestTheLogFollowsTheClustersSettings: how often a snapshot is taken, how many old ones stay, on every member, and after a restart.
func TestTheLogFollowsTheClustersSettings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, func(c *Config) { c.SnapshotEvery = 0 })
		g.grow(3)
		leader := g.leader()
		leader.fill("a", 50)
		first := leader.snapshotIndex()
		leader.set(10, 0, 0)
		leader.fill("b", 35)
		g.settle()
		for _, m := range g.members {
			if at := m.snapshotIndex(); at < first+60 || len(m.snapshotFiles()) != 1 {
				t.Errorf("%s: the snapshot is at %d, %d files", m.cfg.NodeID, at, len(m.snapshotFiles()))
			}
		}
		leader.set(10, 0, 2)
		leader.fill("c", 45)
		g.settle()
		for _, m := range g.members {
			if files := m.snapshotFiles(); len(files) != 3 {
				t.Errorf("%s keeps %v, want the latest and two older ones", m.cfg.NodeID, files)
			}
		}
		slow := g.follower()
		slow.kill()
		slow = slow.restart()
		g.settle()
		if files := slow.snapshotFiles(); len(files) != 3 {
			t.Errorf("after a restart: %v", files)
		}
		leader = g.leader()
		leader.set(0, 0, 0) // zero is the default
		before := leader.snapshotIndex()
		leader.fill("d", 50)
		if at := leader.snapshotIndex(); at > before+12 {
			t.Errorf("a snapshot after %d entries at an interval of 0", at-before)
		}
		if got := slow.Snapshot().Len(cluster.KindConfig); got < 130 {
			t.Errorf("%d objects", got)
		}
	})
}

func TestEntriesKeptForSlowFollowers(t *testing.T) {
	for _, c := range []struct{ configured, asked, want uint64 }{
		{0, 0, MinKeepEntries}, {0, 500, MinKeepEntries}, {0, 9000, 9000}, {7, 9000, 7},
	} {
		a := &applier{s: &Store{cfg: Config{KeepEntries: c.configured}}}
		cl := &cluster.Cluster{}
		cl.Spec.Raft.LogEntriesForSlowFollowers = c.asked
		a.follow(cl)
		if got := a.s.keepEntries.Load(); got != c.want {
			t.Errorf("%+v: %d are kept", c, got)
		}
	}
}
