package sim

import (
	"context"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/docker/docker/api/types/swarm"
)

// mover promotes and demotes nodes through the Engine API of any manager, and now and then strikes in the middle of it.
type mover struct {
	w    *world
	rand *rand.Rand
}

func (m *mover) run(ctx context.Context) {
	for ctx.Err() == nil {
		h := m.w.someManager(m.rand)
		n, to := m.choose()
		status, answer := m.w.changeNode(ctx, h, n, func(s *swarm.NodeSpec) { s.Role = to })
		m.w.trace("%s to %s at %s: %s", n, to, h, statusText(status, answer))
		if status == http.StatusOK && m.rand.IntN(3) == 0 {
			m.strike(ctx, n)
		}
		most := 4000
		if m.w.broken.forge != "" {
			most = 1000 // what is broken then are changes
		}
		_ = pause(ctx, time.Duration(100+m.rand.IntN(most))*time.Millisecond)
	}
}

// choose draws a node and its role, so that there are about three or four managers: the fewer the more the next is a promotion.
func (m *mover) choose() (*host, swarm.NodeRole) {
	var managers, workers []*host
	for _, h := range m.w.hosts {
		if h.raftID.Load() != 0 {
			managers = append(managers, h)
		} else {
			workers = append(workers, h)
		}
	}
	l := m.w.leader()
	switch {
	case len(workers) > 0 && m.rand.IntN(7) >= len(managers):
		return workers[m.rand.IntN(len(workers))], swarm.NodeRoleManager
	case l != nil && m.rand.IntN(4) == 0:
		return l.h, swarm.NodeRoleWorker
	}
	return m.w.hosts[m.rand.IntN(len(m.w.hosts))], swarm.NodeRoleWorker
}

// strike kills the node that changes, or the leader, while it does.
func (m *mover) strike(ctx context.Context, n *host) {
	_ = pause(ctx, time.Duration(m.rand.IntN(1200))*time.Millisecond)
	if l := m.w.leader(); l != nil && m.rand.IntN(2) == 0 {
		n = l.h
	}
	f := fault{kind: []faultKind{kill, kill, isolate, oneWay}[m.rand.IntN(4)], host: n, lasts: time.Duration(200+m.rand.IntN(5000)) * time.Millisecond}
	m.w.trace("begin %s, in the middle of a change", f)
	m.w.checks.blame([]*host{n}, 1)
	f.strike(ctx, m.w)
	m.w.checks.blame([]*host{n}, -1)
	m.w.trace("end %s", f)
}
