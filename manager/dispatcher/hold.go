package dispatcher

import (
	"context"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// hold keeps a replica that is to stop running until every node sends new connections elsewhere.
type hold struct {
	nodeID   string    // where the replica runs
	seq      uint64    // the mesh in which the replica is given no new connection
	deadline time.Time // stop whatever is acknowledged
	release  time.Time // when it may stop; zero until every node has acknowledged
	woken    bool      // the node's session knows that it may
}

// mayStop says whether a running task may be told to stop now; if not, its session is woken when it may. The mesh gives
// the replica no new connection when it returns.
func (d *Dispatcher) mayStop(t *cluster.Task) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	h := d.holds[t.ID]
	if h == nil {
		if !d.mesh.has(t.ServiceID, t.ID) && !reachable(t) {
			return true
		}
		d.mesh.look(t.ServiceID, t.ID, d.cfg.Store.Snapshot())
		h = &hold{nodeID: t.NodeID, seq: d.mesh.seq, deadline: now.Add(d.cfg.AckTimeout)}
		d.holds[t.ID] = h
		d.wakeAllLocked()
		kick(d.settle)
	}
	return !h.release.IsZero() && !now.Before(h.release)
}

// watchHolds releases holds when acknowledgements come or time passes, until ctx ends. Acknowledgements that come
// together, as those of many nodes do, are looked at together.
func (d *Dispatcher) watchHolds(ctx context.Context) error {
	next := time.NewTimer(time.Hour)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-d.settle:
		case <-next.C:
		}
		if at := d.settleHolds(time.Now()); !at.IsZero() {
			next.Reset(time.Until(at))
		}
	}
}

// settleHolds wakes the sessions of tasks that may stop now, and tells when to look again; zero: not before something
// happens.
func (d *Dispatcher) settleHolds(now time.Time) (again time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var acked uint64
	var slowest string
	known, unheard := false, 0
	for _, h := range d.holds {
		if h.release.IsZero() {
			if !known { // costs a look at every node, so once for all holds
				acked, slowest = d.ackedByAllLocked(now)
				known = true
			}
			switch {
			case acked >= h.seq:
				h.release = now.Add(d.cfg.Linger)
			case !now.Before(h.deadline):
				h.release = now
				unheard++
			}
		}
		at := h.release
		switch {
		case at.IsZero():
			at = h.deadline
		case h.woken:
			continue
		case !now.Before(at):
			h.woken = true
			d.wakeLocked(h.nodeID)
			continue
		}
		if again.IsZero() || at.Before(again) {
			again = at
		}
	}
	if unheard > 0 {
		d.cfg.Logger.Warn("tasks stop though a node may still send to them", "tasks", unheard, "node", slowest, "mesh", d.mesh.seq, "acknowledged", acked)
	}
	return again
}

// ackedByAllLocked is the number of the mesh that all nodes route by which may be sending traffic and can say so. A
// node whose session has just broken, or has not begun under a new leader, still routes by what it was told before;
// one that is silent is not waited for. Slowest is the node that all wait for.
func (d *Dispatcher) ackedByAllLocked(now time.Time) (least uint64, slowest string) {
	least = d.mesh.seq
	for n := range d.cfg.Store.Snapshot().Nodes() {
		if n.Status.State != swarm.NodeStateReady || now.Sub(d.lastHeardLocked(n.ID)) >= d.suspectAfterLocked() {
			continue
		}
		switch s := d.sessions[n.ID]; {
		case s == nil:
			return 0, n.ID
		case s.dataPlane:
			if acked := s.meshAcked.Load(); acked < least {
				least, slowest = acked, n.ID
			}
		}
	}
	return least, slowest
}
