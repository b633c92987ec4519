package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"github.com/miniswarm/miniswarm/agent"
	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/engineapi"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/node/metrics"
	"github.com/miniswarm/miniswarm/trouble"
)

// Config is what a Node works with. Zero fields have the defaults that DefaultConfig gives.
type Config struct {
	// StateDir holds everything the node keeps on disk.
	StateDir string
	// RunDir is for what must not reach a disk: the secrets and configs of containers. The engine must see it, and what is
	// mounted in it, under the same path.
	RunDir string
	// Socket is the path of the unix socket on which the Engine API is served.
	Socket string
	// Engine is the local Docker Engine, as a DOCKER_HOST value.
	Engine string
	// ListenAddr, AdvertiseAddr and DataPathAddr are used by init and join where the request names none.
	ListenAddr, AdvertiseAddr, DataPathAddr string
	// ManagerAddrs are addresses (host or host:port) at which managers may be found beside those that the node remembers: the way
	// back for a cluster all of whose addresses have changed.
	ManagerAddrs []string
	// DataPlane is false to leave the kernel of this machine alone: the control plane and containers work, published
	// ports and overlay networks do not.
	DataPlane bool
	// Version is reported to managers and by /version.
	Version string
	Logger  *slog.Logger
	// Now is the clock that certificates are judged by; nil means time.Now.
	Now func() time.Time
}

// Node is the daemon of one machine. Make it with New, run it with Run.
type Node struct {
	cfg         Config
	vault       *vault
	credentials *identity.Store
	ids         cluster.IDs
	api         *engineapi.Server
	// instance tells this run of the daemon from all others, of this machine and of machines copied from it.
	instance string
	metrics  *metrics.Metrics
	pages    http.Handler // about this node: see about

	changing sync.Mutex    // held while init, join, leave, unlock or recover change the membership
	failing  trouble.Log   // this node's part in the swarm, again and again
	broken   chan struct{} // told when the part in the swarm has failed for a reason that may pass; holds one

	mu     sync.Mutex
	root   context.Context      // guarded by mu; the context of Run, parent of every member
	member *member              // guarded by mu; nil while part of no swarm
	local  swarm.LocalNodeState // guarded by mu
	failed error                // guarded by mu; why local is error
	// becoming says that this machine is about to be a manager: init, or join as one, is under way.
	becoming bool         // guarded by mu
	beside   []netip.Addr // guarded by mu; what the machine had when it had the address that others look for, last: see successor
}

