package lb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxSends bounds how often one request is sent to backends that fail it. One that kills its backend must not kill
	// them all.
	maxSends = 3
	// maxGivenUp bounds how often it is taken back from a backend that may only be slow. The next one may take its time:
	// slow is better than nothing, and taking work back and forth would make all of them slower still.
	maxGivenUp = 2
)

// wholeAnswer is the longest answer to a repeatable request that is taken in whole before the client gets any of it, so
// that the request can still be sent again when its backend dies in the middle.
const wholeAnswer = 64 << 10

var errFirstByte = errors.New("backend did not begin to answer in time")

// httpFront balances requests.
type httpFront struct {
	server *http.Server
	conns  sync.WaitGroup // server's connections, until they are closed or taken over by an upgrade
	work   sync.WaitGroup // handlers, which stay with upgraded connections to their end
}

func newHTTPFront(b *Balancer, lives context.Context) *httpFront {
	f := &httpFront{}
	toSlog := slog.NewLogLogger(b.cfg.Log.Handler(), slog.LevelDebug) // what clients do wrong, mostly
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme = "http"
			r.Out.URL.Host = r.In.Host // the transport puts the backend here
			r.Out.Host = r.In.Host
			r.SetXForwarded()
		},
		Transport:  &resender{b},
		BufferPool: &buffers{},
		ErrorLog:   toSlog,
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() != nil {
				return // nobody waits for an answer
			}
			b.turnedAway.Add(1)
			b.cfg.Log.Debug("request failed", "method", r.Method, "uri", r.URL.RequestURI(), "err", err)
			if _, unsent := errors.AsType[*unsentError](err); unsent || errors.Is(err, errNoBackends) {
				w.Header().Set("Retry-After", "1")
				http.Error(w, "miniswarm lb: no backend can be reached", http.StatusServiceUnavailable)
				return
			}
			http.Error(w, "miniswarm lb: the backend failed before it answered", http.StatusBadGateway)
		},
	}
	f.server = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			f.work.Add(1)
			defer f.work.Done()
			b.requests.Add(1)
			proxy.ServeHTTP(w, r)
		}),
		BaseContext:       func(net.Listener) context.Context { return lives },
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          toSlog,
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				f.conns.Add(1)
				b.clients.Add(1)
				b.active.Add(1)
			case http.StateClosed, http.StateHijacked:
				f.conns.Done()
				b.active.Add(-1)
			}
		},
	}
	return f
}

func (f *httpFront) serve(ln net.Listener) error {
	if err := f.server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (f *httpFront) drain(ctx context.Context) bool { return f.server.Shutdown(ctx) == nil }

func (f *httpFront) wait() {
	_ = f.server.Close() // what it could say of closed listeners and connections changes nothing
	f.conns.Wait()       // before work: then no handler can begin any more
	f.work.Wait()
}

// newTransport makes the connections to one backend in HTTP mode.
func (b *Balancer) newTransport(be *backend) *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := be.dial(ctx, b.cfg.DialTimeout, b.cfg.Dial)
			if err != nil {
				return nil, err
			}
			return &watchedConn{Conn: conn, closed: sync.OnceFunc(func() { be.forget(conn) })}, nil
		},
		DisableCompression:  true, // the client and the service settle that between them
		MaxIdleConnsPerHost: 512,
		IdleConnTimeout:     30 * time.Second,
	}
}

// watchedConn says when it is closed.
type watchedConn struct {
	net.Conn
	closed func()
}

func (c *watchedConn) Close() error {
	defer c.closed()
	return c.Conn.Close()
}

// resender is the RoundTripper of HTTP mode: it finds a backend, and another when that one fails and the request can be
// sent again without harm.
type resender struct{ balancer *Balancer }

// RoundTrip follows the rules of the package comment. It leaves closing the request's body to its caller, ReverseProxy,
// since an attempt that failed must not close what the next one needs.
func (t *resender) RoundTrip(req *http.Request) (*http.Response, error) {
	b := t.balancer
	search := b.pool.search(b.cfg.Patience)
	repeatable := (req.Body == nil || req.Body == http.NoBody) && safeMethod(req.Method)
	for failed, givenUp := 0, 0; ; {
		be, err := search.next(req.Context())
		if err != nil {
			return nil, err
		}
		resp, err := b.send(req, be, repeatable, repeatable && givenUp < maxGivenUp)
		if err == nil {
			return resp, nil
		}
		search.failed(be, err)
		if req.Context().Err() != nil {
			return nil, err
		}
		if _, unsent := errors.AsType[*unsentError](err); unsent {
			continue
		}
		if errors.Is(err, errMarkedDown) || errors.Is(err, errFirstByte) {
			givenUp++
		} else {
			failed++
		}
		if !repeatable || failed == maxSends {
			return nil, fmt.Errorf("%s, failed %d times: %w", be.address, failed, err)
		}
		b.resent.Add(1)
	}
}

