package sim

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"crypto/tls"

	"github.com/miniswarm/miniswarm/agent"
	"github.com/miniswarm/miniswarm/agent/docker/fake"
	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager"
	"github.com/miniswarm/miniswarm/manager/engineapi"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/raftstore"
)

// host is a machine: an engine with its containers, a disk, a clock, and at times the process of a daemon.
type host struct {
	w       *world
	i       int
	id      string // of the node
	manager bool
	engine  *fake.Engine
	mesh    *mesh
	creds   *identity.Store
	disk    *disk
	state   string // directory of what is not the store

	raftID  uint64            // set before the host starts
	peers   []protocol.Member // known when it joined
	skew    atomic.Int64      // of its clock, in nanoseconds
	wanted  atomic.Bool       // its daemon is to run
	frozen  atomic.Int32      // how many faults freeze it
	strikes strikes

	mu   sync.Mutex
	proc *process // guarded by mu; nil while no daemon runs
}

func (h *host) now() time.Time { return time.Now().Add(time.Duration(h.skew.Load())) }

// process gives the daemon's process, nil while none runs.
func (h *host) process() *process {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.proc
}

func (h *host) setProcess(p *process) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.proc = p
}

// process is one life of a daemon, made as package node makes it, but for what a machine gives.
type process struct {
	h       *host
	ctx     context.Context
	end     context.CancelCauseFunc
	store   *raftstore.Store // nil on a worker
	manager *manager.Manager
	api     *engineapi.Server
	agent   *agent.Agent
	server  *http.Server
	pool    *http.Transport // to other managers
	done    chan struct{}
	err     error // why it ended; read after done
}

// supervise runs one daemon after the other, as systemd does, until the world ends.
func (h *host) supervise(ctx context.Context) {
	for ctx.Err() == nil {
		if !h.wanted.Load() {
			_ = pause(ctx, 20*time.Millisecond)
			continue
		}
		p, err := h.start(ctx)
		if err != nil {
			h.w.unable(h, err)
			_ = pause(ctx, time.Second)
			continue
		}
		h.w.trace("%s: daemon started", h)
		h.w.checks.follow(p)
		<-p.done
		h.setProcess(nil)
		h.w.trace("%s: daemon ended: %v", h, p.err)
		if p.err != nil && strings.Contains(p.err.Error(), "impossible") {
			h.w.violate("I1: %s: %v", h, p.err)
		}
		_ = pause(ctx, 500*time.Millisecond)
	}
}

func (h *host) String() string {
	if h.manager {
		return fmt.Sprint("m", h.i)
	}
	return fmt.Sprint("w", h.i)
}

func (h *host) start(ctx context.Context) (*process, error) {
	p := &process{h: h, done: make(chan struct{})}
	p.ctx, p.end = context.WithCancelCause(ctx)
	log := h.w.logger.With("host", h.String())
	p.pool = &http.Transport{DialContext: h.dial, TLSClientConfig: identity.ClientTLS(h.creds, identity.Manager, "", "http/1.1"), TLSHandshakeTimeout: 5 * time.Second}
	if h.manager {
		if err := p.openManager(log); err != nil {
			return nil, err
		}
	}
	var err error
	p.agent, err = agent.New(agent.Config{NodeID: h.id, StateDir: h.state, Engine: h.w.engineOf(h), Mesh: h.mesh, Hostname: h.String(), Version: "sim", Logger: log,
		Managers: h.w.known(), DataAddr: fmt.Sprintf("10.0.0.%d", h.i+1),
		Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			raw, err := h.w.net.dial(ctx, h.i, addr)
			if err != nil {
				return nil, err
			}
			conn := tls.Client(raw, identity.ClientTLS(h.creds, identity.Manager, "", "http/1.1"))
			if err := conn.HandshakeContext(ctx); err != nil {
				_ = raw.Close()
				return nil, err
			}
			return conn, nil
		}})
	if err != nil {
		return nil, err
	}
	h.setProcess(p)
	go p.run(ctx)
	return p, nil
}

func (h *host) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	return h.w.net.dial(ctx, h.i, addr)
}

