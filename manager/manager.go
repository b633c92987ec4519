package manager

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/dispatcher"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/orchestrator"
	"github.com/miniswarm/miniswarm/raftstore"
	"github.com/miniswarm/miniswarm/trouble"
)

// Store is what a manager needs of its replica of the store; *raftstore.Store is one.
type Store interface {
	Snapshot() *cluster.Snapshot
	Read(ctx context.Context) (*cluster.Snapshot, error)
	Update(ctx context.Context, fn func(*cluster.Snapshot) (*cluster.Txn, error)) (uint64, error)
	Propose(ctx context.Context, txn *cluster.Txn) (uint64, error)
	Watch(buffer int) *raftstore.Watch
	Status() raftstore.Status
	Leadership() raftstore.Leadership
	Reachable(raftID uint64) bool
	Members() []protocol.Member
	LeaderChanges() <-chan raftstore.Leadership
	AddMember(ctx context.Context, m protocol.Member) (protocol.Member, error)
	RemoveMember(ctx context.Context, raftID uint64) error
	Handler() http.Handler
}

// Config is what a Manager works with.
type Config struct {
	NodeID string
	// Addr is the host:port at which other machines reach this manager's cluster port.
	Addr        string
	Store       Store
	Credentials *identity.Store
	Logger      *slog.Logger
	// Bootstrap gives the first objects of a new cluster; nil except on the manager that ran init.
	Bootstrap func() *cluster.Txn
	// EngineAPI serves the swarm part of the Engine API for requests that other managers forward.
	EngineAPI http.Handler
	// HeartbeatPeriod overrides the cluster's setting where positive, for tests.
	HeartbeatPeriod time.Duration
	// Now is the clock that plans are made by and certificates are made and judged by; nil means the system's.
	Now func() time.Time
	// About answers GET /metrics, /healthz and /readyz about this machine, for nodes of the cluster; nil: not found.
	About http.Handler
	// Passed is told how long a pass of the leader's loop took and how many changes it stored, and must return at once; nil
	// is not called.
	Passed func(took time.Duration, changes int)
}

// watchBuffer is how many batches of events a follower of the store may lag before its watch ends and it starts anew.
const watchBuffer = 4096

// wellAfter is how long the leader's loops must have run for their end to be trouble of its own, and not the former one's going on.
const wellAfter = time.Minute

// Manager is one manager. Its methods may be called concurrently.
type Manager struct {
	cfg    Config
	ids    cluster.IDs
	client *identity.Client
	// authority signs certificates and plans rotations of the root CA.
	authority *identity.Authority
	handler   http.Handler

	decisions *decisionLog
	counters  dispatcher.Counters
	passing   atomic.Int64 // when the pass under way began, in Unix nanoseconds; 0 between passes

	mu         sync.Mutex
	dispatcher *dispatcher.Dispatcher // guarded by mu; nil while not leading
}

// ErrNotLeader is returned by what only the leader can do.
var ErrNotLeader = errors.New("this manager is not the leader")

// New gives a manager that is idle until Run.
func New(cfg Config) (*Manager, error) {
	if cfg.NodeID == "" || cfg.Store == nil || cfg.Credentials == nil || cfg.Logger == nil {
		return nil, errors.New("manager: node id, store, credentials and logger must be given")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	m := &Manager{cfg: cfg, ids: cluster.RandomIDs(rand.Reader), client: identity.NewClient(identity.ClientConfig{Now: cfg.Now}), decisions: newDecisionLog()}
	var err error
	if m.authority, err = identity.NewAuthority(identity.AuthorityConfig{Store: cfg.Credentials, Now: cfg.Now, Logger: cfg.Logger}); err != nil {
		return nil, fmt.Errorf("manager: %w", err)
	}
	h, err := m.newHandler()
	if err != nil {
		return nil, fmt.Errorf("manager: %w", err)
	}
	m.handler = h
	return m, nil
}

// Handler serves the cluster port; see the package comment for its paths.
func (m *Manager) Handler() http.Handler { return m.handler }

// Run follows the leadership of the store until ctx ends: whenever this manager leads, it runs a term.
func (m *Manager) Run(ctx context.Context) error {
	changes := m.cfg.Store.LeaderChanges()
	var end context.CancelFunc
	var over chan struct{}
	var running uint64 // the term that is run
	stop := func() {
		if end != nil {
			end()
			<-over
			end = nil
		}
	}
	defer stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case l, ok := <-changes:
			if !ok {
				return nil
			}
			if l.Leader && end != nil && l.Term == running {
				continue // no other leader, but another address of this one
			}
			stop()
			if !l.Leader {
				continue
			}
			running = l.Term
			m.cfg.Logger.Info("leading", "node", m.cfg.NodeID, "term", l.Term)
			term, cancel := context.WithCancel(ctx)
			end, over = cancel, make(chan struct{})
			go func(done chan struct{}) {
				defer close(done)
				m.term(term, l)
				m.cfg.Logger.Info("no longer leading", "node", m.cfg.NodeID, "term", l.Term)
			}(over)
		}
	}
}

