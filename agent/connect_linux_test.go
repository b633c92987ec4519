package agent

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// TestOpeningAStreamOverTLS speaks to Go's own HTTP server over TLS on loopback, which managers use.
func TestOpeningAStreamOverTLS(t *testing.T) {
	answer := make(chan http.HandlerFunc, 1)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != protocol.PathSession || r.Header.Get("Upgrade") != protocol.UpgradeStream || r.Header.Get("Connection") != "Upgrade" {
			t.Errorf("request %s with %v", r.URL, r.Header)
		}
		(<-answer)(w, r)
	}))
	server.TLS = &tls.Config{NextProtos: []string{"http/1.1"}}
	server.StartTLS()
	defer server.Close()
	addr := server.Listener.Addr().String()
	dial := func(ctx context.Context, addr string) (net.Conn, error) {
		return (&tls.Dialer{Config: server.Client().Transport.(*http.Transport).TLSClientConfig}).DialContext(ctx, "tcp", addr)
	}

	answer <- func(w http.ResponseWriter, _ *http.Request) {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		// The first message comes in one write with the head, as it may on a busy connection.
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n{\"StatusAck\":{\"Seq\":7}}\n", protocol.UpgradeStream)
		line, err := rw.ReadString('\n')
		fmt.Fprintf(conn, "{\"StatusAck\":{\"Seq\":%d}}\n", len(line))
		if err != nil {
			t.Error(err)
		}
	}
	s, err := open(t.Context(), dial, addr, protocol.PathSession)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	bound(s, 1234*time.Millisecond)
	raw, err := s.Conn.(*tls.Conn).NetConn().(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) {
		if ms, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); err != nil || ms != 1234 {
			t.Errorf("TCP_USER_TIMEOUT is %d, %v", ms, err)
		}
	})
	if _, err := s.Write([]byte("1234\n")); err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(bufio.NewReader(s))
	for _, want := range []uint64{7, 5} {
		var m protocol.ToAgent
		if err := dec.Decode(&m); err != nil || m.StatusAck == nil || m.StatusAck.Seq != want {
			t.Fatalf("got %+v, %v", m, err)
		}
	}

	for _, tt := range []struct {
		answer http.HandlerFunc
		want   string
	}{
		{func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(protocol.HeaderLeader, "10.0.0.9:2377")
			w.WriteHeader(http.StatusMisdirectedRequest)
		}, "is not the leader; 10.0.0.9:2377 is"},
		{func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusMisdirectedRequest) }, "knows no leader"},
		{func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "this node was removed", http.StatusForbidden)
		}, "refuses a session: this node was removed"},
		{func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }, "refuses a session: 503 Service Unavailable"},
	} {
		answer <- tt.answer
		if s, err := open(t.Context(), dial, addr, protocol.PathSession); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, %v; want %s", s, err, tt.want)
		}
	}
	if _, err := open(t.Context(), dial, "127.0.0.1:1", protocol.PathSession); err == nil || !strings.Contains(err.Error(), "reach manager 127.0.0.1:1") {
		t.Errorf("nobody there: %v", err)
	}
}

// TestASilentManagerIsGivenUp has a manager that accepts connections and says nothing.
func TestASilentManagerIsGivenUp(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	dial := func(ctx context.Context, addr string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	}
	if _, _, err := connectAny(ctx, dial, []string{l.Addr().String()}); err == nil {
		t.Error("a session was opened")
	}
}

// A manager's machine is dead, and the others have no leader yet. The one that they elect is found when there is one, and not when the dead
// one is given up, for by then it has called this node down.
func TestTheNextLeaderIsNotKeptWaitingByADeadManager(t *testing.T) {
	var elected atomic.Bool
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !elected.Load() {
			http.Error(w, "the swarm has no leader at present", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", protocol.UpgradeStream)
		w.WriteHeader(http.StatusSwitchingProtocols)
	}))
	defer srv.Close()
	lives := srv.Listener.Addr().String()
	dial := func(ctx context.Context, addr string) (net.Conn, error) {
		if addr != lives {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	}
	defer time.AfterFunc(stagger+askAgain/2, func() { elected.Store(true) }).Stop()
	began := time.Now()
	s, addr, err := connectAny(t.Context(), dial, []string{"192.0.2.1:2377", lives})
	if err != nil || addr != lives {
		t.Fatalf("connected to %q: %v", addr, err)
	}
	defer s.Close()
	if took := time.Since(began); took >= connectLimit {
		t.Errorf("only after %s", took)
	}
}
