package e2e

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/miniswarm/miniswarm/examples/prime/load/loadgen"
)

// probe asks witnesses without pause through several nodes, each request over a connection of its own, from start until
// its end, and remembers what failed when.
type probe struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	asked    int
	failures []failure
	stalls   []time.Time // when requests began that were answered, but only after stalled
}

// stalled is how long a request takes that a healthy cluster answers at once only when its first packet was lost: TCP
// sends another after a second.
const stalled = 900 * time.Millisecond

type failure struct {
	at   time.Time // when the request began
	addr string
	err  error
}

// startProbe asks each address every 20 ms, or as quickly as answers come.
func startProbe(t *testing.T, addrs ...string) *probe {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	p := &probe{cancel: cancel}
	for _, addr := range addrs {
		p.wg.Go(func() {
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				at := time.Now()
				_, err := ask(ctx, addr)
				if ctx.Err() != nil {
					return
				}
				p.mu.Lock()
				p.asked++
				switch {
				case err != nil:
					p.failures = append(p.failures, failure{at, addr, err})
				case time.Since(at) > stalled:
					p.stalls = append(p.stalls, at)
				}
				p.mu.Unlock()
				<-tick.C
			}
		})
	}
	t.Cleanup(p.stop)
	return p
}

func (p *probe) stop() {
	p.cancel()
	p.wg.Wait()
}

// failed returns what has failed so far and how many requests there were.
func (p *probe) failed() ([]failure, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]failure(nil), p.failures...), p.asked
}

// none ends the probe, which must have seen no failure.
func (p *probe) none(t *testing.T, when string) {
	t.Helper()
	p.stop()
	failures, asked := p.failed()
	for _, f := range failures[:min(len(failures), 10)] {
		t.Errorf("%s: a request begun at %s through %s failed: %v", when, f.at.Format("15:04:05.000"), f.addr, f.err)
	}
	if asked == 0 {
		t.Errorf("%s: nothing was asked", when)
	}
	t.Logf("%s: %d requests, %d failed", when, asked, len(failures))
}

// crowd is a load on the prime service that goes on until it is told to end.
type crowd struct {
	*loadgen.Generator
	cancel context.CancelFunc
	ended  chan struct{}
	result loadgen.Result
	err    error
}

func startCrowd(t *testing.T, cfg loadgen.Config) *crowd {
	t.Helper()
	g, err := loadgen.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	w := &crowd{Generator: g, cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		w.result, w.err = g.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-w.ended })
	return w
}

// end stops the crowd and returns its account.
func (w *crowd) end(t *testing.T) loadgen.Result {
	t.Helper()
	w.cancel()
	<-w.ended
	if w.err != nil {
		t.Fatal(w.err)
	}
	return w.result
}

// talks are kept connections through several nodes, each to some replica.
type talks map[string][]*talk

// dialTalks opens n connections through each address.
func dialTalks(t *testing.T, n int, addrs ...string) talks {
	t.Helper()
	all := talks{}
	for _, addr := range addrs {
		for range n {
			all[addr] = append(all[addr], dialTalk(t, addr))
		}
	}
	if err := all.alive(); err != nil {
		t.Fatal(err)
	}
	return all
}

// alive says whether every connection still answers.
func (k talks) alive() error {
	var errs []error
	for addr, list := range k {
		for i, one := range list {
			if _, err := one.say("still there?"); err != nil {
				errs = append(errs, fmt.Errorf("connection %d through %s: %w", i, addr, err))
			}
		}
	}
	return errors.Join(errs...)
}