// term runs the leader's parts until ctx ends, anew whenever one of them fails.
func (m *Manager) term(ctx context.Context, l raftstore.Leadership) {
	former := dispatcher.Former{NodeID: l.FormerNodeID, Heard: l.FormerHeard}
	var failing trouble.Log
	for ctx.Err() == nil {
		began := time.Now()
		err := m.lead(ctx, former)
		former = dispatcher.Former{} // was heard or judged meanwhile
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > wellAfter {
			failing.Over(time.Now())
		}
		if tell, lasting := failing.Again(time.Now(), err.Error()); tell {
			m.cfg.Logger.Warn("the leader's loops ended and start anew", "since", lasting.Round(time.Second), "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryPause):
		}
	}
}

// lead runs the loop and the dispatcher until one of them ends.
func (m *Manager) lead(ctx context.Context, former dispatcher.Former) error {
	if err := m.found(ctx); err != nil {
		return err
	}
	d := dispatcher.New(dispatcher.Config{Store: m.cfg.Store, Logger: m.cfg.Logger, IDs: m.ids, Managers: m.Managers, Former: former, Period: m.cfg.HeartbeatPeriod, Counters: &m.counters})
	watch := m.cfg.Store.Watch(watchBuffer)
	defer watch.Close()
	m.setDispatcher(d)
	defer m.setDispatcher(nil)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.Run(ctx, watch.Start, watch.Events()) })
	g.Go(func() error { return m.plan(ctx) })
	g.Go(func() error { return m.watchRotation(ctx, d) })
	g.Go(func() error { return m.keepRoles(ctx) })
	return g.Wait()
}

// keepRoles makes nodes what they are to be. A watch that ended because it lagged begins anew.
func (m *Manager) keepRoles(ctx context.Context) error {
	r := &roles{store: m.cfg.Store, logger: m.cfg.Logger, now: time.Now}
	for {
		watch := m.cfg.Store.Watch(watchBuffer)
		err := r.run(ctx, watch)
		watch.Close()
		if !errors.Is(err, errWatchEnded) || !errors.Is(watch.Err(), raftstore.ErrLagged) {
			return err
		}
	}
}

// plan runs the loop around Next. A loop that was busy for so long that its watch ended starts anew by itself: agents
// need not notice.
func (m *Manager) plan(ctx context.Context) error {
	for {
		watch := m.cfg.Store.Watch(watchBuffer)
		l := &loop{store: m.cfg.Store, planner: orchestrator.New(orchestrator.Options{}), watch: watch, ids: m.ids,
			logger: m.cfg.Logger, decisions: m.decisions, now: m.cfg.Now, began: m.passBegan, ended: m.passEnded}
		err := l.run(ctx, watch.Start)
		watch.Close()
		if !errors.Is(err, errWatchEnded) || !errors.Is(watch.Err(), raftstore.ErrLagged) {
			return err
		}
		m.cfg.Logger.Warn("planning fell behind the store and starts anew")
	}
}

func (m *Manager) passBegan() { m.passing.Store(time.Now().UnixNano()) }

func (m *Manager) passEnded(changes int) {
	began := m.passing.Swap(0)
	if m.cfg.Passed != nil {
		m.cfg.Passed(time.Since(time.Unix(0, began)), changes)
	}
}

