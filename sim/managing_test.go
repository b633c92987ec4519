package sim

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager"
	"github.com/miniswarm/miniswarm/manager/engineapi"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/raftstore"
)

// managing is what a daemon runs while its node is a manager. It comes and goes with the certificate's role, by the hand of the
// supervisor that package node has as well.
type managing struct {
	p       *process
	h       *host
	ctx     context.Context // ends with its work
	end     context.CancelCauseFunc
	store   *raftstore.Store
	raftID  uint64
	manager *manager.Manager
	api     *engineapi.Server
	pool    *http.Transport // to other managers
	done    chan struct{}
}

// managing gives the host's manager, nil while it is none.
func (h *host) managing() *managing {
	if p := h.process(); p != nil {
		return p.roles.Parts()
	}
	return nil
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

// open opens the host's store; peers are the members that the answer to a join named.
func (p *process) open(peers []protocol.Member) (*managing, error) {
	h := p.h
	log := h.w.logger.With("host", h.String())
	g := &managing{p: p, h: h, done: make(chan struct{})}
	g.ctx, g.end = context.WithCancelCause(p.ctx)
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

// Close closes a store that was not run.
func (g *managing) Close() error {
	g.end(nil)
	return g.store.Close()
}

// Run works until ctx ends, whose cause it returns, or the store fails. A killed daemon's store ends at once, any other one last.
func (g *managing) Run(ctx context.Context) error {
	h := g.h
	h.w.trace("%s: the manager runs as member %x", h, g.raftID)
	h.w.checks.follow(g)
	defer context.AfterFunc(ctx, func() { g.end(context.Cause(ctx)) })()
	err := g.run(g.ctx)
	h.w.trace("%s: the manager ended: %v", h, err)
	return err
}

func (g *managing) run(ctx context.Context) error {
	defer close(g.done)
	h := g.h
	defer g.end(nil)
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
	g.end(nil)
	_ = server.Close()
	parts.Wait()
	stopStore(nil)
	<-stored
	g.pool.CloseIdleConnections()
	return err
}
