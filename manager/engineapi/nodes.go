package engineapi

import (
	"net/http"
	"strings"
	"time"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/manager/identity"
)

// presentNode gives a node as clients see it, with the manager's status that only the raft group knows.
func presentNode(c Control, n *cluster.Node) swarm.Node {
	out := n.Node
	if out.Spec.Labels == nil {
		out.Spec.Labels = map[string]string{}
	}
	if n.RaftID == 0 {
		return out
	}
	_, leader, _ := c.Leader()
	for _, m := range c.Members() {
		if m.NodeID == n.ID {
			out.ManagerStatus = &swarm.ManagerStatus{Leader: n.ID == leader, Reachability: c.Reachability(n.ID), Addr: m.Addr}
		}
	}
	return out
}

func (s *Server) listNodes(c Control, w http.ResponseWriter, r *http.Request) error {
	args, err := listFilters(r, "name", "id", "label", "node.label", "role", "membership")
	if err != nil {
		return err
	}
	for _, role := range args.Get("role") {
		if role != "" && !strings.EqualFold(role, string(swarm.NodeRoleWorker)) && !strings.EqualFold(role, string(swarm.NodeRoleManager)) {
			return errorf(http.StatusInternalServerError, "Invalid role filter: '%s'", role)
		}
	}
	for _, m := range args.Get("membership") {
		if m != "" && !strings.EqualFold(m, "accepted") && !strings.EqualFold(m, "pending") {
			return errorf(http.StatusInternalServerError, "Invalid membership filter: '%s'", m)
		}
	}
	snap, err := c.Read(r.Context())
	if err != nil {
		return err
	}
	out := []swarm.Node{}
	for n := range snap.Nodes() {
		if nodePasses(args, n) {
			out = append(out, presentNode(c, n))
		}
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

func nodePasses(args filters.Args, n *cluster.Node) bool {
	return prefixed(args, "name", n.Description.Hostname) && prefixed(args, "id", n.ID) &&
		labelled(args, "label", n.Description.Engine.Labels) && labelled(args, "node.label", n.Spec.Labels) &&
		(!args.Contains("role") || hasFold(args.Get("role"), string(n.Role))) &&
		(!args.Contains("membership") || hasFold(args.Get("membership"), "accepted"))
}

func (s *Server) inspectNode(c Control, w http.ResponseWriter, r *http.Request) error {
	_, n, err := read[*cluster.Node](r.Context(), c, cluster.KindNode, r.PathValue("id"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, presentNode(c, n))
	return nil
}

func (s *Server) updateNode(c Control, w http.ResponseWriter, r *http.Request) error {
	var spec swarm.NodeSpec
	if err := readJSON(r, &spec); err != nil {
		return err
	}
	version, err := versionParam(r, "node")
	if err != nil {
		return err
	}
	switch spec.Availability {
	case swarm.NodeAvailabilityActive, swarm.NodeAvailabilityPause, swarm.NodeAvailabilityDrain:
	default:
		return errorf(http.StatusBadRequest, "invalid Availability: %q", spec.Availability)
	}
	switch spec.Role {
	case swarm.NodeRoleWorker, swarm.NodeRoleManager:
	default:
		return errorf(http.StatusBadRequest, "invalid Role: %q", spec.Role)
	}
	if _, err := cluster.ParseAllowance(spec.Labels[cluster.LabelAllow]); err != nil {
		return errorf(http.StatusBadRequest, "label %s: %v", cluster.LabelAllow, err)
	}
	change := func(snap *cluster.Snapshot) (*cluster.Txn, error) {
		n, err := find[*cluster.Node](snap, cluster.KindNode, r.PathValue("id"))
		if err != nil {
			return nil, err
		}
		if n.Version.Index != version {
			return nil, rpcErrorf(unknownCode, "update out of sequence")
		}
		next := *n
		next.Spec = spec
		txn := &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.UpdateOf(&next)}}
		if spec.Role == swarm.NodeRoleWorker && n.Spec.Role == swarm.NodeRoleManager {
			if err := mayDemote(r.Context(), c, snap, n); err != nil {
				return nil, err
			}
			// What was found must hold when this is committed: two demotions at once may be one too many.
			txn.Guards = []cluster.Guard{{Kind: cluster.KindNode, Index: snap.Modified(cluster.KindNode)}}
		}
		return txn, nil
	}
	err = whileQuorum(r.Context(), func() error {
		_, err := c.Update(r.Context(), change)
		return err
	})
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) removeNode(c Control, w http.ResponseWriter, r *http.Request) error {
	force := flag(r, "force")
	now := time.Now()
	_, err := c.Update(r.Context(), func(snap *cluster.Snapshot) (*cluster.Txn, error) {
		n, err := find[*cluster.Node](snap, cluster.KindNode, r.PathValue("id"))
		if err != nil {
			return nil, err
		}
		if n.Spec.Role == swarm.NodeRoleManager && isMember(c, n.ID) {
			return nil, rpcErrorf(failedPrecondition, "node %s is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal", n.ID)
		}
		if !force && n.Status.State == swarm.NodeStateReady {
			return nil, rpcErrorf(failedPrecondition, "node %s is not down and can't be removed", n.ID)
		}
		return removal(snap, n, now), nil
	})
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func isMember(c Control, nodeID string) bool {
	for _, m := range c.Members() {
		if m.NodeID == nodeID {
			return true
		}
	}
	return false
}

// removal gives the transaction that deletes a node: its certificate is refused from now on, and its tasks are
// orphaned, since nobody can say any more what became of them.
func removal(snap *cluster.Snapshot, n *cluster.Node, now time.Time) *cluster.Txn {
	txn := &cluster.Txn{Time: now}
	if cl := snap.Cluster(); cl != nil {
		next := *cl
		next.Removed = make(map[string]time.Time, len(cl.Removed)+1)
		for id, until := range cl.Removed {
			if until.After(now) {
				next.Removed[id] = until
			}
		}
		next.Removed[n.ID] = now.Add(identity.RemovedFor(cl.Spec.CAConfig.NodeCertExpiry))
		txn.Changes = append(txn.Changes, cluster.UpdateOf(&next))
	}
	for t := range snap.TasksOfNode(n.ID) {
		if cluster.Before(t.Status.State, swarm.TaskStateComplete) {
			status := t.Status
			status.State, status.Message, status.Timestamp = swarm.TaskStateOrphaned, "Task belonged to a node that has been deleted", now
			txn.Changes = append(txn.Changes, cluster.PatchTask(t.ID, cluster.TaskPatch{Status: &status, AppliedAt: now}))
		}
	}
	txn.Changes = append(txn.Changes, cluster.RemoveOf(n))
	return txn
}
