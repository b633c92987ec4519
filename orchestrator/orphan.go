package orchestrator

import (
	"time"

	"github.com/docker/docker/api/types/swarm"
)

// orphanAfter is how long the tasks of a node that is down are believed to exist (swarm-semantics.md, 6.6). Most have
// been replaced long since; what they still hold, and global jobs that wait for their node, is let go then.
const orphanAfter = 24 * time.Hour

// awaitReturn has the node's tasks looked at when it has been down for too long. Nodes have timers under no service.
func (p *Planner) awaitReturn(n *node) {
	at := noTime
	if n.obj != nil && n.tasks > 0 && !n.obj.DownSince.IsZero() {
		at = n.obj.DownSince.Add(orphanAfter)
	}
	p.timers.set(timerKey{slot: n.num}, at)
}

// orphanTasksOf gives up the tasks of nodes that have been down for too long.
func (x *pass) orphanTasksOf(lost []*node) {
	for _, n := range lost {
		before := x.changes
		for t := range x.snap.TasksOfNode(n.id) {
			if t.Live() {
				x.report(t, swarm.TaskStateOrphaned, t.Status.Message, t.Status.Err)
			}
		}
		if x.changes != before {
			x.awaitReturn(n) // until it is committed
		}
	}
}
