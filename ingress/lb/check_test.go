package lb

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeNetwork is hosts that accept connections, refuse them, or say nothing at all, in virtual time.
type fakeNetwork struct {
	mu    sync.Mutex // guards what follows
	hosts map[string]string
	dials map[string]int
}

func newFakeNetwork(addresses ...string) *fakeNetwork {
	n := &fakeNetwork{hosts: map[string]string{}, dials: map[string]int{}}
	for _, a := range addresses {
		n.set(a, "accepts")
	}
	return n
}

func (n *fakeNetwork) set(address, behaviour string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[address] = behaviour
}

func (n *fakeNetwork) dialed(address string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dials[address]
}

func (n *fakeNetwork) dial(ctx context.Context, _, address string) (net.Conn, error) {
	n.mu.Lock()
	n.dials[address]++
	behaviour := n.hosts[address]
	n.mu.Unlock()
	switch behaviour {
	case "accepts":
		here, there := net.Pipe()
		there.Close()
		return here, nil
	case "silent":
		<-ctx.Done()
		return nil, ctx.Err()
	default:
		return nil, errors.New("refused")
	}
}

func stateOf(b *Balancer, address string) string {
	for _, be := range b.Stats().Backends {
		if be.Address == address {
			return be.State
		}
	}
	return "absent"
}

// watching runs a Balancer's checks alone, in a bubble.
func watching(t *testing.T, n *fakeNetwork, test func(t *testing.T, b *Balancer)) {
	synctest.Test(t, func(t *testing.T) {
		b, err := New(Config{Listen: ":0", Dial: n.dial})
		if err != nil {
			t.Fatal(err)
		}
		w := startWatcher(t.Context(), b.watchers)
		defer w.stop()
		test(t, b)
	})
}

// expectWithin waits, in virtual time, until a backend has the state, and fails if that takes longer than limit.
func expectWithin(t *testing.T, b *Balancer, address, state string, limit time.Duration) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		synctest.Wait()
		if stateOf(b, address) == state {
			t.Logf("%s is %s after %v", address, state, time.Since(began))
			return
		}
		if time.Since(began) > limit {
			t.Fatalf("%s is %s after %v; want %s", address, stateOf(b, address), limit, state)
		}
	}
}

func TestChecksFindDeathAndReturn(t *testing.T) {
	n := newFakeNetwork("a:1", "b:1")
	watching(t, n, func(t *testing.T, b *Balancer) {
		if err := b.SetBackends([]string{"a:1", "b:1", "none:1"}); err != nil {
			t.Fatal(err)
		}
		expectWithin(t, b, "a:1", "up", 0)
		expectWithin(t, b, "none:1", "down", 0) // the first check decides

		// Power cord: nothing answers. One interval until it is asked, and two timeouts.
		n.set("a:1", "silent")
		expectWithin(t, b, "a:1", "down", 1300*time.Millisecond)
		n.set("a:1", "accepts")
		expectWithin(t, b, "a:1", "up", 1500*time.Millisecond)

		// Process gone: refused at once.
		n.set("a:1", "refuses")
		expectWithin(t, b, "a:1", "down", 600*time.Millisecond)
		if got := stateOf(b, "b:1"); got != "up" {
			t.Errorf("the other one is %s", got)
		}
	})
}

// One lost check is no death.
func TestChecksForgiveOnce(t *testing.T) {
	n := newFakeNetwork("a:1")
	watching(t, n, func(t *testing.T, b *Balancer) {
		if err := b.SetBackends([]string{"a:1"}); err != nil {
			t.Fatal(err)
		}
		expectWithin(t, b, "a:1", "up", 0)
		for range 20 {
			n.set("a:1", "refuses")
			for before := b.Stats().Backends[0].CheckFailures; b.Stats().Backends[0].CheckFailures == before; {
				time.Sleep(time.Millisecond)
			}
			n.set("a:1", "accepts")
			time.Sleep(time.Second)
			if got := stateOf(b, "a:1"); got != "up" {
				t.Fatalf("it is %s after one failed check", got)
			}
		}
	})
}

func TestChecksFollowTheList(t *testing.T) {
	n := newFakeNetwork("a:1", "b:1")
	watching(t, n, func(t *testing.T, b *Balancer) {
		for _, list := range [][]string{{"a:1"}, {"a:1", "b:1"}, {"b:1"}} {
			if err := b.SetBackends(list); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
		}
		synctest.Wait()
		gone := n.dialed("a:1")
		if gone < 40 || gone > 42 { // 20 s at 2 a second
			t.Errorf("a was checked %d times in 20 s; want 40", gone)
		}
		time.Sleep(10 * time.Second)
		if again := n.dialed("a:1"); again != gone {
			t.Errorf("a is still checked after it left")
		}
		if got := n.dialed("b:1"); got < 59 || got > 62 {
			t.Errorf("b was checked %d times in 30 s; want 60", got)
		}
	})
}

func TestProbe(t *testing.T) {
	status := http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			status = http.StatusTeapot
		}
		w.WriteHeader(status)
	}))
	defer server.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	address := strings.TrimPrefix(server.URL, "http://")

	probe := func(path, address string) error {
		b, err := New(Config{Listen: ":0", Check: Check{Path: path, Timeout: 200 * time.Millisecond}})
		if err != nil {
			t.Fatal(err)
		}
		return b.probe(t.Context(), address)
	}
	if err := probe("", address); err != nil {
		t.Errorf("by connection: %v", err)
	}
	if err := probe("", silent.Addr().String()); err != nil {
		t.Errorf("by connection, a server that says nothing: %v", err)
	}
	if err := probe("", blackHole(t)); err == nil {
		t.Error("by connection, a black hole passes")
	}
	if err := probe("/healthz", address); err != nil {
		t.Errorf("by path: %v", err)
	}
	if err := probe("/healthz", silent.Addr().String()); err == nil {
		t.Error("by path, a server that says nothing passes")
	}
	status = http.StatusServiceUnavailable
	if err := probe("/healthz", address); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("by path, status 503: err = %v", err)
	}
}
