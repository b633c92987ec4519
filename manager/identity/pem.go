package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// Root is what a node trusts: the cluster's root certificate as everybody may have it and behind it, while the cluster
// changes over to another root, that one too. It is immutable.
type Root struct {
	pem   []byte
	certs []*x509.Certificate // the cluster's root first
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

// TLSInfo describes the cluster's root the way nodes and the cluster show it in the Engine API. One that is trusted besides
// is not shown, as in Docker Swarm, where it is trusted by way of the cluster's.
func (r *Root) TLSInfo() swarm.TLSInfo {
	first := r.certs[0]
	return swarm.TLSInfo{
		TrustRoot:           string(encodeCertificates(first)),
		CertIssuerSubject:   bytes.Clone(first.RawSubject),
		CertIssuerPublicKey: bytes.Clone(first.RawSubjectPublicKeyInfo),
	}
}

// equal reports whether two roots trust the same certificates in the same order.
func (r *Root) equal(o *Root) bool {
	return slices.EqualFunc(r.certs, o.certs, (*x509.Certificate).Equal)
}

// encodeCertificates gives certificates in PEM, without the text that people put around it.
func encodeCertificates(certs ...*x509.Certificate) []byte {
	var text []byte
	for _, c := range certs {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: c.Raw})...)
	}
	return text
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

// parseKey reads a private key of the kinds that certificates of a cluster may have.
func parseKey(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("private key: it holds no PEM block")
	}
	var parsed any
	var err error
	switch block.Type {
	case pemKey:
		parsed, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		parsed, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	if err != nil {
		// What the parsers say names the kind of key, never a part of it.
		return nil, fmt.Errorf("private key: it is no unencrypted key that can be read: %w", err)
	}
	switch key := parsed.(type) {
	case *ecdsa.PrivateKey:
		return key, nil
	case *rsa.PrivateKey:
		return key, nil
	}
	return nil, fmt.Errorf("private key: it is a %T, neither an ECDSA nor an RSA key", parsed)
}

// certifies reports whether cert is for the public part of key.
func certifies(cert *x509.Certificate, key crypto.Signer) bool {
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(cert.PublicKey)
}

func marshalKey(key crypto.Signer) ([]byte, error) {
	if ec, ok := key.(*ecdsa.PrivateKey); ok {
		der, err := x509.MarshalECPrivateKey(ec)
		if err != nil {
			return nil, err
		}
		return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
