package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
)

// What is served on a port is the pages about nodes, and nothing else that the socket can do.
func TestMetricsOnAPortAreMetricsAlone(t *testing.T) {
	var asked []string
	socket := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.Path)
		fmt.Fprint(w, "answer")
	}))
	defer socket.Close()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", socket.Listener.Addr().String())
	}}
	relay := metricsRelay(transport)
	for _, c := range []struct {
		method, path string
		code         int
		asks         string
	}{
		{"GET", "/metrics", 200, "GET /metrics"}, {"GET", "/healthz", 200, "GET /healthz"}, {"GET", "/readyz", 200, "GET /readyz"},
		{"GET", "/nodes/vm3/metrics", 200, "GET /miniswarm/nodes/vm3/metrics"}, {"GET", "/nodes/vm3/readyz", 200, "GET /miniswarm/nodes/vm3/readyz"},
		{"POST", "/metrics", 405, ""}, {"GET", "/services", 404, ""}, {"GET", "/containers/json", 404, ""}, {"GET", "/nodes/vm3/doctor", 404, ""}, {"GET", "/nodes/vm3", 404, ""},
		{"POST", "/containers/create", 404, ""}, {"GET", "/nodes/..%2f..%2fcontainers%2fjson%3f/metrics", 404, ""},
	} {
		asked = nil
		w := httptest.NewRecorder()
		relay.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), c.method, c.path, nil))
		if got := strings.Join(asked, ", "); w.Code != c.code || got != c.asks {
			t.Errorf("%s %s: %d, asked %q; want %d, %q", c.method, c.path, w.Code, got, c.code, c.asks)
		}
	}
}

func TestMetricsAreServedOnThisMachineAlone(t *testing.T) {
	for _, at := range []string{"0.0.0.0:9323", ":9323", "192.0.2.1:9323", "9323"} {
		if code, _, errs := call(t.Context(), "metrics", "--listen", at); code != exitUsage || !strings.Contains(errs, "loopback") {
			t.Errorf("%s: code %d, %q", at, code, errs)
		}
	}
}

func TestMetricsOfANode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, r.URL.Path) })}
	go func() { _ = server.Serve(ln) }()
	defer server.Close()
	for args, want := range map[string]string{"metrics": "/metrics\n", "metrics vm3": "/miniswarm/nodes/vm3/metrics\n"} {
		if code, out, errs := call(t.Context(), append([]string{"--host", "unix://" + path}, strings.Fields(args)...)...); code != 0 || out != want {
			t.Errorf("%s: code %d, %q, %q", args, code, out, errs)
		}
	}
}
