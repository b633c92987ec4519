package sim

import (
	"context"
	"net/http"
	"os"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/agent/docker"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/identity"
)

const (
	// expelPatience is how long an operator tries to have a lost machine's node removed: the others may be too few to let a
	// manager go. The machine then comes back after all.
	expelPatience = 20 * time.Second
	// sentPatience is how long what was asked and not answered may take to be done, with all the faults that there are.
	sentPatience = 90 * time.Second
)

// replace loses a machine for good: its node is demoted and removed while it is off, and a machine that knows nothing joins at its
// address as a new node.
func (w *world) replace(ctx context.Context, h *host, role identity.Role) {
	if !h.replacing.CompareAndSwap(false, true) {
		return // it is lost already
	}
	defer h.replacing.Store(false)
	h.down(func() {
		expelled := false
		h.powerless(func() { expelled = w.expel(ctx, h) })
		if !expelled {
			w.trace("%s comes back after all", h)
			return
		}
		h.wipe(ctx)
		w.enrol(ctx, h, role)
	})
}

// expel demotes and removes the node of a machine that is off, and says whether it is gone.
func (w *world) expel(ctx context.Context, h *host) bool {
	begin, sent := time.Now(), false
	for ctx.Err() == nil {
		if l := w.leader(); l != nil {
			n := l.store.Snapshot().Node(h.id())
			var status int
			var answer []byte
			switch {
			case n == nil:
				w.trace("the node of %s is removed", h)
				return true
			case n.Spec.Role == swarm.NodeRoleManager:
				status, answer = w.changeNode(ctx, l.h, h, func(s *swarm.NodeSpec) { s.Role = swarm.NodeRoleWorker })
			case n.Role == swarm.NodeRoleWorker:
				status, answer = w.api(ctx, l.h, http.MethodDelete, "/nodes/"+h.id()+"?force=1", nil)
				sent = true
			}
			w.trace("to be rid of %s at %s: %s", h, l.h, statusText(status, answer))
		}
		switch {
		case !sent && time.Since(begin) > expelPatience:
			return false
		case time.Since(begin) > sentPatience:
			w.violate("members: the node of %s cannot be removed", h)
			return false
		}
		_ = pause(ctx, 500*time.Millisecond)
	}
	return false
}

// wipe takes off the machine what an earlier one had.
func (h *host) wipe(ctx context.Context) {
	h.retire()
	for left := true; left && ctx.Err() == nil; _ = pause(ctx, 100*time.Millisecond) {
		left = false
		for _, c := range h.engine.Instances() {
			if c.Labels[docker.LabelTaskID] != "" {
				_ = h.engine.Remove(ctx, c.ID)
				left = true // until it is seen to be gone
			}
		}
	}
	h.mesh.reboot()
	store, err := identity.NewStore(identity.StoreConfig{Dir: h.state})
	if err == nil {
		err = os.RemoveAll(h.state)
	}
	if err == nil {
		err = os.Mkdir(h.state, 0o700)
	}
	if err != nil {
		h.w.violate("%s: %v", h, err)
	}
	h.creds = store
}

// enrol makes a machine that is part of nothing a node, by a join token, at any manager that answers.
func (w *world) enrol(ctx context.Context, h *host, role identity.Role) {
	for begin := time.Now(); ctx.Err() == nil; _ = pause(ctx, time.Second) {
		if time.Since(begin) > sentPatience {
			w.violate("members: the new machine of %s cannot join", h)
			return
		}
		l := w.leader()
		if l == nil {
			continue
		}
		tokens := l.store.Snapshot().Cluster().JoinTokens
		join := identity.JoinConfig{Token: tokens.Worker, Store: h.creds, Client: identity.NewClient(identity.ClientConfig{Now: h.now, Dial: h.dial, DialTimeout: 2 * time.Second}), Attempts: 2}
		if role == identity.Manager {
			join.Token = tokens.Manager
		}
		var known []protocol.ManagerAddr
		for _, m := range l.store.Members() {
			join.Addrs = append(join.Addrs, m.Addr)
			known = append(known, protocol.ManagerAddr{Addr: m.Addr})
		}
		id, err := identity.Join(ctx, join)
		if err != nil {
			w.trace("%s cannot join yet: %v", h, err)
			continue
		}
		h.learnManagers(known)
		h.setID(id.NodeID)
		w.trace("%s has joined as a %s, node %s", h, id.Role, id.NodeID)
		return
	}
}
