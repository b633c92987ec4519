package dispatcher

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// suspectAfterLocked is the silence after which nobody sends a node new connections, downAfterLocked that after which
// its tasks are replaced.
func (d *Dispatcher) suspectAfterLocked() time.Duration { return missed * d.period / beats }
func (d *Dispatcher) downAfterLocked() time.Duration    { return missed * d.period }

// minNap keeps the nodes of a large cluster from being looked through for each of them alone.
const minNap = 25 * time.Millisecond

// watchSilence notices nodes that have not been heard of, until ctx ends.
func (d *Dispatcher) watchSilence(ctx context.Context) error {
	period := d.periodNow()
	judged, listed := time.Now(), time.Now()
	wake := time.NewTimer(0)
	defer wake.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-d.retime:
			period = d.periodNow()
		case <-wake.C:
			now := time.Now()
			if now.Sub(judged) > missed*period/beats {
				// This machine slept, or had no time for us: it has heard nobody because it did not listen.
				d.forgive(now)
			}
			if now.Sub(listed) >= period {
				d.listManagers()
				listed = now
			}
			d.judgeSilence(ctx, now)
			judged = time.Now()
		}
		wake.Reset(d.untilVerdict(time.Now()))
	}
}

// untilVerdict is how long to wait before silence is judged again: until the first node would be suspect or DOWN if nothing is
// heard of it before; shorter where one that is suspect may be back, and never so long that the judge's own sleep goes
// unnoticed.
func (d *Dispatcher) untilVerdict(now time.Time) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := now.Add(d.period / beats)
	for n := range d.cfg.Store.Snapshot().Nodes() {
		if n.Status.State == swarm.NodeStateDown && d.sessions[n.ID] == nil {
			continue
		}
		if at := now.Add(d.period / (2 * beats)); (d.mesh.suspects[n.ID] || n.Status.State != swarm.NodeStateReady) && at.Before(next) {
			next = at
		}
		last := d.lastHeardLocked(n.ID)
		for _, limit := range [2]time.Duration{d.suspectAfterLocked(), d.downAfterLocked()} {
			if at := last.Add(limit + time.Millisecond); at.After(now) && at.Before(next) {
				next = at
			}
		}
	}
	return max(next.Sub(now), minNap)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (d *Dispatcher) periodNow() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.period
}

// forgive starts all silence anew.
func (d *Dispatcher) forgive(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.startAnewLocked(now)
}

func (d *Dispatcher) startAnewLocked(now time.Time) { d.began, d.former = now, Former{} }

// since gives the former leader as it is judged from now on. It has a full period to find the new leader, however long ago it
// was heard; and all of the grace where that was so long ago that its silence says nothing about it, because nobody led meanwhile.
func (f Former) since(now time.Time, period time.Duration) Former {
	if now.Sub(f.Heard) > missed*period {
		return Former{}
	}
	f.Heard = later(f.Heard, now.Add(-(missed-1)*period))
	return f
}

// listManagers takes up who is a manager now; sessions tell their agents, which look for the next leader there.
func (d *Dispatcher) listManagers() {
	list := d.cfg.Managers()
	d.mu.Lock()
	defer d.mu.Unlock()
	if !slices.Equal(list, d.managers) {
		d.managers = list
		d.wakeAllLocked()
	}
}

// judgeSilence marks nodes suspect and DOWN.
func (d *Dispatcher) judgeSilence(ctx context.Context, now time.Time) {
	type verdict struct {
		node   *cluster.Node
		silent time.Duration
	}
	var lost []verdict
	var changes []cluster.Change
	d.mu.Lock()
	snap := d.cfg.Store.Snapshot()
	before := d.mesh.seq
	for n := range snap.Nodes() {
		silent, s := now.Sub(d.lastHeardLocked(n.ID)), d.sessions[n.ID]
		if n.Status.State == swarm.NodeStateDown && s == nil {
			continue
		}
		d.mesh.suspect(n.ID, silent > d.suspectAfterLocked(), snap)
		switch {
		case n.Status.State == swarm.NodeStateReady && silent > d.downAfterLocked():
			status := n.Status
			status.State, status.Message = swarm.NodeStateDown, "heartbeat failure"
			changes = append(changes, cluster.PatchNode(n.ID, cluster.NodePatch{Status: &status}))
			lost = append(lost, verdict{n, silent})
			if s != nil {
				s.close(fmt.Errorf("node %s: no heartbeat for %s", n.ID, silent.Round(time.Millisecond)))
			}
		case n.Status.State != swarm.NodeStateReady && s != nil && silent <= d.suspectAfterLocked():
			// It was called DOWN in the moment in which it came back.
			changes = append(changes, cluster.PatchNode(n.ID, cluster.NodePatch{Status: &swarm.NodeStatus{State: swarm.NodeStateReady, Addr: s.addr}}))
		}
	}
	if d.mesh.seq != before {
		d.wakeAllLocked()
	}
	if len(d.holds) > 0 {
		kick(d.settle) // who is silent is not waited for
	}
	d.mesh.forget(d.sentByAllLocked())
	d.mu.Unlock()
	if len(changes) == 0 {
		return
	}
	if _, err := d.cfg.Store.Propose(ctx, &cluster.Txn{Time: now, Changes: changes}); err != nil {
		if ctx.Err() == nil {
			if tell, lasting := d.unstored.Again(now, ""); tell {
				d.cfg.Logger.Warn("storing which nodes are down failed; retried", "nodes", len(changes), "since", lasting.Round(time.Second), "err", err)
			}
		}
		return
	}
	d.unstored.Over(now)
	d.cfg.Counters.Lost.Add(uint64(len(lost)))
	for _, v := range lost {
		d.cfg.Logger.Info("node is down", "node", v.node.ID, "hostname", v.node.Description.Hostname, "silent", v.silent.Round(time.Millisecond))
	}
}

// lastHeardLocked is the last sign of life of a node under this leader; the leadership's own beginning at first, and for the
// former leader's node what raft heard of it.
func (d *Dispatcher) lastHeardLocked(nodeID string) time.Time {
	last := d.began
	if d.former.NodeID == nodeID {
		last = d.former.Heard
	}
	last = later(last, d.heard[nodeID])
	if s := d.sessions[nodeID]; s != nil {
		last = later(last, s.lastHeard())
	}
	return last
}

// sentByAllLocked is the number of the mesh that every session has sent.
func (d *Dispatcher) sentByAllLocked() uint64 {
	least := d.mesh.seq
	for _, s := range d.sessions {
		least = min(least, s.meshSent.Load())
	}
	return least
}
