package lb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// tcpFront balances connections.
type tcpFront struct {
	balancer *Balancer
	lives    context.Context // of connections
	stopping chan struct{}   // closed by drain, before the listener is
	ended    chan struct{}   // closed when serve has returned
	listener chan net.Listener
	conns    sync.WaitGroup
}

func newTCPFront(b *Balancer, lives context.Context) *tcpFront {
	return &tcpFront{
		balancer: b, lives: lives,
		stopping: make(chan struct{}), ended: make(chan struct{}), listener: make(chan net.Listener, 1),
	}
}

func (f *tcpFront) serve(ln net.Listener) error {
	defer close(f.ended)
	f.listener <- ln
	pause := time.Duration(0)
	for {
		conn, err := ln.Accept()
		if err == nil {
			pause = 0
			f.conns.Go(func() { f.balancer.serveConn(f.lives, conn) })
			continue
		}
		select {
		case <-f.stopping:
			return nil
		default:
		}
		if !passing(err) {
			return fmt.Errorf("accept: %w", err)
		}
		// Out of files, or a client that left: accepting again at once would only burn the processor.
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		f.balancer.cfg.Log.Warn("accept failed, trying again", "err", err, "pause", pause)
		select {
		case <-time.After(pause):
		case <-f.stopping:
			return nil
		}
	}
}

func (f *tcpFront) drain(ctx context.Context) bool {
	close(f.stopping)
	_ = (<-f.listener).Close() // that it cannot be closed twice is all it could say
	<-f.ended
	done := make(chan struct{})
	go func() { // ends with wait, at the latest
		defer close(done)
		f.conns.Wait()
	}()
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}

func (f *tcpFront) wait() { f.conns.Wait() }

// passing tells errors of accept after which accepting can go on.
func passing(err error) bool {
	for _, known := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ECONNABORTED, syscall.ENOBUFS, syscall.ENOMEM, syscall.EINTR} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// serveConn takes a client's connection to a backend and back. It closes it.
func (b *Balancer) serveConn(ctx context.Context, client net.Conn) {
	b.clients.Add(1)
	b.active.Add(1)
	defer b.active.Add(-1)
	server, be, err := b.connect(ctx)
	if err != nil {
		b.turnedAway.Add(1)
		b.cfg.Log.Debug("client turned away", "client", client.RemoteAddr().String(), "err", err)
		reset(client) // "connection reset" is what a client that finds nobody should see, not an empty answer
		return
	}
	defer be.release()
	defer be.forget(server)
	sent, received := join(ctx, client, server)
	be.sent.Add(sent)
	be.received.Add(received)
}

// connect finds a backend that accepts a connection. The caller releases the backend and forgets the connection.
func (b *Balancer) connect(ctx context.Context) (net.Conn, *backend, error) {
	search := b.pool.search(b.cfg.Patience)
	for {
		be, err := search.next(ctx)
		if err != nil {
			return nil, nil, err
		}
		conn, err := be.dial(ctx, b.cfg.DialTimeout, b.cfg.Dial)
		if err == nil {
			return conn, be, nil
		}
		search.failed(be, err)
	}
}

// join moves bytes between two connections, both ways, until both directions have ended or ctx does, and closes them. It
// returns how many went from a to b and from b to a.
func join(ctx context.Context, a, b net.Conn) (ab, ba int64) {
	defer a.Close()
	defer b.Close()
	defer context.AfterFunc(ctx, func() {
		_ = a.Close() // this and the deferred ones above: closing twice is harmless
		_ = b.Close()
	})()
	var back sync.WaitGroup
	back.Go(func() { ba = pump(a, b) })
	ab = pump(b, a)
	back.Wait()
	return ab, ba
}

// pump moves bytes from src to dst until src ends, and passes the end on: an orderly end as one, so that the other
// direction may go on, and a reset as a reset.
func pump(dst, src net.Conn) int64 {
	n, err := io.Copy(dst, src) // between TCP connections this is splice(2): the bytes stay in the kernel
	if err == nil {
		closeWrite(dst)
		return n
	}
	// If src is alive then dst is not. Its last words may still wait to be read by the other direction (an answer such as
	// "413 too large" before a reset), which will find the end by itself: leave it alone.
	if !canRead(src) {
		reset(dst)
	}
	return n
}

func closeWrite(conn net.Conn) {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // when it fails the peer is gone, and reading from it says so
		return
	}
	_ = conn.Close()
}

// reset closes a connection so that its peer sees a reset, not an orderly end.
func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // at worst it is closed in order
	}
	_ = conn.Close()
}
