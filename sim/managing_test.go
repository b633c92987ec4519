package sim

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager"
	"github.com/miniswarm/miniswarm/manager/engineapi"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/raftstore"
)

// managing is what a daemon runs while its node is a manager. It comes and goes with the certificate's role, as in package node,
// whose manage, become and retire are told again here with this world's disk and network.
type managing struct {
	p       *process
	h       *host
	ctx     context.Context
	store   *raftstore.Store
	raftID  uint64
	manager *manager.Manager
	api     *engineapi.Server
	pool    *http.Transport // to other managers
	done    chan struct{}
}

const (
	rolePause       = time.Second
	removedPatience = 3 * time.Second
	joinPatience    = 15 * time.Second
	joinPause       = 200 * time.Millisecond
	joinAttempt     = 5 * time.Second
)

var errDemoted = errors.New("this node is a worker now")

// managing gives the host's manager, nil while it is none.
func (h *host) managing() *managing {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.manages
}

func (h *host) setManaging(g *managing) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.manages = g
}

// learnManagers remembers the managers that a session named.
func (h *host) learnManagers(all []protocol.ManagerAddr) {
	if len(all) == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.known = slices.Clone(all)
}

func (h *host) remembered() []protocol.ManagerAddr {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.known)
}

// others are the managers on other hosts.
func (h *host) others() []protocol.ManagerAddr {
	all := h.remembered()
	if g := h.managing(); g != nil {
		if now := g.manager.Managers(); len(now) > 0 {
			all = now
		}
	}
	return slices.DeleteFunc(all, func(a protocol.ManagerAddr) bool { return a.NodeID == h.id() })
}

// newRenewer makes what fetches another certificate when the node was promoted or demoted.
func (p *process) newRenewer(log *slog.Logger) (*identity.Renewer, error) {
	return identity.NewRenewer(identity.RenewerConfig{Store: p.h.creds, Now: p.h.now, Logger: log, Request: p.certify,
		Renewed: func(before, after identity.Identity) {
			if before.Role == after.Role {
				return
			}
			p.h.w.trace("%s has the certificate of a %s", p.h, after.Role)
			select {
			case p.roleChanged <- struct{}{}:
			default:
			}
		}})
}

func (p *process) learnNode(n *cluster.Node) {
	if n.Role != p.h.role() {
		p.renewer.RenewNow()
	}
}

// certify has a key certified by this manager, if it leads, or by another one.
func (p *process) certify(ctx context.Context, csrPEM []byte) (identity.IssueResponse, error) {
	h := p.h
	if g := h.managing(); g != nil {
		if self, _, _ := g.manager.Leader(); self {
			return g.manager.RenewHere(ctx, csrPEM)
		}
	}
	client := identity.NewClient(identity.ClientConfig{Now: h.now, Dial: h.dial, DialTimeout: 2 * time.Second})
	errs := []error{errors.New("no other manager is known")}
	all := h.others()
	if leader := p.agent.Leader(); leader != "" && leader != address(h.i) {
		all = slices.Insert(all, 0, protocol.ManagerAddr{Addr: leader}) // this manager's own log may be of before its removal
	}
	for _, a := range all {
		resp, err := client.RenewCertificate(ctx, a.Addr, h.creds, csrPEM)
		if err == nil {
			return resp, nil
		}
		errs = append(errs, err)
	}
	return identity.IssueResponse{}, errors.Join(errs...)
}

// manage runs the manager while the role is that of a manager, until ctx ends or it fails for another reason than a change of the role.
func (p *process) manage(ctx context.Context, first *managing) error {
	for ctx.Err() == nil {
		if p.h.role() != identity.Manager {
			p.letGo(first)
			first = nil
			p.h.retire()
			p.awaitRole(ctx, 0)
			continue
		}
		g := first
		if first = nil; g == nil {
			var err error
			if g, err = p.become(ctx); err != nil {
				if ctx.Err() == nil {
					p.h.w.trace("%s is to be a manager and cannot yet: %v", p.h, err)
					p.renewer.RenewNow()
					p.awaitRole(ctx, rolePause)
				}
				continue
			}
		}
		err := p.runManaging(ctx, g)
		switch {
		case ctx.Err() != nil || errors.Is(err, errDemoted):
			p.h.w.trace("%s: the manager ended: %v", p.h, err)
		case errors.Is(err, raftstore.ErrRemoved):
			p.h.w.trace("%s was removed from the raft group", p.h)
			p.renewer.RenewNow()
			p.awaitRole(ctx, removedPatience)
		default:
			p.letGo(first)
			return err
		}
	}
	p.letGo(first)
	return context.Cause(ctx)
}

