package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// authority is an Authority on a cluster of its own, whose manager testIdentity is.
type authority struct {
	*Authority
	t     *testing.T
	store *Store
	c     *cluster.Cluster
	log   strings.Builder

	lastKey []byte // of the certificate that sign gave last
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, store: must(NewStore(StoreConfig{Dir: t.TempDir()}))}
	ca := must(NewCA(CAConfig{}))
	must(Found(ca, a.store, Identity{"manager000000000000000001", testClusterID, Manager}, 0))
	a.Authority = must(NewAuthority(AuthorityConfig{Store: a.store, Logger: slog.New(slog.NewTextHandler(&a.log, nil))}))
	a.c = &cluster.Cluster{RootCA: ca.Root().PEM(), RootCAKey: must(ca.KeyPEM()), JoinTokens: must(NewJoinTokens(ca.Root().PEM(), nil))}
	a.c.ID = testClusterID
	return a
}

// change applies a CAConfig that is the present one edited.
func (a *authority) change(edit func(*swarm.CAConfig)) error {
	want := a.c.Spec.CAConfig
	edit(&want)
	next, err := a.Configure(a.t.Context(), a.c, want)
	if err == nil {
		if next.Spec.CAConfig.SigningCAKey != "" || next.Spec.CAConfig.SigningCACert != "" {
			a.t.Error("the spec keeps the signing key")
		}
		a.c = next
	}
	return err
}

func bring(cert, key []byte) func(*swarm.CAConfig) {
	return func(c *swarm.CAConfig) { c.SigningCACert, c.SigningCAKey = string(cert), string(key) }
}

// sign certifies a new key and says which of the roots verify the result.
func (a *authority) sign(roots ...[]byte) (cert []byte, verified []bool) {
	a.t.Helper()
	keyPEM, csr, err := NewRequest()
	if err != nil {
		a.t.Fatal(err)
	}
	a.lastKey = keyPEM
	cert, err = a.Sign(a.t.Context(), a.c, csr, testIdentity)
	if err != nil {
		a.t.Fatal(err)
	}
	chain := must(parseCertificates(cert))
	for _, r := range roots {
		id, err := verifyChain(chain, must(ParseRoot(r)), time.Now(), x509.ExtKeyUsageClientAuth)
		if err == nil && id != testIdentity {
			a.t.Errorf("signed for %+v", id)
		}
		verified = append(verified, err == nil)
	}
	return cert, verified
}

// operatorsRoot is a root that somebody brings.
func operatorsRoot(t *testing.T, until time.Time, rsaKey bool) (cert, key []byte) {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Example Root"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: until,
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true}
	if rsaKey {
		k := must(rsa.GenerateKey(rand.Reader, 2048))
		der := must(x509.CreateCertificate(rand.Reader, template, template, k.Public(), k))
		return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)})
	}
	k := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	der := must(x509.CreateCertificate(rand.Reader, template, template, k.Public(), k))
	return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(k))})
}

func TestARotationGoesThrough(t *testing.T) {
	for name, begin := range map[string]func(t *testing.T, a *authority) error{
		"to a new root": func(_ *testing.T, a *authority) error { return a.change(func(c *swarm.CAConfig) { c.ForceRotate++ }) },
		"to one with ECDSA": func(t *testing.T, a *authority) error {
			return a.change(bring(operatorsRoot(t, time.Now().Add(2*year), false)))
		},
		"to one with RSA": func(t *testing.T, a *authority) error {
			return a.change(bring(operatorsRoot(t, time.Now().Add(2*year), true)))
		},
		"with words around it": func(t *testing.T, a *authority) error {
			cert, key := operatorsRoot(t, time.Now().Add(2*year), false)
			return a.change(bring([]byte("subject: us\n"+string(cert)+"\n\n"), key))
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAuthority(t)
			old, tokens := a.c.RootCA, a.c.JoinTokens
			if err := begin(t, a); err != nil {
				t.Fatal(err)
			}
			r := a.c.Rotation
			if r == nil || !a.c.RootRotationInProgress || string(a.c.RootCA) != string(old) || a.c.TLSInfo.TrustRoot != string(old) {
				t.Fatalf("begun: %+v", a.c.TLSInfo)
			}
			cert, verified := a.sign(old, r.RootCA)
			if !verified[0] || !verified[1] {
				t.Errorf("a certificate of the rotation descends from the old root: %v, from the new: %v", verified[0], verified[1])
			}
			creds := must(ParseCredentials(old, cert, a.lastKey))
			if info := creds.TLSInfo(); string(info.CertIssuerPublicKey) != string(a.c.TLSInfo.CertIssuerPublicKey) || info.TrustRoot != string(old) {
				t.Errorf("its node shows %+v", info)
			}
			if err := a.change(func(*swarm.CAConfig) {}); err != nil || a.c.Rotation == nil || string(a.c.Rotation.RootCA) != string(r.RootCA) {
				t.Errorf("an update about something else: %v", err)
			}
			done := must(a.Complete(a.c))
			a.c = done
			if done.Rotation != nil || done.RootRotationInProgress || string(done.RootCA) != string(r.RootCA) || done.JoinTokens == tokens || done.TLSInfo.TrustRoot != string(r.RootCA) {
				t.Errorf("completed: %+v", done.TLSInfo)
			}
			if token := must(ParseToken(done.JoinTokens.Worker)); !token.matchesRoot(done.RootCA) {
				t.Error("the new tokens are for another root")
			}
			if _, verified := a.sign(old, done.RootCA); verified[0] || !verified[1] {
				t.Errorf("a certificate after the rotation descends from the old root: %v, from the new: %v", verified[0], verified[1])
			}
			if err := a.change(func(*swarm.CAConfig) {}); err != nil || a.c.Rotation != nil {
				t.Errorf("what was asked for once is done again: %v", err)
			}
		})
	}
}

