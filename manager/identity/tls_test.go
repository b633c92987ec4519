package identity

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// call makes one request on a connection of its own.
func call(ctx context.Context, addr, path string, conf *tls.Config) (status int, body string, err error) {
	transport := &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+addr+path, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

func TestRequireRole(t *testing.T) {
	tc := newTestCluster(t, 0)
	worker, manager, gone, demoted := tc.join(Worker), tc.join(Manager), tc.join(Manager), tc.join(Manager)
	tc.change(func() {
		tc.removed[gone.Current().Identity.NodeID] = true
		tc.nodes[demoted.Current().Identity.NodeID] = Worker
	})

	// A node of another cluster whose administrator uses the same root CA.
	cousin := newTestStore(t, tc.clock)
	if _, err := Found(tc.ca, cousin, Identity{"cousin", "othercluster", Manager}, 0); err != nil {
		t.Fatal(err)
	}
	cousinConf := ClientTLS(cousin, Manager, "")
	cousinConf.VerifyConnection = nil // it does not mind whom it calls

	for _, c := range []struct {
		name, path string
		conf       *tls.Config
		status     int
		words      string
	}{
		{"worker on all nodes' path", "/any", ClientTLS(worker, Manager, ""), 200, "worker " + worker.Current().Identity.NodeID},
		{"manager on all nodes' path", "/any", ClientTLS(manager, Manager, ""), 200, "manager " + manager.Current().Identity.NodeID},
		{"worker on managers' path", "/managers", ClientTLS(worker, Manager, ""), 403, "is a worker, and this is for managers only"},
		{"manager on managers' path", "/managers", ClientTLS(manager, Manager, ""), 200, "manager"},
		{"nobody on all nodes' path", "/any", &tls.Config{InsecureSkipVerify: true}, 403, "a node's certificate is required"},
		{"demoted manager on all nodes' path", "/any", ClientTLS(demoted, Manager, ""), 200, "worker " + demoted.Current().Identity.NodeID},
		{"demoted manager on managers' path", "/managers", ClientTLS(demoted, Manager, ""), 403, "is a worker, and this is for managers only"},
		{"removed node", "/any", ClientTLS(gone, Manager, ""), 403, ErrRemoved.Error()},
		{"cousin", "/any", cousinConf, 403, "belongs to cluster othercluster, this is cluster " + testClusterID},
		{"nobody at the CA", RootPath, &tls.Config{InsecureSkipVerify: true}, 200, "BEGIN CERTIFICATE"},
		{"HTTP/1.1", "/any", ClientTLS(worker, Manager, "", "http/1.1"), 200, "worker"},
		{"TLS 1.2", "/any", atMost(ClientTLS(worker, Manager, ""), tls.VersionTLS12), 200, "worker"},
		{"wrong path of the CA", "/ca/nothing", &tls.Config{InsecureSkipVerify: true}, 404, "page not found"},
		{"wrong method", IssuePath, &tls.Config{InsecureSkipVerify: true}, 405, "only POST is allowed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, body, err := call(t.Context(), tc.addr, c.path, c.conf)
			if err != nil || status != c.status || !strings.Contains(body, c.words) {
				t.Fatalf("%d %s, %v, want %d with %q", status, body, err, c.status, c.words)
			}
			var m message
			if status != 200 && (json.Unmarshal([]byte(body), &m) != nil || m.Message == "") {
				t.Errorf("%q is not a message", body)
			}
		})
	}
}

func atMost(c *tls.Config, version uint16) *tls.Config {
	c.MinVersion, c.MaxVersion = tls.VersionTLS10, version
	return c
}

func TestRequireRoleWithoutTLS(t *testing.T) {
	tc := newTestCluster(t, 0)
	next := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("let through") })
	for name, store := range map[string]*Store{"member": tc.store, "before it joined": newTestStore(t, tc.clock)} {
		guard, err := NewGuard(GuardConfig{Store: store})
		if err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		guard.RequireRole(next, Manager).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		if w.Code != 403 && w.Code != 503 {
			t.Errorf("%s: status %d", name, w.Code)
		}
	}
}

// handshake lets a client and a server meet on loopback and returns what each says of it. The server answers one byte, since
// with TLS 1.3 a client learns only then whether it was accepted.
func handshake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer raw.Close()
		conn := tls.Server(raw, server)
		if err := conn.Handshake(); err != nil {
			done <- err
			return
		}
		_, err = conn.Write([]byte{1})
		done <- err
	}()
	conn, err := tls.Dial("tcp", l.Addr().String(), client)
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
		_ = conn.Close()
	}
	return <-done, err
}