// Passing is for how long the leader's loop has been at its present pass, 0 between passes. A pass ends when its changes are
// stored, and at the latest with the term.
func (m *Manager) Passing() time.Duration {
	if began := m.passing.Load(); began != 0 {
		return time.Since(time.Unix(0, began))
	}
	return 0
}

// Counters count what this manager's dispatchers have done, in all its terms.
func (m *Manager) Counters() *dispatcher.Counters { return &m.counters }

// found creates the first objects of a new cluster.
func (m *Manager) found(ctx context.Context) error {
	if m.cfg.Bootstrap == nil || m.cfg.Store.Snapshot().Cluster() != nil {
		return nil
	}
	_, err := m.cfg.Store.Update(ctx, func(snap *cluster.Snapshot) (*cluster.Txn, error) {
		if snap.Cluster() != nil {
			return &cluster.Txn{}, nil
		}
		txn := m.cfg.Bootstrap()
		for i := range txn.Changes {
			if n, ok := txn.Changes[i].Object.(*cluster.Node); ok && n.ID == m.cfg.NodeID {
				first := *n
				first.RaftID, first.ManagerAddr = m.cfg.Store.Status().RaftID, m.cfg.Addr
				txn.Changes[i].Object = &first
			}
		}
		return txn, nil
	})
	if err != nil {
		return fmt.Errorf("create the first objects of the cluster: %w", err)
	}
	return nil
}

func (m *Manager) setDispatcher(d *dispatcher.Dispatcher) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dispatcher = d
}

// Dispatcher is the dispatcher of the present term, nil while this manager does not lead.
func (m *Manager) Dispatcher() *dispatcher.Dispatcher {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dispatcher
}

// Managers tells the addresses of all managers, for agents and for followers that look for the leader.
func (m *Manager) Managers() []protocol.ManagerAddr {
	var out []protocol.ManagerAddr
	for _, mem := range m.cfg.Store.Members() {
		out = append(out, protocol.ManagerAddr{NodeID: mem.NodeID, Addr: mem.Addr})
	}
	return out
}

// Leader tells whether this manager leads, and else who does; addr is empty when there is no leader.
func (m *Manager) Leader() (self bool, nodeID, addr string) {
	l := m.cfg.Store.Leadership()
	return l.LeaderNodeID == m.cfg.NodeID, l.LeaderNodeID, l.LeaderAddr // l.Leader comes a little later, and nobody is to forward meanwhile
}

// TaskLogs reads one task's log from its node, through the dispatcher; see [dispatcher.Dispatcher.TaskLogs].
func (m *Manager) TaskLogs(ctx context.Context, nodeID string, req protocol.LogRequest, each func(protocol.LogMessage) error) error {
	d := m.Dispatcher()
	if d == nil {
		return ErrNotLeader
	}
	return d.TaskLogs(ctx, nodeID, req, each)
}

// Dial opens a stream to a node's agent, through the dispatcher; see [dispatcher.Dispatcher.Dial].
func (m *Manager) Dial(ctx context.Context, nodeID string) (net.Conn, error) {
	d := m.Dispatcher()
	if d == nil {
		return nil, ErrNotLeader
	}
	return d.Dial(ctx, nodeID)
}

// Reachability says whether the raft group hears from a manager; only the leader hears from all. One that has just become a member, and has
// yet to connect and catch up, is neither lost nor found.
func (m *Manager) Reachability(nodeID string) swarm.Reachability {
	if nodeID == m.cfg.NodeID {
		return swarm.ReachabilityReachable
	}
	return reachability(m.cfg.Store.Members(), m.cfg.Store.Reachable, nodeID)
}

func reachability(members []protocol.Member, reachable func(raftID uint64) bool, nodeID string) swarm.Reachability {
	for _, m := range members {
		switch {
		case m.NodeID != nodeID:
		case reachable(m.RaftID):
			return swarm.ReachabilityReachable
		case m.Learner:
			return swarm.ReachabilityUnknown
		}
	}
	return swarm.ReachabilityUnreachable
}
