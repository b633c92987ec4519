package identity

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"
)

// clock is a wall clock that a test sets wrong.
type clock struct {
	mu     sync.Mutex
	offset time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.offset)
}

func (c *clock) shift(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += d
}

// testCluster is a manager that keeps nodes in a map where the real one has a replicated store, and serves on loopback.
type testCluster struct {
	t     *testing.T
	clock *clock
	ca    *CA
	store *Store
	addr  string

	mu      sync.Mutex
	tokens  swarm.JoinTokens
	nodes   map[string]Role
	removed map[string]bool
	fail    error // answer of Issue, if set
}

const testClusterID = "k3vq6w5p0x1ff2n8u4zr7byec"

func newTestCluster(t *testing.T, skew time.Duration) *testCluster {
	t.Helper()
	tc := &testCluster{t: t, clock: &clock{offset: skew}, nodes: map[string]Role{}, removed: map[string]bool{}}
	var err error
	if tc.ca, err = NewCA(CAConfig{Now: tc.clock.now}); err != nil {
		t.Fatal(err)
	}
	if tc.tokens, err = NewJoinTokens(tc.ca.Root().PEM(), nil); err != nil {
		t.Fatal(err)
	}
	tc.store = newTestStore(t, tc.clock)
	id := Identity{NodeID: "manager000000000000000001", ClusterID: testClusterID, Role: Manager}
	if _, err := Found(tc.ca, tc.store, id, 0); err != nil {
		t.Fatal(err)
	}
	tc.nodes[id.NodeID] = Manager
	tc.addr = tc.serve(tc.store, tc)
	return tc
}

func newTestStore(t *testing.T, c *clock) *Store {
	t.Helper()
	s, err := NewStore(StoreConfig{Dir: t.TempDir(), Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// serve runs a manager's listener until the test ends: the handler of this package and two that need roles.
func (tc *testCluster) serve(store *Store, issuer Issuer) (addr string) {
	tc.t.Helper()
	guard, err := NewGuard(GuardConfig{Store: store, Removed: tc.isRemoved, Demoted: tc.isDemoted})
	if err != nil {
		tc.t.Fatal(err)
	}
	ca, err := NewHandler(HandlerConfig{Issuer: issuer, Guard: guard, Now: tc.clock.now})
	if err != nil {
		tc.t.Fatal(err)
	}
	whoami := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, ok := FromContext(r.Context())
		if !ok {
			panic("no identity in the context behind RequireRole")
		}
		_, _ = io.WriteString(w, string(id.Role)+" "+id.NodeID)
	})
	mux := http.NewServeMux()
	mux.Handle("/ca/", ca)
	mux.Handle("/any", guard.RequireRole(whoami, Worker, Manager))
	mux.Handle("/managers", guard.RequireRole(whoami, Manager))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tc.t.Fatal(err)
	}
	srv := &http.Server{Handler: mux, TLSConfig: ServerTLS(store), ErrorLog: log.New(io.Discard, "", 0)}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.ServeTLS(l, "", "") }()
	tc.t.Cleanup(func() { _ = srv.Close(); <-done })
	return l.Addr().String()
}

func (tc *testCluster) RootPEM() []byte { return tc.ca.Root().PEM() }

func (tc *testCluster) Issue(_ context.Context, req IssueRequest, peer *Identity, _ string) (IssueResponse, error) {
	tc.mu.Lock()
	defer tc.mu.Unlock()
	if tc.fail != nil {
		return IssueResponse{}, tc.fail
	}
	grant, err := Authorise(tc.tokens, req, peer)
	if err != nil {
		return IssueResponse{}, err
	}
	role := grant.Role
	if grant.Renewal {
		role = tc.nodes[grant.NodeID]
	}
	cert, err := tc.ca.Issue([]byte(req.CSR), Identity{grant.NodeID, testClusterID, role}, 0)
	if err != nil {
		return IssueResponse{}, err
	}
	tc.nodes[grant.NodeID] = role
	return IssueResponse{Certificate: string(cert), NodeID: grant.NodeID, Role: role}, nil
}

func (tc *testCluster) isRemoved(id string) bool {
	tc.mu.Lock()
	defer tc.mu.Unlock()
	return tc.removed[id]
}

func (tc *testCluster) isDemoted(id string) bool {
	tc.mu.Lock()
	defer tc.mu.Unlock()
	return tc.nodes[id] == Worker
}

func (tc *testCluster) change(f func()) {
	tc.mu.Lock()
	defer tc.mu.Unlock()
	f()
}

// join makes a node with a right clock.
func (tc *testCluster) join(role Role) *Store {
	tc.t.Helper()
	s := newTestStore(tc.t, tc.clock)
	token := tc.tokens.Worker
	if role == Manager {
		token = tc.tokens.Manager
	}
	client := NewClient(ClientConfig{Now: tc.clock.now})
	id, err := Join(tc.t.Context(), JoinConfig{Addrs: []string{tc.addr}, Token: token, Store: s, Client: client})
	if err != nil {
		tc.t.Fatal(err)
	}
	if id.Role != role || id.ClusterID != testClusterID || s.Current().Identity != id {
		tc.t.Fatalf("joined as %+v", id)
	}
	return s
}

// filesIn lists the names of all files below a store's directory.
func filesIn(t *testing.T, s *Store) (names []string) {
	t.Helper()
	err := filepath.WalkDir(s.cfg.Dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, d.Name())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