func TestARotationIsReplacedAndTakenBack(t *testing.T) {
	a := newAuthority(t)
	old, oldKey := a.c.RootCA, a.c.RootCAKey
	if err := a.change(func(c *swarm.CAConfig) { c.ForceRotate++ }); err != nil {
		t.Fatal(err)
	}
	inBetween, _ := a.sign()
	cert, key := operatorsRoot(t, time.Now().Add(2*year), false)
	if err := a.change(bring(cert, key)); err != nil {
		t.Fatal(err)
	}
	if string(a.c.Rotation.RootCA) != string(cert) || string(a.c.RootCA) != string(old) {
		t.Fatal("the second rotation is not to the root that was brought")
	}
	// Nodes are anywhere between the three roots, and all of them know the old one.
	for name, text := range map[string][]byte{"first rotation": inBetween, "second rotation": func() []byte { c, _ := a.sign(); return c }()} {
		if _, err := verifyChain(must(parseCertificates(text)), must(ParseRoot(old)), time.Now(), x509.ExtKeyUsageServerAuth); err != nil {
			t.Errorf("certificate of the %s: %v", name, err)
		}
	}
	same := a.c.Rotation
	if err := a.change(bring(cert, key)); err != nil || string(a.c.Rotation.CrossSigned) != string(same.CrossSigned) {
		t.Errorf("asking for the same again starts anew: %v", err)
	}
	if err := a.change(bring(old, oldKey)); err != nil || a.c.Rotation != nil || string(a.c.RootCA) != string(old) || a.c.RootRotationInProgress {
		t.Errorf("going back: %v", err)
	}
}

func TestRotationsAreRefused(t *testing.T) {
	a := newAuthority(t)
	cert, key := operatorsRoot(t, time.Now().Add(2*year), false)
	other, otherKey := operatorsRoot(t, time.Now().Add(2*year), true)
	soon, soonKey := operatorsRoot(t, time.Now().Add(300*24*time.Hour), false)
	past, pastKey := operatorsRoot(t, time.Now().Add(-time.Second), false)
	leaf, _ := a.sign()
	ca := must(LoadCA(a.c.RootCA, a.c.RootCAKey, CAConfig{}))
	template := &x509.Certificate{SerialNumber: big.NewInt(5), Subject: pkix.Name{CommonName: "again"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(5 * year), BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	again := pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: must(x509.CreateCertificate(rand.Reader, template, template, ca.key.Public(), ca.key))})
	unreachable := []*swarm.ExternalCA{{Protocol: swarm.ExternalCAProtocolCFSSL, URL: "https://127.0.0.1:1/sign", CACert: string(cert)}}
	for _, tc := range []struct {
		name, words string
		edit        func(*swarm.CAConfig)
	}{
		{"key alone", "if a signing CA key is provided, the signing CA cert must also be provided", bring(nil, key)},
		{"another's key", "certificate key mismatch", bring(cert, otherKey)},
		{"no certificate", "root CA certificate: it holds no PEM block of type CERTIFICATE", bring([]byte("x"), key)},
		{"no key", "load root CA: private key: it holds no PEM block", bring(cert, []byte("x"))},
		{"a node's certificate", "is not a CA's", bring(leaf, key)},
		{"two", "the desired CA certificate cannot contain multiple certificates", bring(append(append([]byte{}, cert...), other...), key)},
		{"too short", "CA certificate expires too soon: on 20", bring(soon, soonKey)},
		{"expired", "error while validating Root CA Certificate: x509: certificate has expired", bring(past, pastKey)},
		{"the key of before", "Cannot update to a cert with an identical key", bring(again, a.c.RootCAKey)},
		{"nobody with the key", "there must be at least one valid, reachable external CA corresponding to the desired CA certificate", bring(cert, nil)},
		{"nobody reachable", "there must be at least one valid, reachable external CA corresponding to the desired CA certificate", func(c *swarm.CAConfig) {
			c.SigningCACert, c.ExternalCAs = string(cert), unreachable
		}},
	} {
		before := a.c
		err := a.change(tc.edit)
		refusal, ok := errors.AsType[*StatusError](err)
		if !ok || refusal.Status != http.StatusBadRequest || !strings.Contains(refusal.Message, tc.words) || a.c != before {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.words)
		}
		if ok && strings.Contains(refusal.Message, "PRIVATE") {
			t.Errorf("%s: the refusal has a key in it", tc.name)
		}
	}
}

