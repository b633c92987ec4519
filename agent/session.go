package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/miniswarm/miniswarm/cluster/protocol"
)

const (
	// welcomeLimit is how long the leader may take to store that the node is there.
	welcomeLimit = 10 * time.Second
	// writeLimit ends a session whose connection takes nothing any more.
	writeLimit = 5 * time.Second
	// defaultHeartbeat is used when the leader names no period.
	defaultHeartbeat = time.Second
	// silentBeats is how many heartbeats in a row a leader may leave unanswered, minSilence the least time in any case:
	// long enough for a busy machine, short enough to reach the next leader before this node is called down.
	silentBeats = 6
	minSilence  = 1500 * time.Millisecond
)

// errSilent ends a session whose leader has stopped answering heartbeats.
var errSilent = errors.New("the leader has fallen silent")

// RemovedError says that the cluster no longer knows this node. It is the end of the agent: whoever runs it should call
// Leave.
type RemovedError struct{ Reason string }

func (e *RemovedError) Error() string { return "the swarm has let this node go: " + e.Reason }

// refusedError says that the leader has a session with another machine that is the same node. Which of the two is the copy
// only a person can tell, so that this agent leaves its containers as they are and asks again.
type refusedError struct{ reason string }

func (e *refusedError) Error() string { return e.reason }

// session is one connection to a leader.
type session struct {
	a      *Agent
	conn   net.Conn
	leader string // address
	seeks  uint64 // see Agent.candidates
	dec    *json.Decoder

	sending sync.Mutex // held while a message is written

	// The rest belongs to the reader.
	assigned uint64 // number of the last assignments, 0 before the first
	meshed   uint64
	logs     logRequests
	streams  streams
	periods  chan time.Duration // capacity 1; the heartbeat period, when the leader asks for another

	mu       sync.Mutex
	heard    time.Time // guarded by mu; when the leader last said something
	answered bool      // guarded by mu; this leader answers heartbeats
}

// serve holds a session with the leader at an address on an open stream until it ends, which is always an error.
func (a *Agent) serve(ctx context.Context, conn net.Conn, leader string, seeks uint64, welcomed func()) error {
	bound(conn, max(minSilence, silentBeats*a.cfg.Heartbeat))
	s := &session{a: a, conn: conn, leader: leader, seeks: seeks, periods: make(chan time.Duration, 1)}
	s.dec = json.NewDecoder(hearing{s})
	unblock := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer unblock()
	welcome, err := s.greet()
	if err != nil {
		return err
	}
	welcomed()
	a.welcomed(welcome)
	a.reporter.begin()
	a.setSession(s)
	defer func() {
		a.setSession(nil)
		a.mesh.lose()
	}()

	g, ctx := errgroup.WithContext(ctx)
	s.logs.begin(ctx)
	s.streams.begin(ctx)
	g.Go(func() error { return s.read() })
	g.Go(func() error { return s.beat(ctx, a.period(welcome)) })
	g.Go(func() error { return a.reporter.run(ctx, s.send) })
	// Whoever fails first brings the others down by closing the connection.
	g.Go(func() error { <-ctx.Done(); _ = conn.Close(); return context.Cause(ctx) })
	err = g.Wait()
	s.logs.end()
	s.streams.end()
	return err
}

// period is how often to show oneself to a leader that welcomes so.
func (a *Agent) period(w *protocol.Welcome) time.Duration {
	return cmp.Or(max(a.cfg.Heartbeat, 0), max(w.HeartbeatPeriod, 0), defaultHeartbeat)
}

// greet says hello and reads the welcome.
func (s *session) greet() (*protocol.Welcome, error) {
	_ = s.conn.SetDeadline(time.Now().Add(welcomeLimit))
	if err := s.hello(); err != nil {
		return nil, err
	}
	var m protocol.ToAgent
	if err := s.dec.Decode(&m); err != nil {
		return nil, fmt.Errorf("wait for the leader's welcome: %w", err)
	}
	_ = s.conn.SetDeadline(time.Time{})
	switch {
	case m.Leave != nil:
		return nil, &RemovedError{Reason: m.Leave.Reason}
	case m.Refused != nil:
		return nil, &refusedError{m.Refused.Reason}
	case m.Welcome == nil:
		return nil, errors.New("wait for the leader's welcome: it said something else")
	}
	s.hear(false)
	if err := s.a.follow(s.leader, m.Welcome.Epoch); err != nil {
		return nil, fmt.Errorf("the leader at %s is not followed: %w", s.leader, err)
	}
	return m.Welcome, nil
}