// letGo closes a store that was not run; nil is none.
func (p *process) letGo(g *managing) {
	if g != nil {
		_ = g.store.Close()
	}
}

func (p *process) awaitRole(ctx context.Context, limit time.Duration) {
	var over <-chan time.Time
	if limit > 0 {
		t := time.NewTimer(limit)
		defer t.Stop()
		over = t.C
	}
	select {
	case <-ctx.Done():
	case <-p.roleChanged:
	case <-over:
	}
}

// become makes the node a member of the raft group. Between its steps a machine may stop.
func (p *process) become(ctx context.Context) (*managing, error) {
	h := p.h
	nap := func() error { return pause(ctx, 20*time.Millisecond) }
	answer, err := h.joinRaft(ctx)
	if err != nil {
		return nil, err
	}
	if err := nap(); err != nil {
		return nil, err
	}
	h.forgetRaft()
	if err := nap(); err != nil {
		return nil, err
	}
	h.raftID.Store(answer.RaftID)
	h.w.align()
	if err := nap(); err != nil {
		return nil, err
	}
	return p.open(answer.Members)
}

// retire forgets that the node was a manager.
func (h *host) retire() {
	h.raftID.Store(0)
	h.forgetRaft()
}

func (h *host) forgetRaft() {
	if err := os.RemoveAll(h.disk.dir); err != nil {
		h.w.violate("%s: %v", h, err)
	}
}

// runManaging runs the manager until ctx ends, the role changes, or it fails.
func (p *process) runManaging(ctx context.Context, g *managing) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	g.ctx = ctx
	p.h.setManaging(g)
	p.h.w.trace("%s: the manager runs as member %x", p.h, g.raftID)
	p.h.w.checks.follow(g)
	defer p.h.setManaging(nil)
	done := make(chan error, 1)
	go func() { done <- g.run(ctx) }()
	for {
		select {
		case err := <-done:
			return err
		case <-p.roleChanged:
			if p.h.role() != identity.Manager {
				cancel(errDemoted)
			}
		}
	}
}

// open opens the host's store; peers are the members that the answer to a join named.
func (p *process) open(peers []protocol.Member) (*managing, error) {
	h := p.h
	log := h.w.logger.With("host", h.String())
	g := &managing{p: p, h: h, ctx: p.ctx, done: make(chan struct{})}
	g.pool = &http.Transport{DialContext: h.dial, TLSClientConfig: identity.ClientTLS(h.creds, identity.Manager, "", "http/1.1"), TLSHandshakeTimeout: 5 * time.Second}
	cfg := raftstore.Config{Dir: h.disk.dir, NodeID: h.id(), ClusterID: clusterID, RaftID: h.raftID.Load(), Addr: address(h.i), Bootstrap: h.i == 0 && !h.w.founded.Load(), Peers: peers,
		Key: make([]byte, raftstore.KeySize), Logger: log, Now: h.now, SnapshotEvery: snapshotEvery, KeepEntries: keepEntries,
		Hooks: raftstore.Hooks{At: func(at raftstore.Point) error { return g.at(at) }, Crashed: h.disk.crashed}}
	if h.w.messages != nil {
		cfg.Transport = h.w.messages.Transport()
	} else {
		cfg.Transport = raftstore.NewHTTPTransport(raftstore.HTTPTransportConfig{Dial: h.dial, Logger: log,
			TLS: func(nodeID string) *tls.Config {
				return identity.ClientTLS(h.creds, identity.Manager, nodeID, "http/1.1")
			}})
	}
	if how := h.w.broken.forge; how != "" {
		cfg.Transport = &forger{Transport: cfg.Transport, how: how}
	}
	var err error
	if g.store, err = raftstore.Open(cfg); err != nil {
		return nil, err
	}
	g.raftID = g.store.Status().RaftID
	h.raftID.Store(g.raftID)
	if g.api, err = engineapi.New(engineapi.Config{Local: local{p: g}, Engine: "unix:///nowhere", Logger: log, Version: "sim"}); err != nil {
		return nil, err
	}
	mc := manager.Config{NodeID: h.id(), Addr: address(h.i), Store: g.store, Credentials: h.creds, Logger: log, EngineAPI: g.api.Cluster(), Now: h.now}
	if cfg.Bootstrap {
		mc.Bootstrap = h.w.found
	}
	g.manager, err = manager.New(mc)
	return g, err
}

