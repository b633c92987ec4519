package engineapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/backup"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/orchestrator"
	"github.com/miniswarm/miniswarm/scheduler"
)

// Errors of nodes that are no managers, in Docker's words.
var (
	errNever   = errorf(http.StatusServiceUnavailable, `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`)
	errAlready = errorf(http.StatusServiceUnavailable, `This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.`)
	errWorker  = errorf(http.StatusServiceUnavailable, "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this command on a manager node or promote the current node to a manager.")
)

// fakeLocal is a node whose membership a test sets.
type fakeLocal struct {
	mu      sync.Mutex
	info    swarm.Info
	control Control
	err     error
	left    []bool // force of each Leave
	// attach answers what is asked of the managers; nil: the swarm has no networks.
	attach  func(req protocol.AttachRequest) (*Attachment, error)
	settled int // calls of SettleAttachments
	// onControl answers Control while it is not nil; guarded by mu.
	onControl func() (Control, error)
}

func (l *fakeLocal) SettleAttachments(context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.settled++
}

func (l *fakeLocal) Backup(_ context.Context, secret string, w io.Writer) error {
	if secret == "" {
		return errorf(http.StatusBadRequest, "no secret")
	}
	if _, err := io.WriteString(w, "sealed with "+secret); err != nil || secret != "breaks" {
		return err
	}
	return errors.New("it broke")
}

func (l *fakeLocal) Recover(_ context.Context, req backup.RecoverRequest, body io.Reader) (*backup.Report, error) {
	content, err := io.ReadAll(body)
	if err != nil {
		return nil, err
	}
	return &backup.Report{ClusterID: string(content), DryRun: req.DryRun}, nil
}

func (l *fakeLocal) Rejoin(_ context.Context, addr string) error {
	if addr == "" {
		return errorf(http.StatusBadRequest, "no address")
	}
	return nil
}

func (l *fakeLocal) Attach(_ context.Context, req protocol.AttachRequest) (*Attachment, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.attach == nil {
		return nil, rpcErrorf(notFound, "network %s not found", req.Network)
	}
	return l.attach(req)
}

func (l *fakeLocal) Init(_ context.Context, req swarm.InitRequest) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.info.LocalNodeState == swarm.LocalNodeStateActive {
		return "", errAlready
	}
	l.info = swarm.Info{NodeID: "node1", NodeAddr: req.AdvertiseAddr, LocalNodeState: swarm.LocalNodeStateActive, ControlAvailable: true}
	return "node1", nil
}

func (l *fakeLocal) Join(_ context.Context, req swarm.JoinRequest) error {
	if l.Info().LocalNodeState == swarm.LocalNodeStateActive {
		return errAlready
	}
	if req.JoinToken != "SWMTKN-1-good" {
		return errorf(http.StatusBadRequest, "rpc error: code = InvalidArgument desc = A valid join token is necessary to join this cluster")
	}
	return nil
}

