package dispatcher

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
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
	// maxMessage bounds one message of a node: the status of all its tasks after a change of leader is the largest.
	maxMessage = 16 << 20
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
	in        *bounded
	dec       *json.Decoder
	addr      string // the node's underlay address
	remote    string // the address that the connection came from
	instance  string // of the node's daemon, empty if it does not say
	began     time.Time
	dataPlane bool
	cancel    context.CancelCauseFunc // ends the session

	heardAt   atomic.Int64 // since the dispatcher's epoch
	waiting   atomic.Bool  // the reader waits for the store, not for the node
	meshSent  atomic.Uint64
	meshAcked atomic.Uint64
	stored    atomic.Uint64 // last batch of reports that is stored
	beats     atomic.Bool   // a heartbeat is to be answered
	distrust  atomic.Bool   // what to trust is to be said again
	clock     clock
	wake      chan struct{} // capacity 1: something may have to be sent
	reports   chan protocol.Status

	mu     sync.Mutex
	outbox []protocol.ToAgent // guarded by mu; requests to the agent
}

// ServeSession upgrades the request to a stream and serves the node's session until it ends. remote is the node's IP
// address as seen from here. The node's identity was proved by its certificate.
func (d *Dispatcher) ServeSession(w http.ResponseWriter, _ *http.Request, nodeID, remote string) {
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
	// A hijacked connection outlives its request; what bounds the session is the dispatcher's life.
	ctx, cancel := context.WithCancelCause(d.life)
	defer cancel(nil)
	in := &bounded{r: buffered}
	s := &session{d: d, nodeID: nodeID, id: d.cfg.IDs.Next(), conn: conn, in: in, dec: json.NewDecoder(in), addr: remote, remote: remote, began: time.Now(), cancel: cancel,
		wake: make(chan struct{}, 1), reports: make(chan protocol.Status, reportQueue)}
	err = s.serve(ctx)
	if _, rival := errors.AsType[*RivalError](err); err != nil && !rival { // who asks again every other second, and was told of
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
	_ = conn.SetDeadline(time.Now().Add(helloTimeout))
	_, err = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", protocol.UpgradeStream)
	if err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("answer the upgrade: %w", err)
	}
	return conn, rw.Reader, nil
}

// bounded is a reader that fails when one message goes on for too long.
type bounded struct {
	r    io.Reader
	left int // of the present message
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("a message is larger than %d bytes", maxMessage)
	}
	n, err := b.r.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// receive reads the node's next message.
func (s *session) receive() (m protocol.FromAgent, err error) {
	s.in.left = maxMessage
	if err := s.dec.Decode(&m); err != nil {
		return m, fmt.Errorf("read from node %s: %w", s.nodeID, err)
	}
	s.beat()
	return m, nil
}

func (s *session) serve(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	// Reads and writes notice by their connection that the session is over.
	unblock := context.AfterFunc(gctx, func() { _ = s.conn.Close() })
	defer unblock()
	if err := s.greet(ctx); err != nil {
		return ended(ctx, err)
	}
	if !s.enter() {
		return ErrStopped
	}
	defer s.leave()
	g.Go(func() error { return s.read(gctx) })
	g.Go(func() error { return s.write(gctx) })
	g.Go(func() error { return s.report(gctx) })
	return ended(ctx, g.Wait())
}

// ended gives the reason for which a session was ended, or else what it failed of.
func ended(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// greet reads the node's hello and registers it.
func (s *session) greet(ctx context.Context) error {
	_ = s.conn.SetReadDeadline(time.Now().Add(helloTimeout))
	first, err := s.receive()
	if err != nil {
		return err
	}
	if first.Hello == nil {
		return fmt.Errorf("node %s opened a session without a hello", s.nodeID)
	}
	_ = s.conn.SetReadDeadline(time.Time{})
	return s.register(ctx, first.Hello)
}

// register makes the node READY in the store; the session begins when that is committed.
func (s *session) register(ctx context.Context, h *protocol.Hello) error {
	known, err := s.known(ctx)
	if err != nil {
		return err
	}
	if !known {
		return s.dismiss()
	}
	if c := s.d.cfg.Store.Snapshot().Cluster(); c != nil && h.Epoch > c.Epoch {
		// What a node says is no reason to step down: it may be lying. But it is not to be counted on here.
		return fmt.Errorf("node %s follows the cluster as it was recovered elsewhere at %s; if that is meant, end this manager with 'miniswarm leave --force'",
			s.nodeID, cluster.EpochTime(h.Epoch).Format(time.RFC3339))
	}
	s.instance = h.Instance
	if err := s.d.awaitRival(ctx, s); err != nil {
		return errors.Join(err, s.send(protocol.ToAgent{Refused: &protocol.Refused{Reason: err.Error()}}))
	}
	// Heard from now on, so that the node is not called DOWN while its coming back is being stored.
	s.d.mu.Lock()
	s.d.heard[s.nodeID] = s.lastHeard()
	s.d.mu.Unlock()
	s.dataPlane = h.DataPlane
	if _, err := netip.ParseAddr(h.DataAddr); err == nil {
		s.addr = h.DataAddr
	}
	without := !h.DataPlane
	patch := cluster.NodePatch{Status: &swarm.NodeStatus{State: swarm.NodeStateReady, Addr: s.addr}, Description: &h.Description, DataAddr: s.addr,
		NoDataPlane: &without, Instance: h.Instance}
	if _, err := s.d.cfg.Store.Propose(ctx, &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.PatchNode(s.nodeID, patch)}}); err != nil {
		return fmt.Errorf("register node %s: %w", s.nodeID, err)
	}
	return nil
}