// TestTheExpiryIsTheClustersPresentOne: a change counts from the next renewal on.
func TestTheExpiryIsTheClustersPresentOne(t *testing.T) {
	a := newAuthority(t)
	for _, expiry := range []time.Duration{0, 2 * time.Hour, 400 * 24 * time.Hour} {
		if err := a.change(func(c *swarm.CAConfig) { c.NodeCertExpiry = expiry }); err != nil {
			t.Fatal(err)
		}
		want := expiry
		if want == 0 {
			want = DefaultValidity
		}
		cert, _ := a.sign()
		if got := time.Until(must(parseCertificates(cert))[0].NotAfter); got < want-time.Minute || got > want {
			t.Errorf("with an expiry of %s a certificate is valid for %s", expiry, got)
		}
	}
}

func TestTheFirstRootMayBeBrought(t *testing.T) {
	a := newAuthority(t)
	cert, key := operatorsRoot(t, time.Now().Add(2*year), true)
	if ca, err := a.FirstRoot(swarm.CAConfig{}); err != nil || ca.cert.Subject.CommonName != caName {
		t.Errorf("none brought: %v", err)
	}
	if ca, err := a.FirstRoot(swarm.CAConfig{SigningCACert: string(cert), SigningCAKey: string(key)}); err != nil || string(ca.Root().PEM()) != string(cert) {
		t.Errorf("one brought: %v", err)
	}
	for _, half := range []swarm.CAConfig{{SigningCACert: string(cert)}, {SigningCAKey: string(key)}, {SigningCACert: "x", SigningCAKey: string(key)}} {
		if _, err := a.FirstRoot(half); !errors.As(err, new(*StatusError)) {
			t.Errorf("half a root: %v", err)
		}
	}
}

func TestOutstanding(t *testing.T) {
	a := newAuthority(t)
	state := cluster.NewState()
	put := func(changes ...cluster.Change) *cluster.Snapshot {
		t.Helper()
		must(state.Apply(&cluster.Txn{Changes: changes}, state.Index()+1))
		return state.Snapshot()
	}
	n1, n2 := &cluster.Node{}, &cluster.Node{}
	n1.ID, n2.ID = "n1", "n2"
	if err := a.change(func(c *swarm.CAConfig) { c.ForceRotate++ }); err != nil {
		t.Fatal(err)
	}
	a.c.Spec.Name = cluster.ClusterName
	snap := put(cluster.CreateOf(a.c), cluster.CreateOf(n1), cluster.CreateOf(n2))
	if got := Outstanding(snap); len(got) != 2 {
		t.Errorf("at the beginning: %v", got)
	}
	shown := swarm.NodeDescription{TLSInfo: a.c.TLSInfo}
	if got := Outstanding(put(cluster.PatchNode("n1", cluster.NodePatch{Description: &shown}))); len(got) != 1 || got[0] != "n2" {
		t.Errorf("with one node done: %v", got)
	}
	if got := Outstanding(put(cluster.RemoveOf(n2))); len(got) != 0 {
		t.Errorf("with the other one removed: %v", got)
	}
}

