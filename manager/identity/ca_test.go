package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var epoch = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

func fixedCA(t testing.TB) *CA {
	t.Helper()
	ca, err := NewCA(CAConfig{Now: func() time.Time { return epoch }})
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func TestRootCertificate(t *testing.T) {
	ca := fixedCA(t)
	c := ca.cert
	key, ok := c.PublicKey.(*ecdsa.PublicKey)
	switch {
	case !ok || key.Curve != elliptic.P256():
		t.Errorf("key is %T", c.PublicKey)
	case c.Subject.String() != "CN=swarm-ca":
		t.Errorf("subject %s", c.Subject)
	case !c.IsCA || c.KeyUsage&x509.KeyUsageCertSign == 0:
		t.Error("it may not sign certificates")
	case !c.NotBefore.Equal(epoch.Add(-time.Hour)) || !c.NotAfter.Equal(epoch.Add(20*365*24*time.Hour)):
		t.Errorf("valid from %s to %s", c.NotBefore, c.NotAfter)
	}
	info := ca.Root().TLSInfo()
	if info.TrustRoot != string(ca.Root().PEM()) || !bytes.Equal(info.CertIssuerSubject, c.RawSubject) || !bytes.Equal(info.CertIssuerPublicKey, c.RawSubjectPublicKeyInfo) {
		t.Errorf("TLSInfo = %+v", info)
	}
	if fixedCA(t).Root().Digest() == ca.Root().Digest() {
		t.Error("two clusters have the same root")
	}
}

func TestCASurvivesSerialisation(t *testing.T) {
	ca := fixedCA(t)
	key, err := ca.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadCA(ca.Root().PEM(), key, ca.cfg)
	if err != nil {
		t.Fatal(err)
	}
	creds := newCredentials(t, again, testIdentity)
	if _, err := ParseCredentials(ca.Root().PEM(), creds.certPEM, creds.keyPEM); err != nil {
		t.Errorf("the first CA does not know what the second signed: %v", err)
	}
	otherKey, err := fixedCA(t).KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	for name, in := range map[string]struct {
		root, key []byte
		words     string
	}{
		"another key":  {ca.Root().PEM(), otherKey, "does not belong to the root certificate"},
		"no key":       {ca.Root().PEM(), nil, "private key: it holds no PEM block"},
		"no root":      {nil, key, "root CA certificate: it holds no PEM block"},
		"swapped":      {key, ca.Root().PEM(), "private key"},
		"damaged root": {bytes.Replace(ca.Root().PEM(), []byte("MII"), []byte("MIX"), 1), key, "root CA certificate: x509"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := LoadCA(in.root, in.key, CAConfig{}); err == nil || !strings.Contains(err.Error(), in.words) {
				t.Errorf("LoadCA = %v, want %q", err, in.words)
			}
		})
	}
}

func TestLoadCAReadsPKCS8(t *testing.T) {
	ca := fixedCA(t)
	der, err := x509.MarshalPKCS8PrivateKey(ca.key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LoadCA(ca.Root().PEM(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), CAConfig{}); err != nil {
		t.Error(err)
	}
}

func TestIssue(t *testing.T) {
	ca := fixedCA(t)
	for _, tc := range []struct {
		name     string
		role     Role
		validity time.Duration
		unit     string
		names    []string
		until    time.Time
	}{
		{"worker", Worker, 0, "swarm-worker", []string{"swarm-worker", testIdentity.NodeID}, epoch.Add(2160 * time.Hour)},
		{"manager", Manager, 0, "swarm-manager", []string{"swarm-manager", testIdentity.NodeID, "swarm-ca"}, epoch.Add(2160 * time.Hour)},
		{"an hour", Worker, time.Hour, "swarm-worker", []string{"swarm-worker", testIdentity.NodeID}, epoch.Add(time.Hour)},
		{"longer than the root", Worker, 30 * year, "swarm-worker", []string{"swarm-worker", testIdentity.NodeID}, epoch.Add(20 * year)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, csr, err := NewRequest()
			if err != nil {
				t.Fatal(err)
			}
			id := Identity{testIdentity.NodeID, testClusterID, tc.role}
			text, err := ca.Issue(csr, id, tc.validity)
			if err != nil {
				t.Fatal(err)
			}
			certs, err := parseCertificates(text)
			if err != nil {
				t.Fatal(err)
			}
			c := certs[0]
			want := pkix.Name{CommonName: id.NodeID, OrganizationalUnit: []string{tc.unit}, Organization: []string{testClusterID}}
			if c.Subject.String() != want.String() {
				t.Errorf("subject %s, want %s", c.Subject, want)
			}
			if diff := cmp.Diff(c.DNSNames, tc.names); diff != "" {
				t.Errorf("names: %s", diff)
			}
			if !c.NotBefore.Equal(epoch.Add(-time.Hour)) || !c.NotAfter.Equal(tc.until) {
				t.Errorf("valid from %s to %s, want until %s", c.NotBefore, c.NotAfter, tc.until)
			}
			if c.IsCA || !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) || !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
				t.Error("wrong usage")
			}
			got, err := verifyChain(certs, ca.Root(), epoch, x509.ExtKeyUsageServerAuth)
			if err != nil || got != id {
				t.Errorf("identity %+v, %v", got, err)
			}
		})
	}
}

