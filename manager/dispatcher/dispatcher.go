package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// Store is what the dispatcher needs of the replicated store on the leader.
type Store interface {
	// Snapshot is the newest applied state.
	Snapshot() *cluster.Snapshot
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
	// Period is the heartbeat period (default 1 s): a node silent for three of them is DOWN.
	Period time.Duration
	// Linger is how long a withdrawn replica still runs after every node has stopped sending to it (default 200 ms):
	// the time for packets on their way.
	Linger time.Duration
	// AckTimeout bounds the wait for acknowledgements before a stop (default 1500 ms).
	AckTimeout time.Duration
}

const (
	defaultPeriod     = time.Second
	defaultLinger     = 200 * time.Millisecond
	defaultAckTimeout = 1500 * time.Millisecond
	// missed is how many periods of silence make a node DOWN, and how many beats make it suspect; swarm's grace.
	missed = 3
	// beats is how often an agent shows itself in one heartbeat period.
	beats = 4
)

// Dispatcher serves the sessions of all agents while this manager leads. Make one for each term of leadership: what
// it knows of nodes' silence begins with it.
type Dispatcher struct {
	cfg Config

	mu       sync.Mutex
	sessions map[string]*session  // guarded by mu; by node id
	mesh     *meshTable           // guarded by mu
	holds    map[string]*hold     // guarded by mu; by task id
	heard    map[string]time.Time // guarded by mu; last sign of a node's life, for nodes without a session
	logs     map[string]*logRelay // guarded by mu; by request id
	began    time.Time            // guarded by mu
	closing  bool                 // guarded by mu
	serving  sync.WaitGroup
}

// hold keeps a withdrawn replica running until every node routes around it.
type hold struct {
	seq      uint64    // the mesh without the replica
	deadline time.Time // stop whatever is acknowledged
	release  time.Time // zero until every node has acknowledged
}

// ErrStopped is the end of a dispatcher whose manager no longer leads.
var ErrStopped = errors.New("dispatcher is stopped")

// New gives a dispatcher that is idle until Run.
func New(cfg Config) *Dispatcher {
	if cfg.Period <= 0 {
		cfg.Period = defaultPeriod
	}
	if cfg.Linger <= 0 {
		cfg.Linger = defaultLinger
	}
	if cfg.AckTimeout <= 0 {
		cfg.AckTimeout = defaultAckTimeout
	}
	return &Dispatcher{cfg: cfg, sessions: map[string]*session{}, holds: map[string]*hold{}, heard: map[string]time.Time{}, logs: map[string]*logRelay{}}
}

// Run serves until ctx ends or events is closed, then ends every session and waits for it. start is the state that
// events continue from. Sessions opened before Run wait for it.
func (d *Dispatcher) Run(ctx context.Context, start *cluster.Snapshot, events <-chan []cluster.Event) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d.mu.Lock()
	d.mesh, d.began = newMeshTable(start), time.Now()
	d.mu.Unlock()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.follow(ctx, events) })
	g.Go(func() error { return d.watchSilence(ctx) })
	err := g.Wait()
	d.mu.Lock()
	d.closing = true
	for _, s := range d.sessions {
		s.close(ErrStopped)
	}
	for _, r := range d.logs {
		r.end(ErrStopped)
	}
	d.mu.Unlock()
	d.serving.Wait()
	return err
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
		}
	}
}

func (d *Dispatcher) observe(batch []cluster.Event) {
	snap := d.cfg.Store.Snapshot()
	d.mu.Lock()
	defer d.mu.Unlock()
	before := d.mesh.seq
	wake := map[string]bool{}
	everyone := false
	for _, ev := range batch {
		d.mesh.observe(ev, snap)
		switch ev.Kind {
		case cluster.KindTask:
			for _, o := range [2]cluster.Object{ev.Old, ev.New} {
				if t, ok := o.(*cluster.Task); ok && t != nil && t.NodeID != "" {
					wake[t.NodeID] = true
				}
			}
			if ev.New == nil {
				delete(d.holds, ev.ID())
			}
		case cluster.KindNode:
			wake[ev.ID()] = true
			if ev.New == nil {
				if s := d.sessions[ev.ID()]; s != nil {
					s.dismiss("this node was removed from the swarm")
				}
				delete(d.heard, ev.ID())
			}
		case cluster.KindNetwork, cluster.KindSecret, cluster.KindConfig, cluster.KindCluster:
			everyone = true
		}
	}
	if d.mesh.seq != before || everyone {
		d.wakeAllLocked()
		return
	}
	for id := range wake {
		if s := d.sessions[id]; s != nil {
			s.poke()
		}
	}
}

func (d *Dispatcher) wakeAllLocked() {
	for _, s := range d.sessions {
		s.poke()
	}
}

