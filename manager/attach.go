package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/raftstore"
)

const (
	// attachLimit bounds how long a container may wait for its address, as long as in Swarm (swarm-semantics.md, 5.6).
	attachLimit = 20 * time.Second
	// maxAttach bounds a request; names are what is longest in it.
	maxAttach = 64 << 10
	// maxAttachments bounds the containers of people's own that a node has on networks: no node may fill the store.
	maxAttachments = 1000
)

// attachError is a refusal of an attachment with its status and Swarm's words.
type attachError struct {
	status int
	text   string
}

func (e *attachError) Error() string { return e.text }

func refuse(status int, code, format string, args ...any) error {
	return &attachError{status, "rpc error: code = " + code + " desc = " + fmt.Sprintf(format, args...)}
}

var attachmentID = regexp.MustCompile(fmt.Sprintf("^[0-9a-z]{%d}$", cluster.IDLength))

// serveAttach gives a container of the calling node a place on a network. It answers once the place is stored with its
// address; the node hears of that with its other tasks. A node asks for itself only: where it is, its certificate says.
func (m *Manager) serveAttach(w http.ResponseWriter, r *http.Request) {
	if m.Dispatcher() == nil {
		m.redirect(w)
		return
	}
	caller, _ := identity.FromContext(r.Context())
	var req protocol.AttachRequest
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(bodyTimeout)) // for the body alone: it would end a request that waits for its address
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxAttach)).Decode(&req); err != nil {
		writeError(w, http.StatusBadRequest, "attachment for node "+caller.NodeID+": "+err.Error())
		return
	}
	_ = rc.SetReadDeadline(time.Time{})
	ctx, cancel := context.WithTimeout(r.Context(), attachLimit)
	defer cancel()
	err := m.attach(ctx, caller.NodeID, req)
	var refused *attachError
	var lost *raftstore.ErrNotLeader
	switch {
	case err == nil:
		w.WriteHeader(http.StatusNoContent)
	case errors.As(err, &refused):
		writeError(w, refused.status, refused.text)
	case errors.As(err, &lost):
		m.redirect(w)
	default:
		writeError(w, http.StatusServiceUnavailable, "attachment for node "+caller.NodeID+": "+err.Error())
	}
}

// attach stores the task that stands for the container and waits for its address. What could not be had leaves no task.
func (m *Manager) attach(ctx context.Context, nodeID string, req protocol.AttachRequest) error {
	watch := m.cfg.Store.Watch(watchBuffer)
	defer func() { watch.Close() }()
	made, err := m.ask(ctx, nodeID, req)
	if err != nil {
		return err
	}
	for {
		t := m.cfg.Store.Snapshot().Task(req.ID)
		switch {
		case t == nil && !made:
			// It was that of a former request, whose connection broke and which has taken it back.
			if made, err = m.ask(ctx, nodeID, req); err != nil {
				return err
			}
			continue
		case t == nil:
			return refuse(http.StatusConflict, "Aborted", "the attachment ended while it was made")
		case !cluster.Before(t.Status.State, swarm.TaskStateAssigned):
			m.cfg.Logger.Info("a container is attached to a network", "task", t.ID, "node", nodeID, "network", req.Network)
			return nil
		case t.Status.Err != "":
			return errors.Join(refuse(http.StatusInternalServerError, "Unavailable", "%s", t.Status.Err), m.detach(ctx, t.ID))
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), m.detach(ctx, t.ID))
		case _, ok := <-watch.Events():
			if !ok {
				if err := watch.Err(); !errors.Is(err, raftstore.ErrLagged) {
					return fmt.Errorf("wait for the address: %w", err)
				}
				watch = m.cfg.Store.Watch(watchBuffer)
			}
		}
	}
}

// ask stores the task, unless it is there already, which made denies.
func (m *Manager) ask(ctx context.Context, nodeID string, req protocol.AttachRequest) (made bool, err error) {
	_, err = m.cfg.Store.Update(ctx, func(snap *cluster.Snapshot) (*cluster.Txn, error) {
		txn, err := attachment(snap, nodeID, req)
		made = txn != nil
		return txn, err
	})
	return made, err
}

