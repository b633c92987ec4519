package dispatcher

import (
	"context"
	"fmt"
	"time"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// redescribe stores a changed description of the node.
func (s *session) redescribe(ctx context.Context, h *protocol.Hello) error {
	_, err := s.d.cfg.Store.Propose(ctx, &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{
		cluster.PatchNode(s.nodeID, cluster.NodePatch{Description: &h.Description})}})
	if err != nil {
		return fmt.Errorf("store the description of node %s: %w", s.nodeID, err)
	}
	return nil
}

// report stores status reports, all that wait at once, and has them acknowledged.
func (s *session) report(ctx context.Context) error {
	for {
		var batch []protocol.Status
		select {
		case <-ctx.Done():
			return ctx.Err()
		case r := <-s.reports:
			batch = append(batch, r)
		}
		for more := true; more; {
			select {
			case r := <-s.reports:
				batch = append(batch, r)
			default:
				more = false
			}
		}
		if err := s.store(ctx, batch); err != nil {
			return err
		}
		s.stored.Store(batch[len(batch)-1].Seq)
		s.poke()
	}
}

// store commits reports about tasks of this node; reports about others are refused as a whole, as in swarm.
func (s *session) store(ctx context.Context, batch []protocol.Status) error {
	now := time.Now()
	txn := &cluster.Txn{Time: now}
	snap := s.d.cfg.Store.Snapshot()
	for _, r := range batch {
		for _, t := range r.Tasks {
			stored := snap.Task(t.ID)
			if stored == nil {
				continue
			}
			if stored.NodeID != s.nodeID {
				return fmt.Errorf("node %s reported on task %s: cannot update a task not assigned this node", s.nodeID, t.ID)
			}
			if stored.Status.State == t.Status.State && stored.Status.Err == t.Status.Err && stored.Status.Message == t.Status.Message &&
				stored.Status.Timestamp.Equal(t.Status.Timestamp) {
				continue
			}
			txn.Changes = append(txn.Changes, cluster.PatchTask(t.ID, cluster.TaskPatch{Status: &t.Status, AppliedAt: now}))
		}
	}
	if len(txn.Changes) == 0 {
		return nil
	}
	if _, err := s.d.cfg.Store.Propose(ctx, txn); err != nil {
		return fmt.Errorf("store the status of %d tasks of node %s: %w", len(txn.Changes), s.nodeID, err)
	}
	return nil
}