// New gives a node that is idle until Run. It creates the state directory.
func New(cfg Config) (*Node, error) {
	if cfg.Logger == nil || cfg.StateDir == "" || cfg.RunDir == "" || cfg.Socket == "" || cfg.Engine == "" {
		return nil, errors.New("node: state directory, run directory, socket, engine and logger must be given")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	for _, a := range cfg.ManagerAddrs {
		if _, err := identity.ParseAddr(a); err != nil {
			return nil, fmt.Errorf("node: %w", err)
		}
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("node: create the state directory: %w", err)
	}
	v := &vault{dir: cfg.StateDir}
	// A certificate that expired while the machine was off is the first thing that a member renews.
	creds, err := identity.NewStore(identity.StoreConfig{Dir: cfg.StateDir, Now: cfg.Now, AllowExpired: true, Sealer: v})
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	n := &Node{cfg: cfg, vault: v, credentials: creds, ids: cluster.RandomIDs(rand.Reader), local: swarm.LocalNodeStateInactive, broken: make(chan struct{}, 1)}
	n.instance = n.ids.Next()
	n.metrics = metrics.New(n.view)
	n.pages = n.about()
	n.api, err = engineapi.New(engineapi.Config{Local: n, Engine: cfg.Engine, Logger: cfg.Logger, Version: cfg.Version, About: n.pages})
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	return n, nil
}

// Run serves the socket and, while the machine is part of a swarm, its agent and manager, until ctx ends. Containers
// and kernel state outlive it.
func (n *Node) Run(ctx context.Context) error {
	lock, err := lockState(n.cfg.StateDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	// Whoever asks for a membership waits until the disk was asked for one.
	n.changing.Lock()
	if n.remembers() {
		n.setState(swarm.LocalNodeStatePending, nil)
	}
	listener, err := listenSocket(n.cfg.Socket)
	if err != nil {
		n.changing.Unlock()
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	n.mu.Lock()
	n.root = ctx
	n.mu.Unlock()
	server := &http.Server{Handler: n.api.Socket(), ReadHeaderTimeout: 10 * time.Second,
		ErrorLog: slog.NewLogLogger(n.cfg.Logger.Handler(), slog.LevelDebug), BaseContext: func(net.Listener) context.Context { return ctx }}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve %s: %w", n.cfg.Socket, err)
		}
		return nil
	})
	g.Go(func() error { return n.api.Run(gctx) })
	g.Go(func() error { n.takeUpAgain(gctx); return nil })
	g.Go(func() error { n.followAddress(gctx); return nil })
	g.Go(func() error {
		n.resumeLocked()
		n.changing.Unlock()
		<-gctx.Done()
		// Requests end first, so that nobody sees a half-stopped swarm; then the parts that served them.
		_ = server.Close()
		cancel()
		n.changing.Lock() // an init, join or leave under way ends with ctx
		defer n.changing.Unlock()
		if m := n.current(); m != nil {
			<-m.done
			return m.closeParts()
		}
		return nil
	})
	n.cfg.Logger.Info("daemon serves", "socket", n.cfg.Socket, "engine", n.cfg.Engine, "state", n.cfg.StateDir)
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// resumeLocked starts the membership that the disk remembers. What prevents it is shown as the node's error; the socket
// serves all the same, so that the machine can leave. The caller holds changing.
func (n *Node) resumeLocked() {
	if n.ending() {
		return
	}
	err := n.settleRecovery()
	if err == nil {
		err = n.resumeDisk()
	}
	switch {
	case err != nil:
		n.fails("this node could not resume its part in the swarm", err)
	case n.current() == nil: // an interrupted recovery had nothing to take up
		n.setState(swarm.LocalNodeStateInactive, nil)
	}
}

// remembers says whether the disk may know of a membership: until it is taken up nobody must be told that there is none.
func (n *Node) remembers() bool {
	return exists(filepath.Join(n.cfg.StateDir, stateFile)) || exists(filepath.Join(n.cfg.StateDir, recoveryDir))
}

// restart starts the membership st with the addresses that the machine has now.
func (n *Node) restart(st *state) error {
	changed, err := n.readdress(st)
	if err != nil {
		return err
	}
	if changed {
		if err := st.save(n.cfg.StateDir); err != nil {
			return err
		}
	}
	return n.start(st, nil, nil)
}

// resumeDisk starts the membership that the disk remembers, if there is one.
func (n *Node) resumeDisk() error {
	st, err := loadState(n.cfg.StateDir)
	if err != nil || st == nil {
		return err
	}
	switch err := n.openVault(); {
	case errors.Is(err, errLocked):
		return n.startLocked(st)
	case err != nil:
		return err
	}
	if _, err := n.credentials.Load(); err != nil {
		return err
	}
	return n.restart(st)
}

func (n *Node) setState(s swarm.LocalNodeState, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.local, n.failed = s, err
}

// start brings the member up under the context of Run. first gives the founding objects on the machine that ran init.
func (n *Node) start(st *state, first func() *cluster.Txn, peers []protocol.Member) error {
	if !n.serving() {
		return errors.New("the daemon is not running")
	}
	m, err := newMember(n, st, first, peers)
	if err != nil {
		return err
	}
	n.launch(m, swarm.LocalNodeStateActive)
	return nil
}

// launch has a member run under the context of Run.
func (n *Node) launch(m *member, local swarm.LocalNodeState) {
	n.mu.Lock()
	n.member, n.local, n.failed = m, local, nil
	ctx, cancel := context.WithCancelCause(n.root)
	n.mu.Unlock()
	m.stop = cancel
	go func() {
		defer close(m.done)
		err := m.run(ctx)
		if _, removed := errors.AsType[*agent.RemovedError](err); removed && ctx.Err() == nil {
			err = fmt.Errorf("%w; %s", err, m.rejoin())
			n.cfg.Logger.Error("this node is part of the swarm no longer", "err", err)
			n.setState(swarm.LocalNodeStateError, err)
			// The swarm runs this node's tasks elsewhere: they must not go on here as well.
			if cerr := m.clear(ctx); cerr != nil && ctx.Err() == nil {
				n.cfg.Logger.Error("what the swarm left on this machine was not all removed", "err", cerr)
				n.setState(swarm.LocalNodeStateError, errors.Join(err, cerr))
			}
			m.fail(err)
			return
		}
		m.fail(err)
		if err != nil && ctx.Err() == nil {
			n.fails("this node's part in the swarm failed", err)
		}
	}()
}

// serving says whether Run has begun and is not about to end.
func (n *Node) serving() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.root != nil && n.root.Err() == nil
}

// ending says whether Run is about to end.
func (n *Node) ending() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.root != nil && n.root.Err() != nil
}

// current gives the running member, nil if there is none.
func (n *Node) current() *member {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.member
}

// Info implements engineapi.Local.
func (n *Node) Info() swarm.Info {
	n.mu.Lock()
	m, info := n.member, swarm.Info{LocalNodeState: n.local}
	if n.failed != nil {
		info.Error = n.failed.Error()
	}
	n.mu.Unlock()
	if m == nil {
		return info
	}
	if m.locked {
		if info.Error == "" {
			info.Error = textLocked
		} // else it was unlocked, and could not start
		info.NodeAddr, _, _ = net.SplitHostPort(m.state.AdvertiseAddr)
		return info
	}
	info.NodeID = m.nodeID
	if why := m.estrangement(); why != "" && info.Error == "" {
		info.Error = why + "; " + cureStranger
	}
	if info.Error == "" && m.expired() {
		info.Error = "this node's certificate has expired; it is renewed as soon as a manager answers"
	}
	info.NodeAddr, _, _ = net.SplitHostPort(m.state.AdvertiseAddr)
	info.ControlAvailable = m.managing() != nil
	if why := m.refusal(); why != "" && info.Error == "" {
		info.Error = why
	}
	if info.Error == "" {
		info.Error = m.superseded()
	}
	for _, a := range m.managers() {
		info.RemoteManagers = append(info.RemoteManagers, swarm.Peer{NodeID: a.NodeID, Addr: a.Addr})
	}
	return info
}