// detach takes back a task that has no address yet, unless it was given one meanwhile.
func (m *Manager) detach(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bodyTimeout)
	defer cancel()
	_, err := m.cfg.Store.Update(ctx, func(snap *cluster.Snapshot) (*cluster.Txn, error) {
		t := snap.Task(id)
		if t == nil || !cluster.Before(t.Status.State, swarm.TaskStateAssigned) {
			return nil, nil
		}
		return &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.RemoveSeen(t)}}, nil
	})
	if errors.Is(err, cluster.ErrNotExist) {
		return nil
	}
	return err
}

// attachment makes the task of an attachment; none where the node asks for one again that is there.
func attachment(snap *cluster.Snapshot, nodeID string, req protocol.AttachRequest) (*cluster.Txn, error) {
	if !attachmentID.MatchString(req.ID) {
		return nil, refuse(http.StatusBadRequest, "InvalidArgument", "attachment id %q is not one of %d characters of 0-9a-z", req.ID, cluster.IDLength)
	}
	if _, err := netip.ParseAddr(req.Address); req.Address != "" && err != nil {
		return nil, refuse(http.StatusBadRequest, "InvalidArgument", "invalid address %q", req.Address)
	}
	if snap.Node(nodeID) == nil {
		return nil, refuse(http.StatusNotFound, "NotFound", "node %s is not part of this swarm", nodeID)
	}
	if t := snap.Task(req.ID); t != nil {
		if t.NodeID != nodeID || !t.Attachment() {
			return nil, refuse(http.StatusConflict, "AlreadyExists", "attachment id %s is in use", req.ID)
		}
		return nil, nil
	}
	n, err := attachable(snap, req.Network)
	if err != nil {
		return nil, err
	}
	have := 0
	for t := range snap.TasksOfNode(nodeID) {
		if t.Attachment() && !cluster.Terminal(t.Status.State) {
			have++
		}
	}
	if have >= maxAttachments {
		return nil, refuse(http.StatusTooManyRequests, "ResourceExhausted", "node %s has %d containers on networks of the swarm already, and may have no more", nodeID, have)
	}
	t := &cluster.Task{}
	t.ID, t.NodeID, t.DesiredState = req.ID, nodeID, swarm.TaskStateRunning
	to := swarm.NetworkAttachmentConfig{Target: n.ID, Aliases: req.Names}
	if req.Address != "" {
		to.DriverOpts = map[string]string{cluster.OptionAddress: req.Address}
	}
	t.Spec = swarm.TaskSpec{NetworkAttachmentSpec: &swarm.NetworkAttachmentSpec{ContainerID: req.ContainerID}, Runtime: swarm.RuntimeNetworkAttachment,
		Networks: []swarm.NetworkAttachmentConfig{to}}
	now := time.Now()
	t.Status = swarm.TaskStatus{Timestamp: now, State: swarm.TaskStateNew, Message: "created"}
	return &cluster.Txn{Time: now, Guards: []cluster.Guard{{Kind: cluster.KindNetwork, Index: snap.Modified(cluster.KindNetwork)}},
		Changes: []cluster.Change{cluster.CreateOf(t)}}, nil
}

// attachable gives the network of that id, name or beginning of an id, if people may put containers on it.
func attachable(snap *cluster.Snapshot, ref string) (*cluster.Network, error) {
	found := snap.Matches(cluster.KindNetwork, ref)
	if len(found) == 0 {
		return nil, refuse(http.StatusNotFound, "NotFound", "network %s not found", ref)
	}
	if len(found) > 1 {
		return nil, refuse(http.StatusBadRequest, "InvalidArgument", "network %s is ambiguous (%d matches found)", ref, len(found))
	}
	n := found[0].(*cluster.Network)
	if !n.Spec.Attachable {
		return nil, refuse(http.StatusForbidden, "PermissionDenied", "network %s not manually attachable", n.Spec.Name)
	}
	return n, nil
}