func (s *session) hello() error {
	c := s.a.cfg
	return s.send(protocol.FromAgent{Hello: &protocol.Hello{Description: s.a.describer.description(), DataAddr: c.DataAddr,
		DataPlane: c.Mesh != nil, Version: c.Version, Epoch: s.a.seenEpoch(), Instance: c.Instance}})
}

// send writes one message.
func (s *session) send(m protocol.FromAgent) error {
	data, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode a message to the leader: %w", err)
	}
	s.sending.Lock()
	defer s.sending.Unlock()
	_ = s.conn.SetWriteDeadline(time.Now().Add(writeLimit))
	if _, err := s.conn.Write(append(data, '\n')); err != nil {
		return fmt.Errorf("send to the leader: %w", err)
	}
	return nil
}

// hearing reads a session's connection. A leader that is in the middle of a large message, with many secrets in it for
// example, is not silent, however slow the way is.
type hearing struct{ *session }

func (h hearing) Read(p []byte) (int, error) {
	n, err := h.conn.Read(p)
	if n > 0 {
		h.hear(false)
	}
	return n, err
}

func (s *session) hear(answer bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard = time.Now()
	s.answered = s.answered || answer
}

// silence is how long a leader that answers heartbeats has said nothing.
func (s *session) silence() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.answered {
		return 0
	}
	return time.Since(s.heard)
}

// beat shows the leader that the agent lives, whatever else goes on, and notices when the leader does not.
func (s *session) beat(ctx context.Context, period time.Duration) error {
	t := time.NewTicker(period)
	defer t.Stop()
	limit := max(minSilence, silentBeats*period)
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case period = <-s.periods:
			t.Reset(period)
			limit = max(minSilence, silentBeats*period)
		case <-t.C:
		}
		if s.silence() > limit {
			return errSilent
		}
		if err := s.send(protocol.FromAgent{Heartbeat: &protocol.Heartbeat{Clock: time.Now()}}); err != nil {
			return err
		}
	}
}

// read takes the leader's messages. Nothing it calls waits for the engine or the kernel.
func (s *session) read() error {
	for {
		var m protocol.ToAgent
		if err := s.dec.Decode(&m); err != nil {
			return fmt.Errorf("read from the leader: %w", err)
		}
		s.hear(m.Heartbeat != nil)
		if err := s.handle(&m); err != nil {
			return err
		}
	}
}

func (s *session) handle(m *protocol.ToAgent) error {
	switch {
	case m.Assignments != nil:
		return s.assign(m.Assignments)
	case m.Mesh != nil:
		return s.route(m.Mesh)
	case m.StatusAck != nil:
		s.a.reporter.ack(m.StatusAck.Seq)
	case m.LogRequest != nil:
		s.logs.start(s.a, s.send, *m.LogRequest)
	case m.LogCancel != nil:
		s.logs.cancel(m.LogCancel.ID)
	case m.Stream != nil:
		s.streams.start(s.a, s.leader, m.Stream.ID)
	case m.Welcome != nil:
		s.a.welcomed(m.Welcome)
		select {
		case <-s.periods: // the beat has not seen that one yet, and need not
		default:
		}
		s.periods <- s.a.period(m.Welcome)
	case m.Managers != nil:
		s.a.setManagers(m.Managers)
	case m.Trust != nil:
		if s.a.cfg.OnTrust != nil {
			s.a.cfg.OnTrust(*m.Trust)
		}
	case m.Leave != nil:
		return &RemovedError{Reason: m.Leave.Reason}
	}
	return nil
}

// assign takes assignments in order; a gap means that something was lost, and a new session begins with everything.
func (s *session) assign(as *protocol.Assignments) error {
	if !as.Complete && as.Seq != s.assigned+1 {
		return fmt.Errorf("assignments %d came after %d", as.Seq, s.assigned)
	}
	if slices.Contains(as.Tasks, nil) || slices.Contains(as.Networks, nil) || slices.Contains(as.Secrets, nil) || slices.Contains(as.Configs, nil) {
		return fmt.Errorf("assignments %d have objects that are null", as.Seq)
	}
	s.assigned = as.Seq
	s.a.worker.apply(as)
	if as.Node != nil && s.a.cfg.OnNode != nil {
		s.a.cfg.OnNode(as.Node)
	}
	return nil
}

// route takes a change of the routing table. Its numbers may jump: what changed in between comes together.
func (s *session) route(m *protocol.Mesh) error {
	if !m.Complete && (m.Seq <= s.meshed || s.meshed == 0) {
		return fmt.Errorf("mesh %d came after %d", m.Seq, s.meshed)
	}
	s.meshed = m.Seq
	s.a.mesh.take(m, func(ack protocol.MeshAck) {
		// A session that has ended by now needs no answer.
		_ = s.send(protocol.FromAgent{MeshAck: &ack})
	})
	return nil
}