// TestAnExpiredCertificateIsGoodForItsRenewal and for nothing else.
func TestAnExpiredCertificateIsGoodForItsRenewal(t *testing.T) {
	tc := newTestCluster(t, 0)
	node, other := tc.join(Worker), tc.join(Manager)
	thief, removed, stranger := tc.join(Worker), tc.join(Worker), newTestCluster(t, 0).join(Worker)
	tc.change(func() { tc.removed[removed.Current().Identity.NodeID] = true })
	year := &clock{offset: DefaultValidity + 24*time.Hour}
	// The manager's own certificate is fresh.
	ca := must(LoadCA(tc.RootPEM(), must(tc.ca.KeyPEM()), CAConfig{Now: year.now}))
	manager := newTestStore(t, year)
	must(Found(ca, manager, tc.store.Current().Identity, 0))
	tc.ca, tc.clock = ca, year
	addr := tc.serve(manager, tc)
	for _, s := range []*Store{node, other, thief, removed, stranger} {
		s.cfg.Now, s.cfg.AllowExpired = year.now, true
		if _, err := s.Load(); err != nil {
			t.Fatal(err)
		}
	}
	client := NewClient(ClientConfig{Now: year.now})
	renew := func(s *Store) (IssueResponse, error) {
		_, csr, err := NewRequest()
		if err != nil {
			t.Fatal(err)
		}
		return client.RenewCertificate(t.Context(), addr, s, csr)
	}

	for path, protocol := range map[string]string{"/any": "http/1.1", "/any by way of a renewal's connection": RenewProtocol} {
		path, _, _ = strings.Cut(path, " ")
		transport := &http.Transport{TLSClientConfig: ClientTLS(node, Manager, "", protocol, "http/1.1")}
		req := must(http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+addr+path, nil))
		resp, err := transport.RoundTrip(req)
		if err == nil {
			text := must(io.ReadAll(resp.Body))
			resp.Body.Close()
			if resp.StatusCode != http.StatusForbidden {
				t.Errorf("%s with an expired certificate by %s: %s %s", path, protocol, resp.Status, text)
			}
		} else if protocol == RenewProtocol {
			t.Errorf("%s by %s: %v", path, protocol, err)
		}
		transport.CloseIdleConnections()
	}
	resp, err := renew(node)
	if err != nil || resp.NodeID != node.Current().Identity.NodeID || resp.Role != Worker {
		t.Errorf("renewal: %+v, %v", resp, err)
	}
	if _, err := renew(removed); !errors.Is(err, ErrRemoved) {
		t.Errorf("renewal of a removed node: %v", err)
	}
	if _, err := renew(stranger); err == nil {
		t.Error("a certificate of another cluster was renewed")
	}
	// Who has the certificate alone, and no key, does not get through the handshake.
	stolen := *node.Current()
	tlsCert := *stolen.tls
	tlsCert.PrivateKey = thief.Current().tls.PrivateKey
	stolen.tls = &tlsCert
	thief.current.Store(&stolen)
	if resp, err := renew(thief); err == nil {
		t.Errorf("a certificate without its key was renewed: %+v", resp)
	}
	year.shift(maxExpired)
	must(Found(ca, manager, tc.store.Current().Identity, 0))
	if resp, err := renew(node); err == nil || errors.Is(err, ErrRemoved) || !strings.Contains(err.Error(), "leave the swarm and join again") {
		t.Errorf("renewal a year after it expired: %+v, %v", resp, err)
	}
	// Where all managers were off for so long, the first that is back must not keep the others out.
	if resp, err := renew(other); err != nil || resp.Role != Manager {
		t.Errorf("renewal of a manager a year after it expired: %+v, %v", resp, err)
	}
}

// TestAManagerCertifiesItself so that the certificate is good at both ends of a clock that jumped.
func TestAManagerCertifiesItself(t *testing.T) {
	a := newAuthority(t)
	later := &clock{offset: 91 * 24 * time.Hour}
	a.Authority = must(NewAuthority(AuthorityConfig{Store: a.store, Now: later.now}))
	own := a.store.Current()
	if err := own.CheckTime(later.now()); !errors.Is(err, ErrExpired) {
		t.Fatalf("to begin with: %v", err)
	}
	keyPEM, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	fresh := must(ParseCredentials(own.Root.pem, must(a.SignOwn(a.c, csr, own)), keyPEM))
	if fresh.Identity != own.Identity || fresh.CheckTime(later.now()) != nil || fresh.CheckTime(time.Now()) != nil {
		t.Errorf("%+v, valid later: %v, now: %v", fresh.Identity, fresh.CheckTime(later.now()), fresh.CheckTime(time.Now()))
	}
	a.c.RootCAKey = nil
	if _, err := a.SignOwn(a.c, csr, own); err == nil {
		t.Error("signed without a key")
	}
}

func TestTrustFollowsTheCluster(t *testing.T) {
	ca, next := must(NewCA(CAConfig{})), must(NewCA(CAConfig{}))
	store := must(NewStore(StoreConfig{Dir: t.TempDir()}))
	must(Found(ca, store, testIdentity, 0))
	both := must(ParseRoot(append(ca.Root().PEM(), next.Root().PEM()...)))
	if changed, err := store.Trust(both); !changed || err != nil {
		t.Fatalf("trusting both: %v, %v", changed, err)
	}
	if changed, err := store.Trust(both); changed || err != nil {
		t.Errorf("trusting both again: %v, %v", changed, err)
	}
	if loaded, err := store.Load(); err != nil || !loaded.Root.equal(both) || loaded.TLSInfo().TrustRoot != string(ca.Root().PEM()) {
		t.Errorf("from disk: %v", err)
	}
	if _, err := store.Trust(next.Root()); err == nil || !store.Current().Root.equal(both) {
		t.Errorf("trust in a root that did not sign the own certificate: %v", err)
	}
}
