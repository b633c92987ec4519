package dispatcher

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

const (
	helloTimeout = 5 * time.Second
	writeTimeout = 5 * time.Second
	// reportQueue bounds the status messages of one node that wait to be stored; a node that reports faster than the
	// store takes it is slowed down by its own connection.
	reportQueue = 16
)

// session is one node's connection. Its reader, its writer and its reporter end together.
type session struct {
	d         *Dispatcher
	nodeID    string
	id        string
	conn      net.Conn
	dec       *json.Decoder
	dataPlane bool

	heardAt   atomic.Int64 // unix nanoseconds
	meshSent  atomic.Uint64
	meshAcked atomic.Uint64
	wake      chan struct{} // capacity 1: something may have to be sent
	reports   chan protocol.Status

	mu     sync.Mutex
	outbox []protocol.ToAgent // guarded by mu; messages that are not differences of state
	cause  error              // guarded by mu; why the session ended
}

// ServeSession upgrades the request to a stream and serves the node's session until it ends. remote is the node's IP
// address as seen from here. The node's identity was proved by its certificate.
func (d *Dispatcher) ServeSession(w http.ResponseWriter, r *http.Request, nodeID, remote string) {
	d.mu.Lock()
	if d.closing || d.mesh == nil {
		d.mu.Unlock()
		http.Error(w, ErrStopped.Error(), http.StatusServiceUnavailable)
		return
	}
	d.serving.Add(1)
	d.mu.Unlock()
	defer d.serving.Done()

	conn, buffered, err := upgrade(w)
	if err != nil {
		http.Error(w, "session: "+err.Error(), http.StatusInternalServerError)
		return
	}
	defer conn.Close()
	s := &session{d: d, nodeID: nodeID, id: d.cfg.IDs.Next(), conn: conn, dec: json.NewDecoder(buffered),
		wake: make(chan struct{}, 1), reports: make(chan protocol.Status, reportQueue)}
	if err := s.serve(r.Context(), remote); err != nil {
		d.cfg.Logger.Info("session ended", "node", nodeID, "err", err)
	}
}

// upgrade answers the Upgrade request and takes the connection over from the HTTP server.
func upgrade(w http.ResponseWriter) (net.Conn, *bufio.Reader, error) {
	hj, ok := w.(http.Hijacker)
	if !ok {
		return nil, nil, errors.New("the connection cannot be upgraded to a stream")
	}
	conn, rw, err := hj.Hijack()
	if err != nil {
		return nil, nil, fmt.Errorf("take over the connection: %w", err)
	}
	_ = conn.SetDeadline(time.Time{})
	_, err = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", protocol.UpgradeStream)
	if err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("answer the upgrade: %w", err)
	}
	return conn, rw.Reader, nil
}

func (s *session) serve(ctx context.Context, remote string) error {
	// The request's context does not end with a hijacked connection; the session's own does.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	_ = s.conn.SetReadDeadline(time.Now().Add(helloTimeout))
	var first protocol.FromAgent
	if err := s.dec.Decode(&first); err != nil || first.Hello == nil {
		return fmt.Errorf("node %s opened a session without a hello (%v)", s.nodeID, err)
	}
	_ = s.conn.SetReadDeadline(time.Time{})
	s.beat()
	s.dataPlane = first.Hello.DataPlane
	if err := s.register(ctx, first.Hello, remote); err != nil {
		return err
	}
	if !s.enter() {
		return ErrStopped
	}
	defer s.leave()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.read(ctx, remote) })
	g.Go(func() error { return s.write(ctx) })
	g.Go(func() error { return s.report(ctx) })
	g.Go(func() error { <-ctx.Done(); return s.conn.Close() })
	err := g.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause != nil {
		return s.cause
	}
	return err
}

