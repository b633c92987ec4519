package engineapi

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// quorumError refuses a demotion for the time being.
type quorumError struct{ error }

func (e quorumError) Unwrap() error { return e.error }

// A leader that was elected a moment ago has yet to hear from the others: it looks again for quorumPatience, every quorumPause,
// before it says that they cannot be reached.
const (
	quorumPatience = time.Second
	quorumPause    = 50 * time.Millisecond
)

// whileQuorum repeats an update that is refused for the quorum, for a moment.
func whileQuorum(ctx context.Context, update func() error) error {
	ctx, cancel := context.WithTimeout(ctx, quorumPatience)
	defer cancel()
	for {
		err := update()
		if _, refused := errors.AsType[quorumError](err); !refused {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(quorumPause):
		}
	}
}

// mayDemote refuses the demotion of a manager that the others cannot do without (swarm-semantics.md, 8.6). Demotions that are
// not carried out yet count as if they were, and who does not answer now as gone. Beyond Swarm's words the error has the numbers.
func mayDemote(ctx context.Context, c Control, snap *cluster.Snapshot, n *cluster.Node) error {
	others := 0
	for o := range snap.Nodes() {
		if o.ID != n.ID && o.Spec.Role == swarm.NodeRoleManager {
			others++
		}
	}
	if others == 0 {
		return rpcErrorf(failedPrecondition, "attempting to demote the last manager of the swarm")
	}
	if err := c.RollCall(ctx); err != nil {
		return err
	}
	votes := false // a manager that has yet to catch up, or to join the others, can go at any time
	remain, reachable, learners := 0, 0, 0
	for _, m := range c.Members() {
		o := snap.Node(m.NodeID)
		switch {
		case m.NodeID == n.ID:
			votes = !m.Learner
		case o == nil || o.Spec.Role != swarm.NodeRoleManager:
		case m.Learner:
			learners++
		default:
			remain++
			if c.Reachability(m.NodeID) == swarm.ReachabilityReachable {
				reachable++
			}
		}
	}
	if needed := remain/2 + 1; votes && reachable < needed {
		why := fmt.Sprintf("of %d managers that would remain %d can be reached, and %d are needed", remain, reachable, needed)
		if learners > 0 {
			why += fmt.Sprintf(" (%d more are still catching up)", learners)
		}
		return quorumError{rpcErrorf(failedPrecondition, "can't remove member from the raft: this would result in a loss of quorum: %s", why)}
	}
	return nil
}
