package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/miniswarm/miniswarm/agent"
	"github.com/miniswarm/miniswarm/agent/docker"
	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/ingress"
	"github.com/miniswarm/miniswarm/ingress/names"
	"github.com/miniswarm/miniswarm/manager"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/raftstore"
)

const agentDir = "agent"

// member is everything that runs on a machine while it is part of a swarm.
type member struct {
	node   *Node
	nodeID string
	state  *state
	logger *slog.Logger

	store   *raftstore.Store // nil on a worker
	manager *manager.Manager // nil on a worker
	agent   *agent.Agent
	engine  *docker.Adapter
	mesh    *ingress.Mesh // nil without a data plane
	names   *names.Server // nil without a data plane

	// locked says that the keys cannot be opened: the agent and the data plane go on by themselves, and nothing else runs.
	locked bool
	halted chan struct{} // closed when run is to end; for what a locked member waits for

	transports *transports
	welcome    chan struct{} // closed at the first session
	once       sync.Once
	trust      chan protocol.Trust // capacity 1: what the leader said last of the root CA

	stop    context.CancelCauseFunc
	done    chan struct{}
	closing sync.Once // of the engine and the data plane

	mu    sync.Mutex
	known []protocol.ManagerAddr // guarded by mu; the managers as the cluster told last
	err   error                  // guarded by mu; why run ended
}

// newMember prepares the parts; run starts them.
func newMember(n *Node, st *state, first func() *cluster.Txn, peers []protocol.Member) (*member, error) {
	creds := n.credentials.Current()
	if creds == nil {
		return nil, errors.New("this node has no certificate; leave the swarm with --force and join again")
	}
	m := blankMember(n, st, creds.Identity.NodeID)
	if creds.Identity.Role == identity.Manager {
		if err := m.prepareManager(creds, first, peers); err != nil {
			return nil, err
		}
	}
	if err := m.prepareAgent(); err != nil {
		return nil, errors.Join(err, m.closeStore())
	}
	return m, nil
}

func blankMember(n *Node, st *state, nodeID string) *member {
	return &member{node: n, nodeID: nodeID, state: st, logger: n.cfg.Logger, done: make(chan struct{}), known: st.Managers, halted: make(chan struct{}),
		welcome: make(chan struct{}), trust: make(chan protocol.Trust, 1), transports: &transports{node: n, all: map[string]*http.Transport{}}}
}

// closeStore lets go of a store that was never run.
func (m *member) closeStore() error {
	if m.store == nil {
		return nil
	}
	return m.store.Close()
}

func (m *member) prepareManager(creds *identity.Credentials, first func() *cluster.Txn, peers []protocol.Member) error {
	key, older, err := m.node.vault.dataKeys()
	if err != nil {
		return err
	}
	transport := raftstore.NewHTTPTransport(raftstore.HTTPTransportConfig{
		TLS: func(nodeID string) *tls.Config {
			return identity.ClientTLS(m.node.credentials, identity.Manager, nodeID, "http/1.1")
		},
		Logger: m.logger})
	m.store, err = raftstore.Open(raftstore.Config{Dir: filepath.Join(m.node.cfg.StateDir, raftDir), NodeID: m.nodeID, ClusterID: creds.Identity.ClusterID,
		RaftID: m.state.RaftID, Addr: m.state.AdvertiseAddr, Bootstrap: first != nil, Peers: peers, Transport: transport, Key: key, OlderKeys: older, Logger: m.logger})
	if err != nil {
		return fmt.Errorf("open the store: %w", err)
	}
	m.manager, err = manager.New(manager.Config{NodeID: m.nodeID, Addr: m.state.AdvertiseAddr, Store: m.store, Credentials: m.node.credentials,
		Logger: m.logger, Bootstrap: first, EngineAPI: m.node.api.Cluster(), Now: m.node.cfg.Now})
	if err != nil {
		return errors.Join(err, m.closeStore())
	}
	return nil
}

