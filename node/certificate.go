package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/docker/docker/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"github.com/miniswarm/miniswarm/agent"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/identity"
)

// prepareRenewer makes what keeps the certificate fresh, and fetches another one when the role or the root CA changes.
func (m *member) prepareRenewer() (err error) {
	m.renewer, err = identity.NewRenewer(identity.RenewerConfig{Store: m.node.credentials, Now: m.node.cfg.Now, Logger: m.logger, Request: m.certify,
		Renewed: func(before, after identity.Identity) {
			m.agent.Redescribe()
			m.renewed(before, after)
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

// certify has a key certified for this node: by this manager if it leads, else by any manager that can be reached. A manager
// whose certificate has expired may find that those of all others have expired as well, so that nobody leads.
func (m *member) certify(ctx context.Context, csrPEM []byte) (identity.IssueResponse, error) {
	g := m.managing()
	if g != nil {
		if self, _, _ := g.manager.Leader(); self {
			return g.manager.RenewHere(ctx, csrPEM)
		}
	}
	client := identity.NewClient(identity.ClientConfig{Now: m.node.cfg.Now, DialTimeout: dialTimeout})
	var errs []error
	refused := false
	leader := m.agent.Leader()
	all := m.managers()
	if leader != "" && leader != m.state.AdvertiseAddr && !slices.ContainsFunc(all, func(a protocol.ManagerAddr) bool { return a.Addr == leader }) {
		all = append(all, protocol.ManagerAddr{Addr: leader}) // this manager's own log may be of before a recovery
	}
	// The leader answers for itself; another manager may be the one whose machine is dead.
	slices.SortStableFunc(all, func(a, b protocol.ManagerAddr) int { return cmp.Compare(notFirst(a, leader), notFirst(b, leader)) })
	for _, a := range all {
		if a.NodeID == m.nodeID {
			continue // would only point to the leader
		}
		resp, err := client.RenewCertificate(ctx, a.Addr, m.node.credentials, csrPEM)
		if err == nil {
			return resp, nil
		}
		errs = append(errs, err)
		if answer, ok := errors.AsType[*identity.StatusError](err); ok && answer.Status < 500 {
			refused = true
		}
	}
	if g == nil || refused || !m.expired() {
		if len(errs) == 0 {
			errs = append(errs, errors.New("no manager is known that could renew the certificate"))
		}
		return identity.IssueResponse{}, errors.Join(errs...)
	}
	resp, err := g.manager.RenewAlone(csrPEM)
	if err != nil {
		err = errors.Join(append(errs, err)...)
	}
	return resp, err
}

func notFirst(a protocol.ManagerAddr, leader string) int {
	if a.Addr == leader {
		return 0
	}
	return 1
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
