package node

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/agent"
	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/engineapi"
	"github.com/miniswarm/miniswarm/orchestrator"
	"github.com/miniswarm/miniswarm/scheduler"
)

// control gives the Engine API its view of the cluster while this machine is a manager.
type control struct {
	m *member
	g *managing
}

// Control implements engineapi.Local.
func (n *Node) Control() (engineapi.Control, error) {
	n.mu.Lock()
	m, local, failed, soon := n.member, n.local, n.failed, n.becoming
	n.mu.Unlock()
	switch {
	case m == nil && local == swarm.LocalNodeStateInactive && soon:
		return nil, unavailable(textNoReady)
	case m == nil && local == swarm.LocalNodeStateInactive:
		return nil, unavailable(textNever)
	case local == swarm.LocalNodeStateLocked:
		return nil, unavailable(textLocked)
	case m == nil || local == swarm.LocalNodeStateError:
		if _, removed := errors.AsType[*agent.RemovedError](failed); removed {
			return nil, unavailable("This node is not a swarm manager: %v", failed)
		}
		return nil, unavailable(textNoReady)
	}
	g, why := m.managing(), m.superseded()
	switch {
	case g != nil:
		return control{m, g}, nil
	case why != "":
		return nil, unavailable("%s (%s)", textWorker, why)
	case m.roles.ToManage():
		return nil, unavailable(textNoReady)
	}
	return nil, unavailable(textWorker)
}

// Attach implements engineapi.Local.
func (n *Node) Attach(ctx context.Context, req protocol.AttachRequest) (*engineapi.Attachment, error) {
	m := n.current()
	switch {
	case m == nil && n.inSwarm():
		return nil, unavailable("this node is just taking its part in the swarm up again: try once more in a moment")
	case m == nil:
		return nil, unavailable(textNever)
	case m.locked:
		return nil, unavailable(textLocked)
	}
	at, err := m.agent.Attach(ctx, req)
	if err != nil {
		return nil, err
	}
	return &engineapi.Attachment{Network: at.Network, Address: at.Address, Resolver: at.Resolver, Done: at.Done}, nil
}

// SettleAttachments implements engineapi.Local.
func (n *Node) SettleAttachments(ctx context.Context) {
	if m := n.current(); m != nil {
		m.agent.SettleAttachments(ctx)
	}
}

// Leader implements engineapi.Control. A manager that was elected leads once its loops run: before that it would
// answer without a dispatcher.
func (c control) Leader() (self bool, nodeID, addr string) {
	self, nodeID, addr = c.g.manager.Leader()
	if self && c.g.manager.Dispatcher() == nil {
		return false, "", ""
	}
	return self, nodeID, addr
}

// Forward implements engineapi.Control.
func (c control) Forward(nodeID string) http.RoundTripper { return c.m.transports.to(nodeID) }

// Read implements engineapi.Control.
func (c control) Read(ctx context.Context) (*cluster.Snapshot, error) { return c.g.store.Read(ctx) }

// Stale implements engineapi.Control.
func (c control) Stale() (*cluster.Snapshot, time.Duration, bool) { return c.g.store.Stale() }

// Update implements engineapi.Control.
func (c control) Update(ctx context.Context, fn func(*cluster.Snapshot) (*cluster.Txn, error)) (uint64, error) {
	return c.g.store.Update(ctx, fn)
}

// Watch implements engineapi.Control.
func (c control) Watch() (*cluster.Snapshot, <-chan []cluster.Event, func()) {
	w := c.g.store.Watch(1024)
	return w.Start, w.Events(), w.Close
}

// ConfigureCA implements engineapi.Control.
func (c control) ConfigureCA(ctx context.Context, cl *cluster.Cluster, want swarm.CAConfig) (*cluster.Cluster, error) {
	return c.g.manager.ConfigureCA(ctx, cl, want)
}

// IDs implements engineapi.Control.
func (c control) IDs() cluster.IDs { return c.m.node.ids }

// Members implements engineapi.Control.
func (c control) Members() []protocol.Member { return c.g.store.Members() }

// Reachability implements engineapi.Control.
func (c control) Reachability(nodeID string) swarm.Reachability {
	return c.g.manager.Reachability(nodeID)
}

// RollCall implements engineapi.Control.
func (c control) RollCall(ctx context.Context) error { return c.g.store.RollCall(ctx) }

// TaskLogs implements engineapi.Control.
func (c control) TaskLogs(ctx context.Context, nodeID string, req protocol.LogRequest, each func(protocol.LogMessage) error) error {
	return c.g.manager.TaskLogs(ctx, nodeID, req, each)
}

// Dial implements engineapi.Control.
func (c control) Dial(ctx context.Context, nodeID string) (net.Conn, error) {
	return c.g.manager.Dial(ctx, nodeID)
}

// Decisions implements engineapi.Control.
func (c control) Decisions(taskID string) []orchestrator.Decision {
	return c.g.manager.Decisions(taskID)
}

// Explain implements engineapi.Control. The answer is what a scheduler would say that has yet to place the task: it takes
// the task off the books by itself.
func (c control) Explain(snap *cluster.Snapshot, t *cluster.Task) scheduler.Decision {
	accounts := scheduler.New()
	for n := range snap.Nodes() {
		accounts.SetNode(n)
	}
	for n := range snap.Networks() {
		accounts.SetNetwork(n)
	}
	for other := range snap.Tasks() {
		accounts.SetTask(nil, other)
	}
	return accounts.Explain(t, time.Now())
}

// transports keeps one connection pool for each manager that requests are forwarded to.
type transports struct {
	node *Node

	mu  sync.Mutex
	all map[string]*http.Transport // guarded by mu; by node id
}

func (t *transports) to(nodeID string) *http.Transport {
	t.mu.Lock()
	defer t.mu.Unlock()
	tr := t.all[nodeID]
	if tr == nil {
		tr = managerTransport(t.node.credentials, nodeID)
		t.all[nodeID] = tr
	}
	return tr
}

func (t *transports) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, tr := range t.all {
		tr.CloseIdleConnections()
	}
}