func (p *process) openManager(log *slog.Logger) error {
	h := p.h
	cfg := raftstore.Config{Dir: h.disk.dir, NodeID: h.id, ClusterID: clusterID, RaftID: h.raftID, Addr: address(h.i), Bootstrap: h.i == 0, Peers: h.peers,
		Key: make([]byte, raftstore.KeySize), Logger: log, Now: h.now, SnapshotEvery: snapshotEvery, KeepEntries: keepEntries,
		Hooks: raftstore.Hooks{At: h.at, Crashed: h.disk.crashed}}
	if h.w.messages != nil {
		cfg.Transport = h.w.messages.Transport()
	} else {
		cfg.Transport = raftstore.NewHTTPTransport(raftstore.HTTPTransportConfig{Dial: h.dial, Logger: log,
			TLS: func(nodeID string) *tls.Config {
				return identity.ClientTLS(h.creds, identity.Manager, nodeID, "http/1.1")
			}})
	}
	var err error
	if p.store, err = raftstore.Open(cfg); err != nil {
		return err
	}
	h.raftID = p.store.Status().RaftID
	if p.api, err = engineapi.New(engineapi.Config{Local: local{p: p}, Engine: "unix:///nowhere", Logger: log, Version: "sim"}); err != nil {
		return err
	}
	mc := manager.Config{NodeID: h.id, Addr: address(h.i), Store: p.store, Credentials: h.creds, Logger: log, EngineAPI: p.api.Cluster(), Now: h.now}
	if h.i == 0 {
		mc.Bootstrap = h.w.found
	}
	p.manager, err = manager.New(mc)
	return err
}

// at is what the machine does to its store at a point: nothing, mostly.
func (h *host) at(p raftstore.Point) error {
	for h.frozen.Load() > 0 && h.wanted.Load() {
		time.Sleep(10 * time.Millisecond)
	}
	return h.disk.at(p)
}

// run works until the process ends: of itself, when the store fails; stopped by the world's end; or killed.
func (p *process) run(ctx context.Context) {
	defer close(p.done)
	h := p.h
	var parts sync.WaitGroup
	failed := make(chan error, 4)
	part := func(f func(context.Context) error) {
		parts.Go(func() {
			if err := f(p.ctx); err != nil {
				failed <- err
			}
		})
	}
	storeCtx, stopStore := context.WithCancelCause(context.WithoutCancel(ctx))
	stored := make(chan error, 1)
	if h.manager {
		listener := h.w.net.listen(h.i)
		p.server = &http.Server{Handler: p.manager.Handler(), TLSConfig: identity.ServerTLS(h.creds, "http/1.1"), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
			ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), BaseContext: func(net.Listener) context.Context { return p.ctx }}
		go func() {
			err := p.store.Run(storeCtx)
			stored <- err
			failed <- fmt.Errorf("the store ended: %w", err)
		}()
		part(func(context.Context) error { _ = p.server.ServeTLS(listener, "", ""); return nil })
		part(p.manager.Run)
	} else {
		stored <- nil
	}
	part(p.agent.Run)
	select {
	case p.err = <-failed:
	case <-p.ctx.Done():
		p.err = context.Cause(p.ctx)
	}
	killed := errors.Is(p.err, raftstore.ErrCrash)
	var tasks []byte
	if killed { // what the agent has yet to write is lost
		tasks, _ = os.ReadFile(h.tasks())
		h.w.net.end(h.i, !h.disk.powerless.Load())
		stopStore(raftstore.ErrCrash)
	}
	p.end(p.err)
	if p.server != nil {
		_ = p.server.Close()
	}
	parts.Wait()
	stopStore(nil)
	<-stored
	p.pool.CloseIdleConnections()
	h.w.net.end(h.i, true)
	if killed && tasks != nil {
		if err := os.WriteFile(h.tasks(), tasks, 0o600); err != nil {
			h.w.violate("%s: %v", h, err)
		}
	}
}

func (h *host) tasks() string { return filepath.Join(h.state, "tasks.db") }

// kill ends the daemon as SIGKILL does and keeps it from coming back until revive.
func (h *host) kill() {
	h.wanted.Store(false)
	if p := h.process(); p != nil {
		p.end(raftstore.ErrCrash)
		<-p.done
	}
}

func (h *host) revive() { h.wanted.Store(true) }

// askToJoin has the leader give this manager its place in the raft group, as node does.
func (h *host) askToJoin(ctx context.Context) error {
	client := &http.Client{Transport: &http.Transport{DialContext: h.dial, TLSClientConfig: identity.ClientTLS(h.creds, identity.Manager, "", "http/1.1"), DisableKeepAlives: true}}
	body, _ := json.Marshal(protocol.JoinRequest{Addr: address(h.i)})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+address(0)+protocol.PathMembers, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("join: %s: %s", resp.Status, text)
	}
	var answer protocol.JoinResponse
	if err := json.Unmarshal(text, &answer); err != nil {
		return err
	}
	h.raftID, h.peers = answer.RaftID, answer.Members
	return nil
}

// credentials gives the host its certificate.
func (h *host) credentials(ca *identity.CA) error {
	role := identity.Worker
	if h.manager {
		role = identity.Manager
	}
	var err error
	if h.creds, err = identity.NewStore(identity.StoreConfig{Dir: h.state}); err != nil {
		return err
	}
	_, err = identity.Found(ca, h.creds, identity.Identity{NodeID: h.id, ClusterID: clusterID, Role: role}, 0)
	return err
}

var randomIDs = cluster.RandomIDs(rand.Reader)
