package raftstore

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/lab/claim"
)

// testCA makes certificates whose common name is the node.
type testCA struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
}

func newTestCA(t testing.TB) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &testCA{key, cert, pool}
}

func (ca *testCA) issue(node string) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: node}, DNSNames: []string{node},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (ca *testCA) transport(node string) Transport {
	cert := ca.issue(node)
	return NewHTTPTransport(HTTPTransportConfig{TLS: func(peer string) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: ca.pool, ServerName: peer}
	}})
}

func (ca *testCA) serve(node, addr string, h http.Handler) *http.Server {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		panic(err)
	}
	server := &http.Server{Handler: h, TLSConfig: &tls.Config{Certificates: []tls.Certificate{ca.issue(node)}, ClientCAs: ca.pool,
		ClientAuth: tls.RequireAndVerifyClientCert, NextProtos: []string{"http/1.1"}}}
	go server.ServeTLS(l, "", "")
	return server
}

// freeAddr gives an address on loopback, which is the test's own while members are stopped, too.
func freeAddr(t testing.TB) string {
	t.Helper()
	return claim.Addr(t).String()
}

func newTLSGroup(t testing.TB, tune func(*Config)) *group {
	g := newGroup(t, 0, tune)
	g.certs = newTestCA(t)
	return g
}

func TestThreeMembersOverTLS(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("group", func(t *testing.T) {
		g := newTLSGroup(t, func(c *Config) { c.SnapshotEvery, c.KeepEntries = 50, 10 })
		g.grow(3)
		old := g.leader()
		for i := range 200 {
			old.mustPut(fmt.Sprint("a", i))
		}
		g.settle()

		old.kill()
		begin := time.Now()
		g.leader().mustPut("after")
		t.Logf("next write %v after the leader's end", time.Since(begin))
		if took := time.Since(begin); took > 1500*time.Millisecond {
			t.Errorf("the next write took %v after the leader's end, want less than 1.5 s", took)
		}
		for i := range 200 {
			g.leader().mustPut(fmt.Sprint("b", i))
		}
		back := old.restart() // so far behind that only a snapshot helps
		g.settle()
		if got := back.Snapshot().Len(cluster.KindConfig); got != 401 {
			t.Errorf("the member that came back has %d objects, want 401", got)
		}
		snap, err := g.follower().Read(t.Context())
		if err != nil || snap.Len(cluster.KindConfig) != 401 {
			t.Errorf("linearizable read on a follower: %v", err)
		}

		begin = time.Now()
		if err := g.leader().stop(); err != nil {
			t.Error(err)
		}
		g.leader().mustPut("after an orderly stop")
		t.Logf("next write %v after the leader was stopped", time.Since(begin))
	})
}

func TestARemovedMemberIsTold(t *testing.T) {
	g := newTLSGroup(t, nil)
	g.grow(3)
	gone := g.follower()
	if err := g.leader().RemoveMember(t.Context(), gone.self); err != nil {
		t.Fatal(err)
	}
	if err := gone.gone(); !errors.Is(err, ErrRemoved) {
		t.Errorf("the removed member ended with %v, want %v", err, ErrRemoved)
	}
	g.leader().mustPut("a")
	g.settle()
}

func TestHandlerRefusesStrangers(t *testing.T) {
	g := newTLSGroup(t, nil)
	g.grow(1)
	m := g.leader()
	cert := g.certs.issue("n9")
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: g.certs.pool, ServerName: "n1"}}}
	defer client.CloseIdleConnections()
	self := fmt.Sprintf("%x", m.self)
	chunk := func(b []byte) []byte {
		var buf bytes.Buffer
		if err := writeChunk(&buf, b); err != nil {
			t.Fatal(err)
		}
		return buf.Bytes()
	}
	for name, c := range map[string]struct {
		method, path string
		header       map[string]string
		body         []byte
		want         int
	}{
		"no names":          {"GET", pathStream, nil, nil, http.StatusBadRequest},
		"another member":    {"GET", pathStream, map[string]string{headerFrom: "1", HeaderNode: "n9", headerTo: "2"}, nil, http.StatusMisdirectedRequest},
		"no upgrade":        {"GET", pathStream, map[string]string{headerFrom: "1", HeaderNode: "n9", headerTo: self}, nil, http.StatusUpgradeRequired},
		"no snapshot":       {"POST", pathSnapshot, map[string]string{headerFrom: "1", HeaderNode: "n9", headerTo: self}, nil, http.StatusUnprocessableEntity},
		"broken snapshot":   {"POST", pathSnapshot, map[string]string{headerFrom: "1", HeaderNode: "n9", headerTo: self}, []byte("nonsense, nonsense"), http.StatusUnprocessableEntity},
		"unwanted snapshot": {"POST", pathSnapshot, map[string]string{headerFrom: "1", HeaderNode: "n9", headerTo: self}, chunk([]byte{8, 1}), http.StatusUnprocessableEntity},
		"another path":      {"GET", protocol.PathRaft + "/x", nil, nil, http.StatusNotFound},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, "https://"+m.cfg.Addr+c.path, bytes.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range c.header {
			req.Header.Set(k, v)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.want {
			t.Errorf("%s: %s (%s), want %d", name, resp.Status, bytes.TrimSpace(text), c.want)
		}
	}
	m.mustPut("still there")
}

