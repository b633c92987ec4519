package dispatcher

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/trouble"
)

// Store is what the dispatcher needs of the replicated store on the leader.
type Store interface {
	// Snapshot is the newest applied state.
	Snapshot() *cluster.Snapshot
	// Read is a state that has everything acknowledged before the call; it fails on a leader that was deposed.
	Read(ctx context.Context) (*cluster.Snapshot, error)
	// Propose commits a transaction.
	Propose(ctx context.Context, txn *cluster.Txn) (uint64, error)
}

// Config is what a Dispatcher works with.
type Config struct {
	Store  Store
	Logger *slog.Logger
	IDs    cluster.IDs
	// Managers tells the present managers' addresses, for agents.
	Managers func() []protocol.ManagerAddr
	// Former is the leader before this one.
	Former Former
	// Period is the heartbeat period; 0 is what the cluster's spec says, now and whenever it changes. A node silent for
	// three of them is DOWN.
	Period time.Duration
	// Linger is how long a withdrawn replica still runs after every node has stopped sending to it (default 200 ms):
	// the time for packets on their way.
	Linger time.Duration
	// AckTimeout bounds the wait for acknowledgements before a stop (default 3 s).
	AckTimeout time.Duration
	// Counters are added to; nil: nobody looks at them.
	Counters *Counters
}

// Counters count what dispatchers do, also over several terms. The zero value is ready.
type Counters struct {
	// Sessions were opened, Heartbeats and Reports (messages on tasks) received, Assignments and Meshes (messages with
	// changes for a node) sent, and Lost nodes called DOWN.
	Sessions, Heartbeats, Reports, Assignments, Meshes, Lost atomic.Uint64
}

// Former is the node that led before and when its manager was last heard from, by raft: its daemon was silent from then on,
// not only since another one leads. The zero value is none.
type Former struct {
	NodeID string
	Heard  time.Time
}

const (
	defaultPeriod     = time.Second
	defaultLinger     = 200 * time.Millisecond
	defaultAckTimeout = 3 * time.Second
	// minPeriod keeps a heartbeat period that somebody set by mistake from being all that the cluster does.
	minPeriod = 100 * time.Millisecond
	// missed is how many periods of silence make a node DOWN, and how many beats make it suspect; swarm's grace.
	missed = 3
	// beats is how often an agent shows itself in one heartbeat period.
	beats = 4
)

// Dispatcher serves the sessions of all agents while this manager leads. Make one for each term of leadership: what
// it knows of nodes' silence begins with it.
type Dispatcher struct {
	cfg Config
	// epoch is what sessions count time from, so that no change of the machine's clock looks like silence.
	epoch time.Time
	// life ends with Run, and every session with it.
	life context.Context
	end  context.CancelCauseFunc
	// settle wakes who watches the holds (capacity 1), retime who watches for silence when the period changed.
	settle, retime chan struct{}
	unstored       trouble.Log // which nodes are down could not be stored

	mu       sync.Mutex
	sessions map[string]*session    // guarded by mu; by node id
	mesh     *meshTable             // guarded by mu; nil before Run
	holds    map[string]*hold       // guarded by mu; by task id
	heard    map[string]time.Time   // guarded by mu; last sign of a node's life, for nodes without a session
	rivals   map[string]time.Time   // guarded by mu; when it was last logged that two machines are this node
	logs     map[string]*logRelay   // guarded by mu; by request id
	calls    map[string]*call       // guarded by mu; by id; streams that agents have yet to open
	streams  map[*nodeStream]bool   // guarded by mu; those that stand
	period   time.Duration          // guarded by mu; the heartbeat period in force
	managers []protocol.ManagerAddr // guarded by mu; as agents are told, replaced and never modified
	began    time.Time              // guarded by mu; nobody's silence is counted from before, but for the former leader's
	former   Former                 // guarded by mu; zero when its silence is counted like everybody's
	closing  bool                   // guarded by mu
	serving  sync.WaitGroup
}

// ErrStopped is the end of a dispatcher whose manager no longer leads.
var ErrStopped = errors.New("dispatcher is stopped")

// New gives a dispatcher that is idle until Run. It refuses sessions until then.
func New(cfg Config) *Dispatcher {
	cfg.Linger = cmp.Or(cfg.Linger, defaultLinger)
	cfg.AckTimeout = cmp.Or(cfg.AckTimeout, defaultAckTimeout)
	if cfg.Counters == nil {
		cfg.Counters = &Counters{}
	}
	d := &Dispatcher{cfg: cfg, epoch: time.Now(), settle: make(chan struct{}, 1), retime: make(chan struct{}, 1), sessions: map[string]*session{},
		holds: map[string]*hold{}, heard: map[string]time.Time{}, rivals: map[string]time.Time{}, logs: map[string]*logRelay{},
		calls: map[string]*call{}, streams: map[*nodeStream]bool{}}
	d.life, d.end = context.WithCancelCause(context.Background())
	return d
}

