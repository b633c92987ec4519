package raftstore

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// Config describes one member of the group.
type Config struct {
	// Dir is the directory for log and snapshots. It is created, readable by its owner only, if it does not exist.
	Dir string
	// NodeID is the cluster node this member runs on.
	NodeID string
	// RaftID is this member's id in the group. 0 takes it from Dir, or draws one when bootstrapping.
	RaftID uint64
	// ClusterID, if set, must be the one the directory was created with.
	ClusterID string
	// Addr is the host:port at which the other members reach this one.
	Addr string
	// Bootstrap makes this member the first of a new group if Dir holds no store yet.
	Bootstrap bool
	// Peers are the members known so far, from the answer to a join request: a new member answers the leader's messages
	// before the log could tell it where the leader is.
	Peers []protocol.Member
	// Transport carries messages to the other members.
	Transport Transport
	// Key seals what is written to Dir: KeySize bytes. The other members may have different ones.
	Key []byte
	// OlderKeys open what was sealed before Key was in use; nothing is sealed with them any more.
	OlderKeys [][]byte
	// Logger may be nil.
	Logger *slog.Logger
	// Tick is raft's unit of time, 100 ms if 0.
	Tick time.Duration
	// ElectionTicks without a word from the leader make a follower stand for election, after up to as many more drawn
	// at random; 10 if 0. HeartbeatTicks is how often the leader gives word, 1 if 0.
	ElectionTicks, HeartbeatTicks int
	// SnapshotEvery is the number of log entries between snapshots; 0: as the cluster's settings say. A snapshot is also taken when the entries since the
	// last outgrow 64 MiB and twice the last snapshot.
	SnapshotEvery uint64
	// KeepEntries is the number of entries kept in memory before a snapshot, for followers that are only a little behind;
	// 0: as the cluster's settings say. It is never more than 16 MiB of them.
	KeepEntries uint64
	// Now is the clock that stamps transactions without a time; nil means the system's.
	Now func() time.Time
	// Hooks are for simulations.
	Hooks Hooks
	// Timings are told how long things take.
	Timings Timings
}

// Timings are called after each event of their kind, from any goroutine; they must return at once. Nil ones are not called.
type Timings struct {
	// Commit is told how long a transaction took from its proposal until it was applied here; refused and lost ones count.
	Commit func(time.Duration)
	// Sync is told how long the disk took to make entries of the log durable.
	Sync func(time.Duration)
}

// observe calls f, if there is one, with the time since begin.
func observe(f func(time.Duration), begin time.Time) {
	if f != nil {
		f(time.Since(begin))
	}
}

// Limits that are not worth a setting.
const (
	// MaxTxnBytes is the largest transaction as it is encoded. Swarm's limit is 1.5 MiB; bulk changes fit here in one.
	MaxTxnBytes = 16 << 20

	maxMessageBytes   = 1 << 20   // of entries in one message, unless one entry is larger
	maxInflightBytes  = 32 << 20  // of unacknowledged entries under way to a follower
	maxInflightMsgs   = 512       // unacknowledged messages under way to a follower
	maxApplyBytes     = 32 << 20  // of committed entries handed to be applied
	maxProposalBytes  = 128 << 20 // of proposals that wait for their result
	maxKeptBytes      = 16 << 20  // of entries kept in memory before a snapshot
	snapshotAfter     = 64 << 20  // bytes of entries since the last snapshot
	maxInboxMessages  = 8192      // received messages that wait; more are dropped, as a network would
	promoteWithin     = 1000      // entries by which a learner may trail to become a voter
	maxRemovedMembers = 1024      // former members remembered
)

func (c *Config) withDefaults() (Config, error) {
	d := *c
	if d.Logger == nil {
		d.Logger = slog.New(slog.DiscardHandler)
	}
	if d.Tick == 0 {
		d.Tick = 100 * time.Millisecond
	}
	if d.ElectionTicks == 0 {
		d.ElectionTicks = 10
	}
	if d.HeartbeatTicks == 0 {
		d.HeartbeatTicks = 1
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	switch {
	case d.Dir == "":
		return d, errors.New("no directory is given")
	case d.NodeID == "":
		return d, errors.New("no node id is given")
	case d.Addr == "":
		return d, errors.New("no address is given")
	case d.Transport == nil:
		return d, errors.New("no transport is given")
	case d.Tick < 0 || d.HeartbeatTicks < 1 || d.ElectionTicks <= d.HeartbeatTicks:
		return d, fmt.Errorf("a tick of %v with a heartbeat every %d and an election after %d ticks is not possible: an election takes more ticks than a heartbeat", d.Tick, d.HeartbeatTicks, d.ElectionTicks)
	}
	return d, nil
}
