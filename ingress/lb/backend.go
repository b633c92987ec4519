package lb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// deadlineWhenDown is how long data sent to a backend that is marked down may stay unacknowledged until the kernel gives
// its connection up. A live machine acknowledges within a round trip.
const deadlineWhenDown = time.Second

// errMarkedDown is why waiting for a backend ends early.
var errMarkedDown = errors.New("backend was marked down")

// unsentError is a failure before anything was sent to the backend: whatever it was for can safely go to another one.
type unsentError struct {
	address string
	err     error
}

func (e *unsentError) Error() string { return fmt.Sprintf("connect to %s: %v", e.address, e.err) }
func (e *unsentError) Unwrap() error { return e.err }

// backend is one address that connections are sent to, with what is known of it.
type backend struct {
	address   string
	log       *slog.Logger
	downed    func()          // called after the backend was marked down
	transport *http.Transport // of HTTP mode; nil in TCP mode

	active          atomic.Int64 // connections or requests under way, those being tried included
	total           atomic.Int64
	connectFailures atomic.Int64
	checkFailures   atomic.Int64
	sent, received  atomic.Int64 // bytes to and from it, in TCP mode

	mu     sync.Mutex // guards what follows
	health health
	// standing ends when the backend is marked down; a new one begins when it is up again.
	standing context.Context
	fall     context.CancelFunc
	conns    map[net.Conn]struct{}
}

func newBackend(address string, check Check, log *slog.Logger, downed func()) *backend {
	be := &backend{
		address: address,
		log:     log.With("backend", address),
		downed:  downed,
		health:  health{rise: check.Rise, fall: check.Fall, since: time.Now()},
		conns:   map[net.Conn]struct{}{},
	}
	be.standing, be.fall = context.WithCancel(context.Background())
	return be
}

func (be *backend) state() State {
	be.mu.Lock()
	defer be.mu.Unlock()
	return be.health.state
}

// whenMarkedDown calls f, in a goroutine of its own, when the backend is marked down. The returned stop prevents that,
// and says whether it did. For a backend that is down already nothing happens: who uses it nevertheless knows.
func (be *backend) whenMarkedDown(f func()) (stop func() bool) {
	be.mu.Lock()
	standing := be.standing
	be.mu.Unlock()
	if standing.Err() != nil {
		return func() bool { return true }
	}
	return context.AfterFunc(standing, f)
}

// checked takes in a check's outcome. It returns whether the next check should follow soon.
func (be *backend) checked(err error) (soon bool) {
	if err != nil {
		be.checkFailures.Add(1)
	}
	be.learn(func(h *health) bool {
		changed := h.checked(err, time.Now())
		soon = h.doubtful()
		return changed
	})
	return soon
}

// connectFailed takes in that a client's connection could not be made.
func (be *backend) connectFailed(err error) {
	be.connectFailures.Add(1)
	be.learn(func(h *health) bool { return h.connectFailed(err, time.Now()) })
}

// learn changes the health and makes a change of state felt: by who waits for the backend, and by the kernel.
func (be *backend) learn(change func(*health) bool) {
	be.mu.Lock()
	if !change(&be.health) {
		be.mu.Unlock()
		return
	}
	down, err := be.health.state == Down, be.health.lastErr
	limit := time.Duration(0)
	if down {
		limit = deadlineWhenDown
		be.fall()
	} else if be.standing.Err() != nil {
		be.standing, be.fall = context.WithCancel(context.Background())
	}
	for conn := range be.conns {
		limitUnacknowledged(conn, limit)
	}
	be.mu.Unlock()

	if !down {
		be.log.Info("backend is up")
		return
	}
	be.log.Warn("backend is down", "err", err)
	be.closeIdle()
	be.downed()
}

// closeIdle must not be called with mu held: closing a connection ends in forget.
func (be *backend) closeIdle() {
	if be.transport != nil {
		be.transport.CloseIdleConnections()
	}
}

// dialFunc is net.Dialer's DialContext.
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// dial makes a connection within timeout, or until the backend is marked down, and keeps an eye on it until forget is
// called. Errors are *unsentError. A failure that is the backend's may mark it down.
func (be *backend) dial(ctx context.Context, timeout time.Duration, dial dialFunc) (net.Conn, error) {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	attempt, giveUp := context.WithCancelCause(limited)
	defer giveUp(nil)
	defer be.whenMarkedDown(func() { giveUp(errMarkedDown) })()
	conn, err := dial(attempt, "tcp", be.address)
	if err != nil {
		if errors.Is(context.Cause(attempt), errMarkedDown) {
			return nil, &unsentError{be.address, errMarkedDown}
		}
		if ctx.Err() == nil && !ownTrouble(err) {
			be.connectFailed(err)
		}
		return nil, &unsentError{be.address, err}
	}
	be.mu.Lock()
	defer be.mu.Unlock()
	be.health.connected(time.Now())
	be.conns[conn] = struct{}{}
	if be.health.state == Down {
		limitUnacknowledged(conn, deadlineWhenDown)
	}
	return conn, nil
}

// answered takes in a sign of life.
func (be *backend) answered() {
	be.mu.Lock()
	defer be.mu.Unlock()
	be.health.connected(time.Now())
}

// forget ends the eye kept on a connection that dial returned.
func (be *backend) forget(conn net.Conn) {
	be.mu.Lock()
	defer be.mu.Unlock()
	delete(be.conns, conn)
}

// ownTrouble tells errors that say nothing of the backend: this machine is out of files, ports or memory.
func ownTrouble(err error) bool {
	for _, own := range []error{syscall.EMFILE, syscall.ENFILE, syscall.EADDRNOTAVAIL, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, own) {
			return true
		}
	}
	return false
}
