package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/miniswarm/miniswarm/lab/claim"
)

// TestMain lets the test binary stand in for the service when it is started with PRIME_TEST_RUN set, so that signals and
// exit codes are tested on a process.
func TestMain(m *testing.M) {
	if os.Getenv("PRIME_TEST_RUN") != "" {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

func TestReadSettings(t *testing.T) {
	for _, tc := range []struct {
		env     map[string]string
		want    settings
		wantErr string
	}{
		{nil, settings{port: 8000, drain: time.Second, grace: 8 * time.Second}, ""},
		{map[string]string{"PORT": "80", "DRAIN": "0s", "GRACE": "1m"}, settings{port: 80, grace: time.Minute}, ""},
		{map[string]string{"PORT": "web"}, settings{}, `PORT must be a number from 1 to 65535, not "web"`},
		{map[string]string{"PORT": "0"}, settings{}, "PORT must be"},
		{map[string]string{"DRAIN": "soon"}, settings{}, `DRAIN must be a duration such as 1.5s, not "soon"`},
		{map[string]string{"GRACE": "-1s"}, settings{}, "GRACE must be"},
	} {
		got, err := readSettings(func(name string) string { return tc.env[name] })
		if tc.wantErr != "" {
			if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
				t.Errorf("%v: err = %v; want one with %q", tc.env, err, tc.wantErr)
			}
			continue
		}
		tc.want.replica, _ = os.Hostname()
		if err != nil || got != tc.want {
			t.Errorf("%v: got %+v, %v; want %+v", tc.env, got, err, tc.want)
		}
	}
}

// startServe runs serve on a free port and returns its base address and what it returns in the end.
func startServe(t *testing.T, ctx context.Context, set settings) (base string, ended <-chan error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- serve(ctx, ln, set, slog.New(slog.DiscardHandler)) }()
	return "http://" + ln.Addr().String(), done
}

// newClient returns a client whose connections do not outlive the test.
func newClient(t *testing.T) *http.Client {
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

// A request that arrived before the signal is answered whole; one that arrives while draining is answered too; after that
// nobody listens.
func TestStopLosesNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	base, ended := startServe(t, ctx, settings{drain: time.Second, grace: 20 * time.Second, replica: "r1"})
	addr := strings.TrimPrefix(base, "http://")

	// In flight: the request's first half is there before the signal, its second half only once draining has begun.
	early, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	fmt.Fprintf(early, "GET /primes?start=1&end=100 HTTP/1.1\r\n")

	client := newClient(t)
	before, err := client.Get(base + "/healthz")
	if err != nil || before.StatusCode != http.StatusOK {
		t.Fatalf("healthz before: %v, %v", before, err)
	}
	before.Body.Close()
	cancel()
	for { // the drain period begins when healthz says so
		resp, err := client.Get(base + "/healthz")
		if err != nil {
			t.Fatalf("healthz while draining: %v", err)
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusServiceUnavailable {
			break
		}
	}
	resp, err := client.Get(base + "/primes?start=1&end=10")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("a request while draining: %v, %v", resp, err)
	}
	resp.Body.Close()

	fmt.Fprintf(early, "Host: x\r\n\r\n")
	resp, err = http.ReadResponse(bufio.NewReader(early), nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("the request in flight: %v, %v", resp, err)
	}
	resp.Body.Close()
	if err := <-ended; err != nil {
		t.Errorf("serve: %v", err)
	}
	if conn, err := net.Dial("tcp", addr); err == nil {
		conn.Close()
		t.Error("still listening after the end")
	}
}

func TestStopCutsOffAfterGrace(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := &tellingListener{Listener: inner, got: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- serve(ctx, ln, settings{grace: 50 * time.Millisecond, replica: "r1"}, slog.New(slog.DiscardHandler))
	}()

	conn, err := net.Dial("tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// Longer work than the grace allows: several seconds of one core.
	fmt.Fprintf(conn, "GET /primes?start=1&end=%d HTTP/1.1\r\nHost: x\r\n\r\n", maxEnd)
	<-ln.got
	cancel()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("serve = %v; want an error saying requests were cut off", err)
	}
	if answer, _ := io.ReadAll(conn); len(answer) > 0 {
		t.Errorf("the request cut off was answered: %q", answer)
	}
}

// tellingListener closes got once the server is about to handle the first request of its first connection. Having read it
// is not enough: what a server has read but not begun to handle when it shuts down, it drops.
type tellingListener struct {
	net.Listener
	got  chan struct{}
	once sync.Once
}

func (l *tellingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &tellingConn{Conn: conn, listener: l}, nil
}

type tellingConn struct {
	net.Conn
	listener *tellingListener
	read     atomic.Bool
}

func (c *tellingConn) Read(p []byte) (int, error) {
	if c.read.Load() { // the server watches the connection while the handler works
		c.listener.once.Do(func() { close(c.listener.got) })
	}
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.read.Store(true)
	}
	return n, err
}

func TestCheckHealth(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	base, ended := startServe(t, ctx, settings{replica: "r1"})
	if err := checkHealth(t.Context(), base); err != nil {
		t.Errorf("a healthy service: %v", err)
	}
	http.DefaultClient.CloseIdleConnections()
	cancel()
	<-ended
	if err := checkHealth(t.Context(), base); err == nil {
		t.Error("no service: want an error")
	}
}

// The whole process: it listens on PORT, logs to stdout, and SIGTERM ends it with exit code 0.
func TestProcess(t *testing.T) {
	port := claim.Addr(t).Port()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "PRIME_TEST_RUN=1", "DRAIN=10ms", fmt.Sprintf("PORT=%d", port))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || !strings.Contains(lines.Text(), "listening") {
		t.Fatalf("first line: %q", lines.Text())
	}

	check := exec.Command(os.Args[0], "-healthcheck")
	check.Env = cmd.Env
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("prime -healthcheck: %v: %s", err, out)
	}

	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	var last string
	for lines.Scan() {
		last = lines.Text()
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("exit: %v", err)
	}
	if !strings.Contains(last, "stopped") {
		t.Errorf("last line: %q", last)
	}
	check = exec.Command(os.Args[0], "-healthcheck")
	check.Env = cmd.Env
	if err := check.Run(); err == nil {
		t.Error("prime -healthcheck succeeds without a service")
	}
}
