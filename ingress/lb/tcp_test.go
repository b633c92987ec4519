package lb

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// ask connects, says nothing, and returns the name of the backend that answered.
func ask(address string) (string, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	name, err := io.ReadAll(conn)
	return string(name), err
}

func TestTCPSpreads(t *testing.T) {
	a, b, c := namedServer(t, "a"), namedServer(t, "b"), namedServer(t, "c")
	balancer, address, _ := start(t, Config{Source: Static{a.address(), b.address(), c.address()}, Policy: RoundRobin})
	counts := map[string]int{}
	for range 30 {
		name, err := ask(address)
		if err != nil {
			t.Fatal(err)
		}
		counts[name]++
	}
	if counts["a"] != 10 || counts["b"] != 10 || counts["c"] != 10 {
		t.Errorf("answers: %v; want 10 each", counts)
	}
	eventually(t, "all connections are over", func() bool { return balancer.Stats().Active == 0 })
	s := balancer.Stats()
	if s.Clients != 30 || s.TurnedAway != 0 || s.Backends[0].Total != 10 || s.Backends[0].Received != 10 {
		t.Errorf("stats: %+v", s)
	}
}

// Of three backends one refuses and one is a black hole; no client notices, and only few are delayed.
func TestTCPClientsNeverSeeADeadBackend(t *testing.T) {
	alive := namedServer(t, "alive")
	hole := blackHole(t)
	b, address, _ := start(t, Config{
		Source: Static{refusing(t), hole, alive.address()}, DialTimeout: 100 * time.Millisecond, Check: Check{Interval: time.Hour},
	})
	var clients sync.WaitGroup
	for range 50 {
		clients.Go(func() {
			if name, err := ask(address); err != nil || name != "alive" {
				t.Errorf("got %q, %v", name, err)
			}
		})
	}
	clients.Wait()
	began := time.Now()
	for range 50 { // by now both are known
		if name, err := ask(address); err != nil || name != "alive" {
			t.Errorf("got %q, %v", name, err)
		}
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("50 clients took %v though the dead are known", took)
	}
	if got := stateOf(b, hole); got != "down" {
		t.Errorf("the black hole is %s", got)
	}
}

// With everything dead a client sees a reset, not an empty answer; and soon after one is back, it is used.
func TestTCPAllDown(t *testing.T) {
	dead := refusing(t)
	b, address, _ := start(t, Config{Source: Static{dead}, Patience: 100 * time.Millisecond})
	if name, err := ask(address); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %q, %v; want a reset", name, err)
	}
	eventually(t, "a client turned away is counted", func() bool { return b.Stats().TurnedAway == 1 })
	alive := namedServer(t, "alive")
	if err := b.SetBackends([]string{dead, alive.address()}); err != nil {
		t.Fatal(err)
	}
	if name, err := ask(address); err != nil || name != "alive" {
		t.Errorf("got %q, %v", name, err)
	}
}

func TestTCPHalfClose(t *testing.T) {
	// The backend answers only once its client has said that it has said everything.
	sum := serveTCP(t, func(conn *net.TCPConn) {
		all, _ := io.ReadAll(conn)
		fmt.Fprintf(conn, "%x", sha256.Sum256(all))
	})
	_, address, _ := start(t, Config{Source: Static{sum.address()}})
	body := bytes.Repeat([]byte("miniswarm"), 1<<20)
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if want := fmt.Sprintf("%x", sha256.Sum256(body)); err != nil || string(got) != want {
		t.Errorf("got %q, %v; want %s", got, err, want)
	}
}

// A reset of either side reaches the other as a reset.
func TestTCPResets(t *testing.T) {
	t.Run("backend", func(t *testing.T) {
		server := serveTCP(t, func(conn *net.TCPConn) {
			_, _ = conn.Read(make([]byte, 1))
			_ = conn.SetLinger(0)
		})
		_, address, _ := start(t, Config{Source: Static{server.address()}})
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "x")
		if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("client got %d bytes, %v; want a reset", n, err)
		}
	})
	t.Run("client", func(t *testing.T) {
		got := make(chan error, 1)
		server := serveTCP(t, func(conn *net.TCPConn) {
			_, _ = conn.Write([]byte("x"))
			_, err := conn.Read(make([]byte, 1))
			got <- err
		})
		_, address, _ := start(t, Config{Source: Static{server.address()}, Check: Check{Interval: time.Hour}})
		<-got // the check's connection
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		reset(conn)
		if err := <-got; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("backend got %v; want a reset", err)
		}
	})
}

// A backend that answers early and hangs up on an upload still gets its answer through.
func TestTCPLastWords(t *testing.T) {
	words := strings.Repeat("too large ", 10_000)
	server := serveTCP(t, func(conn *net.TCPConn) {
		_, _ = conn.Read(make([]byte, 1024))
		_, _ = io.WriteString(conn, words)
		// Closing with unread data makes the kernel send a reset.
	})
	_, address, _ := start(t, Config{Source: Static{server.address()}})
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(make([]byte, 64<<10)); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if string(got) != words {
		t.Errorf("got %d bytes, %v; want all %d", len(got), err, len(words))
	}
}