// run works until ctx ends, or one of its parts does, which ends the others. The store ends last, so that what was
// acknowledged is on disk. The engine and the data plane are still open afterwards, for whoever cleans up: see
// closeParts.
func (m *member) run(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { close(m.halted) })()
	storeCtx, stopStore := context.WithCancel(context.WithoutCancel(ctx))
	defer stopStore()
	storeDone := make(chan error, 1)
	if m.store != nil {
		go func() { storeDone <- m.store.Run(storeCtx) }()
	} else {
		close(storeDone)
	}
	g, gctx := errgroup.WithContext(ctx)
	if m.manager != nil {
		listener, err := net.Listen("tcp", m.state.ListenAddr)
		if err != nil {
			stopStore()
			<-storeDone
			return fmt.Errorf("listen on the cluster port: %w; another process may have it: choose another with --listen-addr", err)
		}
		g.Go(func() error { return m.serve(gctx, listener) })
		g.Go(func() error { return m.manager.Run(gctx) })
		g.Go(func() error { return m.followLock(gctx) })
		g.Go(func() error {
			select {
			case err := <-storeDone:
				storeDone <- err
				return fmt.Errorf("the store stopped: %w", err)
			case <-gctx.Done():
				return nil
			}
		})
	}
	if !m.locked {
		g.Go(func() error { return m.renew(gctx) })
	}
	if m.mesh != nil {
		g.Go(func() error { return m.mesh.Run(gctx) })
	}
	g.Go(func() error { return m.agent.Run(gctx) })
	err := g.Wait()
	m.transports.close()
	stopStore()
	if serr := <-storeDone; serr != nil && !errors.Is(serr, context.Canceled) && err == nil {
		err = serr
	}
	if cause := context.Cause(ctx); cause != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return cause
	}
	return err
}

// serve answers the cluster port.
func (m *member) serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{Handler: m.manager.Handler(), TLSConfig: identity.ServerTLS(m.node.credentials, "http/1.1"), ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout: 2 * time.Minute, ErrorLog: slog.NewLogLogger(m.logger.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the cluster port %s: %w", m.state.ListenAddr, err)
	}
	return nil
}

// managers gives the managers known at present: a manager knows them from the raft group, a worker from its session.
func (m *member) managers() []protocol.ManagerAddr {
	if m.manager != nil {
		if all := m.manager.Managers(); len(all) > 0 {
			return all
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.known)
}

// joined is closed once a manager has accepted this node's session.
func (m *member) joined() <-chan struct{} { return m.welcome }

func (m *member) learnNode(*cluster.Node) { m.once.Do(func() { close(m.welcome) }) }

// learnManagers remembers the managers that a session named, on disk too: after a long absence they are how this node
// finds its cluster.
func (m *member) learnManagers(all []protocol.ManagerAddr) {
	if len(all) == 0 {
		return
	}
	m.mu.Lock()
	same := slices.Equal(m.known, all)
	m.known = slices.Clone(all)
	next := *m.state
	next.Managers = m.known
	m.mu.Unlock()
	if same {
		return
	}
	if err := next.save(m.node.cfg.StateDir); err != nil {
		m.logger.Warn("the managers' addresses could not be saved", "err", err)
	}
}

func (m *member) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

func (m *member) failure() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// awaitCluster waits until the first objects are committed and this manager can be used.
func (m *member) awaitCluster(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for {
		if snap := m.store.Snapshot(); snap.Cluster() != nil && m.manager.Dispatcher() != nil {
			return nil
		}
		select {
		case <-m.done:
			return m.failure()
		case <-ctx.Done():
			return fmt.Errorf("the new cluster has no leader yet: %w", ctx.Err())
		case <-poll.C:
		}
	}
}

// leaveWarning words what leaving by force would do to the managers (swarm-semantics, 10.4).
func (m *member) leaveWarning() string {
	const prefix = "You are attempting to leave the swarm on a node that is participating as a manager. "
	members := len(m.store.Members())
	if members <= 1 {
		return prefix + "Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. "
	}
	text := prefix
	if members-1 < members/2+1 || members <= 2 {
		text += fmt.Sprintf("Removing this node leaves %d managers out of %d. Without a Raft quorum your swarm will be inaccessible. ", members-1, members)
	} else {
		text += "Doing so may lose the consensus of your cluster. "
	}
	return text + "The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. Use `--force` to suppress this message."
}