func (l *fakeLocal) Unlock(_ context.Context, key string) error {
	if _, err := l.Control(); err != nil && l.Info().LocalNodeState != swarm.LocalNodeStateLocked {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.info.LocalNodeState != swarm.LocalNodeStateLocked {
		return errorf(http.StatusConflict, "swarm is not locked")
	}
	if key != "SWMKEY-1-good" {
		return errorf(http.StatusUnauthorized, "swarm could not be unlocked: invalid key provided")
	}
	l.info.LocalNodeState, l.err = swarm.LocalNodeStateActive, nil
	return nil
}

func (l *fakeLocal) Leave(_ context.Context, force bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left = append(l.left, force)
	if !force {
		return errorf(http.StatusServiceUnavailable, "You are attempting to leave the swarm on a node that is participating as a manager. Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. ")
	}
	return nil
}

func (l *fakeLocal) Info() swarm.Info {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.info
}

func (l *fakeLocal) Control() (Control, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.onControl != nil {
		return l.onControl()
	}
	return l.control, l.err
}

func (l *fakeLocal) set(info swarm.Info, c Control, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.info, l.control, l.err = info, c, err
}

// fakeControl is a manager over tables of its own: transactions, guards, versions and watches are the real ones. Nothing
// orchestrates, so tasks come about only when a test makes them.
type fakeControl struct {
	mu       sync.Mutex
	state    *cluster.State
	index    uint64
	watchers map[chan []cluster.Event]bool
	ids      cluster.IDs
	now      time.Time

	self         bool
	leader, addr string
	forward      func(nodeID string) http.RoundTripper
	members      []protocol.Member
	agents       map[string]func() net.Conn                                                                                // by node id
	logs         map[string]func(ctx context.Context, req protocol.LogRequest, each func(protocol.LogMessage) error) error // by task id
	decisions    map[string][]orchestrator.Decision
	readErr      error
	authority    *identity.Authority

	onLeaderAsked func() // runs once, after the next question who leads; guarded by mu
}

func newFakeControl() *fakeControl {
	store, err := identity.NewStore(identity.StoreConfig{Dir: "unused"})
	if err != nil {
		panic(err)
	}
	authority, err := identity.NewAuthority(identity.AuthorityConfig{Store: store})
	if err != nil {
		panic(err)
	}
	return &fakeControl{authority: authority, state: cluster.NewState(), watchers: map[chan []cluster.Event]bool{}, ids: cluster.SeededIDs(1), now: time.Unix(1_700_000_000, 0).UTC(),
		self: true, leader: "node1", addr: "10.0.0.1:2377", members: []protocol.Member{{RaftID: 1, NodeID: "node1", Addr: "10.0.0.1:2377"}},
		logs:      map[string]func(context.Context, protocol.LogRequest, func(protocol.LogMessage) error) error{},
		decisions: map[string][]orchestrator.Decision{}}
}

func (c *fakeControl) Leader() (self bool, nodeID, addr string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	self, nodeID, addr = c.self, c.leader, c.addr
	if c.onLeaderAsked != nil {
		c.onLeaderAsked()
		c.onLeaderAsked = nil
	}
	return self, nodeID, addr
}

func (c *fakeControl) setLeader(self bool, nodeID, addr string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.self, c.leader, c.addr = self, nodeID, addr
}

func (c *fakeControl) Forward(nodeID string) http.RoundTripper { return c.forward(nodeID) }

func (c *fakeControl) Stale() (*cluster.Snapshot, time.Duration, bool) {
	return c.state.Snapshot(), 12300 * time.Millisecond, c.leader != ""
}

func (c *fakeControl) Read(ctx context.Context) (*cluster.Snapshot, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.readErr != nil {
		return nil, c.readErr
	}
	return c.state.Snapshot(), nil
}

func (c *fakeControl) Update(ctx context.Context, fn func(*cluster.Snapshot) (*cluster.Txn, error)) (uint64, error) {
	for {
		c.mu.Lock()
		snap := c.state.Snapshot()
		c.mu.Unlock()
		txn, err := fn(snap)
		if err != nil {
			return 0, err
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		c.mu.Lock()
		c.index++
		index := c.index
		evs, err := c.state.Apply(txn, index)
		for w := range c.watchers {
			if len(evs) > 0 {
				w <- evs
			}
		}
		c.mu.Unlock()
		if cluster.Retryable(err) {
			continue
		}
		return index, err
	}
}

func (c *fakeControl) ConfigureCA(ctx context.Context, cl *cluster.Cluster, want swarm.CAConfig) (*cluster.Cluster, error) {
	return c.authority.Configure(ctx, cl, want)
}

// endWatches closes every watch, as a store does whose reader lags.
func (c *fakeControl) endWatches() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for w := range c.watchers {
		close(w)
		delete(c.watchers, w)
	}
}

func (c *fakeControl) Watch() (*cluster.Snapshot, <-chan []cluster.Event, func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := make(chan []cluster.Event, 100)
	c.watchers[ch] = true
	return c.state.Snapshot(), ch, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.watchers, ch)
	}
}

func (c *fakeControl) watching() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.watchers)
}

func (c *fakeControl) IDs() cluster.IDs           { return lockedIDs{c} }
func (c *fakeControl) Members() []protocol.Member { return c.members }
func (c *fakeControl) Reachability(string) swarm.Reachability {
	return swarm.ReachabilityReachable
}
func (c *fakeControl) RollCall(context.Context) error { return nil }

type lockedIDs struct{ c *fakeControl }

func (l lockedIDs) Next() string {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	return l.c.ids.Next()
}

func (c *fakeControl) TaskLogs(ctx context.Context, nodeID string, req protocol.LogRequest, each func(protocol.LogMessage) error) error {
	c.mu.Lock()
	read := c.logs[req.TaskID]
	c.mu.Unlock()
	if read == nil {
		return fmt.Errorf("node %s is not available", nodeID)
	}
	return read(ctx, req, each)
}

