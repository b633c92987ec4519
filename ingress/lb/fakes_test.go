package lb

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Getenv(inNamespace) != "" {
		os.Exit(m.Run()) // with servers whose clients never hang up, since their power cord was pulled
	}
	goleak.VerifyTestMain(m)
}

// inNamespace names the test, if any, for which this process was started in a network namespace of its own.
const inNamespace = "LB_TEST_IN_NAMESPACE"

// start runs a Balancer on a free port of loopback until the test ends. stop ends it early and returns what Run did.
func start(t testing.TB, cfg Config) (b *Balancer, address string, stop func() error) {
	t.Helper()
	cfg.Listen = "127.0.0.1:0"
	if cfg.Grace == 0 {
		cfg.Grace = -1 // tests that want a grace say so
	}
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	select {
	case <-b.Ready():
	case err := <-ended:
		t.Fatalf("Run: %v", err)
	}
	stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return b, b.Addr().String(), stop
}

// tcpServer is a real backend on loopback. Closing it closes its listener only, as a process that stops accepting.
type tcpServer struct {
	net.Listener
	conns sync.WaitGroup
}

// serveTCP runs handle for every connection, which handle need not close.
func serveTCP(t *testing.T, handle func(conn *net.TCPConn)) *tcpServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &tcpServer{Listener: ln}
	s.conns.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			s.conns.Go(func() {
				defer conn.Close()
				handle(conn.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		s.conns.Wait()
	})
	return s
}

func (s *tcpServer) address() string { return s.Listener.Addr().String() }

// namedServer answers every connection with its name, then echoes.
func namedServer(t *testing.T, name string) *tcpServer {
	return serveTCP(t, func(conn *net.TCPConn) {
		_, _ = io.WriteString(conn, name)
		_, _ = io.Copy(conn, conn)
	})
}

// refusing is an address where nobody listens.
func refusing(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	return ln.Addr().String()
}

// blackHole is an address that swallows connection attempts without a word, as a machine without power does: a listener whose
// queue is full, so that the kernel drops what more arrives.
func blackHole(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	raw, err := ln.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { err = unix.Listen(int(fd), 0) }); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		conn, err := net.DialTimeout("tcp", ln.Addr().String(), 100*time.Millisecond)
		if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
			return ln.Addr().String()
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
	}
	t.Fatal("the listener's queue does not fill")
	return ""
}

// eventually polls until ok, for at most ten seconds: for what the kernel or another goroutine does in its own time.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within ten seconds: %s", what)
		}
	}
}