// register makes the node READY in the store; the session begins when that is committed.
func (s *session) register(ctx context.Context, h *protocol.Hello, remote string) error {
	n := s.d.cfg.Store.Snapshot().Node(s.nodeID)
	if n == nil {
		s.send(protocol.ToAgent{Leave: &protocol.LeaveRequired{Reason: fmt.Sprintf("node %s is not part of this swarm", s.nodeID)}})
		return fmt.Errorf("node %s has a certificate but is not in the store: it was removed", s.nodeID)
	}
	addr := h.DataAddr
	if addr == "" {
		addr = remote
	}
	patch := cluster.NodePatch{Status: &swarm.NodeStatus{State: swarm.NodeStateReady, Addr: addr}, Description: &h.Description, DataAddr: addr}
	if _, err := s.d.cfg.Store.Propose(ctx, &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.PatchNode(s.nodeID, patch)}}); err != nil {
		return fmt.Errorf("register node %s: %w", s.nodeID, err)
	}
	period := s.d.cfg.Period / beats
	if err := s.send(protocol.ToAgent{Welcome: &protocol.Welcome{SessionID: s.id, ClusterID: clusterID(s.d.cfg.Store.Snapshot()),
		Node: n, HeartbeatPeriod: period, Managers: s.d.cfg.Managers()}}); err != nil {
		return err
	}
	s.beat()
	return nil
}

func clusterID(snap *cluster.Snapshot) string {
	if c := snap.Cluster(); c != nil {
		return c.ID
	}
	return ""
}

// enter puts the session in force; an older one of the same node ends.
func (s *session) enter() bool {
	d := s.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closing {
		return false
	}
	if old := d.sessions[s.nodeID]; old != nil {
		old.close(errors.New("the node opened a newer session"))
	}
	d.sessions[s.nodeID] = s
	s.poke()
	return true
}

func (s *session) leave() {
	d := s.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if last := s.lastHeard(); last.After(d.heard[s.nodeID]) {
		d.heard[s.nodeID] = last
	}
	if d.sessions[s.nodeID] == s {
		delete(d.sessions, s.nodeID)
		for _, r := range d.logs {
			if r.nodeID == s.nodeID {
				r.end(fmt.Errorf("node %s disconnected unexpectedly", s.nodeID))
			}
		}
	}
}

func (s *session) beat()                { s.heardAt.Store(time.Now().UnixNano()) }
func (s *session) lastHeard() time.Time { return time.Unix(0, s.heardAt.Load()) }

// poke wakes the writer.
func (s *session) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// close ends the session; its goroutines notice by their connection.
func (s *session) close(why error) {
	s.mu.Lock()
	if s.cause == nil {
		s.cause = why
	}
	s.mu.Unlock()
	_ = s.conn.Close()
}

// dismiss tells the node that it is no longer a member; the writer closes after that.
func (s *session) dismiss(reason string) {
	s.post(protocol.ToAgent{Leave: &protocol.LeaveRequired{Reason: reason}})
}

// post queues a message that is not a difference of state.
func (s *session) post(m protocol.ToAgent) {
	s.mu.Lock()
	s.outbox = append(s.outbox, m)
	s.mu.Unlock()
	s.poke()
}

// read takes the node's messages; anything heard is a sign of life.
func (s *session) read(ctx context.Context, remote string) error {
	for {
		var m protocol.FromAgent
		if err := s.dec.Decode(&m); err != nil {
			return fmt.Errorf("read from node %s: %w", s.nodeID, err)
		}
		s.beat()
		switch {
		case m.Heartbeat != nil:
			s.post(protocol.ToAgent{Heartbeat: &protocol.Heartbeat{}})
		case m.Status != nil:
			select {
			case s.reports <- *m.Status:
			case <-ctx.Done():
				return ctx.Err()
			}
		case m.MeshAck != nil:
			s.meshAcked.Store(m.MeshAck.Seq)
			if m.MeshAck.Err != "" {
				s.d.cfg.Logger.Warn("a node could not apply the mesh", "node", s.nodeID, "mesh", m.MeshAck.Seq, "err", m.MeshAck.Err)
			}
			s.d.acked()
		case m.Hello != nil:
			if err := s.redescribe(ctx, m.Hello); err != nil {
				return err
			}
		case m.LogChunk != nil:
			s.d.relay(m.LogChunk.ID, *m.LogChunk)
		case m.LogEnd != nil:
			s.d.endRelay(*m.LogEnd)
		}
	}
}