// send sends req to one backend and returns its answer, whose body releases the backend when it is closed. A request that
// may be given up is, before its answer begins or, if that is short, is complete, when the backend is marked down or the
// time for a first byte is over. The error is an *unsentError if no connection was there to send the request on.
func (b *Balancer) send(req *http.Request, be *backend, repeatable, mayGiveUp bool) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	var connected atomic.Bool
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	})
	out := req.WithContext(traced)
	address := *req.URL
	address.Host = be.address
	out.URL = &address
	if req.Body != nil && req.Body != http.NoBody {
		out.Body = heldBody{req.Body}
	}
	out.Close = req.Header.Get("Upgrade") == "" && be.total.Load()%int64(b.cfg.Reuse) == 0

	wait := func() bool { return true }
	if mayGiveUp {
		wait = be.answerWithin(b.cfg.FirstByteTimeout, cancel)
	}
	resp, err := be.transport.RoundTrip(out)
	if err == nil && repeatable && req.Method != http.MethodHead && resp.ContentLength > 0 && resp.ContentLength <= wholeAnswer {
		if err = takeWhole(resp); err != nil {
			_ = resp.Body.Close() // nothing of it is wanted
		}
	}
	if !wait() && err == nil {
		// The answer began in the very moment in which it was given up, and is lost.
		_ = resp.Body.Close() // nothing of it is wanted
		err = errMarkedDown
	}
	if err != nil {
		if gaveUp := context.Cause(ctx); gaveUp != nil && req.Context().Err() == nil {
			err = gaveUp
		}
		cancel(nil)
		if _, unsent := errors.AsType[*unsentError](err); !unsent && !connected.Load() {
			err = &unsentError{be.address, err}
		}
		return nil, err
	}
	be.answered()
	done := sync.OnceFunc(func() {
		cancel(nil)
		be.release()
	})
	answer := &releasingBody{ReadCloser: resp.Body, done: done}
	resp.Body = answer
	if duplex, ok := answer.ReadCloser.(io.Writer); ok {
		resp.Body = &releasingDuplex{releasingBody: answer, Writer: duplex} // of an upgraded connection
	}
	return resp, nil
}

// takeWhole reads an answer's body, so that it can be read again without its backend.
func takeWhole(resp *http.Response) error {
	body := make([]byte, resp.ContentLength)
	if _, err := io.ReadFull(resp.Body, body); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	resp.Body = &wholeBody{Reader: bytes.NewReader(body), Closer: resp.Body}
	return nil
}

// wholeBody is a body that has been read, over the one it was read from.
type wholeBody struct {
	*bytes.Reader
	io.Closer
}

// answerWithin calls cancel with the reason when the backend is marked down or, if limit is not zero, when that is over.
// The returned stop ends this and says whether cancel was not, and will not be, called.
func (be *backend) answerWithin(limit time.Duration, cancel context.CancelCauseFunc) (stop func() bool) {
	standing := be.whenMarkedDown(func() { cancel(errMarkedDown) })
	if limit == 0 {
		return standing
	}
	timer := time.AfterFunc(limit, func() { cancel(errFirstByte) })
	return func() bool {
		inTime := timer.Stop()
		return standing() && inTime
	}
}

// safeMethod says whether a request of this method has no effect that sending it twice could double.
func safeMethod(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	default:
		return false
	}
}

// heldBody is a request's body that no transport can close: one that could not connect would, and the next attempt
// needs it.
type heldBody struct{ io.Reader }

func (heldBody) Close() error { return nil }

// releasingBody tells when an answer has been read, or is not wanted any more.
type releasingBody struct {
	io.ReadCloser
	done func()
}

func (r *releasingBody) Close() error {
	defer r.done()
	return r.ReadCloser.Close()
}

type releasingDuplex struct {
	*releasingBody
	io.Writer
}

// buffers lends ReverseProxy its copy buffers.
type buffers struct{ pool sync.Pool }

const bufferSize = 32 << 10

func (b *buffers) Get() []byte {
	if buf, ok := b.pool.Get().(*[bufferSize]byte); ok {
		return buf[:]
	}
	return make([]byte, bufferSize)
}

func (b *buffers) Put(buf []byte) { b.pool.Put((*[bufferSize]byte)(buf)) }
