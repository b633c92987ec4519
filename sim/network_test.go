package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// network joins the hosts by connections that behave as TCP does: what is sent arrives in order and late; while the way is cut
// it waits, as for retransmission; a process that ends resets its connections, a machine without power says nothing at all.
type network struct {
	mu    sync.Mutex // guards all below, and the pipes of all connections
	rand  *rand.Rand
	cut   map[[2]int]int // from, to: how many faults cut this way
	delay time.Duration  // at most, one way
	reset float64        // probability that a write breaks the connection
	ports map[string]*listener
	conns map[*conn]struct{}
}

func newNetwork(seed uint64) *network {
	return &network{rand: rand.New(rand.NewPCG(seed, 100)), cut: map[[2]int]int{}, ports: map[string]*listener{}, conns: map[*conn]struct{}{}}
}

// change adds a cut of the way from one host to another, or takes one away (by is 1 or -1).
func (n *network) change(from, to, by int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]int{from, to}] += by
	for c := range n.conns {
		if c.host == to && c.peer.host == from {
			c.moved.Broadcast()
		}
	}
}

func (n *network) isCut(from, to int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.isCutLocked(from, to)
}

func (n *network) isCutLocked(from, to int) bool { return n.cut[[2]int{from, to}] > 0 }

func (n *network) setFaults(delay time.Duration, reset float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay, n.reset = delay, reset
}

// end ends all connections of a host and its listener. The peers hear of it if the host is able to tell.
func (n *network) end(host int, tell bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		if c.host != host {
			continue
		}
		c.breakLocked()
		if tell && !n.isCutLocked(host, c.peer.host) {
			c.peer.breakLocked()
		}
	}
}

// address is where a host's cluster port is.
func address(host int) string { return fmt.Sprintf("10.0.0.%d:2377", host+1) }

// listen opens the cluster port of a host.
func (n *network) listen(host int) *listener {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := &listener{n: n, host: host, incoming: make(chan net.Conn, 128), closed: make(chan struct{})}
	n.ports[address(host)] = l
	return l
}

// dial opens a connection from a host. It takes a way there and back.
func (n *network) dial(ctx context.Context, from int, addr string) (net.Conn, error) {
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	for range 3 { // SYN, and its repetitions
		n.mu.Lock()
		l, delay, reachable := n.ports[addr], n.lateLocked(), false
		if l != nil {
			reachable = !n.isCutLocked(from, l.host) && !n.isCutLocked(l.host, from)
		}
		n.mu.Unlock()
		if reachable {
			if err := pause(ctx, 2*delay); err != nil {
				return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
			}
			return n.connect(from, addr, refused)
		}
		if err := pause(ctx, time.Second); err != nil {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
		}
	}
	return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded}
}

func (n *network) connect(from int, addr string, refused error) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.ports[addr]
	if l == nil {
		return nil, refused
	}
	ours, theirs := n.newConn(from), n.newConn(l.host)
	ours.peer, theirs.peer = theirs, ours
	select {
	case l.incoming <- theirs:
	default:
		return nil, refused
	}
	n.conns[ours], n.conns[theirs] = struct{}{}, struct{}{}
	return ours, nil
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// lateLocked draws a delay.
func (n *network) lateLocked() time.Duration {
	if n.delay == 0 {
		return 200 * time.Microsecond
	}
	return time.Duration(n.rand.Int64N(int64(n.delay)))
}

// listener is a host's cluster port.
type listener struct {
	n        *network
	host     int
	incoming chan net.Conn
	closed   chan struct{}
	once     sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.incoming:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close closes the port. Who dials it then waits in vain, as with a machine that is off.
func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.n.mu.Lock()
		defer l.n.mu.Unlock()
		if l.n.ports[address(l.host)] == l {
			delete(l.n.ports, address(l.host))
		}
	})
	return nil
}

func (l *listener) Addr() net.Addr { return tcpAddr(l.host) }

func tcpAddr(host int) net.Addr {
	return &net.TCPAddr{IP: net.IPv4(10, 0, 0, byte(host+1)), Port: 2377}
}