// redescribe stores a changed description of the node.
func (s *session) redescribe(ctx context.Context, h *protocol.Hello) error {
	_, err := s.d.cfg.Store.Propose(ctx, &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{
		cluster.PatchNode(s.nodeID, cluster.NodePatch{Description: &h.Description, DataAddr: h.DataAddr})}})
	if err != nil {
		return fmt.Errorf("store the description of node %s: %w", s.nodeID, err)
	}
	return nil
}

// report stores status reports, all that wait at once, and acknowledges them.
func (s *session) report(ctx context.Context) error {
	for {
		var batch []protocol.Status
		select {
		case <-ctx.Done():
			return ctx.Err()
		case r := <-s.reports:
			batch = append(batch, r)
		}
		for more := true; more; {
			select {
			case r := <-s.reports:
				batch = append(batch, r)
			default:
				more = false
			}
		}
		if err := s.store(ctx, batch); err != nil {
			return err
		}
		s.post(protocol.ToAgent{StatusAck: &protocol.StatusAck{Seq: batch[len(batch)-1].Seq}})
	}
}

// store commits reports about tasks of this node; reports about others are refused as a whole, as in swarm.
func (s *session) store(ctx context.Context, batch []protocol.Status) error {
	now := time.Now()
	txn := &cluster.Txn{Time: now}
	snap := s.d.cfg.Store.Snapshot()
	for _, r := range batch {
		for _, t := range r.Tasks {
			stored := snap.Task(t.ID)
			if stored == nil {
				continue
			}
			if stored.NodeID != s.nodeID {
				return fmt.Errorf("node %s reported on task %s: cannot update a task not assigned this node", s.nodeID, t.ID)
			}
			if stored.Status.State == t.Status.State && stored.Status.Err == t.Status.Err && stored.Status.Message == t.Status.Message &&
				stored.Status.Timestamp.Equal(t.Status.Timestamp) {
				continue
			}
			txn.Changes = append(txn.Changes, cluster.PatchTask(t.ID, cluster.TaskPatch{Status: &t.Status, AppliedAt: now}))
		}
	}
	if len(txn.Changes) == 0 {
		return nil
	}
	if _, err := s.d.cfg.Store.Propose(ctx, txn); err != nil {
		return fmt.Errorf("store the status of %d tasks of node %s: %w", len(txn.Changes), s.nodeID, err)
	}
	return nil
}

// write sends what the node does not know yet, whenever something may have changed.
func (s *session) write(ctx context.Context) error {
	told := newTold()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.wake:
		}
		s.mu.Lock()
		out := s.outbox
		s.outbox = nil
		s.mu.Unlock()
		for _, m := range out {
			if err := s.send(m); err != nil {
				return err
			}
			if m.Leave != nil {
				return fmt.Errorf("node %s dismissed: %s", s.nodeID, m.Leave.Reason)
			}
		}
		// The mesh goes first: a node that may not send to a replica any more must hear so before others wait for it.
		if err := s.sendMesh(); err != nil {
			return err
		}
		if a := told.difference(s.d.cfg.Store.Snapshot(), s.nodeID, s.d.mayStop); a != nil {
			if err := s.send(protocol.ToAgent{Assignments: a}); err != nil {
				return err
			}
		}
	}
}

func (s *session) sendMesh() error {
	s.d.mu.Lock()
	m, ok := s.d.mesh.since(s.meshSent.Load())
	s.d.mu.Unlock()
	if !ok {
		return nil
	}
	if err := s.send(protocol.ToAgent{Mesh: m}); err != nil {
		return err
	}
	s.meshSent.Store(m.Seq)
	return nil
}

func (s *session) send(m protocol.ToAgent) error {
	_ = s.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err := json.NewEncoder(s.conn).Encode(m); err != nil {
		return fmt.Errorf("send to node %s: %w", s.nodeID, err)
	}
	return nil
}
