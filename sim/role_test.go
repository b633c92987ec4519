package sim

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/node/role"
)

// newRenewer makes what fetches another certificate when the node was promoted or demoted.
func (p *process) newRenewer(log *slog.Logger) (*identity.Renewer, error) {
	return identity.NewRenewer(identity.RenewerConfig{Store: p.h.creds, Now: p.h.now, Logger: log, Request: p.certify,
		Renewed: func(before, after identity.Identity) {
			if before.Role != after.Role {
				p.h.w.trace("%s has the certificate of a %s", p.h, after.Role)
			}
			p.roles.Renewed(before, after)
		}})
}

func (p *process) learnNode(n *cluster.Node) { p.roles.Learn(n.Role) }

// certify has a key certified by this manager, if it leads, or by another one.
func (p *process) certify(ctx context.Context, csrPEM []byte) (identity.IssueResponse, error) {
	h := p.h
	r := role.Renewal{Client: identity.NewClient(identity.ClientConfig{Now: h.now, Dial: h.dial, DialTimeout: 2 * time.Second}), Store: h.creds,
		NodeID: h.id(), Addr: address(h.i), Managers: h.others(), Leader: p.agent.Leader(), Expired: errors.Is(h.creds.Current().CheckTime(h.now()), identity.ErrExpired)}
	if g := h.managing(); g != nil {
		r.Own = g.manager
	}
	return r.Certify(ctx, csrPEM)
}

// Between the steps of a promotion a machine may stop.
func (p *process) nap() error { return pause(p.ctx, 20*time.Millisecond) }

// Role is what the certificate says.
func (p *process) Role() identity.Role { return p.h.role() }

// RenewNow has another certificate fetched.
func (p *process) RenewNow() { p.renewer.RenewNow() }

// Join asks for a place in the raft group.
func (p *process) Join(ctx context.Context) (*protocol.JoinResponse, error) {
	h := p.h
	client := &http.Client{Transport: &http.Transport{DialContext: h.dial, TLSClientConfig: identity.ClientTLS(h.creds, identity.Manager, "", "http/1.1"), DisableKeepAlives: true}}
	answer, err := role.Join(ctx, client, h.others, protocol.JoinRequest{Addr: address(h.i), Fresh: true})
	if err != nil {
		if ctx.Err() == nil {
			h.w.trace("%s is to be a manager and cannot yet: %v", h, err)
		}
		return nil, err
	}
	return answer, p.nap()
}

// Forget deletes the replica.
func (p *process) Forget() error {
	p.h.forgetRaft()
	return p.nap()
}

// Note writes to disk that this is a member.
func (p *process) Note(answer *protocol.JoinResponse) error {
	p.h.raftID.Store(answer.RaftID)
	p.h.w.align()
	return p.nap()
}

// Open opens the replica of a new member.
func (p *process) Open(answer *protocol.JoinResponse) (*managing, error) {
	g, err := p.open(answer.Members)
	if err != nil {
		p.h.w.trace("%s is to be a manager and cannot yet: %v", p.h, err)
	}
	return g, err
}

// Removed is told that the group has let this member go.
func (p *process) Removed(*managing) { p.h.w.trace("%s was removed from the raft group", p.h) }

// Retire forgets that the node was a manager.
func (p *process) Retire() error {
	p.h.retire()
	return nil
}
