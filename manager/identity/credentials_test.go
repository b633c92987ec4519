package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"slices"
	"testing"
	"time"
)

// TestCredentialsThroughAnIntermediate: a certificate whose issuer was certified by the root, as a cross-signed CA is,
// serves like any other if it is accompanied by its issuer's.
func TestCredentialsThroughAnIntermediate(t *testing.T) {
	tc := newTestCluster(t, 0)
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	der := must(x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "swarm-ca"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}, tc.ca.cert, key.Public(), tc.ca.key))
	crossPEM := pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der})
	cross := must(newCA(CAConfig{}.withDefaults(), crossPEM, key))

	keyPEM, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	leaf := must(cross.Issue(csr, testIdentity, 0))
	if _, err := ParseCredentials(tc.RootPEM(), leaf, keyPEM); !errors.Is(err, ErrOtherCluster) {
		t.Errorf("without the intermediate: %v", err)
	}
	creds, err := ParseCredentials(tc.RootPEM(), slices.Concat(leaf, crossPEM), keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	node := storeOf(t, creds, tc.clock)
	status, body, err := call(t.Context(), tc.addr, "/any", ClientTLS(node, Manager, ""))
	if err != nil || status != 200 || body != "worker "+testIdentity.NodeID {
		t.Errorf("as a client: %d %s, %v", status, body, err)
	}
	if serverErr, clientErr := handshake(t, ServerTLS(node), ClientTLS(tc.store, Worker, testIdentity.NodeID)); serverErr != nil || clientErr != nil {
		t.Errorf("as a server: %v, %v", serverErr, clientErr)
	}
	if _, until := creds.Validity(); until.After(cross.cert.NotAfter) {
		t.Errorf("valid until %s, after its issuer", until)
	}
}

func TestParseRootTakesABundle(t *testing.T) {
	a, b := newTestCA(t, &clock{}), newTestCA(t, &clock{})
	bundle := slices.Concat(a.Root().PEM(), b.Root().PEM())
	for _, ca := range []*CA{a, b} {
		c := newCredentials(t, ca, testIdentity)
		if _, err := ParseCredentials(bundle, c.certPEM, c.keyPEM); err != nil {
			t.Error(err)
		}
	}
	if root := must(ParseRoot(bundle)); string(root.PEM()) != string(bundle) || len(root.certs) != 2 {
		t.Error("bundle changed")
	}
}
