package lb

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// betweenRounds is how long a client that was failed by every backend waits before they are tried again.
const betweenRounds = 50 * time.Millisecond

// errNoBackends is why clients are turned away while the list of backends is empty.
var errNoBackends = errors.New("there are no backends")

// pool is the current list of backends and the choice among them. It is safe for concurrent use.
type pool struct {
	policy Policy
	make   func(address string) *backend

	mu       sync.Mutex // guards what follows
	backends []*backend // replaced, never changed
	random   *rand.Rand
	turn     int        // of RoundRobin
	eligible []*backend // scratch space of pick
}

func newPool(policy Policy, seed uint64, newBackend func(address string) *backend) *pool {
	if seed == 0 {
		seed = rand.Uint64()
	}
	return &pool{policy: policy, make: newBackend, random: rand.New(rand.NewPCG(seed, 0))}
}

// set replaces the list. Backends that stay keep their state and connections; those that go finish what they have.
func (p *pool) set(addresses []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := make(map[string]*backend, len(p.backends))
	for _, be := range p.backends {
		old[be.address] = be
	}
	next := make([]*backend, 0, len(addresses))
	for _, a := range addresses {
		be, stays := old[a]
		if !stays {
			be = p.make(a)
		}
		delete(old, a)
		next = append(next, be)
	}
	for _, gone := range old {
		gone.closeIdle()
	}
	p.backends = next
}

// list returns the current backends in their order. The caller must not change it.
func (p *pool) list() []*backend {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.backends
}

// pick chooses a backend that is not among those tried and counts it as in use until it is released. It prefers what is
// not down and returns nil when all were tried.
func (p *pool) pick(tried map[*backend]bool) *backend {
	p.mu.Lock()
	defer p.mu.Unlock()
	be := p.chooseLocked(func(be *backend) bool { return !tried[be] && be.state() != Down })
	if be == nil {
		be = p.chooseLocked(func(be *backend) bool { return !tried[be] })
	}
	if be != nil {
		be.active.Add(1)
		be.total.Add(1)
	}
	return be
}

func (p *pool) chooseLocked(may func(*backend) bool) *backend {
	if p.policy == RoundRobin {
		for i := range p.backends {
			at := (p.turn + i) % len(p.backends)
			if may(p.backends[at]) {
				p.turn = at + 1
				return p.backends[at]
			}
		}
		return nil
	}
	p.eligible = p.eligible[:0]
	for _, be := range p.backends {
		if may(be) {
			p.eligible = append(p.eligible, be)
		}
	}
	defer func() { clear(p.eligible) }() // so that a removed backend is not kept
	switch n := len(p.eligible); n {
	case 0:
		return nil
	case 1:
		return p.eligible[0]
	default:
		i, j := p.random.IntN(n), p.random.IntN(n-1)
		if j >= i {
			j++ // two different ones
		}
		if p.eligible[j].active.Load() < p.eligible[i].active.Load() {
			i = j
		}
		return p.eligible[i]
	}
}

// search is one client's way through the backends.
type search struct {
	pool     *pool
	patience time.Duration
	tried    map[*backend]bool // in this round
	giveUp   time.Time         // zero until something failed
	lastErr  error
}

func (p *pool) search(patience time.Duration) *search { return &search{pool: p, patience: patience} }

// next returns the backend to try. Between rounds it waits. It fails when ctx ends or patience is over.
func (s *search) next(ctx context.Context) (*backend, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		if !s.giveUp.IsZero() && !time.Now().Before(s.giveUp) {
			return nil, fmt.Errorf("no backend could be reached for %s: %w", s.patience, s.lastErr)
		}
		if be := s.pool.pick(s.tried); be != nil {
			return be, nil
		}
		if len(s.tried) == 0 {
			s.failed(nil, errNoBackends)
		}
		clear(s.tried)
		pause := time.NewTimer(betweenRounds)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
		}
	}
}

// failed takes note that a backend did not do, and releases it.
func (s *search) failed(be *backend, err error) {
	if s.giveUp.IsZero() {
		s.giveUp = time.Now().Add(s.patience)
	}
	s.lastErr = err
	if be == nil {
		return
	}
	be.release()
	if s.tried == nil {
		s.tried = map[*backend]bool{}
	}
	s.tried[be] = true
}

// release ends one use of a backend that pick returned.
func (be *backend) release() { be.active.Add(-1) }

// noneUp says whether every backend is known to be down, or there is none.
func noneUp(backends []*backend) bool {
	return !slices.ContainsFunc(backends, func(be *backend) bool { return be.state() != Down })
}
