package agent

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/miniswarm/miniswarm/cluster/protocol"
)

const (
	// maxStreams bounds how many streams to the leader an agent holds open at a time; a command in a container needs one
	// while it runs and another for a moment now and then.
	maxStreams = 512
	// requestLimit is how long a stream that stands may wait for its request.
	requestLimit = 10 * time.Second
)

// streams are what the leader of a session has asked for (see [protocol.StreamRequest]). start is called by the session's
// reader.
type streams struct {
	ctx   context.Context
	wg    sync.WaitGroup
	slots chan struct{}
}

func (s *streams) begin(ctx context.Context) { s.ctx, s.slots = ctx, make(chan struct{}, maxStreams) }

// end waits for all; their context must have ended.
func (s *streams) end() { s.wg.Wait() }

func (s *streams) start(a *Agent, leader, id string) {
	select {
	case s.slots <- struct{}{}:
	default: // the leader's patience ends by itself
		a.log.Warn("too many streams to containers of this node at a time; one was refused", "limit", maxStreams)
		return
	}
	s.wg.Go(func() {
		defer func() { <-s.slots }()
		conn, err := open(s.ctx, a.cfg.Dial, leader, protocol.PathStreams+"/"+url.PathEscape(id))
		if err != nil {
			a.log.Info("the leader asked for a stream, which could not be opened", "err", err)
			return
		}
		bound(conn, streamSilence)
		unblock := context.AfterFunc(s.ctx, func() { _ = conn.Close() })
		defer unblock()
		serveOn(s.ctx, conn, a.answering(), a.log)
	})
}

// answering is what the leader finds on a stream: containers of tasks, and the node itself.
func (a *Agent) answering() http.Handler {
	mux := http.NewServeMux()
	if a.cfg.About != nil {
		mux.Handle(protocol.PathNode+"/", http.StripPrefix(protocol.PathNode, a.cfg.About))
	}
	mux.Handle("/", &window{engine: a.cfg.Engine, container: a.containerOf, allowed: a.worker.allowed})
	return mux
}

// streamSilence is how long what was written to a stream may stay unacknowledged by the leader's machine.
const streamSilence = 10 * time.Second

// serveOn answers HTTP requests on one connection, which it closes, and returns when the last answer has been given.
func serveOn(ctx context.Context, conn net.Conn, h http.Handler, log *slog.Logger) {
	l := &lone{conn: make(chan net.Conn, 1), closed: make(chan struct{}), addr: conn.LocalAddr()}
	l.conn <- &lastConn{Conn: conn, closed: sync.OnceFunc(func() { close(l.closed) })}
	var answering sync.WaitGroup
	server := &http.Server{ReadHeaderTimeout: requestLimit, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx },
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			answering.Add(1)
			defer answering.Done()
			h.ServeHTTP(w, r)
		})}
	_ = server.Serve(l) // ends with the connection
	answering.Wait()
}

// lone is a listener of one connection. Accept fails once that is closed.
type lone struct {
	conn   chan net.Conn
	closed chan struct{}
	addr   net.Addr
}

func (l *lone) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *lone) Close() error   { return nil }
func (l *lone) Addr() net.Addr { return l.addr }

// lastConn tells its listener when it is closed.
type lastConn struct {
	net.Conn
	closed func()
}

func (c *lastConn) Close() error {
	defer c.closed()
	return c.Conn.Close()
}

// CloseWrite says that no more will be written; reading goes on.
func (c *lastConn) CloseWrite() error { return closeWrite(c.Conn) }
