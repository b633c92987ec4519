package lb

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
)

// Balancer spreads connections or requests over backends. Make one with New.
type Balancer struct {
	cfg     Config
	pool    *pool
	changed chan struct{} // holds one token when the pool's list changed since the watchers looked
	ready   chan struct{} // closed once listening

	ran      atomic.Bool
	listener net.Listener // set before ready is closed

	clients    atomic.Int64
	active     atomic.Int64
	turnedAway atomic.Int64
	requests   atomic.Int64
	resent     atomic.Int64
}

// front is one of the two modes: what accepts clients.
type front interface {
	// serve accepts on ln until drain is called, which is no error.
	serve(ln net.Listener) error
	// drain stops accepting and waits for what is under way until ctx ends. It returns whether all was done by then.
	drain(ctx context.Context) bool
	// wait waits for everything to be over, which is soon once the context the front was made with has ended.
	wait()
}

// New checks the configuration. It starts nothing and opens nothing.
func New(cfg Config) (*Balancer, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	b := &Balancer{cfg: cfg, changed: make(chan struct{}, 1), ready: make(chan struct{})}
	b.pool = newPool(cfg.Policy, cfg.Seed, b.newBackend)
	return b, nil
}

func (b *Balancer) newBackend(address string) *backend {
	be := newBackend(address, b.cfg.Check, b.cfg.Log, func() {
		if noneUp(b.pool.list()) {
			b.cfg.Log.Error("no backend is up; trying those that are down")
		}
	})
	if b.cfg.Mode == HTTP {
		be.transport = b.newTransport(be)
	}
	return be
}

// Ready is closed once the Balancer listens.
func (b *Balancer) Ready() <-chan struct{} { return b.ready }

// Addr returns the address it listens on, or nil before Ready is closed.
func (b *Balancer) Addr() net.Addr {
	select {
	case <-b.ready:
		return b.listener.Addr()
	default:
		return nil
	}
}

// SetBackends replaces the list of backends, host:port addresses; repetitions are dropped. Those that stay keep their state.
// Those that go get nothing new, and finish the connections and requests they have. It may be called at any time. An
// address that is none is an error, and nothing changes.
func (b *Balancer) SetBackends(addresses []string) error {
	valid, err := validBackends(addresses)
	if err != nil {
		return fmt.Errorf("load balancer: %w", err)
	}
	b.pool.set(valid)
	select {
	case b.changed <- struct{}{}:
	default: // the token that is there will do
	}
	return nil
}

// Run listens and balances until ctx ends, then drains; that is the ordinary end and no error. It fails when it cannot
// listen or the Source gives up. A Balancer runs once.
func (b *Balancer) Run(ctx context.Context) error {
	if b.ran.Swap(true) {
		return fmt.Errorf("load balancer: it has run already: make another")
	}
	ln := b.cfg.Listener
	if ln == nil {
		var lc net.ListenConfig
		var err error
		if ln, err = lc.Listen(ctx, "tcp", b.cfg.Listen); err != nil {
			return fmt.Errorf("load balancer: %w", err)
		}
	}
	b.listener = ln
	close(b.ready)
	b.cfg.Log.Info("load balancer is listening", "address", ln.Addr().String(), "mode", b.cfg.Mode.String())

	serving, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	// What is under way, and the checks it depends on, outlive ctx by Grace.
	lives, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()

	watching := startWatcher(lives, b.watchers)
	following := startWatcher(serving, func(ctx context.Context) {
		if err := b.follow(ctx); err != nil {
			stop(err)
		}
	})
	front := b.newFront(lives)
	accepting := startWatcher(serving, func(context.Context) {
		if err := front.serve(ln); err != nil {
			stop(fmt.Errorf("load balancer: %w", err))
		}
	})

	<-serving.Done()
	drained := b.drain(front)
	cut()
	accepting.stop()
	front.wait()
	following.stop()
	watching.stop()
	for _, be := range b.pool.list() {
		be.closeIdle()
	}
	b.cfg.Log.Info("load balancer has stopped", "drained", drained)
	if ctx.Err() == nil {
		return context.Cause(serving)
	}
	return nil
}

func (b *Balancer) newFront(lives context.Context) front {
	if b.cfg.Mode == HTTP {
		return newHTTPFront(b, lives)
	}
	return newTCPFront(b, lives)
}

// follow takes the backends from the source, if there is one.
func (b *Balancer) follow(ctx context.Context) error {
	if b.cfg.Source == nil {
		return nil
	}
	if err := b.cfg.Source.Follow(ctx, b.SetBackends); err != nil && ctx.Err() == nil {
		return fmt.Errorf("load balancer: follow the list of backends: %w", err)
	}
	return nil
}

// drain gives what is under way Grace to finish and returns whether it did.
func (b *Balancer) drain(f front) bool {
	ctx, cancel := context.WithTimeout(context.Background(), max(0, b.cfg.Grace))
	defer cancel()
	return f.drain(ctx)
}