// window is how much may be under way before a writer waits.
const window = 256 << 10

type chunk struct {
	data []byte
	at   time.Time // when it arrives
}

// conn is one end of a connection. All fields below n are guarded by n.mu.
type conn struct {
	n              *network
	host           int
	peer           *conn
	in             []chunk // sent by the peer and not read
	size           int
	last           time.Time // arrival of the latest of them
	eof            bool      // the peer has closed after them
	closed         bool
	broken         error
	readBy, sendBy time.Time
	moved          *sync.Cond // something may be readable, writable or over
}

func (n *network) newConn(host int) *conn { return &conn{n: n, host: host, moved: sync.NewCond(&n.mu)} }

// breakLocked resets this end.
func (c *conn) breakLocked() {
	c.broken = syscall.ECONNRESET
	delete(c.n.conns, c)
	c.moved.Broadcast()
}

// wakeLocked has those who wait look again at a time.
func (c *conn) wakeLocked(at time.Time) *time.Timer {
	return time.AfterFunc(time.Until(at), func() {
		c.n.mu.Lock()
		defer c.n.mu.Unlock()
		c.moved.Broadcast()
	})
}

func past(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

func (c *conn) Read(p []byte) (int, error) {
	n := c.n
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		switch {
		case c.closed:
			return 0, net.ErrClosed
		case c.broken != nil:
			return 0, &net.OpError{Op: "read", Net: "tcp", Err: c.broken}
		case past(c.readBy):
			return 0, os.ErrDeadlineExceeded
		case n.isCutLocked(c.peer.host, c.host): // it waits for the way to be open again
		case len(c.in) > 0 && !time.Now().Before(c.in[0].at):
			k := copy(p, c.in[0].data)
			if c.in[0].data = c.in[0].data[k:]; len(c.in[0].data) == 0 {
				c.in = c.in[1:]
			}
			c.size -= k
			c.peer.moved.Broadcast()
			return k, nil
		case len(c.in) == 0 && c.eof:
			return 0, io.EOF
		}
		at := c.readBy
		if len(c.in) > 0 && c.in[0].at.After(time.Now()) && (at.IsZero() || c.in[0].at.Before(at)) {
			at = c.in[0].at
		}
		c.waitLocked(at)
	}
}

// waitLocked waits until something has moved or a time has come.
func (c *conn) waitLocked(at time.Time) {
	if !at.IsZero() {
		defer c.wakeLocked(at).Stop()
	}
	c.moved.Wait()
}

func (c *conn) Write(p []byte) (int, error) {
	n := c.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.reset > 0 && n.rand.Float64() < n.reset {
		c.breakLocked()
		c.peer.breakLocked()
	}
	for {
		switch {
		case c.closed:
			return 0, net.ErrClosed
		case c.broken != nil:
			return 0, &net.OpError{Op: "write", Net: "tcp", Err: c.broken}
		case past(c.sendBy):
			return 0, os.ErrDeadlineExceeded
		case c.peer.closed:
			return 0, &net.OpError{Op: "write", Net: "tcp", Err: syscall.EPIPE}
		case c.peer.size < window:
			at := time.Now().Add(n.lateLocked())
			if at.Before(c.peer.last) {
				at = c.peer.last
			}
			c.peer.last = at
			c.peer.in = append(c.peer.in, chunk{append([]byte(nil), p...), at})
			c.peer.size += len(p)
			c.peer.moved.Broadcast()
			return len(p), nil
		}
		c.waitLocked(c.sendBy)
	}
}

func (c *conn) Close() error {
	n := c.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if !c.closed {
		c.closed, c.peer.eof = true, true
		delete(n.conns, c)
		c.moved.Broadcast()
		c.peer.moved.Broadcast()
	}
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return tcpAddr(c.host) }
func (c *conn) RemoteAddr() net.Addr { return tcpAddr(c.peer.host) }

func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	c.readBy = t
	c.moved.Broadcast()
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	c.sendBy = t
	c.moved.Broadcast()
	return nil
}
