package main

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics are what /metrics shows of the requests, beside what Go and the kernel say of the process. Each service has its
// own, so that several of them in one process do not meet.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec   // by path and status
	took     *prometheus.HistogramVec // by path, seconds
	inFlight prometheus.Gauge
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "prime_requests_total", Help: "Requests that were answered."}, []string{"path", "status"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "prime_request_duration_seconds", Help: "How long requests took to answer.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14)}, []string{"path"}), // half a millisecond to four seconds
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "prime_requests_in_flight", Help: "Requests that are being answered."}),
	}
	m.registry.MustRegister(m.requests, m.took, m.inFlight, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// measured counts the requests of a path; path is the route's and not the client's, so that nobody can make up series.
func (m *metrics) measured(path string, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		m.inFlight.Inc()
		defer m.inFlight.Dec()
		seen := &responseRecorder{ResponseWriter: w, status: http.StatusOK}
		next(seen, r)
		m.took.WithLabelValues(path).Observe(time.Since(began).Seconds())
		m.requests.WithLabelValues(path, strconv.Itoa(seen.status)).Inc()
	}
}
