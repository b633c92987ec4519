package node

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/manager/backup"
	"github.com/miniswarm/miniswarm/manager/identity"
)

// A dry run asks no external CA for a certificate that would never be used, and what a client sends slowly is waited for by nobody else.
func TestARecoveryDisturbsNobodyBeforeItBegins(t *testing.T) {
	asked := make(chan struct{}, 16)
	ca := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer ca.Close()
	ca.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	ca.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			asked <- struct{}{}
		}
	}
	w := newTown(t, 1, 0)
	n, key := w.nodes[0], backup.NewRecoveryKey()
	rootKey := snapshot(t, n).Cluster().RootCAKey
	taken := func(rootKey []byte) []byte {
		_, err := n.managing().store.Update(t.Context(), func(snap *cluster.Snapshot) (*cluster.Txn, error) {
			c := *snap.Cluster()
			c.Spec.CAConfig.ExternalCAs = []*swarm.ExternalCA{{Protocol: swarm.ExternalCAProtocolCFSSL, URL: ca.URL}}
			c.RootCAKey = rootKey
			return &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.UpdateOf(&c)}}, nil
		})
		must(t, err)
		return backedUp(t, n, key)
	}
	withKey, data := taken(rootKey), taken(nil)

	fresh := w.add()
	req := backup.RecoverRequest{FromBackup: true, Secret: key.Text(), AdvertiseAddr: "127.0.0.1", ListenAddr: freePort(t), DryRun: true}
	slow, send := io.Pipe()
	done := make(chan error, 1)
	var report *backup.Report
	go func() {
		var err error
		report, err = fresh.Recover(t.Context(), req, slow)
		done <- err
	}()
	_, err := send.Write(data[:len(data)/2])
	must(t, err)
	if err := fresh.Leave(t.Context(), false); err == nil || err.Error() != textNoSwarm {
		t.Errorf("leaving meanwhile: %v", err)
	}
	_, err = send.Write(data[len(data)/2:])
	must(t, err)
	must(t, send.Close())
	must(t, <-done)
	if report == nil || len(report.ExternalCAs) != 1 || report.ExternalCAs[0] != ca.URL || report.HasKey {
		t.Errorf("the dry run does not tell of the external CA: %+v", report)
	}
	if len(asked) != 0 {
		t.Errorf("a dry run has asked the external CA %d times", len(asked))
	}
	req.DryRun = false
	if _, err := fresh.Recover(t.Context(), req, bytes.NewReader(data)); err == nil || !strings.Contains(err.Error(), "make a certificate for this manager") ||
		!strings.Contains(err.Error(), "bring the external CA back") {
		t.Errorf("recovering with an external CA of another root: %v", err)
	}
	if len(asked) == 0 || fresh.Info().LocalNodeState != swarm.LocalNodeStateInactive {
		t.Errorf("it was asked %d times, and the node is %s", len(asked), fresh.Info().LocalNodeState)
	}
	// A backup that has the root's key needs nobody.
	report, err = fresh.Recover(t.Context(), req, bytes.NewReader(withKey))
	if err != nil || !report.HasKey || !strings.Contains(report.NotSigned, "external CA "+ca.URL) {
		t.Errorf("with the root's key: %+v, %v", report, err)
	}
}

// externalCA serves the signing endpoint of an external CA. cert is its root.
func externalCA(t *testing.T) (server *httptest.Server, cert string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Example Root"}, NotBefore: time.Now().Add(-time.Minute),
		NotAfter: time.Now().AddDate(5, 0, 0), KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true}
	certDER, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	must(t, err)
	keyDER, err := x509.MarshalECPrivateKey(key)
	must(t, err)
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certDER})
	ca, err := identity.LoadCA(certPEM, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), identity.CAConfig{})
	must(t, err)
	own := &x509.Certificate{SerialNumber: big.NewInt(2), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: root.NotBefore, NotAfter: root.NotAfter}
	ownDER, err := x509.CreateCertificate(rand.Reader, own, root, key.Public(), key)
	must(t, err)
	server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var req struct {
			CSR     string `json:"certificate_request"`
			Subject struct {
				CN    string
				Names []struct{ O, OU string }
			}
		}
		err := json.NewDecoder(r.Body).Decode(&req)
		var signed []byte
		if err == nil {
			role := identity.Role(strings.TrimPrefix(req.Subject.Names[0].OU, "swarm-"))
			signed, err = ca.Issue([]byte(req.CSR), identity.Identity{NodeID: req.Subject.CN, ClusterID: req.Subject.Names[0].O, Role: role}, 0)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"success": true, "result": map[string]string{"certificate": string(signed)}})
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{ownDER}, PrivateKey: key}}, ClientAuth: tls.RequireAnyClientCert}
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	server.StartTLS()
	t.Cleanup(server.Close)
	return server, string(certPEM)
}

// A swarm can be an external CA's from its first moment, as Docker's is that gets a signing certificate and an external CA at once.
func TestInitWithAnExternalCA(t *testing.T) {
	ca, cert := externalCA(t)
	n := newNode(t)
	run(t, n)
	found := func(protocol swarm.ExternalCAProtocol, url, signing string) error {
		req := swarm.InitRequest{ListenAddr: freePort(t), AdvertiseAddr: "127.0.0.1"}
		req.Spec.CAConfig.SigningCACert = signing
		req.Spec.CAConfig.ExternalCAs = []*swarm.ExternalCA{{Protocol: protocol, URL: url, CACert: cert}}
		_, err := n.Init(t.Context(), req)
		return err
	}
	for _, c := range []struct {
		protocol     swarm.ExternalCAProtocol
		url, signing string
		words        string
	}{
		{"acme", ca.URL, "", `invalid protocol: "acme"`},
		{"cfssl", "https://127.0.0.1:1/sign", cert, "there must be at least one valid, reachable external CA corresponding to the desired CA certificate: external CA https://127.0.0.1:1/sign"},
		{"cfssl", ca.URL, "nonsense", "root CA certificate"},
	} {
		err := found(c.protocol, c.url, c.signing)
		if err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("init with %s %s: %v", c.protocol, c.url, err)
		}
		if state := n.Info().LocalNodeState; state != swarm.LocalNodeStateInactive {
			t.Fatalf("after it was refused the node is %s", state)
		}
	}
	// Only named it is known, for a rotation to come.
	must(t, found("cfssl", "https://127.0.0.1:1/sign", ""))
	if c := snapshot(t, n).Cluster(); len(c.Spec.CAConfig.ExternalCAs) != 1 || len(c.RootCAKey) == 0 || c.RootRotationInProgress {
		t.Errorf("the spec has %d external CAs, a rotation is in progress: %v", len(c.Spec.CAConfig.ExternalCAs), c.RootRotationInProgress)
	}

	n = newNode(t)
	run(t, n)
	must(t, found("CFSSL", ca.URL, cert))
	c := snapshot(t, n).Cluster()
	if string(c.RootCA) != cert || len(c.RootCAKey) != 0 || c.RootRotationInProgress || c.Spec.CAConfig.SigningCACert != "" {
		t.Errorf("the root is\n%s, a rotation is in progress: %v", c.RootCA, c.RootRotationInProgress)
	}
	worker := newNode(t)
	run(t, worker)
	must(t, worker.Join(t.Context(), swarm.JoinRequest{ListenAddr: freePort(t), RemoteAddrs: []string{n.current().state.AdvertiseAddr}, JoinToken: c.JoinTokens.Worker}))
	ready(t, n, worker)
}
