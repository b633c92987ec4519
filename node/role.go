package node

import (
	"context"
	"errors"
	"fmt"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/node/role"
)

// machine is a member as package role sees it, which decides when the manager's parts come and go.
type machine struct{ *member }

func newSupervisor(m *member) *role.Supervisor[*managing] {
	return role.New(role.Config[*managing]{Machine: machine{m}, NodeID: m.nodeID, Addr: m.state.AdvertiseAddr, Logger: m.logger})
}

// managing gives the manager's parts, nil while this node is no manager.
func (m *member) managing() *managing { return m.roles.Parts() }

// learnNode takes in this node's object as the leader sends it, and with it the role that the node is to have.
func (m *member) learnNode(n *cluster.Node) {
	m.once.Do(func() { close(m.welcome) })
	m.accepted()
	if n.Role == identity.Worker {
		m.forgetManaged()
	}
	m.roles.Learn(n.Role)
}

// Role is what this node's certificate says. The managers decide it: they issue the role that the cluster's state has.
func (m machine) Role() identity.Role {
	if c := m.node.credentials.Current(); c != nil {
		return c.Identity.Role
	}
	return identity.Worker
}

func (m machine) RenewNow() { m.renewer.RenewNow() }

// Join asks for a place in the raft group. A manager that nobody could reach does not.
func (m machine) Join(ctx context.Context) (*protocol.JoinResponse, error) {
	if err := probePort(m.state.ListenAddr); err != nil {
		return nil, err
	}
	answer, err := m.node.joinRaft(ctx, m.others, m.joinRequest(true))
	if err != nil {
		return nil, fmt.Errorf("join the managers: %w", err)
	}
	return answer, nil
}

func (m machine) Forget() error { return m.forgetRaft() }

// Note takes over the keys of the swarm's managers, where they are locked, and then counts as a member.
func (m machine) Note(answer *protocol.JoinResponse) error {
	if _, err := m.node.vault.follow(answer.UnlockKey, answer.LockVersion); err != nil {
		return err
	}
	return m.remember(func(st *state) { st.RaftID, st.Managed = answer.RaftID, nil })
}

func (m machine) Open(answer *protocol.JoinResponse) (*managing, error) {
	return m.openManaging(answer.RaftID, nil, answer.Members)
}

func (m machine) Removed(g *managing) { m.noteManaged(g) }

// Retire forgets that this node was a manager: with the replica goes the key that it is sealed with, of which a worker's certificate
// has no need.
func (m machine) Retire() error {
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
	if err := errors.Join(m.forgetRaft(), m.node.vault.discard()); err != nil || m.Role() != identity.Manager {
		return err
	}
	return m.node.credentials.Reseal() // it was promoted meanwhile, and its certificate's key sealed with what is gone
}

// joinRequest asks for membership at this node's address; fresh says that it has no replica.
func (m *member) joinRequest(fresh bool) protocol.JoinRequest {
	return protocol.JoinRequest{Addr: m.state.AdvertiseAddr, Fresh: fresh, Instance: m.node.instance}
}
