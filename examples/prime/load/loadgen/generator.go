package loadgen

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// replicaHeader is where the prime service says who it is.
const replicaHeader = "X-Replica"

// Generator is a crowd that can be let loose once.
type Generator struct {
	cfg        Config
	ran        atomic.Bool
	unfinished atomic.Int64

	mu       sync.Mutex // guards what follows
	recorder *recorder  // nil before Run
}

// New checks the configuration. It starts nothing.
func New(cfg Config) (*Generator, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return &Generator{cfg: cfg}, nil
}

// Phase ends the current phase and begins one of this name: what ends from now on is counted there. Before Run it
// names the first phase instead. An ended phase keeps a few hundred bytes for each target and replica.
func (g *Generator) Phase(name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.recorder == nil {
		g.cfg.FirstPhase = name
		return
	}
	g.recorder.startPhase(name)
}

// Run spawns the users and lets them ask until ctx ends, which is the ordinary end and no error. It returns once every
// user is gone, with requests under way cut off. A Generator runs once; a second call is an error.
func (g *Generator) Run(ctx context.Context) (Result, error) {
	if g.ran.Swap(true) {
		return Result{}, errors.New("load: this generator has run already: make another")
	}
	primesUpTo() // before the clock starts
	g.mu.Lock()
	g.recorder = newRecorder(g.cfg.FirstPhase, time.Now())
	g.mu.Unlock()

	var all sync.WaitGroup
	if g.cfg.Live != nil {
		all.Go(func() { g.report(ctx) })
	}
	g.spawn(ctx, &all)
	<-ctx.Done()
	end := time.Now() // the phases end here, not when the last user has gone
	all.Wait()
	result := g.recorder.result(end)
	result.Users, result.Seed, result.Unfinished = g.cfg.Users, g.cfg.Seed, g.unfinished.Load()
	return result, nil
}

// spawn starts the users at their times, which count from the beginning so that a late one does not delay the rest.
func (g *Generator) spawn(ctx context.Context, all *sync.WaitGroup) {
	began := time.Now()
	for i := range g.cfg.Users {
		if g.cfg.SpawnRate > 0 {
			due := time.Duration(float64(i) / g.cfg.SpawnRate * float64(time.Second))
			if !sleep(ctx, time.Until(began.Add(due))) {
				return
			}
		}
		all.Go(func() { g.user(ctx, i) })
	}
}

func (g *Generator) report(ctx context.Context) {
	tick := time.NewTicker(g.cfg.LiveInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			g.cfg.Live(g.recorder.live())
		case <-ctx.Done():
			return
		}
	}
}

// user is the life of one user: ask, wait, ask again, until ctx ends.
func (g *Generator) user(ctx context.Context, n int) {
	g.recorder.userBegan()
	transport := g.cfg.Transport(n)
	if idle, ok := transport.(interface{ CloseIdleConnections() }); ok {
		defer idle.CloseIdleConnections()
	}
	random := rand.New(rand.NewPCG(g.cfg.Seed, uint64(n)))
	for turn := 0; ctx.Err() == nil; turn++ {
		target := g.cfg.Targets[n%len(g.cfg.Targets)]
		if g.cfg.Balance == RoundRobin {
			target = g.cfg.Targets[(n+turn)%len(g.cfg.Targets)]
		}
		done := g.ask(ctx, transport, target, newQuestion(random))
		if ctx.Err() != nil {
			g.unfinished.Add(1) // the end of the run, not the service, decided how this one went
			return
		}
		g.recorder.add(done)
		think := g.cfg.ThinkMin
		if spread := g.cfg.ThinkMax - g.cfg.ThinkMin; spread > 0 {
			think += time.Duration(random.Int64N(int64(spread)))
		}
		if !sleep(ctx, think) {
			return
		}
	}
}

// ask sends one question and reads the answer to its end. Redirects are not followed: a 302 is not the primes.
func (g *Generator) ask(ctx context.Context, transport http.RoundTripper, target string, q question) outcome {
	done := outcome{target: target}
	if g.cfg.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, g.cfg.Timeout)
		defer cancel()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target+q.path(), nil)
	if err != nil {
		done.err = err
		return done
	}
	began := time.Now()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		done.err = err
		return done
	}
	defer resp.Body.Close()
	done.replica = resp.Header.Get(replicaHeader)
	if resp.StatusCode != http.StatusOK {
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection can be used again
		done.err = statusError(resp.StatusCode)
		return done
	}
	done.err = q.check(resp.Body)
	done.took = time.Since(began)
	return done
}

// sleep waits for d, or returns false as soon as ctx ends.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
