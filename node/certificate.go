package node

import (
	"context"
	"errors"
	"fmt"

	"github.com/docker/docker/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"github.com/miniswarm/miniswarm/agent"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/node/role"
)

// prepareRenewer makes what keeps the certificate fresh, and fetches another one when the role or the root CA changes.
func (m *member) prepareRenewer() (err error) {
	m.renewer, err = identity.NewRenewer(identity.RenewerConfig{Store: m.node.credentials, Now: m.node.cfg.Now, Logger: m.logger, Request: m.certify,
		Renewed: func(before, after identity.Identity) {
			m.agent.Redescribe()
			m.roles.Renewed(before, after)
		}})
	return err
}

// renew keeps the certificate fresh, and it and what is trusted in step with the cluster's root CA.
func (m *member) renew(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := m.renewer.Run(ctx)
		if errors.Is(err, identity.ErrRemoved) {
			return &agent.RemovedError{Reason: fmt.Sprintf("node %s is not part of this swarm: it was removed, and its certificate has expired", m.nodeID)}
		}
		return err
	})
	g.Go(func() error { return m.followTrust(ctx, m.renewer) })
	return g.Wait()
}

// certify has a key certified for this node: see [role.Renewal].
func (m *member) certify(ctx context.Context, csrPEM []byte) (identity.IssueResponse, error) {
	r := role.Renewal{Client: identity.NewClient(identity.ClientConfig{Now: m.node.cfg.Now, DialTimeout: dialTimeout}), Store: m.node.credentials,
		NodeID: m.nodeID, Addr: m.state.AdvertiseAddr, Managers: m.managers(), Leader: m.agent.Leader(), Expired: m.expired()}
	if g := m.managing(); g != nil {
		r.Own = g.manager
	}
	return r.Certify(ctx, csrPEM)
}

// expired says whether this node's certificate has expired.
func (m *member) expired() bool {
	c := m.node.credentials.Current()
	return c != nil && errors.Is(c.CheckTime(m.node.cfg.Now()), identity.ErrExpired)
}

// learnTrust passes on what the leader says is to be trusted; the latest counts.
func (m *member) learnTrust(t protocol.Trust) {
	select {
	case <-m.trust:
	default:
	}
	m.trust <- t // from the one session alone, so that there is room
}

// followTrust has this node trust what the cluster trusts, and renews its certificate when it is of another root than the one
// that certificates are issued by.
func (m *member) followTrust(ctx context.Context, r *identity.Renewer) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case t := <-m.trust:
			if err := m.adopt(t, r); err != nil {
				m.logger.Warn("the swarm's root CA could not be taken over", "err", err)
			}
		}
	}
}

func (m *member) adopt(t protocol.Trust, r *identity.Renewer) error {
	root, err := identity.ParseRoot([]byte(t.Root + t.Next))
	if err != nil {
		return err
	}
	issuer, err := identity.ParseRoot([]byte(t.Root))
	if t.Next != "" {
		issuer, err = identity.ParseRoot([]byte(t.Next))
	}
	if err != nil {
		return err
	}
	changed, err := m.node.credentials.Trust(root)
	if err != nil {
		// The certificate is of a root that is gone already. Those who are still trusted can give another.
		r.RenewNow()
		return fmt.Errorf("this node's certificate is renewed first: %w", err)
	}
	if changed {
		m.logger.Info("the swarm's root CA has changed", "trusted", 1+min(1, len(t.Next)), "digest", issuer.Digest())
		m.agent.Redescribe()
	}
	if own := m.node.credentials.Current(); own != nil && !sameIssuer(own.TLSInfo(), issuer.TLSInfo()) {
		r.RenewNow()
	}
	return nil
}

func sameIssuer(a, b swarm.TLSInfo) bool {
	return string(a.CertIssuerPublicKey) == string(b.CertIssuerPublicKey) && string(a.CertIssuerSubject) == string(b.CertIssuerSubject)
}
