package manager

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/dispatcher"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/trouble"
)

const (
	// rotationPoll is how often the leader looks whether a rotation of the root CA is over; while there is none that costs
	// two comparisons.
	rotationPoll = 200 * time.Millisecond
	// rotationReminder is how often a node is told again to get a certificate of the new root, in case that it failed.
	rotationReminder = 10 * time.Second
	// rotationComplaint is after how long the nodes that a rotation waits for are named in the log, once.
	rotationComplaint = time.Minute
)

// ConfigureCA gives the cluster that c becomes with another CAConfig; see [identity.Authority.Configure].
func (m *Manager) ConfigureCA(ctx context.Context, c *cluster.Cluster, want swarm.CAConfig) (*cluster.Cluster, error) {
	return m.authority.Configure(ctx, c, want)
}

// ProbeExternalCAs looks whether the external CAs of the cluster answer; see [identity.Authority.ProbeExternal].
func (m *Manager) ProbeExternalCAs(ctx context.Context) []identity.Probe {
	c := m.cfg.Store.Snapshot().Cluster()
	if c == nil {
		return nil
	}
	return m.authority.ProbeExternal(ctx, c)
}

// rotation is what the leader remembers of a rotation of the root CA while it waits for the nodes.
type rotation struct {
	root       []byte // PEM; nil: there is none
	began      time.Time
	complained bool
	reminded   time.Time
	seen       [2]uint64 // when the tables of nodes and clusters were last changed, at the last look
}

// watchRotation ends rotations of the root CA when every node has a certificate of the new root. What a rotation is for is
// decided when it begins (ConfigureCA); whom it concerns the dispatcher tells; this only waits, and so takes up a rotation
// that a former leader left.
func (m *Manager) watchRotation(ctx context.Context, d *dispatcher.Dispatcher) error {
	tick := time.NewTicker(rotationPoll)
	defer tick.Stop()
	var r rotation
	var failing trouble.Log
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		if err := m.rotate(ctx, d, &r); err == nil {
			failing.Over(time.Now())
		} else if tell, lasting := failing.Again(time.Now(), ""); tell && ctx.Err() == nil {
			m.cfg.Logger.Warn("the rotation of the root CA could not be completed; it is tried again", "since", lasting.Round(time.Second), "err", err)
		}
	}
}

// rotate takes one look.
func (m *Manager) rotate(ctx context.Context, d *dispatcher.Dispatcher, r *rotation) error {
	snap := m.cfg.Store.Snapshot()
	c := snap.Cluster()
	if c == nil || c.Rotation == nil {
		*r = rotation{}
		return nil
	}
	now := time.Now()
	if !bytes.Equal(r.root, c.Rotation.RootCA) {
		*r = rotation{root: c.Rotation.RootCA, began: now, reminded: now}
		m.cfg.Logger.Info("the root CA rotates: nodes renew their certificates", "nodes", len(identity.Outstanding(snap)))
	}
	seen := [2]uint64{snap.Modified(cluster.KindNode), snap.Modified(cluster.KindCluster)}
	if seen == r.seen && now.Sub(r.reminded) < rotationReminder {
		return nil
	}
	r.seen = seen
	waiting := identity.Outstanding(snap)
	if len(waiting) == 0 {
		return m.completeRotation(ctx, r.root)
	}
	if now.Sub(r.reminded) >= rotationReminder {
		r.reminded = now
		d.RemindOfTrust(waiting)
	}
	if !r.complained && now.Sub(r.began) >= rotationComplaint {
		r.complained = true
		m.cfg.Logger.Warn("the rotation of the root CA waits for nodes: bring them back, or remove them from the swarm", "nodes", waiting)
	}
	return nil
}

// completeRotation drops the old root if root is still what the cluster rotates to and no node lacks it.
func (m *Manager) completeRotation(ctx context.Context, root []byte) error {
	completed := false
	_, err := m.cfg.Store.Update(ctx, func(snap *cluster.Snapshot) (*cluster.Txn, error) {
		completed = false
		c := snap.Cluster()
		if c == nil || c.Rotation == nil || !bytes.Equal(c.Rotation.RootCA, root) || len(identity.Outstanding(snap)) > 0 {
			return &cluster.Txn{}, nil
		}
		next, err := m.authority.Complete(c)
		if err != nil {
			return nil, err
		}
		completed = true
		// A node that joins in this moment has yet to show its certificate.
		guards := []cluster.Guard{{Kind: cluster.KindNode, Index: snap.Modified(cluster.KindNode)}}
		return &cluster.Txn{Time: time.Now(), Guards: guards, Changes: []cluster.Change{cluster.UpdateOf(next)}}, nil
	})
	if err != nil {
		return fmt.Errorf("complete the rotation of the root CA: %w", err)
	}
	if completed {
		m.cfg.Logger.Info("the root CA has been rotated; join tokens are new")
	}
	return nil
}

// RenewHere certifies the key of a signing request for this manager, which must be the leader.
func (m *Manager) RenewHere(ctx context.Context, csrPEM []byte) (identity.IssueResponse, error) {
	own := m.cfg.Credentials.Current()
	if own == nil {
		return identity.IssueResponse{}, fmt.Errorf("renew the certificate of manager %s: %w", m.cfg.NodeID, identity.ErrNotJoined)
	}
	return (&issuer{m: m}).Issue(ctx, identity.IssueRequest{CSR: string(csrPEM), NodeID: m.cfg.NodeID}, &own.Identity, m.cfg.Addr)
}

// RenewAlone certifies the key of a signing request for this manager without asking the others, for a manager whose certificate has
// expired and that reaches none whose has not: see [identity.Authority.SignOwn]. By the state of its own store it must be a
// manager; that state may be old, but then the others, once they are reached, know better and refuse it.
func (m *Manager) RenewAlone(csrPEM []byte) (identity.IssueResponse, error) {
	own := m.cfg.Credentials.Current()
	snap := m.cfg.Store.Snapshot()
	c := snap.Cluster()
	if own == nil || c == nil || c.ID != own.Identity.ClusterID {
		return identity.IssueResponse{}, fmt.Errorf("renew the certificate of manager %s alone: its store holds no cluster yet", m.cfg.NodeID)
	}
	if n := snap.Node(m.cfg.NodeID); n == nil || n.Role != swarm.NodeRoleManager || own.Identity.Role != identity.Manager {
		return identity.IssueResponse{}, fmt.Errorf("renew the certificate of manager %s alone: its store does not know it as a manager", m.cfg.NodeID)
	}
	if !slices.ContainsFunc(m.cfg.Store.Members(), func(mem protocol.Member) bool { return mem.NodeID == m.cfg.NodeID }) {
		return identity.IssueResponse{}, fmt.Errorf("renew the certificate of manager %s alone: it is no member of the managers' group", m.cfg.NodeID)
	}
	cert, err := m.authority.SignOwn(c, csrPEM, own)
	if err != nil {
		return identity.IssueResponse{}, err
	}
	m.cfg.Logger.Warn("this manager's certificate had expired and no manager was reached that could renew it: it has certified itself", "node", m.cfg.NodeID)
	return identity.IssueResponse{Certificate: string(cert), NodeID: m.cfg.NodeID, Role: identity.Manager}, nil
}
