package sim

import (
	"context"
	"net/http"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/engineapi"
)

// local is what package node gives the Engine API of a machine, as far as the clients of a simulation ask for it; the rest is
// nil.
type local struct {
	engineapi.Local
	p *managing
}

func (l local) Info() swarm.Info {
	return swarm.Info{NodeID: l.p.h.id(), LocalNodeState: swarm.LocalNodeStateActive, ControlAvailable: true}
}
func (l local) Control() (engineapi.Control, error) { return control{p: l.p}, nil }

// control is the same for the cluster.
type control struct {
	engineapi.Control
	p *managing
}

func (c control) Leader() (self bool, nodeID, addr string) {
	self, nodeID, addr = c.p.manager.Leader()
	if self && c.p.manager.Dispatcher() == nil {
		return false, "", ""
	}
	return self, nodeID, addr
}

func (c control) Forward(string) http.RoundTripper { return c.p.pool }

func (c control) Read(ctx context.Context) (*cluster.Snapshot, error) {
	if c.p.h.w.broken.staleReads {
		return c.p.store.Snapshot(), nil
	}
	return c.p.store.Read(ctx)
}

func (c control) Update(ctx context.Context, fn func(*cluster.Snapshot) (*cluster.Txn, error)) (uint64, error) {
	return c.p.store.Update(ctx, fn)
}

func (c control) Watch() (*cluster.Snapshot, <-chan []cluster.Event, func()) {
	w := c.p.store.Watch(1024)
	return w.Start, w.Events(), w.Close
}

func (c control) IDs() cluster.IDs           { return randomIDs }
func (c control) Members() []protocol.Member { return c.p.store.Members() }
func (c control) Reachability(nodeID string) swarm.Reachability {
	return c.p.manager.Reachability(nodeID)
}
func (c control) RollCall(ctx context.Context) error { return c.p.store.RollCall(ctx) }
