package node

import (
	"testing"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// snapshot reads the cluster through a manager; nil while it cannot.
func snapshot(t *testing.T, n *Node) *cluster.Snapshot {
	t.Helper()
	c, err := n.Control()
	if err != nil {
		return nil
	}
	snap, err := c.Read(t.Context())
	if err != nil {
		return nil
	}
	return snap
}

// TestAWorkerFindsTheNextLeader: the worker joined when there was one manager. When that one leaves the stage, it must know
// those that came later.
func TestAWorkerFindsTheNextLeader(t *testing.T) {
	first := newNode(t)
	stopFirst := run(t, first)
	_, err := first.Init(t.Context(), swarm.InitRequest{ListenAddr: freePort(t)})
	must(t, err)
	remote := []string{first.current().state.AdvertiseAddr}
	tokens := snapshot(t, first).Cluster().JoinTokens

	worker := newNode(t)
	run(t, worker)
	must(t, worker.Join(t.Context(), swarm.JoinRequest{ListenAddr: freePort(t), RemoteAddrs: remote, JoinToken: tokens.Worker}))
	var later []*Node
	for range 2 {
		n := newNode(t)
		run(t, n)
		must(t, n.Join(t.Context(), swarm.JoinRequest{ListenAddr: freePort(t), RemoteAddrs: remote, JoinToken: tokens.Manager}))
		later = append(later, n)
	}
	waitFor(t, "three voters", func() bool {
		voters := 0
		for _, m := range first.current().managing().store.Status().Members {
			if !m.Learner {
				voters++
			}
		}
		return voters == 3
	})
	waitFor(t, "a worker that knows three managers", func() bool { return len(worker.Info().RemoteManagers) == 3 })
	gone, stays := first.Info().NodeID, worker.Info().NodeID
	must(t, stopFirst())

	waitFor(t, "a new leader that calls the first manager down", func() bool {
		snap := snapshot(t, later[0])
		if snap == nil {
			return false
		}
		node := snap.Node(gone)
		return node != nil && node.Status.State == swarm.NodeStateDown
	})
	snap := snapshot(t, later[0])
	if snap == nil || snap.Node(stays).Status.State != swarm.NodeStateReady {
		t.Errorf("the worker is not ready under the new leader")
	}
	for _, n := range later {
		if d := n.current().managing().manager.Dispatcher(); d != nil && !d.NodeConnected(stays) {
			t.Error("the worker has no session with the new leader")
		}
	}
}
