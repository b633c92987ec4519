package node

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/agent"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/raftstore"
)

const (
	// againFirst is how long after this node's part in the swarm has failed it is taken up again; after each further failure
	// twice as long, up to againMost. One that went well for againMost begins anew.
	againFirst = time.Second
	againMost  = 10 * time.Second
)

// passing says whether a failure may pass by itself: a disk that was full has room again, a port is free. What the cluster or this
// node's own disk has said for good is not asked again.
func passing(err error) bool {
	_, removed := errors.AsType[*agent.RemovedError](err)
	return err != nil && !removed && !errors.Is(err, raftstore.ErrRemoved)
}

// takeUpAgain takes this node's part in the swarm up again whenever it has failed, until ctx ends. The containers and the kernel's
// tables have gone on meanwhile.
func (n *Node) takeUpAgain(ctx context.Context) {
	pause, began := againFirst, time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.broken:
		}
		if time.Since(began) > againMost {
			pause = againFirst
			n.failing.Over(time.Now())
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause, began = min(2*pause, againMost), time.Now()
		n.again(ctx)
	}
}

// again resumes if this node is a node that has failed; it may have left meanwhile.
func (n *Node) again(ctx context.Context) {
	n.changing.Lock()
	defer n.changing.Unlock()
	n.mu.Lock()
	m, local, failed := n.member, n.local, n.failed
	n.mu.Unlock()
	if local != swarm.LocalNodeStateError || !passing(failed) || ctx.Err() != nil {
		return
	}
	// It would come back for a moment, be given tasks, and fail again with the next write.
	if errors.Is(failed, syscall.ENOSPC) && raftstore.Room(n.cfg.StateDir) != nil {
		n.fails("this node waits for room on the disk of its state", failed)
		return
	}
	if m != nil {
		<-m.done
		if err := m.closeParts(); err != nil {
			n.cfg.Logger.Warn("what the failed part of this node held is not all free", "err", err)
		}
		n.mu.Lock()
		n.member = nil
		n.mu.Unlock()
	}
	n.cfg.Logger.Debug("this node takes up its part in the swarm again")
	n.resumeLocked()
}

// fails shows why this node has no part in its swarm, and has it taken up again where the reason may pass.
func (n *Node) fails(message string, err error) {
	what := err.Error()
	if errors.Is(err, identity.ErrClockBehind) {
		what = identity.ErrClockBehind.Error() // it says what the clock says, and would be told each time
	}
	if tell, lasting := n.failing.Again(time.Now(), what); tell {
		n.cfg.Logger.Error(message, "err", err, "since", lasting.Round(time.Second), "again", passing(err))
	}
	n.setState(swarm.LocalNodeStateError, err)
	if passing(err) {
		select {
		case n.broken <- struct{}{}:
		default: // is told already
		}
	}
}