// watchSilence notices nodes that have not been heard of and releases holds that are due.
func (d *Dispatcher) watchSilence(ctx context.Context) error {
	tick := time.NewTicker(d.cfg.Period / (2 * beats))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
			d.judgeSilence(ctx, time.Now())
		}
	}
}

func (d *Dispatcher) judgeSilence(ctx context.Context, now time.Time) {
	snap := d.cfg.Store.Snapshot()
	var lost []cluster.Change
	d.mu.Lock()
	before := d.mesh.seq
	for n := range snap.Nodes() {
		if n.Status.State == swarm.NodeStateDown {
			continue
		}
		silent := now.Sub(d.lastHeardLocked(n.ID))
		d.mesh.suspect(n.ID, silent > missed*d.cfg.Period/beats, snap)
		if silent > missed*d.cfg.Period && n.Status.State == swarm.NodeStateReady {
			status := n.Status
			status.State, status.Message = swarm.NodeStateDown, "heartbeat failure"
			lost = append(lost, cluster.PatchNode(n.ID, cluster.NodePatch{Status: &status}))
			if s := d.sessions[n.ID]; s != nil {
				s.close(fmt.Errorf("node %s: no heartbeat for %s", n.ID, silent.Round(time.Millisecond)))
			}
			d.cfg.Logger.Info("node is down", "node", n.ID, "hostname", n.Description.Hostname, "silent", silent.Round(time.Millisecond))
		}
	}
	due := d.holdsDueLocked(now)
	if d.mesh.seq != before || due {
		d.wakeAllLocked()
	}
	d.mesh.forget(d.sentByAllLocked())
	d.mu.Unlock()
	if len(lost) > 0 {
		if _, err := d.cfg.Store.Propose(ctx, &cluster.Txn{Time: now, Changes: lost}); err != nil && ctx.Err() == nil {
			d.cfg.Logger.Warn("storing that nodes are down failed; retried", "nodes", len(lost), "err", err)
		}
	}
}

// lastHeardLocked is the last sign of life of a node under this leader; the leadership's own beginning at first.
func (d *Dispatcher) lastHeardLocked(nodeID string) time.Time {
	last := d.began
	if t := d.heard[nodeID]; t.After(last) {
		last = t
	}
	if s := d.sessions[nodeID]; s != nil {
		if t := s.lastHeard(); t.After(last) {
			last = t
		}
	}
	return last
}

func (d *Dispatcher) sentByAllLocked() uint64 {
	least := d.mesh.seq
	for _, s := range d.sessions {
		least = min(least, s.meshSent.Load())
	}
	return least
}

// mayStop says whether a running task may be told to stop now; if not, its session is woken when it may.
func (d *Dispatcher) mayStop(t *cluster.Task) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := d.holds[t.ID]
	if h == nil {
		if !d.mesh.has(t.ServiceID, t.ID) && ingressAddr(t) == "" {
			return true
		}
		now := time.Now()
		h = &hold{seq: d.mesh.withdraw(t.ServiceID, t.ID), deadline: now.Add(d.cfg.AckTimeout)}
		d.holds[t.ID] = h
		d.wakeAllLocked()
	}
	d.judgeHoldLocked(h, time.Now())
	return !h.release.IsZero() && !time.Now().Before(h.release)
}

// judgeHoldLocked sets the time of release once every live node has acknowledged or the deadline has passed.
func (d *Dispatcher) judgeHoldLocked(h *hold, now time.Time) {
	if !h.release.IsZero() {
		return
	}
	if now.After(h.deadline) {
		h.release = now
		return
	}
	for _, s := range d.sessions {
		if s.dataPlane && s.meshAcked.Load() < h.seq && now.Sub(s.lastHeard()) < missed*d.cfg.Period/beats {
			return
		}
	}
	h.release = now.Add(d.cfg.Linger)
}

func (d *Dispatcher) holdsDueLocked(now time.Time) (due bool) {
	for _, h := range d.holds {
		d.judgeHoldLocked(h, now)
		due = due || !h.release.IsZero() && !now.Before(h.release)
	}
	return due
}

// acked is called by a session when its node has applied a mesh.
func (d *Dispatcher) acked() {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	for _, h := range d.holds {
		if h.release.IsZero() {
			d.judgeHoldLocked(h, now)
			if !h.release.IsZero() {
				time.AfterFunc(h.release.Sub(now), d.wakeAll)
			}
		}
	}
}

func (d *Dispatcher) wakeAll() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wakeAllLocked()
}

// NodeConnected says whether the node has a session at present.
func (d *Dispatcher) NodeConnected(nodeID string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sessions[nodeID] != nil
}
