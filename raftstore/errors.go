package raftstore

import (
	"errors"
	"fmt"
)

var (
	// ErrLeadershipLost ends a write whose outcome is not known: this member was the leader when it proposed the change and
	// ceased to be before it learned what became of it. Read before trying again.
	ErrLeadershipLost = errors.New("leadership was lost while the change was being stored: it may or may not have happened")
	// ErrStopped ends whatever is waiting when the store stops, and everything asked of it afterwards. The outcome of a
	// write that was under way is not known.
	ErrStopped = errors.New("the store has stopped")
	// ErrLagged ends a watch whose reader was too slow. Start a new one; it begins with a fresh snapshot.
	ErrLagged = errors.New("the watch fell behind")
	// ErrRemoved ends Run on a member that is not part of the group any more. Its directory is of no further use.
	ErrRemoved = errors.New("raft: member was removed from the cluster")
	// ErrTooLarge refuses a transaction beyond MaxTxnBytes.
	ErrTooLarge = errors.New("raft: raft message is too large and can't be sent")
	// ErrQuorum refuses the removal of a member that the group cannot do without. The text is Swarm's.
	ErrQuorum = errors.New("raft: member cannot be removed, because removing it may result in loss of quorum")
	// ErrNoMember says that there is no member with that raft id.
	ErrNoMember = errors.New("raft: there is no such member")
)

// ErrNotLeader says that this member does not lead and who does, if that is known. Nothing was changed.
type ErrNotLeader struct {
	// Leader is the leader's raft id, 0 when there is none at the moment.
	Leader uint64
	// NodeID and Addr are the leader's, empty when not known.
	NodeID, Addr string
}

func (e *ErrNotLeader) Error() string {
	if e.Leader == 0 {
		return "this manager is not the leader, and there is no leader at the moment"
	}
	return fmt.Sprintf("this manager is not the leader: %s at %s is", e.NodeID, e.Addr)
}