// Run serves until ctx ends or events is closed, then ends every session and waits for it. start is the state that
// events continue from.
func (d *Dispatcher) Run(ctx context.Context, start *cluster.Snapshot, events <-chan []cluster.Event) error {
	managers := d.cfg.Managers()
	d.mu.Lock()
	d.mesh, d.began, d.period, d.managers = newMeshTable(start), time.Now(), d.periodOf(start.Cluster()), managers
	d.former = d.cfg.Former.since(d.began, d.period)
	d.mu.Unlock()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.follow(ctx, events) })
	g.Go(func() error { return d.watchSilence(ctx) })
	g.Go(func() error { return d.watchHolds(ctx) })
	err := g.Wait()
	d.mu.Lock()
	d.closing = true
	d.mu.Unlock()
	d.end(ErrStopped)
	d.serving.Wait()
	return err
}

// periodOf is the heartbeat period that a cluster asks for.
func (d *Dispatcher) periodOf(c *cluster.Cluster) time.Duration {
	period := d.cfg.Period
	if period <= 0 && c != nil {
		period = c.Spec.Dispatcher.HeartbeatPeriod
	}
	if period <= 0 {
		period = defaultPeriod
	}
	return max(period, minPeriod)
}

// follow keeps the mesh table in step with the store and wakes the sessions concerned.
func (d *Dispatcher) follow(ctx context.Context, events <-chan []cluster.Event) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case batch, ok := <-events:
			if !ok {
				return ErrStopped
			}
			d.observe(batch)
			if slices.ContainsFunc(batch, concernsManagers) {
				// At once: the managers that a node knows of may be about to go, and then it would find none of the others.
				d.listManagers()
			}
		}
	}
}

// concernsManagers says whether a change may be that of a manager that came, moved or went.
func concernsManagers(ev cluster.Event) bool {
	if ev.Kind != cluster.KindNode {
		return false
	}
	before, _ := ev.Old.(*cluster.Node)
	after, _ := ev.New.(*cluster.Node)
	if before == nil || after == nil {
		return true
	}
	return before.RaftID != after.RaftID || before.ManagerAddr != after.ManagerAddr
}

// observe takes in committed changes. An event only says what to look at: the state that is looked at is taken under
// the lock, so that it is never older than what a session has acted upon meanwhile.
func (d *Dispatcher) observe(batch []cluster.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	snap := d.cfg.Store.Snapshot()
	before := d.mesh.seq
	wake := map[string]bool{}
	everyone := false
	for _, ev := range batch {
		d.mesh.observe(ev, snap)
		switch ev.Kind {
		case cluster.KindTask:
			for _, o := range [2]cluster.Object{ev.Old, ev.New} {
				if t, ok := o.(*cluster.Task); ok && t.NodeID != "" {
					wake[t.NodeID] = true
				}
			}
			if t := snap.Task(ev.ID()); t == nil || cluster.Terminal(t.Status.State) {
				delete(d.holds, ev.ID())
			}
		case cluster.KindNode:
			wake[ev.ID()] = true
			if ev.New == nil {
				delete(d.heard, ev.ID())
				delete(d.rivals, ev.ID())
			}
		case cluster.KindCluster:
			d.adoptLocked(d.periodOf(snap.Cluster()))
			everyone = true
		case cluster.KindNetwork, cluster.KindSecret, cluster.KindConfig:
			everyone = true
		}
	}
	if d.mesh.seq != before || everyone {
		d.wakeAllLocked()
		return
	}
	for id := range wake {
		d.wakeLocked(id)
	}
}

// adoptLocked changes the heartbeat period; sessions are woken by the caller and tell their agents.
func (d *Dispatcher) adoptLocked(period time.Duration) {
	if period == d.period {
		return
	}
	// An agent that has yet to hear of a shorter period beats too slowly for it.
	d.period = period
	d.startAnewLocked(time.Now())
	kick(d.retime)
}

func (d *Dispatcher) wakeAllLocked() {
	for _, s := range d.sessions {
		s.poke()
	}
}

func (d *Dispatcher) wakeLocked(nodeID string) {
	if s := d.sessions[nodeID]; s != nil {
		s.poke()
	}
}

// NodeConnected says whether the node has a session at present.
func (d *Dispatcher) NodeConnected(nodeID string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sessions[nodeID] != nil
}

// Load is how many nodes have a session at present, and how many tasks are held back from stopping until all nodes route around
// them.
func (d *Dispatcher) Load() (sessions, holds int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.sessions), len(d.holds)
}

// kick leaves word in a channel of capacity 1.
func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
