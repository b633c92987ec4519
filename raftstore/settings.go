package raftstore

import (
	"cmp"

	"github.com/miniswarm/miniswarm/cluster"
)

const (
	// snapshotEvery is the number of entries between snapshots unless the cluster's SnapshotInterval says otherwise.
	snapshotEvery = 10_000
	// MinKeepEntries are kept in memory before a snapshot even if LogEntriesForSlowFollowers asks for fewer, as Swarm's
	// default of 500 does: followers that are as little behind as the network makes them must not need a snapshot.
	MinKeepEntries = 5_000
)

// follow takes up what the cluster object says of the log, from the entry on that changes it; c may be nil. As in Swarm
// ElectionTick and HeartbeatTick are shown and not followed: all managers' ticks have to agree, and they are the program's.
func (a *applier) follow(c *cluster.Cluster) {
	var every, keep, snapshots uint64
	if c != nil {
		every, keep = c.Spec.Raft.SnapshotInterval, c.Spec.Raft.LogEntriesForSlowFollowers
		if n := c.Spec.Raft.KeepOldSnapshots; n != nil {
			snapshots = *n
		}
	}
	a.snapshots.every = cmp.Or(a.s.cfg.SnapshotEvery, every, snapshotEvery)
	a.s.keepEntries.Store(cmp.Or(a.s.cfg.KeepEntries, max(keep, MinKeepEntries)))
	a.s.keepSnapshots.Store(snapshots)
}