// Dial gives a stream to a node's agent.
func (c *fakeControl) Dial(_ context.Context, nodeID string) (net.Conn, error) {
	c.mu.Lock()
	dial := c.agents[nodeID]
	c.mu.Unlock()
	if dial == nil {
		return nil, fmt.Errorf("node %s is not available", nodeID)
	}
	return dial(), nil
}

func (c *fakeControl) setLog(taskID string, read func(context.Context, protocol.LogRequest, func(protocol.LogMessage) error) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.logs[taskID] = read
}

func (c *fakeControl) Decisions(taskID string) []orchestrator.Decision { return c.decisions[taskID] }

func (c *fakeControl) Explain(snap *cluster.Snapshot, t *cluster.Task) scheduler.Decision {
	accounts := scheduler.New()
	for n := range snap.Nodes() {
		accounts.SetNode(n)
	}
	for other := range snap.Tasks() {
		if other.ID != t.ID {
			accounts.SetTask(nil, other)
		}
	}
	return accounts.Explain(t, c.now)
}

// put stores objects without anybody's checks.
func (c *fakeControl) put(t *testing.T, objects ...cluster.Object) {
	t.Helper()
	var txn cluster.Txn
	txn.Time = c.now
	for _, o := range objects {
		change := cluster.CreateOf(o)
		c.mu.Lock()
		if c.state.Snapshot().Object(o.Kind(), o.ObjectID()) != nil {
			change = cluster.UpdateOf(o)
			change.Version = 0
		}
		c.mu.Unlock()
		txn.Changes = append(txn.Changes, change)
	}
	if _, err := c.Update(t.Context(), func(*cluster.Snapshot) (*cluster.Txn, error) { return &txn, nil }); err != nil {
		t.Fatalf("put: %v", err)
	}
}

// orchestrate lets the real orchestrator do all that it wants done, as a leader's loop would.
func (c *fakeControl) orchestrate(t *testing.T) {
	t.Helper()
	for range 20 {
		plan := orchestrator.Next(c.snapshot(), c.now, c.IDs())
		if len(plan.Changes) == 0 {
			return
		}
		if _, err := c.Update(t.Context(), func(*cluster.Snapshot) (*cluster.Txn, error) {
			return &cluster.Txn{Time: c.now, Changes: plan.Changes}, nil
		}); err != nil {
			t.Fatalf("orchestrate: %v", err)
		}
	}
	t.Fatal("the orchestrator never comes to rest")
}

func (c *fakeControl) snapshot() *cluster.Snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state.Snapshot()
}

// fakeEngine is a Docker Engine with networks and events, on a unix socket.
type fakeEngine struct {
	mu       sync.Mutex
	networks []network.Inspect
	requests []string // METHOD path?query
	events   chan string
	// distribution answers what is asked of registries; nil: there are none.
	distribution http.HandlerFunc // guarded by mu
	frozen       bool             // guarded by mu; takes requests and answers none, as a process that is stopped
	// others answers what nothing else does; nil: nothing.
	others http.HandlerFunc // guarded by mu
	server *httptest.Server
	path   string
}

func newFakeEngine(t *testing.T) *fakeEngine {
	t.Helper()
	dir, err := os.MkdirTemp("", "eng") // short: a unix socket's path is limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	e := &fakeEngine{events: make(chan string, 16), path: filepath.Join(dir, "s")}
	for _, name := range []string{"bridge", "host", "none"} {
		e.networks = append(e.networks, network.Inspect{Name: name, ID: "eng" + name, Driver: name, Scope: "local", Labels: map[string]string{}})
	}
	l, err := net.Listen("unix", e.path)
	if err != nil {
		t.Fatal(err)
	}
	e.server = &httptest.Server{Listener: l, Config: &http.Server{Handler: e.thaw(versioned(e.mux()))}}
	e.server.Start()
	t.Cleanup(e.server.Close)
	return e
}

