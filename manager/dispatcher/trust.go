package dispatcher

import (
	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// trustOf is what the nodes of a cluster are to trust.
func trustOf(c *cluster.Cluster) protocol.Trust {
	if c == nil {
		return protocol.Trust{}
	}
	t := protocol.Trust{Root: string(c.RootCA)}
	if c.Rotation != nil {
		t.Next = string(c.Rotation.RootCA)
	}
	return t
}

// sendTrust tells the node what to trust if that is not what was said before, or is to be said again.
func (s *session) sendTrust(said *protocol.Trust) error {
	now := trustOf(s.d.cfg.Store.Snapshot().Cluster())
	again := s.distrust.Swap(false)
	if now.Root == "" || now == *said && !again {
		return nil
	}
	*said = now
	return s.send(protocol.ToAgent{Trust: &now})
}

// RemindOfTrust tells nodes again what to trust, those that have a session: whoever has no certificate of the new root yet tries
// again to get one.
func (d *Dispatcher) RemindOfTrust(nodeIDs []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, id := range nodeIDs {
		if s := d.sessions[id]; s != nil {
			s.distrust.Store(true)
			s.poke()
		}
	}
}
