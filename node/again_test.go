package node

import (
	"net"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/swarm"
)

// What kept a node from its part in the swarm is gone: it takes it up without being asked.
func TestAFailureThatPassesIsTakenUpAgain(t *testing.T) {
	n := newNode(t)
	stop := run(t, n)
	addr := freePort(t)
	id, err := n.Init(t.Context(), swarm.InitRequest{ListenAddr: addr})
	must(t, err)
	must(t, stop())

	taken, err := net.Listen("tcp", addr)
	must(t, err)
	defer taken.Close()
	again, err := New(n.cfg)
	must(t, err)
	stop = run(t, again)
	waitFor(t, "the error", func() bool { return strings.Contains(again.Info().Error, "another process may have it") })
	first := again.current()
	waitFor(t, "another attempt", func() bool { return again.current() != first })
	taken.Close()
	waitFor(t, "its part in the swarm", func() bool {
		c, err := again.Control()
		if err != nil {
			return false
		}
		self, _, _ := c.Leader()
		return self
	})
	if info := again.Info(); info.NodeID != id || info.Error != "" || info.LocalNodeState != swarm.LocalNodeStateActive {
		t.Errorf("after the port was free: %+v", info)
	}
	must(t, stop())
}