// thaw lets nothing through while the engine is frozen.
func (e *fakeEngine) thaw(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.mu.Lock()
		frozen := e.frozen
		e.mu.Unlock()
		if frozen {
			<-r.Context().Done()
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (e *fakeEngine) freeze(frozen bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.frozen = frozen
}

func (e *fakeEngine) mux() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /_ping", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Ostype", "linux")
		w.Header().Set("Api-Version", "1.41")
		w.Header().Set("Docker-Experimental", "false")
		w.Header().Set("Server", "Docker/20.10.24 (linux)")
		w.Header().Set("Builder-Version", "1")
		w.Header().Set("Swarm", "inactive")
		_, _ = io.WriteString(w, "OK")
	})
	mux.HandleFunc("GET /info", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"Name":"vm1","NCPU":2,"MemTotal":12345678901234567,"Swarm":{"LocalNodeState":"inactive"},"Warnings":["WARNING: No swap limit support"],"FutureField":{"a":1}}`)
	})
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"Version":"20.10.24","ApiVersion":"1.41","MinAPIVersion":"1.12","Os":"linux","Arch":"amd64","Components":[{"Name":"Engine","Version":"20.10.24","Details":{"ApiVersion":"1.41"}}]}`)
	})
	mux.HandleFunc("GET /networks", func(w http.ResponseWriter, r *http.Request) {
		args, err := filters.FromJSON(r.URL.Query().Get("filters"))
		if err != nil {
			writeError(w, errorf(http.StatusBadRequest, "%v", err))
			return
		}
		out := []network.Inspect{}
		e.mu.Lock()
		defer e.mu.Unlock()
		for _, n := range e.networks {
			if args.Match("name", n.Name) && args.MatchKVList("label", n.Labels) && args.ExactMatch("driver", n.Driver) && args.ExactMatch("scope", n.Scope) {
				n.Containers = nil
				out = append(out, n)
			}
		}
		writeJSON(w, http.StatusOK, out)
	})
	mux.HandleFunc("GET /networks/{id}", func(w http.ResponseWriter, r *http.Request) {
		e.mu.Lock()
		defer e.mu.Unlock()
		for _, n := range e.networks {
			if n.ID == r.PathValue("id") || n.Name == r.PathValue("id") {
				writeJSON(w, http.StatusOK, n)
				return
			}
		}
		writeError(w, networkNotFound(r.PathValue("id")))
	})
	mux.HandleFunc("POST /networks/create", func(w http.ResponseWriter, r *http.Request) {
		var req network.CreateRequest
		_ = json.NewDecoder(r.Body).Decode(&req)
		e.mu.Lock()
		defer e.mu.Unlock()
		e.networks = append(e.networks, networkNamed(req.Name, req.Labels))
		writeJSON(w, http.StatusCreated, network.CreateResponse{ID: "eng" + req.Name})
	})
	mux.HandleFunc("DELETE /networks/{id}", func(w http.ResponseWriter, r *http.Request) {
		e.mu.Lock()
		defer e.mu.Unlock()
		for i, n := range e.networks {
			if n.ID != r.PathValue("id") && n.Name != r.PathValue("id") {
				continue
			}
			if len(n.Containers) > 0 {
				writeError(w, errorf(http.StatusForbidden, "error while removing network: network %s id %s has active endpoints", n.Name, n.ID))
				return
			}
			e.networks = append(e.networks[:i:i], e.networks[i+1:]...)
			w.WriteHeader(http.StatusNoContent)
			return
		}
		writeError(w, networkNotFound(r.PathValue("id")))
	})
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		rc := http.NewResponseController(w)
		_ = rc.Flush()
		for {
			select {
			case <-r.Context().Done():
				return
			case line, ok := <-e.events:
				if !ok {
					return
				}
				_, _ = io.WriteString(w, line+"\n")
				_ = rc.Flush()
			}
		}
	})
	mux.HandleFunc("GET /distribution/{name...}", func(w http.ResponseWriter, r *http.Request) {
		e.mu.Lock()
		answer := e.distribution
		e.mu.Unlock()
		if answer == nil {
			writeError(w, errorf(http.StatusForbidden, "no registry here"))
			return
		}
		answer(w, r)
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Trailer", "X-Sum")
		_, _ = fmt.Fprintf(w, "%s %s %s", r.Method, original(r).URL.RequestURI(), body)
		w.Header().Set("X-Sum", fmt.Sprint(len(body)))
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		e.mu.Lock()
		others := e.others
		e.mu.Unlock()
		if others != nil {
			others(w, r)
			return
		}
		writeError(w, errorf(http.StatusNotFound, "page not found"))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.mu.Lock()
		e.requests = append(e.requests, r.Method+" "+r.URL.RequestURI())
		e.mu.Unlock()
		w.Header().Set("Api-Version", "1.41")
		w.Header().Set("Server", "Docker/20.10.24 (linux)")
		mux.ServeHTTP(w, r)
	})
}

