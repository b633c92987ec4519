package sim

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
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
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/node/role"
	"github.com/miniswarm/miniswarm/raftstore"
)

// host is a machine: an engine with its containers, a disk, a clock, and at times the process of a daemon.
type host struct {
	w       *world
	i       int
	manager bool // at first
	engine  *fake.Engine
	mesh    *mesh
	disk    *disk

	raftID  atomic.Uint64 // on disk; 0 while it is no member of the raft group
	skew    atomic.Int64  // of its clock, in nanoseconds
	wanted  atomic.Bool   // its daemon is to run
	frozen  atomic.Int32  // how many faults freeze it
	strikes strikes

	replacing atomic.Bool // see replace

	// These change only while no daemon runs.
	node  atomic.Pointer[string] // the node's id
	creds *identity.Store
	state string // directory of what is not the store

	mu    sync.Mutex
	proc  *process               // guarded by mu; nil while no daemon runs
	known []protocol.ManagerAddr // guarded by mu; on disk: the managers that it was told of last
}

// id is that of the node. A machine that was removed and joined anew has another.
func (h *host) id() string { return *h.node.Load() }

func (h *host) setID(id string) { h.node.Store(&id) }

// role is what the certificate says.
func (h *host) role() identity.Role { return h.creds.Current().Identity.Role }

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

// process is one life of a daemon, made as package node makes it, but for what a machine gives. To its supervisor it is the machine.
type process struct {
	h       *host
	ctx     context.Context
	end     context.CancelCauseFunc
	agent   *agent.Agent
	renewer *identity.Renewer
	roles   *role.Supervisor[*managing]
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
	p.roles = role.New(role.Config[*managing]{Machine: p, NodeID: h.id(), Addr: address(h.i), Logger: log})
	var err error
	if h.role() == identity.Manager && (h.i == 0 && !h.w.founded.Load() || h.raftID.Load() != 0) {
		first, err := p.open(nil)
		if err != nil {
			return nil, err
		}
		p.roles.StartWith(first)
	}
	if p.renewer, err = p.newRenewer(log); err != nil {
		return nil, err
	}
	p.agent, err = agent.New(agent.Config{NodeID: h.id(), StateDir: h.state, Engine: h.w.engineOf(h), Mesh: h.mesh, Hostname: h.String(), Version: "sim", Logger: log,
		Managers: h.remembered(), DataAddr: fmt.Sprintf("10.0.0.%d", h.i+1), OnNode: p.learnNode, OnManagers: h.learnManagers,
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
	part(p.roles.Run)
	part(p.renewer.Run)
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
	}
	p.end(p.err)
	parts.Wait()
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
	_, err = identity.Found(ca, h.creds, identity.Identity{NodeID: h.id(), ClusterID: clusterID, Role: role}, 0)
	return err
}

var randomIDs = cluster.RandomIDs(rand.Reader)
