package raftstore

import (
	"context"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// Transport carries messages to other members. Raft expects nothing of it: messages may be lost, late, doubled or out of
// order. It should be quick to notice a peer that comes back.
//
// Attach is called first, once. The other methods may be called from any goroutine and at any time after it; Send and
// SetMembers must not block.
type Transport interface {
	// Attach says for whom the transport works.
	Attach(local Local)
	// Run works until ctx is done and returns when everything it started has ended.
	Run(ctx context.Context) error
	// SetMembers says who the members are; the local one is among them. Peers that are not in it are forgotten.
	SetMembers(members []protocol.Member)
	// Meet says where a member may be as well, by its own account or by older knowledge: a transport tries that address when the
	// one in the log does not answer. NodeID and Addr count. It may be called before Attach.
	Meet(m protocol.Member)
	// Send queues messages for their receivers or drops them. A snapshot message (MsgSnap) announces that the receiver
	// needs the file of that snapshot, which travels by itself; its fate is reported to SnapshotSent in any case, other
	// losses to Unreachable.
	Send(msgs []*raftpb.Message)
}

// Local is the member that a transport works for: a [Store]. Its methods do not block, but for ReceiveSnapshot, and may
// be called concurrently.
type Local interface {
	// Member is the local member as it knows itself.
	Member() protocol.Member
	// Epoch is the epoch of the cluster that the member's tables are of; known is false for a newcomer that has no tables yet.
	Epoch() (epoch uint64, known bool)
	// Boot tells this run of the member from all others.
	Boot() uint64
	// Receive takes a message from a peer. ErrRemoved says that the peer is not part of the group any more; tell it.
	Receive(m *raftpb.Message) error
	// Unreachable reports that messages to a peer are being lost.
	Unreachable(raftID uint64)
	// Gone reports that the peer's connection broke and a new one was refused: its process has ended, most likely.
	Gone(raftID uint64)
	// Removed reports that a peer says this member is not part of the group any more.
	Removed()
	// OpenSnapshot gives the chunks of the stored snapshot with that index until io.EOF.
	OpenSnapshot(index uint64) (SnapshotSource, error)
	// SnapshotSent reports how sending a snapshot to a peer ended.
	SnapshotSent(raftID uint64, err error)
	// ReceiveSnapshot stores the snapshot that a peer's message m announced; next gives its chunks until io.EOF. The
	// message is received when that has succeeded.
	ReceiveSnapshot(m *raftpb.Message, next func() ([]byte, error)) error
}

// SnapshotSource is a snapshot being read.
type SnapshotSource interface {
	// Next gives the next chunk, io.EOF after the last.
	Next() ([]byte, error)
	// Close releases the file.
	Close() error
}