func (e *fakeEngine) add(n network.Inspect) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.networks = append(e.networks, n)
}

func (e *fakeEngine) seen() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return strings.Join(e.requests, "\n")
}

// world is a node with an engine, a manager and its API served over a unix socket.
type world struct {
	t       *testing.T
	engine  *fakeEngine
	control *fakeControl
	local   *fakeLocal
	api     *Server
	http    *http.Client
	socket  string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, engine: newFakeEngine(t), control: newFakeControl(), local: &fakeLocal{}}
	w.local.set(swarm.Info{NodeID: "node1", NodeAddr: "10.0.0.1", LocalNodeState: swarm.LocalNodeStateActive, ControlAvailable: true,
		RemoteManagers: []swarm.Peer{{NodeID: "node1", Addr: "10.0.0.1:2377"}}}, w.control, nil)
	w.serve(w.engine.path)
	return w
}

func (w *world) serve(enginePath string) {
	w.t.Helper()
	var err error
	w.api, err = New(Config{Local: w.local, Engine: "unix://" + enginePath, Logger: slog.New(slog.DiscardHandler), Version: "1.2.3"})
	if err != nil {
		w.t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "api")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { os.RemoveAll(dir) })
	w.socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", w.socket)
	if err != nil {
		w.t.Fatal(err)
	}
	server := &httptest.Server{Listener: l, Config: &http.Server{Handler: w.api.Socket()}}
	server.Start()
	w.t.Cleanup(server.Close)
	w.http = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", w.socket)
	}}}
	w.t.Cleanup(w.http.CloseIdleConnections)
}

// answer is what a request got.
type answer struct {
	status int
	header http.Header
	body   string
}

// message is the text of an error.
func (a answer) message() string {
	var e struct{ Message string }
	_ = json.Unmarshal([]byte(a.body), &e)
	return e.Message
}

