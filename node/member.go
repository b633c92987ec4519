package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
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
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/node/role"
	"github.com/miniswarm/miniswarm/raftstore"
)

const agentDir = "agent"

// member is everything that runs on a machine while it is part of a swarm.
type member struct {
	node   *Node
	nodeID string
	// state is what the disk knows. Its addresses stay as they are; Managers and RaftID are guarded by mu.
	state  *state
	logger *slog.Logger

	agent   *agent.Agent
	engine  *docker.Adapter
	mesh    *ingress.Mesh // nil without a data plane
	names   *names.Server // nil without a data plane
	renewer *identity.Renewer
	roles   *role.Supervisor[*managing]

	// locked says that the keys cannot be opened: the agent and the data plane go on by themselves, and nothing else runs.
	locked bool
	halted chan struct{} // closed when run is to end; for what a locked member waits for

	transports *transports
	welcome    chan struct{} // closed at the first session
	once       sync.Once
	trust      chan protocol.Trust // of capacity 1: what the leader said last of the root CA

	stop    context.CancelCauseFunc
	done    chan struct{}
	closing sync.Once  // of the engine and the data plane
	saving  sync.Mutex // held while state is written

	mu      sync.Mutex
	refused string // guarded by mu; why the leader takes no session of this node, empty while it does
	err     error  // guarded by mu; why run ended
	// strange is since when managers refuse this node as a stranger, zero after a session; stranger says that this has lasted.
	strange  time.Time // guarded by mu
	stranger bool      // guarded by mu
}

// newMember prepares the parts; run starts them.
func newMember(n *Node, st *state, first func() *cluster.Txn, peers []protocol.Member) (*member, error) {
	creds := n.credentials.Current()
	if creds == nil {
		return nil, errors.New("this node has no certificate; leave the swarm with --force and join again")
	}
	m := blankMember(n, st, creds.Identity.NodeID)
	if err := m.prepareRenewer(); err != nil {
		return nil, err
	}
	// A machine that was promoted and has yet to become a member of the raft group has nothing to open.
	if creds.Identity.Role == identity.Manager && (first != nil || st.RaftID != 0 || raftstore.Exists(m.raftDir())) {
		g, err := m.openManaging(st.RaftID, first, peers)
		if err != nil {
			return nil, err
		}
		m.roles.StartWith(g)
	}
	if err := m.prepareAgent(); err != nil {
		return nil, errors.Join(err, m.managing().Close())
	}
	return m, nil
}

func blankMember(n *Node, st *state, nodeID string) *member {
	own := *st
	m := &member{node: n, nodeID: nodeID, state: &own, logger: n.cfg.Logger, done: make(chan struct{}), halted: make(chan struct{}), welcome: make(chan struct{}),
		trust: make(chan protocol.Trust, 1), transports: &transports{node: n, all: map[string]*http.Transport{}}}
	m.roles = newSupervisor(m)
	return m
}

// run works until ctx ends, or one of its parts does, which ends the others. The engine and the data plane are still open
// afterwards, for whoever cleans up: see closeParts.
func (m *member) run(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(gctx, func() { close(m.halted) })()
	if !m.locked {
		g.Go(func() error { return m.roles.Run(gctx) })
		g.Go(func() error { return m.renew(gctx) })
	}
	if m.mesh != nil {
		g.Go(func() error { return m.mesh.Run(gctx) })
	}
	g.Go(func() error { return m.agent.Run(gctx) })
	err := g.Wait()
	m.transports.close()
	if cause := context.Cause(ctx); cause != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return cause
	}
	return err
}

// managers gives the managers known at present: a manager knows them from the raft group, a worker from its session.
func (m *member) managers() []protocol.ManagerAddr {
	if g := m.managing(); g != nil {
		if all := g.manager.Managers(); len(all) > 0 {
			return all
		}
	}
	return m.remembered()
}

// remembered are the managers that the disk knows, from sessions.
func (m *member) remembered() []protocol.ManagerAddr {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.state.Managers)
}

// everywhere are all addresses at which a manager may be, this one's among them, but not those that it had before: nobody answers
// there.
func (m *member) everywhere() []protocol.ManagerAddr {
	all := append(m.others(), protocol.ManagerAddr{NodeID: m.nodeID, Addr: m.state.AdvertiseAddr})
	for _, a := range slices.Concat(m.remembered(), m.hinted()) {
		if !slices.Contains(all, a) && a.NodeID != m.nodeID {
			all = append(all, a)
		}
	}
	return all
}

// lookout is where the agent looks for managers at first. What the disk knows of the manager on this machine may be its former address,
// and where it is the only one nobody else tells the agent.
func (m *member) lookout() []protocol.ManagerAddr {
	all := append(m.remembered(), m.hinted()...)
	if m.managing() == nil {
		return all
	}
	return append(slices.DeleteFunc(all, func(a protocol.ManagerAddr) bool { return a.NodeID == m.nodeID }),
		protocol.ManagerAddr{NodeID: m.nodeID, Addr: m.state.AdvertiseAddr})
}

// hinted are the addresses that the daemon was told to look at; who is there they do not say.
func (m *member) hinted() (all []protocol.ManagerAddr) {
	for _, s := range m.node.cfg.ManagerAddrs {
		if addr, err := identity.ParseAddr(s); err == nil { // New has refused others
			all = append(all, protocol.ManagerAddr{Addr: addr})
		}
	}
	return all
}

// others are the managers on other machines.
func (m *member) others() []protocol.ManagerAddr {
	return slices.DeleteFunc(m.managers(), func(a protocol.ManagerAddr) bool { return a.NodeID == m.nodeID })
}

// joined is closed once a manager has accepted this node's session.
func (m *member) joined() <-chan struct{} { return m.welcome }

// learnManagers remembers the managers that a session named, on disk too: after a long absence they are how this node
// finds its cluster.
func (m *member) learnManagers(all []protocol.ManagerAddr) {
	if len(all) == 0 {
		return
	}
	m.mu.Lock()
	same := slices.Equal(m.state.Managers, all)
	m.mu.Unlock()
	if same {
		return
	}
	if err := m.remember(func(st *state) { st.Managers = slices.Clone(all) }); err != nil {
		m.logger.Warn("the managers' addresses could not be saved", "err", err)
	}
}

// learnEpoch remembers, on disk, that the cluster was recovered: its former managers are not followed any more.
func (m *member) learnEpoch(epoch uint64) error {
	return m.remember(func(st *state) { st.Epoch = max(st.Epoch, epoch) })
}

// remember changes what the disk knows of this membership.
func (m *member) remember(change func(*state)) error {
	m.saving.Lock()
	defer m.saving.Unlock()
	m.mu.Lock()
	change(m.state)
	next := *m.state
	m.mu.Unlock()
	return next.save(m.node.cfg.StateDir)
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
		if g := m.managing(); g != nil && g.store.Snapshot().Cluster() != nil && g.manager.Dispatcher() != nil {
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

// awaitRoot waits while a new cluster changes over to an external CA's root, so that whoever founded it is told join tokens that last. It
// takes a moment; should it fail the cluster works with the root that it has, and `node ls` and the log tell.
func (m *member) awaitRoot(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for {
		if g := m.managing(); g == nil || !g.store.Snapshot().Cluster().RootRotationInProgress {
			return
		}
		select {
		case <-m.done:
			return
		case <-ctx.Done():
			m.logger.Warn("the new swarm has not changed over to the external CA's root yet; join tokens will change when it has")
			return
		case <-poll.C:
		}
	}
}
