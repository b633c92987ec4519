package manager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/manager/identity"
)

// issuer is the certificate authority: the leader decides, records the node and signs; a follower passes requests on.
type issuer struct{ m *Manager }

// RootPEM implements identity.Issuer.
func (i *issuer) RootPEM() []byte {
	if c := i.m.cfg.Store.Snapshot().Cluster(); c != nil {
		return c.RootCA
	}
	if own := i.m.cfg.Credentials.Current(); own != nil {
		return own.Root.PEM()
	}
	return nil
}

// Issue implements identity.Issuer.
func (i *issuer) Issue(ctx context.Context, req identity.IssueRequest, peer *identity.Identity, addr string) (identity.IssueResponse, error) {
	self, leaderID, leaderAddr := i.m.Leader()
	if !self {
		if leaderAddr == "" {
			return identity.IssueResponse{}, &identity.StatusError{Status: http.StatusServiceUnavailable, Message: "the swarm has no leader at present; try again"}
		}
		return i.m.client.ForwardIssue(ctx, leaderAddr, leaderID, i.m.cfg.Credentials, req, peer, addr)
	}
	snap, err := i.m.cfg.Store.Read(ctx)
	if err != nil {
		return identity.IssueResponse{}, fmt.Errorf("read the cluster: %w", err)
	}
	c := snap.Cluster()
	if c == nil {
		return identity.IssueResponse{}, &identity.StatusError{Status: http.StatusServiceUnavailable, Message: "the swarm is being created; try again"}
	}
	grant, err := identity.Authorise(c.JoinTokens, req, peer)
	if err != nil {
		return identity.IssueResponse{}, err
	}
	if snap.Node(grant.NodeID) != nil || grant.Renewal {
		return i.renew(ctx, c, grant, req)
	}
	// An external CA may be away: then nothing must be left of a machine that could not join.
	cert, err := i.sign(ctx, c, grant, grant.Role, req)
	if err != nil {
		return identity.IssueResponse{}, err
	}
	switch role, err := i.admit(ctx, c, grant, req.Availability, addr); {
	case err != nil:
		return identity.IssueResponse{}, err
	case role != grant.Role:
		return i.renew(ctx, c, grant, req)
	}
	return cert, nil
}

// renew answers a node that is in the store.
func (i *issuer) renew(ctx context.Context, c *cluster.Cluster, g identity.Grant, req identity.IssueRequest) (identity.IssueResponse, error) {
	role, err := i.admit(ctx, c, g, "", "")
	if err != nil {
		return identity.IssueResponse{}, err
	}
	return i.sign(ctx, c, g, role, req)
}

func (i *issuer) sign(ctx context.Context, c *cluster.Cluster, g identity.Grant, role identity.Role, req identity.IssueRequest) (identity.IssueResponse, error) {
	cert, err := i.m.authority.Sign(ctx, c, []byte(req.CSR), identity.Identity{NodeID: g.NodeID, ClusterID: c.ID, Role: role})
	if err != nil {
		return identity.IssueResponse{}, err
	}
	return identity.IssueResponse{Certificate: string(cert), NodeID: g.NodeID, Role: role}, nil
}

// admit makes sure that the node is in the store and gives the role its certificate is to carry. A newcomer's certificate is of a
// root of c.
func (i *issuer) admit(ctx context.Context, c *cluster.Cluster, g identity.Grant, avail swarm.NodeAvailability, addr string) (identity.Role, error) {
	role := g.Role
	_, err := i.m.cfg.Store.Update(ctx, func(snap *cluster.Snapshot) (*cluster.Txn, error) {
		if n := snap.Node(g.NodeID); n != nil {
			role = n.Role
			return &cluster.Txn{}, nil
		}
		if g.Renewal {
			return nil, identity.ErrRemoved
		}
		// From now on a rotation of the root waits for this node; one that has ended meanwhile did not.
		if now := snap.Cluster(); now == nil || !bytes.Equal(now.RootCA, c.RootCA) {
			return nil, &identity.StatusError{Status: http.StatusServiceUnavailable, Message: "the swarm's root CA has just been rotated; try again"}
		}
		return &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.CreateOf(newNode(g.NodeID, role, avail, addr))}}, nil
	})
	if refusal, ok := errors.AsType[*identity.StatusError](err); ok {
		return "", refusal // the node knows by its words what it means: see identity.ErrRemoved
	}
	if err != nil {
		return "", fmt.Errorf("admit node %s: %w", g.NodeID, err)
	}
	return role, nil
}

// newNode gives the object of a machine that has a certificate but no session yet.
func newNode(id string, role identity.Role, avail swarm.NodeAvailability, addr string) *cluster.Node {
	if avail == "" {
		avail = swarm.NodeAvailabilityActive
	}
	n := &cluster.Node{Role: role}
	n.ID = id
	n.Spec.Role, n.Spec.Availability = role, avail
	n.Spec.Labels = map[string]string{}
	n.Status = swarm.NodeStatus{State: swarm.NodeStateUnknown, Addr: addr}
	return n
}