// at is what the machine does to its store at a point: nothing, mostly.
func (g *managing) at(p raftstore.Point) error {
	h := g.h
	for h.frozen.Load() > 0 && h.wanted.Load() {
		time.Sleep(10 * time.Millisecond)
	}
	if p == raftstore.Apply {
		h.w.checks.applies(g)
	}
	return h.disk.at(p)
}

// run works until ctx ends, whose cause it returns, or the store fails. A killed daemon's store ends at once, any other one last.
func (g *managing) run(ctx context.Context) error {
	defer close(g.done)
	h := g.h
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	storeCtx, stopStore := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stopStore(nil)
	stored := make(chan error, 1)
	go func() { stored <- g.store.Run(storeCtx) }()
	listener := h.w.net.listen(h.i)
	server := &http.Server{Handler: g.manager.Handler(), TLSConfig: identity.ServerTLS(h.creds, "http/1.1"), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), BaseContext: func(net.Listener) context.Context { return ctx }}
	var parts sync.WaitGroup
	parts.Go(func() { _ = server.ServeTLS(listener, "", "") })
	parts.Go(func() { _ = g.manager.Run(ctx) })
	var err error
	select {
	case err = <-stored:
		stored <- err
		err = fmt.Errorf("the store ended: %w", err)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if errors.Is(err, raftstore.ErrCrash) {
		h.w.net.end(h.i, !h.disk.powerless.Load())
		stopStore(raftstore.ErrCrash)
	}
	cancel()
	_ = server.Close()
	parts.Wait()
	stopStore(nil)
	<-stored
	g.pool.CloseIdleConnections()
	return err
}

// joinRaft asks the leader, found by way of any manager that is known, for a place in the raft group.
func (h *host) joinRaft(ctx context.Context) (*protocol.JoinResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, joinPatience)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DialContext: h.dial, TLSClientConfig: identity.ClientTLS(h.creds, identity.Manager, "", "http/1.1"), DisableKeepAlives: true}}
	last := errors.New("no other manager is known")
	for {
		for _, m := range h.others() {
			answer, leader, err := h.askMembership(ctx, client, m.Addr)
			if answer == nil && leader != "" {
				answer, _, err = h.askMembership(ctx, client, leader)
			}
			if answer != nil {
				return answer, nil
			}
			if refused, ok := errors.AsType[*identity.StatusError](err); ok && refused.Status < 500 {
				return nil, err
			}
			last = err
		}
		if pause(ctx, joinPause) != nil {
			return nil, fmt.Errorf("join the managers: %w", last)
		}
	}
}

func (h *host) askMembership(ctx context.Context, client *http.Client, addr string) (answer *protocol.JoinResponse, leader string, err error) {
	ctx, cancel := context.WithTimeout(ctx, joinAttempt)
	defer cancel()
	body, err := json.Marshal(protocol.JoinRequest{Addr: address(h.i), Fresh: true})
	if err != nil {
		return nil, "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr+protocol.PathMembers, bytes.NewReader(body))
	if err != nil {
		return nil, "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return nil, "", err
	case resp.StatusCode == http.StatusMisdirectedRequest:
		return nil, resp.Header.Get(protocol.HeaderLeader), fmt.Errorf("%s does not lead", addr)
	case resp.StatusCode != http.StatusOK:
		return nil, "", &identity.StatusError{Status: resp.StatusCode, Message: string(text)}
	}
	answer = new(protocol.JoinResponse)
	return answer, "", json.Unmarshal(text, answer)
}
