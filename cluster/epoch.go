package cluster

import "time"

// epochShift leaves the lowest bits of an epoch to chance, so that two recoveries in the same millisecond differ.
const epochShift = 16

// NextEpoch gives the epoch of a cluster that is recovered at the time now from one that had the epoch former. random breaks
// ties.
//
// A recovery begins a new raft group that knows the objects, the CA and the nodes of the old one. Nothing on earth can tell
// whether the old group, or a second recovery of it, lives on somewhere, so that all who meet two must choose alike and for
// good. Epochs are that choice. They are totally ordered: a recovery is later than what it recovers, whatever clocks say, and of two
// recoveries of the same cluster the one that began later is greater, as far as clocks agree. A node follows managers of the greatest
// epoch it has ever seen and no others: it changes sides at most once for each recovery and never goes back. Managers refuse
// members and nodes of another epoch. So there may be two clusters for as long as they cannot meet, but no node that flaps between them.
func NextEpoch(former uint64, now time.Time, random uint16) uint64 {
	next := uint64(max(now.UnixMilli(), 0))<<epochShift | uint64(random)
	return max(next, former+1)
}

// EpochTime is when the recovery that has this epoch took place; zero for the epoch 0 of a cluster that never was recovered.
func EpochTime(epoch uint64) time.Time {
	if epoch == 0 {
		return time.Time{}
	}
	return time.UnixMilli(int64(epoch >> epochShift)).UTC()
}