// do sends a request; a body that is no string is sent as JSON. Every answer is held against the Engine API's document.
func (w *world) do(method, path string, body any, header ...string) answer {
	w.t.Helper()
	var reader io.Reader
	contentType := ""
	switch b := body.(type) {
	case nil:
	case string:
		reader, contentType = strings.NewReader(b), "application/json"
	default:
		raw, err := json.Marshal(b)
		if err != nil {
			w.t.Fatal(err)
		}
		reader, contentType = strings.NewReader(string(raw)), "application/json"
	}
	req, err := http.NewRequestWithContext(w.t.Context(), method, "http://docker"+path, reader)
	if err != nil {
		w.t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := w.http.Do(req)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
	a := answer{resp.StatusCode, resp.Header, strings.TrimSuffix(string(raw), "\n")}
	if err := checkAnswer(method, path, a); w.api != nil && err != nil {
		w.t.Errorf("%s %s: the answer is not the Engine API's: %v", method, path, err)
	}
	return a
}

// must sends a request and decodes its answer, which must have the status.
func must[T any](w *world, status int, method, path string, body any) T {
	w.t.Helper()
	a := w.do(method, path, body)
	if a.status != status {
		w.t.Fatalf("%s %s: status %d, want %d: %s", method, path, a.status, status, a.body)
	}
	var v T
	if a.body != "" {
		if err := json.Unmarshal([]byte(a.body), &v); err != nil {
			w.t.Fatalf("%s %s: %v in %s", method, path, err, a.body)
		}
	}
	return v
}

// refused sends a request that must fail with the status and text.
func (w *world) refused(method, path string, body any, status int, text string) {
	w.t.Helper()
	a := w.do(method, path, body)
	if a.status != status || a.message() != text {
		w.t.Errorf("%s %s:\n got %d %q\nwant %d %q", method, path, a.status, a.message(), status, text)
	}
}

// aNode is a node that is ready.
func aNode(id, host string) *cluster.Node {
	n := &cluster.Node{Role: swarm.NodeRoleWorker, DataAddr: "10.0.0." + id[len(id)-1:]}
	n.ID = id
	n.Spec.Role, n.Spec.Availability, n.Spec.Labels = swarm.NodeRoleWorker, swarm.NodeAvailabilityActive, map[string]string{}
	n.Description.Hostname = host
	n.Description.Engine.EngineVersion = "20.10.24"
	n.Description.Platform = swarm.Platform{Architecture: "x86_64", OS: "linux"}
	n.Description.Resources = swarm.Resources{NanoCPUs: 2e9, MemoryBytes: 2 << 30}
	n.Status = swarm.NodeStatus{State: swarm.NodeStateReady, Addr: n.DataAddr}
	return n
}

// aManager is a node that is a member of the raft group.
func aManager(id, host string) *cluster.Node {
	n := aNode(id, host)
	n.Role, n.Spec.Role, n.RaftID, n.ManagerAddr = swarm.NodeRoleManager, swarm.NodeRoleManager, 1, n.DataAddr+":2377"
	return n
}

// aTask is a task of a service on a node.
func aTask(id string, svc *cluster.Service, slot int, nodeID string, state swarm.TaskState) *cluster.Task {
	t := &cluster.Task{SpecVersion: svc.SpecVersion, ServiceAnnotations: svc.Spec.Annotations}
	t.ID, t.ServiceID, t.Slot, t.NodeID = id, svc.ID, slot, nodeID
	t.Spec, t.DesiredState = svc.Spec.TaskTemplate, swarm.TaskStateRunning
	t.Status = swarm.TaskStatus{State: state, Timestamp: time.Unix(1_700_000_000, 0).UTC(), Message: string(state)}
	return t
}

// aService is a replicated service.
func aService(id, name string, replicas uint64) *cluster.Service {
	s := &cluster.Service{}
	s.ID = id
	s.Spec = serviceSpec(name)
	s.Spec.Mode.Replicated.Replicas = &replicas
	return s
}

func serviceSpec(name string) swarm.ServiceSpec {
	one := uint64(1)
	return swarm.ServiceSpec{
		Annotations:  swarm.Annotations{Name: name, Labels: map[string]string{}},
		TaskTemplate: swarm.TaskSpec{Runtime: swarm.RuntimeContainer, ContainerSpec: &swarm.ContainerSpec{Image: "app:1"}},
		Mode:         swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &one}},
	}
}

// testCA is the root CA of all fake clusters.
var testCA = sync.OnceValue(func() *identity.CA {
	ca, err := identity.NewCA(identity.CAConfig{})
	if err != nil {
		panic(err)
	}
	return ca
})

// aCluster is the cluster object with the ingress network.
func aCluster() []cluster.Object {
	limit := int64(5)
	ca := testCA()
	key, err := ca.KeyPEM()
	if err != nil {
		panic(err)
	}
	c := &cluster.Cluster{RootCA: ca.Root().PEM(), RootCAKey: key, JoinTokens: swarm.JoinTokens{Worker: "SWMTKN-1-w", Manager: "SWMTKN-1-m"}}
	c.ID = "cluster1"
	c.Spec.Name, c.Spec.Labels = "default", map[string]string{}
	c.Spec.Orchestration.TaskHistoryRetentionLimit = &limit
	c.DefaultAddrPool, c.SubnetSize, c.DataPathPort = []string{"10.0.0.0/8"}, 24, 4789
	n := &cluster.Network{}
	n.ID = "ingressnet"
	n.Spec.Name, n.Spec.Ingress, n.Spec.Labels, n.Spec.Scope = "ingress", true, map[string]string{}, "swarm"
	n.Spec.DriverConfiguration = &swarm.Driver{Name: "overlay"}
	n.IPAMOptions = &swarm.IPAMOptions{Driver: swarm.Driver{Name: "default"}, Configs: []swarm.IPAMConfig{{Subnet: "10.0.0.0/24", Gateway: "10.0.0.1"}}}
	n.DriverState = swarm.Driver{Name: "overlay", Options: map[string]string{"com.docker.network.driver.overlay.vxlanid_list": "4096"}}
	return []cluster.Object{c, n}
}

func copyAll(w io.Writer, resp *http.Response) (int64, error) {
	defer resp.Body.Close()
	return io.Copy(w, resp.Body)
}

func memberOf(n *cluster.Node) protocol.Member {
	return protocol.Member{RaftID: n.RaftID, NodeID: n.ID, Addr: n.ManagerAddr}
}
