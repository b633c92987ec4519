package dispatcher

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// callTimeout is how long an agent has to open a stream that it was asked for.
const callTimeout = 5 * time.Second

// call is a stream that an agent was asked for and has yet to open.
type call struct {
	session   *session
	outcome   chan outcome // capacity 1
	abandoned bool         // guarded by the dispatcher's mu; nobody waits any more
}

type outcome struct {
	conn net.Conn
	err  error
}

// nodeStream is a stream that an agent has opened. It ends with the session through which it was asked for, so that a node
// that has lost its power does not leave others waiting at it.
type nodeStream struct {
	net.Conn
	r       *bufio.Reader // has what was read beyond the request's head
	session *session
}

func (s *nodeStream) Read(p []byte) (int, error) { return s.r.Read(p) }

// CloseWrite says that no more will be written; reading goes on.
func (s *nodeStream) CloseWrite() error {
	if half, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

func (s *nodeStream) Close() error {
	s.session.d.forgetStream(s)
	return s.Conn.Close()
}

// Dial opens a stream of bytes to the agent of a node, which answers HTTP requests on it (see [protocol.StreamRequest]). The
// caller closes it. It has a CloseWrite, and fails when the node's session ends.
func (d *Dispatcher) Dial(ctx context.Context, nodeID string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	id := d.cfg.IDs.Next()
	d.mu.Lock()
	s := d.sessions[nodeID]
	if s == nil {
		d.mu.Unlock()
		return nil, fmt.Errorf("node %s is not available", nodeID)
	}
	c := &call{session: s, outcome: make(chan outcome, 1)}
	d.calls[id] = c
	d.mu.Unlock()
	s.post(protocol.ToAgent{Stream: &protocol.StreamRequest{ID: id}})
	select {
	case o := <-c.outcome:
		return o.conn, o.err
	case <-ctx.Done():
	}
	d.mu.Lock()
	delete(d.calls, id)
	c.abandoned = true
	d.mu.Unlock()
	select {
	case o := <-c.outcome: // at the last moment
		return o.conn, o.err
	default:
		return nil, fmt.Errorf("node %s does not answer: %w", nodeID, context.Cause(ctx))
	}
}

// ServeStream upgrades the request of a node to the stream that the node was asked for by that id. The node's identity was
// proved by its certificate. It returns at once; the stream belongs to whoever dialled.
func (d *Dispatcher) ServeStream(w http.ResponseWriter, _ *http.Request, nodeID, id string) {
	d.mu.Lock()
	c := d.calls[id]
	if c == nil || c.session.nodeID != nodeID {
		d.mu.Unlock()
		http.Error(w, "nobody waits for stream "+id+" of node "+nodeID, http.StatusNotFound)
		return
	}
	delete(d.calls, id)
	d.mu.Unlock()
	conn, buffered, err := upgrade(w)
	if err != nil {
		c.outcome <- outcome{err: fmt.Errorf("node %s: %w", nodeID, err)}
		http.Error(w, "stream: "+err.Error(), http.StatusInternalServerError)
		return
	}
	_ = conn.SetDeadline(time.Time{})
	if !d.handOver(c, &nodeStream{Conn: conn, r: buffered, session: c.session}) {
		_ = conn.Close()
	}
}

// handOver gives a stream to who dialled, unless that one has given up or the session has ended meanwhile.
func (d *Dispatcher) handOver(c *call, s *nodeStream) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sessions[c.session.nodeID] != c.session {
		c.outcome <- outcome{err: c.session.lost()}
		return false
	}
	if c.abandoned {
		return false
	}
	d.streams[s] = true
	c.outcome <- outcome{conn: s}
	return true
}

func (d *Dispatcher) forgetStream(s *nodeStream) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.streams, s)
}

// endStreams ends what goes through a session that has ended.
func (d *Dispatcher) endStreams(s *session) {
	d.mu.Lock()
	for id, c := range d.calls {
		if c.session == s {
			delete(d.calls, id)
			c.outcome <- outcome{err: s.lost()}
		}
	}
	var ended []*nodeStream
	for st := range d.streams {
		if st.session == s {
			ended = append(ended, st)
		}
	}
	d.mu.Unlock()
	for _, st := range ended {
		_ = st.Close()
	}
}

func (s *session) lost() error { return fmt.Errorf("node %s disconnected unexpectedly", s.nodeID) }
