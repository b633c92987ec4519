package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// Root is a cluster's root certificate as everybody may have it. It is immutable.
type Root struct {
	pem   []byte
	certs []*x509.Certificate
	pool  *x509.CertPool
}

// ParseRoot reads one or more CA certificates. The bytes are kept as they are, since join tokens carry their digest.
func ParseRoot(rootPEM []byte) (*Root, error) {
	certs, err := parseCertificates(rootPEM)
	if err != nil {
		return nil, fmt.Errorf("root CA certificate: %w", err)
	}
	r := &Root{pem: bytes.Clone(rootPEM), certs: certs, pool: x509.NewCertPool()}
	for _, c := range certs {
		if !c.IsCA {
			return nil, fmt.Errorf("root CA certificate: the certificate of %q is not a CA's", c.Subject)
		}
		r.pool.AddCert(c)
	}
	return r, nil
}

// PEM returns a copy of the text the root was parsed from.
func (r *Root) PEM() []byte { return bytes.Clone(r.pem) }

// Digest returns the digest that join tokens of this cluster carry.
func (r *Root) Digest() string { return digestOf(r.pem) }

// Pool returns the root as a set for verification, which the caller must not change.
func (r *Root) Pool() *x509.CertPool { return r.pool }

// TLSInfo describes the root the way nodes and the cluster show it in the Engine API.
func (r *Root) TLSInfo() swarm.TLSInfo {
	return swarm.TLSInfo{
		TrustRoot:           string(r.pem),
		CertIssuerSubject:   bytes.Clone(r.certs[0].RawSubject),
		CertIssuerPublicKey: bytes.Clone(r.certs[0].RawSubjectPublicKeyInfo),
	}
}

// NewRequest makes a key and the request to have it certified, both PEM. The request is the same whatever it will be
// sent for: who the node is, the CA decides.
func NewRequest() (keyPEM, csrPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate request: generate key: %w", err)
	}
	keyPEM, err = marshalKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate request: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{}}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate request: %w", err)
	}
	return keyPEM, pem.EncodeToMemory(&pem.Block{Type: pemRequest, Bytes: der}), nil
}

// NodeIDFor returns the id of the node that joins with this request. It is derived from the request's key: when an
// answer is lost and the newcomer repeats its request, it becomes the same node again and leaves no ghost behind.
// Nobody but the owner of the key can make a request with the same id.
func NodeIDFor(csrPEM []byte) (string, error) {
	csr, err := parseRequest(csrPEM)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	return cluster.NewID(bytes.NewReader(sum[:])), nil
}

// parseRequest reads a certificate request and checks that its sender holds the key.
func parseRequest(csrPEM []byte) (*x509.CertificateRequest, error) {
	refuse := func(why string) (*x509.CertificateRequest, error) {
		return nil, &StatusError{http.StatusBadRequest, "certificate signing request: " + why}
	}
	block, _ := pem.Decode(csrPEM)
	if block == nil || block.Type != pemRequest {
		return refuse("it is not a PEM block of type " + pemRequest)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return refuse(err.Error())
	}
	if key, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve.Params().BitSize < 256 {
		return refuse("its key must be an ECDSA key of 256 bits or more")
	}
	if err := csr.CheckSignature(); err != nil {
		return refuse("it is not signed with its own key: " + err.Error())
	}
	return csr, nil
}

func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := text; ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		if block.Type != pemCertificate {
			return nil, fmt.Errorf("it holds a PEM block of type %q instead of %s", block.Type, pemCertificate)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("it holds no PEM block of type " + pemCertificate)
	}
	return certs, nil
}

func parseKey(text []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("private key: it holds no PEM block")
	}
	if block.Type == pemKey {
		key, err := x509.ParseECPrivateKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("private key: %w", err)
		}
		return key, nil
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("private key: it is a %T, not an ECDSA key", parsed)
	}
	return key, nil
}

func marshalKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
}
