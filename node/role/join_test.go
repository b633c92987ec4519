package role

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/lab/claim"
	"github.com/miniswarm/miniswarm/manager/identity"
)

// fakeManagers are cluster ports of one cluster that answer as a test tells them to.
type fakeManagers struct {
	t  *testing.T
	ca *identity.CA
}

func (f fakeManagers) credentials(id string, role identity.Role) *identity.Store {
	f.t.Helper()
	store, err := identity.NewStore(identity.StoreConfig{Dir: f.t.TempDir()})
	must(f.t, err)
	_, err = identity.Found(f.ca, store, identity.Identity{NodeID: id, ClusterID: "c1", Role: role}, 0)
	must(f.t, err)
	return store
}

// serve gives the address of a manager that answers membership requests with h.
func (f fakeManagers) serve(role identity.Role, h http.HandlerFunc) string {
	f.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(f.t, err)
	server := &http.Server{Handler: h, TLSConfig: identity.ServerTLS(f.credentials("m"+l.Addr().String(), role), "http/1.1"),
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.ServeTLS(l, "", "") }()
	f.t.Cleanup(func() { server.Close(); <-done })
	return l.Addr().String()
}

// client asks as a newcomer does.
func (f fakeManagers) client() *http.Client {
	f.t.Helper()
	return &http.Client{Transport: &http.Transport{TLSClientConfig: identity.ClientTLS(f.credentials("newcomer", identity.Manager), identity.Manager, "", "http/1.1")}}
}

func known(addrs ...string) func() []protocol.ManagerAddr {
	var all []protocol.ManagerAddr
	for _, a := range addrs {
		all = append(all, protocol.ManagerAddr{Addr: a})
	}
	return func() []protocol.ManagerAddr { return all }
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func refuse(status int, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]string{"message": text})
	}
}

func accept(t *testing.T) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		id, err := identity.FromTLS(r.TLS)
		var req protocol.JoinRequest
		raw, _ := io.ReadAll(r.Body)
		if jerr := json.Unmarshal(raw, &req); err != nil || jerr != nil || id.NodeID != "newcomer" || req.Addr != "192.0.2.9:2377" || r.URL.Path != protocol.PathMembers {
			t.Errorf("asked %s %s as %+v (%v): %s", r.Method, r.URL.Path, id, err, raw)
		}
		_ = json.NewEncoder(w).Encode(protocol.JoinResponse{RaftID: 42, Members: []protocol.Member{{RaftID: 1}}})
	}
}

func TestJoiningTheRaftGroup(t *testing.T) {
	ca, err := identity.NewCA(identity.CAConfig{})
	must(t, err)
	f := fakeManagers{t, ca}
	leader := f.serve(identity.Manager, accept(t))
	follower := f.serve(identity.Manager, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(protocol.HeaderLeader, leader)
		refuse(http.StatusMisdirectedRequest, "not the leader")(w, nil)
	})
	var asked atomic.Int32
	electing := f.serve(identity.Manager, func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) < 3 {
			refuse(http.StatusServiceUnavailable, "no leader at present")(w, r)
			return
		}
		accept(t)(w, r)
	})
	hanging := f.serve(identity.Manager, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	removed := f.serve(identity.Manager, refuse(http.StatusForbidden, "Permission denied: the node was removed"))
	impostor := f.serve(identity.Worker, accept(t))
	garbled := f.serve(identity.Manager, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })

	for _, c := range []struct {
		name     string
		managers []string
		err      string
	}{
		{"the leader answers", []string{leader}, ""},
		{"a follower names the leader", []string{follower}, ""},
		{"an election is waited out", []string{electing}, ""},
		{"a dead manager is passed over", []string{claim.Addr(t).String(), leader}, ""},
		{"a manager that hangs is passed over", []string{hanging, leader}, ""},
		{"a worker that poses as manager is passed over", []string{impostor, leader}, ""},
		{"an answer that is none is passed over", []string{garbled, leader}, ""},
		{"a refusal is final", []string{removed, leader}, "the node was removed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			answer, err := Join(t.Context(), f.client(), known(c.managers...), protocol.JoinRequest{Addr: "192.0.2.9:2377"})
			switch {
			case c.err != "":
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("joined with %v, want %q", err, c.err)
				}
			case err != nil:
				t.Error(err)
			case answer.RaftID != 42 || len(answer.Members) != 1:
				t.Errorf("answer %+v", answer)
			}
		})
	}
}

func TestJoiningGivesUpWithTheReason(t *testing.T) {
	ca, err := identity.NewCA(identity.CAConfig{})
	must(t, err)
	f := fakeManagers{t, ca}
	electing := f.serve(identity.Manager, refuse(http.StatusServiceUnavailable, "the swarm has no leader at present"))
	ctx, cancel := context.WithTimeout(t.Context(), 3*joinPause)
	defer cancel()
	began := time.Now()
	if _, err := Join(ctx, f.client(), known(electing), protocol.JoinRequest{Addr: "192.0.2.9:2377"}); err == nil || !strings.Contains(err.Error(), "no leader at present") {
		t.Errorf("gave up with %v", err)
	}
	if took := time.Since(began); took > joinPatience/2 {
		t.Errorf("a caller that has no more time waited %v", took)
	}
}