func TestTheTransportFollowsAMovedMember(t *testing.T) {
	g := newTLSGroup(t, nil)
	g.grow(3)
	m := g.follower()
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	m.cfg.Addr = freeAddr(t)
	back := m.restart()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := g.leader().UpdateMemberAddr(ctx, back.self, m.cfg.Addr); err != nil {
		t.Fatal(err)
	}
	g.leader().mustPut("a")
	g.settle()
	for _, o := range g.members {
		if got, _ := o.view.membership().member(back.self); got.Addr != m.cfg.Addr {
			t.Errorf("%s has address %s for the member, want %s", o.cfg.NodeID, got.Addr, m.cfg.Addr)
		}
	}
}

// TestAMemberAnswersALeaderThatItHasNotHeardOf: while a member is away another one joins and comes to lead. The first has to answer it to
// get the entry that says that it is a member.
func TestAMemberAnswersALeaderThatItHasNotHeardOf(t *testing.T) {
	g := newTLSGroup(t, func(c *Config) { c.SnapshotEvery, c.KeepEntries, c.Tick = 20, 5, 20*time.Millisecond }) // a snapshot is a call of its own
	g.grow(3)
	slow := g.follower()
	n := &cluster.Node{Role: swarm.NodeRoleWorker} // by what the first one knows the newcomer is no manager
	n.ID = "n4"
	if _, err := g.leader().Propose(t.Context(), &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.CreateOf(n)}}); err != nil {
		t.Fatal(err)
	}
	g.settle()
	if err := slow.stop(); err != nil {
		t.Fatal(err)
	}
	manager := cluster.NodePatch{Role: swarm.NodeRoleManager}
	if _, err := g.leader().Propose(t.Context(), &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.PatchNode("n4", manager)}}); err != nil {
		t.Fatal(err)
	}
	for i := range 60 {
		g.leader().mustPut(fmt.Sprint("meanwhile", i))
	}
	newcomer := g.join("n4")
	if err := g.leader().TransferLeadership(t.Context(), newcomer.self); err != nil {
		t.Fatal(err)
	}
	newcomer.mustPut("a")
	back := slow.restart()
	g.settle()
	if back.Snapshot().Config("a") == nil {
		t.Error("it lacks what was stored meanwhile")
	}
	back.addresses.mu.Lock()
	defer back.addresses.mu.Unlock()
	for _, m := range back.addresses.strangers {
		t.Errorf("%+v counts as a stranger still", m)
	}
}

func TestALargeTransactionTravelsWhole(t *testing.T) {
	g := newTLSGroup(t, func(c *Config) { c.SnapshotEvery, c.KeepEntries = 5, 1 })
	g.grow(3)
	slow := g.follower()
	if err := slow.stop(); err != nil {
		t.Fatal(err)
	}
	const tasks = 15_000 // more than one message, chunk or segment holds
	index, err := g.leader().Propose(t.Context(), manyTasks(tasks, 0))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		g.leader().mustPut(fmt.Sprint("a", i))
	}
	g.wait("a snapshot of it", func() bool { return g.leader().Status().SnapshotIndex > index })
	back := slow.restart() // gets it all as a snapshot
	g.settle()
	if got := back.Snapshot().Len(cluster.KindTask); got != tasks {
		t.Errorf("the follower has %d tasks, want %d", got, tasks)
	}
}
