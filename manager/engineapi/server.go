package engineapi

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
)

// Config is what a Server works with.
type Config struct {
	Local Local
	// Engine is the local Docker Engine as a DOCKER_HOST value: unix:///path or tcp://host:port.
	Engine  string
	Logger  *slog.Logger
	Version string
	// About answers GET /metrics, /healthz, /readyz, /doctor and, on the leader, /doctor/cluster; nil: not found.
	About http.Handler
}

// Server answers Engine API requests. Its handlers may be used concurrently.
type Server struct {
	cfg    Config
	engine *engine
	events *eventHub
	swarm  *http.ServeMux
	socket *http.ServeMux
	// planning holds a token while a plan is made: each is a copy of the whole state.
	planning chan struct{}
}

// New gives a server. It connects to nothing yet.
func New(cfg Config) (*Server, error) {
	if cfg.Local == nil || cfg.Logger == nil {
		return nil, errors.New("engineapi: the local node and a logger must be given")
	}
	e, err := newEngine(cfg.Engine, cfg.Logger)
	if err != nil {
		return nil, fmt.Errorf("engineapi: %w", err)
	}
	s := &Server{cfg: cfg, engine: e, events: newEventHub(), swarm: http.NewServeMux(), socket: http.NewServeMux(),
		planning: make(chan struct{}, 1)}
	s.routes()
	return s, nil
}

// Socket is the handler of the node's unix socket.
func (s *Server) Socket() http.Handler { return s.dressed(s.guarded(versioned(s.socket))) }

// Cluster is the handler for requests that other managers forward here, because this one leads.
func (s *Server) Cluster() http.Handler { return s.guarded(versioned(s.swarm)) }

// handler is an endpoint that returns its error instead of writing it.
type handler func(w http.ResponseWriter, r *http.Request) error

// ServeHTTP implements http.Handler.
func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := h(w, r); err != nil {
		writeError(w, err)
	}
}

// guarded turns a panic of an endpoint into an answer and a line in the log: one bad request must not look like a dead
// daemon. http.ErrAbortHandler is the server's own way to break a connection off and passes.
func (s *Server) guarded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			switch v := recover(); v {
			case nil:
			case http.ErrAbortHandler:
				panic(v)
			default:
				s.cfg.Logger.Error("a request met a fault", "method", r.Method, "path", r.URL.Path, "fault", v, "stack", string(debug.Stack()))
				writeError(w, errorf(http.StatusInternalServerError, "%s %s met a fault in miniswarm: %v; the daemon's log has the details", r.Method, r.URL.Path, v))
			}
		}()
		next.ServeHTTP(w, r)
	})
}