// Connections that say nothing stay, whatever the checks say of their backend.
func TestTCPIdleConnectionsStay(t *testing.T) {
	server := namedServer(t, "a")
	b, address, _ := start(t, Config{Source: Static{server.address()}, Check: Check{Interval: 10 * time.Millisecond}})
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	server.Close() // it accepts no more, but serves what it has
	eventually(t, "the backend is down", func() bool { return stateOf(b, server.address()) == "down" })
	if err := b.SetBackends(nil); err != nil {
		t.Fatal(err)
	}
	echo := make([]byte, 5)
	fmt.Fprint(conn, "still")
	if _, err := io.ReadFull(conn, echo); err != nil || string(echo) != "still" {
		t.Errorf("got %q, %v", echo, err)
	}
}

func TestTCPDrain(t *testing.T) {
	server := namedServer(t, "a")
	_, address, stop := start(t, Config{Source: Static{server.address()}, Grace: 10 * time.Second})
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- stop() }()
	eventually(t, "it accepts no more", func() bool {
		late, err := net.Dial("tcp", address)
		if err == nil {
			late.Close()
		}
		return err != nil
	})
	echo := make([]byte, 5)
	fmt.Fprint(conn, "still")
	if _, err := io.ReadFull(conn, echo); err != nil || string(echo) != "still" {
		t.Errorf("while draining: %q, %v", echo, err)
	}
	select {
	case err := <-ended:
		t.Fatalf("it ended with a connection under way: %v", err)
	default:
	}
	began := time.Now()
	conn.Close()
	if err := <-ended; err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("Run = %v, %v after the last connection ended", err, time.Since(began))
	}
}

func TestTCPGraceEnds(t *testing.T) {
	server := namedServer(t, "a")
	_, address, stop := start(t, Config{Source: Static{server.address()}, Grace: 50 * time.Millisecond})
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if n, err := conn.Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d bytes after the grace", n)
	}
}

// A server is closed in the middle of a stream of clients and comes back on the same port; nobody notices.
func TestTCPServerRestartsUnderLoad(t *testing.T) {
	steady, restarting := namedServer(t, "steady"), namedServer(t, "restarting")
	b, address, _ := start(t, Config{
		Source: Static{steady.address(), restarting.address()}, Check: Check{Interval: 20 * time.Millisecond},
	})
	eventually(t, "both are up", func() bool {
		return stateOf(b, steady.address()) == "up" && stateOf(b, restarting.address()) == "up"
	})
	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	var asked, again atomic.Int64
	for range 4 {
		clients.Go(func() {
			for ctx.Err() == nil {
				name, err := ask(address)
				// A connection still in the queue of the listener that closes was accepted by the kernel and is then reset:
				// at this level nothing can help that one client.
				if errors.Is(err, syscall.ECONNRESET) && name == "" {
					again.Add(1)
					continue
				}
				if err != nil || name != "steady" && name != "restarting" {
					t.Errorf("got %q, %v", name, err)
					return
				}
				asked.Add(1)
			}
		})
	}
	eventually(t, "clients are served", func() bool { return asked.Load() > 100 })
	restarting.Close()
	eventually(t, "the backend is down", func() bool { return stateOf(b, restarting.address()) == "down" })
	before := asked.Load()
	eventually(t, "clients are served by the other", func() bool { return asked.Load() > before+100 })
	ln, err := net.Listen("tcp", restarting.address())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	eventually(t, "the backend is up again", func() bool { return stateOf(b, restarting.address()) == "up" })
	ln.Close()
	cancel()
	clients.Wait()
	t.Logf("%d served, %d met the queue of the closing listener", asked.Load(), again.Load())
}

// badSource gives up.
type badSource struct{}

func (badSource) Follow(context.Context, func([]string) error) error {
	return errors.New("not a manager any more")
}

func TestRunFails(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for want, cfg := range map[string]Config{
		"address already in use":                              {Listen: taken.Addr().String()},
		`backend "vm1" is not an address such as vm1:80`:      {Listen: "127.0.0.1:0", Source: Static{"vm1"}},
		"follow the list of backends: not a manager any more": {Listen: "127.0.0.1:0", Source: badSource{}},
	} {
		for _, mode := range []Mode{TCP, HTTP} {
			cfg.Mode = mode
			b, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if err := b.Run(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: Run = %v; want %q", mode, err, want)
			}
			if err := b.Run(t.Context()); err == nil {
				t.Error("it runs twice")
			}
		}
	}
}

// A thousand clients come and go; nothing is left of them.
func TestTCPLeavesNothingBehind(t *testing.T) {
	server := namedServer(t, "a")
	b, address, _ := start(t, Config{Source: Static{server.address(), refusing(t)}})
	var clients sync.WaitGroup
	for range 10 {
		clients.Go(func() {
			for range 100 {
				if _, err := ask(address); err != nil {
					t.Error(err)
				}
			}
		})
	}
	clients.Wait()
	eventually(t, "all is released", func() bool {
		s := b.Stats()
		return s.Active == 0 && s.Backends[0].Active == 0 && s.Backends[1].Active == 0
	})
	for _, be := range b.pool.list() {
		be.mu.Lock()
		if len(be.conns) != 0 {
			t.Errorf("%s: %d connections are still remembered", be.address, len(be.conns))
		}
		be.mu.Unlock()
	}
}
