package identity

import "testing"

// FuzzSigningRequests signs what a newcomer may send: a certificate or a refusal, and what is signed is for whom it was meant.
func FuzzSigningRequests(f *testing.F) {
	_, csr, err := NewRequest()
	if err != nil {
		f.Fatal(err)
	}
	ca, err := NewCA(CAConfig{})
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range [][]byte{csr, nil, []byte("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"), ca.Root().PEM()} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, csr []byte) {
		id := Identity{NodeID: "node", ClusterID: "cluster", Role: Worker}
		text, err := ca.Issue(csr, id, 0)
		_, idErr := NodeIDFor(csr)
		if (err == nil) != (idErr == nil) {
			t.Fatalf("the request is good for a certificate (%v) and for an id (%v)", err, idErr)
		}
		if err != nil {
			return
		}
		certs, err := parseCertificates(text)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := fromCertificate(certs[0]); err != nil || got.NodeID != id.NodeID || got.Role != id.Role {
			t.Fatalf("signed for %+v: %+v, %v", id, got, err)
		}
	})
}

// FuzzPEM reads certificates and keys as they come from answers, files and users.
func FuzzPEM(f *testing.F) {
	key, csr, err := NewRequest()
	if err != nil {
		f.Fatal(err)
	}
	ca, err := NewCA(CAConfig{})
	if err != nil {
		f.Fatal(err)
	}
	cert, err := ca.Issue(csr, Identity{NodeID: "node", ClusterID: "cluster", Role: Manager}, 0)
	if err != nil {
		f.Fatal(err)
	}
	caKey, err := ca.KeyPEM()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(ca.Root().PEM(), cert, key)
	f.Add(ca.Root().PEM(), []byte(nil), caKey)
	f.Fuzz(func(_ *testing.T, root, cert, key []byte) {
		if r, err := ParseRoot(root); err == nil {
			_ = r.TLSInfo()
			_ = r.Digest()
		}
		_, _ = ParseCredentials(root, cert, key)
		_, _ = LoadCA(root, key, CAConfig{})
	})
}