func TestIssueRefuses(t *testing.T) {
	ca := fixedCA(t)
	_, good, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	forged := func() []byte { // someone else's key with a signature that is not its own
		block, _ := pem.Decode(good)
		der := bytes.Clone(block.Bytes)
		der[len(der)-1] ^= 1
		return pem.EncodeToMemory(&pem.Block{Type: pemRequest, Bytes: der})
	}
	p224, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	_, edKey, _ := ed25519.GenerateKey(rand.Reader)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		csr  []byte
		id   Identity
		bad  bool // is the sender's fault
	}{
		{"no PEM", []byte("hello"), testIdentity, true},
		{"a certificate", ca.Root().PEM(), testIdentity, true},
		{"garbage inside", pem.EncodeToMemory(&pem.Block{Type: pemRequest, Bytes: []byte("x")}), testIdentity, true},
		{"forged", forged(), testIdentity, true},
		{"P-224", requestOf(t, p224), testIdentity, true},
		{"Ed25519", requestOf(t, edKey), testIdentity, true},
		{"RSA", requestOf(t, rsaKey), testIdentity, true},
		{"no role", good, Identity{"n", "c", ""}, false},
		{"no node", good, Identity{"", "c", Worker}, false},
		{"no cluster", good, Identity{"n", "", Worker}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cert, err := ca.Issue(tc.csr, tc.id, 0)
			if err == nil {
				t.Fatalf("issued %s", cert)
			}
			if refusal, ok := errors.AsType[*StatusError](err); ok != tc.bad || ok && refusal.Status != http.StatusBadRequest {
				t.Errorf("error %v", err)
			}
		})
	}
}

func requestOf(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemRequest, Bytes: der})
}

func TestNodeIDForIsTheKeys(t *testing.T) {
	key, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	a, err := NodeIDFor(csr)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := parseKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := NodeIDFor(requestOf(t, parsed)); err != nil || a != b || len(a) != 25 {
		t.Errorf("two requests with one key: %q and %q, %v", a, b, err)
	}
	_, csr, err = NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	if b, err := NodeIDFor(csr); err != nil || a == b {
		t.Errorf("two keys: both %q, %v", b, err)
	}
}

func TestCheckValidity(t *testing.T) {
	if err := CheckValidity(time.Hour); err != nil {
		t.Error(err)
	}
	if err := CheckValidity(time.Hour - 1); err == nil || err.Error() != "minimum certificate expiry time is: 1h0m0s" {
		t.Errorf("CheckValidity = %v", err)
	}
}

func TestFromCertificateRefusesForeignSubjects(t *testing.T) {
	for name, subject := range map[string]pkix.Name{
		"no role":     {CommonName: "n", Organization: []string{"c"}},
		"two roles":   {CommonName: "n", Organization: []string{"c"}, OrganizationalUnit: []string{"swarm-worker", "swarm-manager"}},
		"other role":  {CommonName: "n", Organization: []string{"c"}, OrganizationalUnit: []string{"root"}},
		"no cluster":  {CommonName: "n", OrganizationalUnit: []string{"swarm-worker"}},
		"two cluster": {CommonName: "n", Organization: []string{"c", "d"}, OrganizationalUnit: []string{"swarm-worker"}},
		"no node":     {Organization: []string{"c"}, OrganizationalUnit: []string{"swarm-worker"}},
	} {
		t.Run(name, func(t *testing.T) {
			if id, err := fromCertificate(&x509.Certificate{Subject: subject}); err == nil {
				t.Errorf("read as %+v", id)
			}
		})
	}
}
