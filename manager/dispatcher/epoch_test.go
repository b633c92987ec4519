package dispatcher

import (
	"testing"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// A node that follows a later recovery of the cluster is not counted on, not sent anything, and not told to leave either: what it
// says may be wrong.
func TestANodeOfALaterRecoveryIsRefused(t *testing.T) {
	inWorld(t, func(w *world) {
		w.commitCluster(func(c *cluster.Cluster) { c.Epoch = 7 })
		w.epoch = 8
		a := w.connect("n1")
		<-a.ended
		a.look(func() {
			if a.left != "" || a.seq != 0 {
				t.Errorf("told to leave (%q) or to route by mesh %d", a.left, a.seq)
			}
		})
		a.close()
		if got := w.store.Snapshot().Node("n1").Status.State; got != swarm.NodeStateUnknown {
			t.Errorf("the node is %s", got)
		}
		for _, epoch := range []uint64{0, 7} { // before it has heard of the recovery, and after
			w.epoch = epoch
			a := w.connect("n2")
			if !w.d.NodeConnected("n2") {
				t.Errorf("a node that has seen epoch %d has no session", epoch)
			}
			a.close()
		}
	})
}
