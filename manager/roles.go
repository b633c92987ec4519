package manager

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/raftstore"
	"github.com/miniswarm/miniswarm/trouble"
)

const (
	// rolesIdle is how often roles are looked at though nothing has changed: the raft group may have.
	rolesIdle = 5 * time.Second
	// rolesPause is the wait before what failed is tried again, removalTimeout how long one removal may take.
	rolesPause, removalTimeout = time.Second, 5 * time.Second
)

// roles makes nodes what Spec.Role says, while this manager leads. It is Swarm's role manager (swarm-semantics.md, 7.6):
//
//	promotion  the role is set at once; the node sees it in its session, fetches a manager's certificate and joins the raft group
//	demotion   the member leaves the raft group, then the role is set, and the node fetches a worker's certificate
//
// It looks at what is, not at what happened, so that a new leader goes on where the former one stopped. That is how a leader
// demotes itself: it hands leadership over, and the next one removes it.
type roles struct {
	store   Store
	logger  *slog.Logger
	now     func() time.Time
	failing trouble.Log // such as a demotion that has to wait
}

// roleStep is what has to be done next for one node.
type roleStep struct {
	node   string
	remove uint64             // the member to remove from the raft group, 0: none
	patch  *cluster.NodePatch // nil: none
}

// roleSteps compares the nodes with the raft group.
func roleSteps(snap *cluster.Snapshot, members []protocol.Member) (steps []roleStep) {
	byNode := make(map[string]protocol.Member, len(members))
	for _, m := range members {
		byNode[m.NodeID] = m
		if snap.Node(m.NodeID) == nil {
			steps = append(steps, roleStep{node: m.NodeID, remove: m.RaftID})
		}
	}
	for n := range snap.Nodes() {
		m, member := byNode[n.ID]
		wanted := n.Spec.Role == swarm.NodeRoleManager
		switch {
		case !wanted && member:
			steps = append(steps, roleStep{node: n.ID, remove: m.RaftID})
		case !wanted && (n.Role == swarm.NodeRoleManager || n.RaftID != 0):
			steps = append(steps, roleStep{node: n.ID, patch: &cluster.NodePatch{Role: swarm.NodeRoleWorker, ClearManager: true}})
		case wanted && (n.Role != swarm.NodeRoleManager || member && (n.RaftID != m.RaftID || n.ManagerAddr != m.Addr)):
			p := &cluster.NodePatch{Role: swarm.NodeRoleManager}
			if member {
				p.RaftID, p.ManagerAddr = m.RaftID, m.Addr
			}
			steps = append(steps, roleStep{node: n.ID, patch: p})
		}
	}
	return steps
}

// run works until ctx ends, or with errWatchEnded when its watch does.
func (r *roles) run(ctx context.Context, watch events) error {
	wake := time.NewTimer(0)
	defer wake.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-wake.C:
		case batch, ok := <-watch.Events():
			if !ok {
				return errWatchEnded
			}
			if !concernsRoles(batch) {
				continue
			}
		}
		next := rolesIdle
		if !r.pass(ctx) {
			next = rolesPause
		}
		wake.Reset(next)
	}
}

// concernsRoles says whether a batch of changes may ask for a step.
func concernsRoles(batch []cluster.Event) bool {
	for _, ev := range batch {
		if ev.Kind != cluster.KindNode {
			continue
		}
		before, _ := ev.Old.(*cluster.Node)
		after, _ := ev.New.(*cluster.Node)
		if before == nil || after == nil || before.Spec.Role != after.Spec.Role || before.Role != after.Role ||
			before.RaftID != after.RaftID || before.ManagerAddr != after.ManagerAddr {
			return true
		}
	}
	return false
}

// pass takes all steps that can be taken and says whether none failed. A removal makes the next step possible, hence the
// second look.
func (r *roles) pass(ctx context.Context) bool {
	done := true
	for range 2 {
		var changes []cluster.Change
		removed := false
		members := r.store.Members() // before the nodes: a manager that joins in between must not seem to be of no node
		for _, s := range roleSteps(r.store.Snapshot(), members) {
			if s.remove == 0 {
				changes = append(changes, cluster.PatchNode(s.node, *s.patch))
				continue
			}
			if err := r.remove(ctx, s); err != nil {
				done = false
				continue
			}
			removed = true
		}
		if len(changes) > 0 {
			if _, err := r.store.Propose(ctx, &cluster.Txn{Time: r.now(), Changes: changes}); err != nil {
				r.failed(ctx, "roles could not be stored; tried again", err)
				return false
			}
			for _, c := range changes {
				r.logger.Info("role changed", "node", c.ID, "role", c.Node.Role)
			}
		}
		if !removed {
			break
		}
	}
	if done {
		r.failing.Over(r.now())
	}
	return done
}

// remove takes a member out of the raft group.
func (r *roles) remove(ctx context.Context, s roleStep) error {
	ctx, cancel := context.WithTimeout(ctx, removalTimeout)
	defer cancel()
	err := r.store.RemoveMember(ctx, s.remove)
	if err == nil || errors.Is(err, raftstore.ErrNoMember) {
		r.logger.Info("manager removed from the raft group", "node", s.node)
		return nil
	}
	if _, handed := errors.AsType[*raftstore.ErrNotLeader](err); handed {
		r.logger.Info("leadership went to another manager, which removes this one from the raft group", "node", s.node)
		return err
	}
	r.failed(ctx, "a manager cannot be removed from the raft group yet; tried again", err, "node", s.node)
	return err
}

func (r *roles) failed(ctx context.Context, what string, err error, args ...any) {
	if ctx.Err() != nil {
		return
	}
	if tell, lasting := r.failing.Again(r.now(), err.Error()); tell {
		r.logger.Warn(what, append(args, "since", lasting.Round(time.Second), "err", err)...)
	}
}