// known says whether the node is part of the swarm. That it is not ends its agent for good, so that a leader must not say
// so which was deposed before the node was added and does not know that yet: it asks the others.
func (s *session) known(ctx context.Context) (bool, error) {
	if s.d.cfg.Store.Snapshot().Node(s.nodeID) != nil {
		return true, nil
	}
	snap, err := s.d.cfg.Store.Read(ctx)
	if err != nil {
		return false, fmt.Errorf("look for node %s, which is not known here: %w", s.nodeID, err)
	}
	return snap.Node(s.nodeID) != nil, nil
}

// dismiss tells the node that it is no longer a member, and ends the session.
func (s *session) dismiss() error {
	reason := fmt.Sprintf("node %s is not part of this swarm: it was removed", s.nodeID)
	if err := s.send(protocol.ToAgent{Leave: &protocol.LeaveRequired{Reason: reason}}); err != nil {
		return err
	}
	return errors.New("dismissed: " + reason)
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
	d.cfg.Counters.Sessions.Add(1)
	s.poke()
	return true
}

func (s *session) leave() {
	d := s.d
	defer d.endStreams(s) // waits for nobody, but closing a connection under the lock might
	d.mu.Lock()
	defer d.mu.Unlock()
	if last := s.lastHeard(); last.After(d.heard[s.nodeID]) && d.cfg.Store.Snapshot().Node(s.nodeID) != nil {
		d.heard[s.nodeID] = last
	}
	if d.sessions[s.nodeID] == s {
		delete(d.sessions, s.nodeID)
	}
	for _, r := range d.logs {
		if r.session == s {
			r.end(s.lost())
		}
	}
}

func (s *session) beat() { s.heardAt.Store(int64(time.Since(s.d.epoch))) }

// lastHeard is the node's last sign of life. While its messages wait for the store, silence is not the node's.
func (s *session) lastHeard() time.Time {
	if s.waiting.Load() {
		return time.Now()
	}
	return s.d.epoch.Add(time.Duration(s.heardAt.Load()))
}

// poke wakes the writer.
func (s *session) poke() { kick(s.wake) }

// close ends the session without waiting for it.
func (s *session) close(why error) { s.cancel(why) }

// post queues a request to the agent.
func (s *session) post(m protocol.ToAgent) {
	s.mu.Lock()
	s.outbox = append(s.outbox, m)
	s.mu.Unlock()
	s.poke()
}

// read takes the node's messages; anything heard is a sign of life. What they ask for is sent by the writer, so that
// a node that does not read cannot keep its own messages from being read.
func (s *session) read(ctx context.Context) error {
	for {
		m, err := s.receive()
		if err != nil {
			return err
		}
		switch {
		case m.Heartbeat != nil:
			s.readClock(m.Heartbeat.Clock)
			s.d.cfg.Counters.Heartbeats.Add(1)
			s.beats.Store(true)
			s.poke()
		case m.Status != nil, m.Hello != nil:
			if err := s.take(ctx, m); err != nil {
				return err
			}
		case m.MeshAck != nil:
			s.acked(*m.MeshAck)
		case m.LogChunk != nil:
			s.d.relay(s, *m.LogChunk)
		case m.LogEnd != nil:
			s.d.endRelay(s, *m.LogEnd)
		}
	}
}

// take hands what the node tells of itself to the store, and may wait for it.
func (s *session) take(ctx context.Context, m protocol.FromAgent) error {
	s.waiting.Store(true)
	defer func() {
		s.beat()
		s.waiting.Store(false)
	}()
	if m.Hello != nil {
		return s.redescribe(ctx, m.Hello)
	}
	s.d.cfg.Counters.Reports.Add(1)
	select {
	case s.reports <- *m.Status:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// acked notes what the node routes by. A table that it could not apply is not one it routes by.
func (s *session) acked(a protocol.MeshAck) {
	if a.Err != "" {
		s.d.cfg.Logger.Warn("a node could not apply the mesh", "node", s.nodeID, "mesh", a.Seq, "err", a.Err)
		return
	}
	s.meshAcked.Store(a.Seq)
	kick(s.d.settle)
}
