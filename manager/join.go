package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/identity"
)

// serveJoin adds the calling manager to the raft group. Asking again with another address moves the member there.
func (m *Manager) serveJoin(w http.ResponseWriter, r *http.Request) {
	if self, _, _ := m.Leader(); !self {
		m.redirect(w)
		return
	}
	caller, _ := identity.FromContext(r.Context())
	var req protocol.JoinRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096)).Decode(&req); err != nil {
		writeError(w, http.StatusBadRequest, "join request of node "+caller.NodeID+": "+err.Error())
		return
	}
	member, err := m.join(r.Context(), caller.NodeID, req)
	if err != nil {
		status := http.StatusServiceUnavailable
		if refusal, ok := errors.AsType[*identity.StatusError](err); ok {
			status = refusal.Status
		}
		writeError(w, status, fmt.Sprintf("join request of node %s: %v", caller.NodeID, err))
		return
	}
	answer := protocol.JoinResponse{RaftID: member.RaftID, Members: m.cfg.Store.Members()}
	if c := m.cfg.Store.Snapshot().Cluster(); c != nil && req.Fresh {
		answer.UnlockKey, answer.LockVersion = c.UnlockKeys, c.Version.Index
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer)
}

// join makes a node a member of the raft group, if it is to be a manager.
func (m *Manager) join(ctx context.Context, nodeID string, req protocol.JoinRequest) (protocol.Member, error) {
	if addr, err := netip.ParseAddrPort(req.Addr); err != nil || addr.Port() == 0 || addr.Addr().IsUnspecified() {
		return protocol.Member{}, &identity.StatusError{Status: http.StatusBadRequest, Message: strconv.Quote(req.Addr) + " is no address that others can reach, as ip:port"}
	}
	snap, err := m.cfg.Store.Read(ctx)
	if err != nil {
		return protocol.Member{}, fmt.Errorf("read the cluster: %w", err)
	}
	switch n := snap.Node(nodeID); {
	case n == nil:
		return protocol.Member{}, &identity.StatusError{Status: http.StatusNotFound, Message: "the node is not part of this swarm"}
	case n.Spec.Role != swarm.NodeRoleManager:
		return protocol.Member{}, &identity.StatusError{Status: http.StatusForbidden, Message: "the node is to be a worker; promote it first"}
	}
	if d := m.Dispatcher(); d != nil {
		if err := d.Rival(nodeID, req.Instance); err != nil {
			return protocol.Member{}, &identity.StatusError{Status: http.StatusConflict, Message: err.Error()}
		}
	}
	all := m.cfg.Store.Members()
	i := slices.IndexFunc(all, func(o protocol.Member) bool { return o.NodeID == nodeID })
	if req.Fresh && i >= 0 && !all[i].Learner {
		// What this voter has promised it does not know any more: it goes, and comes back as somebody else.
		if err := m.cfg.Store.RemoveMember(ctx, all[i].RaftID); err != nil {
			return protocol.Member{}, fmt.Errorf("replace the member that has lost its log: %w", err)
		}
	}
	member, err := m.cfg.Store.AddMember(ctx, protocol.Member{NodeID: nodeID, Addr: req.Addr})
	if err != nil {
		return member, err
	}
	_, err = m.cfg.Store.Propose(ctx, &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{
		cluster.PatchNode(nodeID, cluster.NodePatch{Role: swarm.NodeRoleManager, RaftID: member.RaftID, ManagerAddr: req.Addr})}})
	if err != nil {
		return member, fmt.Errorf("record the manager: %w", err)
	}
	if i < 0 || all[i].RaftID != member.RaftID {
		m.cfg.Logger.Info("manager joined", "node", nodeID, "addr", req.Addr)
	} else if all[i].Addr != req.Addr {
		m.cfg.Logger.Info("manager has another address", "node", nodeID, "addr", req.Addr, "former", all[i].Addr)
	}
	return member, nil
}
