package raftstore

import (
	"sync/atomic"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// logStorage is the part of the log that is in memory, as raft reads it. It offers a snapshot to followers only if that knows
// all members: a newcomer refuses one that it is not in. If the latest is too old for that it asks for another, and raft
// tries again with the next heartbeat.
type logStorage struct {
	*raft.MemoryStorage
	want func()
	// required is the index from which on a snapshot has all members; asked is the one that want was last called for.
	required, asked atomic.Uint64
}

// require notes that a member was added at the index.
func (s *logStorage) require(index uint64) { s.required.Store(index) }

// ask asks for a snapshot that has all members, once.
func (s *logStorage) ask() {
	if required := s.required.Load(); s.asked.Swap(required) != required {
		s.want()
	}
}

// Snapshot implements raft.Storage.
func (s *logStorage) Snapshot() (*raftpb.Snapshot, error) {
	snap, err := s.MemoryStorage.Snapshot()
	if required := s.required.Load(); err == nil && snap.GetMetadata().GetIndex() < required {
		s.ask()
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	return snap, err
}
