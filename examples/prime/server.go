package main

import (
	_ "embed" // for the page below
	"encoding/json"
	"log/slog"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// replicaHeader names, in every answer, the process that gave it.
const replicaHeader = "X-Replica"

//go:embed docs.html
var docsPage []byte

// service answers the HTTP requests of one replica. Its methods may be called concurrently.
type service struct {
	replica  string
	log      *slog.Logger
	metrics  *metrics
	draining atomic.Bool
}

func newService(replica string, log *slog.Logger) *service {
	return &service{replica: replica, log: log, metrics: newMetrics()}
}

// drain makes /healthz say 503 and every answer ask its client to close the connection. It cannot be undone.
func (s *service) drain() { s.draining.Store(true) }

// handler returns the routes, each named in its answers and in the access log.
func (s *service) handler() http.Handler {
	mux := http.NewServeMux()
	for path, serve := range map[string]http.HandlerFunc{"/primes": s.servePrimes, "/docs": s.serveDocs, "/healthz": s.serveHealth} {
		mux.HandleFunc(path, s.metrics.measured(path, s.getOnly(serve)))
	}
	mux.HandleFunc("/metrics", s.getOnly(s.metrics.handler().ServeHTTP))
	mux.Handle("/{$}", http.RedirectHandler("/docs", http.StatusFound))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, http.StatusNotFound, "no such page: try /docs or /primes?start=1&end=100")
	})
	return s.logged(mux)
}

func (s *service) servePrimes(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	asked, err := parseSpan(q)
	if err != nil {
		writeError(w, http.StatusBadRequest, err.Error())
		return
	}
	if q.Has("close") {
		// The routing mesh chooses a replica per connection. A client that wants to meet another one with its next
		// request asks for this connection to end; the page does.
		w.Header().Set("Connection", "close")
	}
	found, err := primes(r.Context(), asked)
	if err != nil {
		// Nobody reads this; the status is for the access log (nginx's "client closed request").
		w.WriteHeader(499)
		return
	}
	writeJSON(w, http.StatusOK, found)
}

func (s *service) serveDocs(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(docsPage)))
	_, _ = w.Write(docsPage) // a client that went away is no concern of ours
}

func (s *service) serveHealth(w http.ResponseWriter, _ *http.Request) {
	if s.draining.Load() {
		writeError(w, http.StatusServiceUnavailable, "stopping")
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"status": "ok", "replica": s.replica})
}

func (s *service) getOnly(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			writeError(w, http.StatusMethodNotAllowed, r.Method+" is not served here: use GET")
			return
		}
		next(w, r)
	}
}

// logged adds the replica's name to every answer and writes one line per request once it is answered.
func (s *service) logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		w.Header().Set(replicaHeader, s.replica)
		if s.draining.Load() {
			w.Header().Set("Connection", "close")
		}
		seen := &responseRecorder{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(seen, r)
		s.log.LogAttrs(r.Context(), slog.LevelInfo, "request",
			slog.String("method", r.Method), slog.String("uri", r.URL.RequestURI()), slog.String("client", r.RemoteAddr),
			slog.Int("status", seen.status), slog.Int64("bytes", seen.bytes), slog.Duration("took", time.Since(began)))
	})
}

// responseRecorder remembers what went out, for the access log.
type responseRecorder struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (r *responseRecorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

func (r *responseRecorder) Write(p []byte) (int, error) {
	n, err := r.ResponseWriter.Write(p)
	r.bytes += int64(n)
	return n, err
}

func writeError(w http.ResponseWriter, status int, message string) {
	writeJSON(w, status, map[string]string{"error": message})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil { // lists of numbers and maps of strings always marshal
		panic("prime: marshal answer: " + err.Error())
	}
	body = append(body, '\n')
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that went away is no concern of ours
}
