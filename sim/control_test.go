package sim

import (
	"context"
	"errors"
	"net"
	"net/http"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/engineapi"
	"github.com/miniswarm/miniswarm/orchestrator"
	"github.com/miniswarm/miniswarm/scheduler"
)

var errFixed = errors.New("the membership of a simulated host is fixed")

// process is the Engine API's Local and Control, as package node's member is.
var (
	_ engineapi.Local   = (*process)(nil)
	_ engineapi.Control = (*process)(nil)
)

func (p *process) Init(context.Context, swarm.InitRequest) (string, error) { return "", errFixed }
func (p *process) Join(context.Context, swarm.JoinRequest) error           { return errFixed }
func (p *process) Leave(context.Context, bool) error                       { return errFixed }
func (p *process) Attach(context.Context, protocol.AttachRequest) (*engineapi.Attachment, error) {
	return nil, errFixed
}
func (p *process) SettleAttachments(context.Context) {}
func (p *process) Info() swarm.Info {
	return swarm.Info{NodeID: p.h.id, LocalNodeState: swarm.LocalNodeStateActive, ControlAvailable: true}
}
func (p *process) Control() (engineapi.Control, error) { return p, nil }

func (p *process) Leader() (self bool, nodeID, addr string) {
	self, nodeID, addr = p.manager.Leader()
	if self && p.manager.Dispatcher() == nil {
		return false, "", ""
	}
	return self, nodeID, addr
}

func (p *process) Forward(string) http.RoundTripper { return p.pool }

func (p *process) Read(ctx context.Context) (*cluster.Snapshot, error) {
	if p.h.w.broken.staleReads {
		return p.store.Snapshot(), nil
	}
	return p.store.Read(ctx)
}

func (p *process) Update(ctx context.Context, fn func(*cluster.Snapshot) (*cluster.Txn, error)) (uint64, error) {
	return p.store.Update(ctx, fn)
}

func (p *process) Watch() (*cluster.Snapshot, <-chan []cluster.Event, func()) {
	w := p.store.Watch(1024)
	return w.Start, w.Events(), w.Close
}

func (p *process) IDs() cluster.IDs           { return randomIDs }
func (p *process) Members() []protocol.Member { return p.store.Members() }
func (p *process) Reachability(nodeID string) swarm.Reachability {
	return p.manager.Reachability(nodeID)
}
func (p *process) TaskLogs(ctx context.Context, nodeID string, req protocol.LogRequest, each func(protocol.LogMessage) error) error {
	return p.manager.TaskLogs(ctx, nodeID, req, each)
}
func (p *process) Dial(ctx context.Context, nodeID string) (net.Conn, error) {
	return p.manager.Dial(ctx, nodeID)
}
func (p *process) Decisions(taskID string) []orchestrator.Decision {
	return p.manager.Decisions(taskID)
}
func (p *process) Explain(*cluster.Snapshot, *cluster.Task) scheduler.Decision {
	return scheduler.Decision{}
}
