package main

import (
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestMetrics(t *testing.T) {
	svc := newService("r1", slog.New(slog.DiscardHandler))
	get := func(target string) string {
		w := httptest.NewRecorder()
		svc.handler().ServeHTTP(w, httptest.NewRequest("GET", target, nil))
		return w.Body.String()
	}
	get("/primes?start=1&end=10")
	get("/primes?start=20&end=30")
	get("/primes?start=x")
	get("/healthz")
	get("/made-up")
	want := `
		# HELP prime_requests_total Requests that were answered.
		# TYPE prime_requests_total counter
		prime_requests_total{path="/healthz",status="200"} 1
		prime_requests_total{path="/primes",status="200"} 2
		prime_requests_total{path="/primes",status="400"} 1
		# HELP prime_requests_in_flight Requests that are being answered.
		# TYPE prime_requests_in_flight gauge
		prime_requests_in_flight 0
	`
	if err := testutil.GatherAndCompare(svc.metrics.registry, strings.NewReader(want), "prime_requests_total", "prime_requests_in_flight"); err != nil {
		t.Error(err)
	}
	for _, series := range []string{`prime_request_duration_seconds_count{path="/primes"} 3`, "go_goroutines ", "process_cpu_seconds_total "} {
		if got := get("/metrics"); !strings.Contains(got, series) {
			t.Errorf("/metrics does not have %q:\n%s", series, got)
		}
	}
	if problems, err := testutil.GatherAndLint(svc.metrics.registry); err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v %v", problems, err)
	}
}
