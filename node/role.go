package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/raftstore"
	"github.com/miniswarm/miniswarm/trouble"
)

const (
	// rolePause is the wait before the next attempt to become a manager.
	rolePause = time.Second
	// removedPatience is how long a manager that the group has removed waits for the certificate of a worker before it
	// asks to be a member again: it was promoted anew meanwhile.
	removedPatience = 3 * time.Second
)

// errDemoted ends the manager's parts when the certificate says worker.
var errDemoted = errors.New("this node is a worker now")

// role is what this node's certificate says. The managers decide it: they issue the role that the cluster's state has.
func (m *member) role() identity.Role {
	if c := m.node.credentials.Current(); c != nil {
		return c.Identity.Role
	}
	return identity.Worker
}

// toManage says whether this node is to be a manager: by its certificate, or by what the leader said last, where that certificate is on
// its way.
func (m *member) toManage() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wanted == identity.Manager || m.role() == identity.Manager
}

// learnNode takes in this node's object as the leader sends it. When the role in it is not that of the certificate the
// node was promoted or demoted, and fetches its new certificate; that in turn starts or stops the manager's parts.
func (m *member) learnNode(n *cluster.Node) {
	m.once.Do(func() { close(m.welcome) })
	m.accepted()
	if n.Role == identity.Worker {
		m.forgetManaged()
	}
	m.mu.Lock()
	m.wanted = n.Role
	m.mu.Unlock()
	if n.Role != m.role() {
		m.renewer.RenewNow()
	}
}

// renewed is called when the certificate has changed.
func (m *member) renewed(before, after identity.Identity) {
	if before.Role == after.Role {
		return
	}
	m.logger.Info("the role of this node has changed", "node", m.nodeID, "before", before.Role, "now", after.Role)
	select {
	case m.roleChanged <- struct{}{}:
	default:
	}
}

// manage runs the manager's parts while the role is that of a manager, until ctx ends or they fail for another reason than a
// change of the role. first are the parts of a machine that starts as a manager, nil otherwise.
//
// A manager that is demoted leaves the raft group first, by the leader's hand, and has its new certificate afterwards; its store may hear
// of the first or not. So either ends the parts, and only the certificate of a worker, or a new membership, deletes the replica.
func (m *member) manage(ctx context.Context, first *managing) error {
	defer func() { m.letGo(first) }()
	var waiting trouble.Log
	for ctx.Err() == nil {
		if m.role() != identity.Manager {
			m.letGo(first)
			first = nil
			if err := m.retire(); err != nil {
				m.logger.Warn("a former manager's replica is still on disk", "err", err)
			}
			m.awaitRole(ctx, 0)
			continue
		}
		g := first
		if first = nil; g == nil {
			var err error
			if g, err = m.become(ctx); err != nil {
				if ctx.Err() == nil {
					if tell, lasting := waiting.Again(time.Now(), ""); tell {
						m.logger.Warn("this node is to be a manager and cannot yet; it goes on trying", "since", lasting.Round(time.Second), "err", err)
					}
					m.renewer.RenewNow() // it may be a worker again
					m.awaitRole(ctx, rolePause)
				}
				continue
			}
			waiting.Over(time.Now())
			m.logger.Info("this node is a manager now", "node", m.nodeID, "addr", m.state.AdvertiseAddr)
		}
		err := m.runManaging(ctx, g)
		switch {
		case ctx.Err() != nil || errors.Is(err, errDemoted):
		case errors.Is(err, raftstore.ErrRemoved):
			m.logger.Warn("the managers have removed this one from their group", "node", m.nodeID)
			m.noteManaged(g)
			m.renewer.RenewNow()
			m.awaitRole(ctx, removedPatience)
		default:
			return err
		}
	}
	return context.Cause(ctx)
}

// letGo closes the parts of a machine that was to start as a manager, and did not come to it; nil is none.
func (m *member) letGo(first *managing) {
	if first == nil {
		return
	}
	m.setManaging(nil)
	if err := first.close(); err != nil {
		m.logger.Warn("a replica that was not run is not closed cleanly", "err", err)
	}
}

// awaitRole waits for a change of the role, at most so long; 0 is for ever.
func (m *member) awaitRole(ctx context.Context, limit time.Duration) {
	var over <-chan time.Time
	if limit > 0 {
		t := time.NewTimer(limit)
		defer t.Stop()
		over = t.C
	}
	select {
	case <-ctx.Done():
	case <-m.roleChanged:
	case <-over:
	}
}

// become makes this node a member of the raft group and opens its replica. It may be repeated: the group gives the same
// answer until the member has caught up.
func (m *member) become(ctx context.Context) (*managing, error) {
	if err := probePort(m.state.ListenAddr); err != nil {
		return nil, err
	}
	answer, err := m.node.joinRaft(ctx, m.others, m.joinRequest(true))
	if err != nil {
		return nil, fmt.Errorf("join the managers: %w", err)
	}
	if err := m.forgetRaft(); err != nil {
		return nil, err
	}
	if _, err := m.node.vault.follow(answer.UnlockKey, answer.LockVersion); err != nil {
		return nil, err
	}
	if err := m.remember(func(st *state) { st.RaftID, st.Managed = answer.RaftID, nil }); err != nil {
		return nil, err
	}
	return m.openManaging(answer.RaftID, nil, answer.Members)
}

// joinRequest asks for membership at this node's address; fresh says that it has no replica.
func (m *member) joinRequest(fresh bool) protocol.JoinRequest {
	return protocol.JoinRequest{Addr: m.state.AdvertiseAddr, Fresh: fresh, Instance: m.node.instance}
}

// retire forgets that this node was a manager: with the replica goes the key that it is sealed with, of which a worker's certificate
// has no need.
func (m *member) retire() error {
	m.mu.Lock()
	was := m.state.RaftID != 0
	m.mu.Unlock()
	if m.agent.Status().Leader != "" {
		m.forgetManaged()
	}
	if was {
		if err := m.remember(func(st *state) { st.RaftID = 0 }); err != nil {
			return err
		}
	}
	if err := errors.Join(m.forgetRaft(), m.node.vault.discard()); err != nil || m.role() != identity.Manager {
		return err
	}
	return m.node.credentials.Reseal() // it was promoted meanwhile, and its certificate's key sealed with what is gone
}

// runManaging runs the parts until ctx ends, the role changes, or they fail.
func (m *member) runManaging(ctx context.Context, g *managing) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	m.setManaging(g)
	defer m.setManaging(nil)
	done := make(chan error, 1)
	go func() { done <- g.run(ctx) }()
	for {
		select {
		case err := <-done:
			return err
		case <-m.roleChanged:
			if m.role() != identity.Manager {
				m.setManaging(nil) // requests hear at once that this is a worker
				cancel(errDemoted)
			}
		}
	}
}

// managing gives the manager's parts, nil while this node is no manager.
func (m *member) managing() *managing {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.manages
}

func (m *member) setManaging(g *managing) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.manages = g
}
