package lb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func testPool(policy Policy, addresses ...string) *pool {
	p := newPool(policy, 1, func(address string) *backend {
		return newBackend(address, Check{Rise: 2, Fall: 2}, slog.New(slog.DiscardHandler), func() {})
	})
	p.set(addresses)
	return p
}

func markDown(p *pool, addresses ...string) {
	for _, be := range p.list() {
		if slices.Contains(addresses, be.address) {
			be.connectFailed(errors.New("refused"))
		}
	}
}

func TestRoundRobinSkipsWhatIsDown(t *testing.T) {
	p := testPool(RoundRobin, "a:1", "b:1", "c:1")
	markDown(p, "b:1")
	var got []string
	for range 5 {
		got = append(got, p.pick(nil).address)
	}
	if want := []string{"a:1", "c:1", "a:1", "c:1", "a:1"}; !slices.Equal(got, want) {
		t.Errorf("got %v; want %v", got, want)
	}
}

// With work that lasts, two random choices keep all backends within a little of each other.
func TestLeastOfTwoIsEven(t *testing.T) {
	p := testPool(LeastOfTwo, "a:1", "b:1", "c:1", "d:1", "e:1")
	for range 1000 {
		p.pick(nil)
	}
	for _, be := range p.list() {
		if n := be.active.Load(); n < 195 || n > 205 {
			t.Errorf("%s has %d of 1000; want about 200", be.address, n)
		}
	}
}

// A backend that is slow to finish gets less.
func TestLeastOfTwoSparesTheBusy(t *testing.T) {
	p := testPool(LeastOfTwo, "slow:1", "a:1", "b:1")
	counts := map[string]int{}
	for range 300 {
		be := p.pick(nil)
		counts[be.address]++
		if be.address != "slow:1" {
			be.release()
		}
	}
	if counts["slow:1"] > 2 {
		t.Errorf("the slow one was given %d of 300", counts["slow:1"])
	}
}

// pick never returns one that was tried, prefers any that is up, and runs dry.
func TestPickOrder(t *testing.T) {
	for _, policy := range []Policy{LeastOfTwo, RoundRobin} {
		p := testPool(policy, "a:1", "b:1", "c:1", "d:1")
		markDown(p, "a:1", "c:1")
		tried := map[*backend]bool{}
		var got []string
		for be := p.pick(tried); be != nil; be = p.pick(tried) {
			tried[be] = true
			got = append(got, be.address)
		}
		if len(got) != 4 || !slices.Equal(slices.Sorted(slices.Values(got[:2])), []string{"b:1", "d:1"}) {
			t.Errorf("%s: %v; want b and d, then a and c", policy, got)
		}
	}
}

func TestSetKeepsState(t *testing.T) {
	p := testPool(LeastOfTwo, "a:1", "b:1", "c:1")
	markDown(p, "a:1", "b:1")
	b := p.list()[1]
	p.set([]string{"d:1", "b:1"})
	if got := p.list(); len(got) != 2 || got[1] != b || got[0].address != "d:1" {
		t.Errorf("after the change: %v", got)
	}
	if s := b.state(); s != Down {
		t.Errorf("b is %v after the change; want down", s)
	}
}

func TestSearch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := testPool(RoundRobin, "a:1", "b:1")
		began := time.Now()
		s := p.search(time.Second)
		counts := map[string]int{}
		refused := errors.New("refused")
		for {
			be, err := s.next(t.Context())
			if err != nil {
				if !errors.Is(err, refused) || err.Error() != "no backend could be reached for 1s: refused" {
					t.Errorf("err = %v", err)
				}
				break
			}
			counts[be.address]++
			s.failed(be, refused)
		}
		// Rounds at 0, 50, ..., 950 ms.
		if took := time.Since(began); took != time.Second || !maps.Equal(counts, map[string]int{"a:1": 20, "b:1": 20}) {
			t.Errorf("gave up after %v with %v", took, counts)
		}
		for _, be := range p.list() {
			if be.active.Load() != 0 {
				t.Errorf("%s still has %d in use", be.address, be.active.Load())
			}
		}
	})
}

// A client that comes while the list is empty is served once there is a backend.
func TestSearchWaitsForBackends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := testPool(RoundRobin)
		go func() {
			time.Sleep(120 * time.Millisecond)
			p.set([]string{"a:1"})
		}()
		be, err := p.search(time.Second).next(t.Context())
		if err != nil || be.address != "a:1" {
			t.Errorf("got %v, %v", be, err)
		}
		p.set(nil)
		if _, err := p.search(time.Second).next(t.Context()); !errors.Is(err, errNoBackends) {
			t.Errorf("err = %v; want %v", err, errNoBackends)
		}
		gone := errors.New("client gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(gone)
		if _, err := p.search(time.Second).next(ctx); !errors.Is(err, gone) {
			t.Errorf("err = %v; want %v", err, gone)
		}
	})
}

func TestValidBackends(t *testing.T) {
	got, err := validBackends([]string{"vm1:80", "10.0.0.2:8080", "vm1:80", "[fd00::1]:80"})
	if want := []string{"vm1:80", "10.0.0.2:8080", "[fd00::1]:80"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	for _, bad := range []string{"vm1", ":80", "vm1:http", "vm1:0", "vm1:65536", "fd00::1:80"} {
		if got, err := validBackends([]string{bad}); err == nil {
			t.Errorf("%q is accepted as %v", bad, got)
		}
	}
}

func TestConfigMistakes(t *testing.T) {
	for i, cfg := range []Config{
		{},
		{Listen: ":0", Check: Check{Path: "healthz"}},
		{Listen: ":0", Check: Check{Rise: -1}},
		{Listen: ":0", DialTimeout: -1},
		{Listen: ":0", Reuse: -1},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("configuration %d is accepted", i)
		}
	}
	b, err := New(Config{Listen: ":0"})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.SetBackends([]string{"vm1"}); err == nil || fmt.Sprint(err) != `load balancer: backend "vm1" is not an address such as vm1:80` {
		t.Errorf("err = %v", err)
	}
	if b.Addr() != nil {
		t.Errorf("an address before Run: %v", b.Addr())
	}
	if _, err := ParsePolicy("random"); err == nil {
		t.Error(`policy "random" is accepted`)
	}
}