func TestHandshakes(t *testing.T) {
	tc := newTestCluster(t, 0)
	worker, manager := tc.join(Worker), tc.join(Manager)
	managerID := manager.Current().Identity.NodeID
	stranger := newTestCluster(t, 0).store
	cousin := newTestStore(t, tc.clock)
	if _, err := Found(tc.ca, cousin, Identity{"cousin", "othercluster", Manager}, 0); err != nil {
		t.Fatal(err)
	}
	empty := newTestStore(t, tc.clock)
	late := storeOf(t, manager.Current(), &clock{offset: year})
	early := storeOf(t, manager.Current(), &clock{offset: -year})
	careless := func(s *Store) *tls.Config { // so that the server's verdict is what counts
		c := ClientTLS(s, Manager, "")
		c.VerifyConnection = nil
		return c
	}

	for _, c := range []struct {
		name           string
		server, client *tls.Config
		words          string // "" if they shall agree
		is             error
	}{
		{"worker calls manager", ServerTLS(manager), ClientTLS(worker, Manager, ""), "", nil},
		{"manager calls that manager", ServerTLS(manager), ClientTLS(tc.store, Manager, managerID), "", nil},
		{"manager calls worker", ServerTLS(worker), ClientTLS(manager, Worker, ""), "", nil},
		{"anonymous", ServerTLS(manager), &tls.Config{InsecureSkipVerify: true}, "", nil},
		{"worker poses as manager", ServerTLS(worker), ClientTLS(worker, Manager, ""), "a worker, where a manager is wanted", nil},
		{"another manager at that address", ServerTLS(tc.store), ClientTLS(worker, Manager, managerID), "its address may have been given to another node", nil},
		{"server of another cluster", ServerTLS(stranger), ClientTLS(worker, Manager, ""), "not signed by this cluster's root CA", ErrOtherCluster},
		{"server of another cluster, same root", ServerTLS(cousin), ClientTLS(worker, Manager, ""), "of cluster othercluster", ErrOtherCluster},
		{"client of another cluster", ServerTLS(manager), careless(stranger), "certificate signed by unknown authority", nil},
		{"client's clock is late", ServerTLS(manager), ClientTLS(late, Manager, ""), "clocks disagree", nil},
		{"client's clock is early", ServerTLS(manager), ClientTLS(early, Manager, ""), "clocks disagree", nil},
		{"server's clock is late", ServerTLS(late), careless(worker), "has expired or is not yet valid", nil},
		{"client has no certificate yet", ServerTLS(manager), ClientTLS(empty, Manager, ""), "it is not part of a swarm", ErrNotJoined},
		{"server has no certificate yet", ServerTLS(empty), ClientTLS(worker, Manager, ""), "it is not part of a swarm", nil},
		{"TLS 1.1", ServerTLS(manager), atMost(ClientTLS(worker, Manager, ""), tls.VersionTLS11), "protocol version", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			serverErr, clientErr := handshake(t, c.server, c.client)
			err := errors.Join(clientErr, serverErr)
			switch {
			case c.words == "" && err != nil:
				t.Error(err)
			case c.words != "" && (err == nil || !strings.Contains(err.Error(), c.words)):
				t.Errorf("%v, want %q", err, c.words)
			case c.is != nil && !errors.Is(err, c.is):
				t.Errorf("%v does not match %v", err, c.is)
			}
		})
	}
}

// storeOf returns a store with the same credentials and another clock.
func storeOf(t *testing.T, c *Credentials, clock *clock) *Store {
	t.Helper()
	s := newTestStore(t, clock)
	if err := s.Save(c); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestRenewalTakesEffectWithoutRestart renews both sides while a connection is open: it goes on, and the next
// one shows the new certificates.
func TestRenewalTakesEffectWithoutRestart(t *testing.T) {
	tc := newTestCluster(t, 0)
	worker := tc.join(Worker)
	conf := ClientTLS(worker, Manager, "", "http/1.1")
	old, err := tls.Dial("tcp", tc.addr, conf)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	ask := func(conn *tls.Conn) string {
		t.Helper()
		fmt.Fprintf(conn, "GET /any HTTP/1.1\r\nHost: x\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%d, %v", resp.StatusCode, err)
		}
		return string(body)
	}
	id := worker.Current().Identity
	if got := ask(old); got != "worker "+id.NodeID {
		t.Errorf("before: %s", got)
	}
	first, err := tc.store.ServerIdentity(new(old.ConnectionState()))
	if err != nil || first != tc.store.Current().Identity {
		t.Errorf("server is %+v, %v", first, err)
	}

	id.Role = Manager // a promotion
	tc.change(func() { tc.nodes[id.NodeID] = Manager })
	if _, err := Found(tc.ca, worker, id, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Found(tc.ca, tc.store, tc.store.Current().Identity, time.Hour); err != nil {
		t.Fatal(err)
	}
	if got := ask(old); got != "worker "+id.NodeID {
		t.Errorf("old connection: %s", got)
	}
	fresh, err := tls.Dial("tcp", tc.addr, conf)
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	if got := ask(fresh); got != "manager "+id.NodeID {
		t.Errorf("new connection: %s", got)
	}
	if a, b := old.ConnectionState().PeerCertificates[0], fresh.ConnectionState().PeerCertificates[0]; a.Equal(b) {
		t.Error("the server shows its old certificate to new connections")
	}
}

func TestFromTLS(t *testing.T) {
	tc := newTestCluster(t, 0)
	leaf := tc.store.Current().leaf
	for name, cs := range map[string]*tls.ConnectionState{
		"plain text":     nil,
		"anonymous":      {},
		"not verified":   {PeerCertificates: []*x509.Certificate{leaf}},
		"verified as CA": {PeerCertificates: tc.ca.root.certs, VerifiedChains: [][]*x509.Certificate{tc.ca.root.certs}},
	} {
		if id, err := FromTLS(cs); err == nil {
			t.Errorf("%s: read as %+v", name, id)
		}
	}
}
