package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"time"
)

const (
	rootValidity = 20 * 365 * 24 * time.Hour

	// DefaultValidity is how long a node certificate lasts unless the cluster's CAConfig.NodeCertExpiry says otherwise.
	DefaultValidity = 90 * 24 * time.Hour
	// MinValidity is the shortest validity that [CheckValidity] accepts.
	MinValidity = time.Hour

	// backdate is how far before now a certificate begins, so that peers with a slower clock accept it.
	backdate = time.Hour

	pemCertificate = "CERTIFICATE"
	pemRequest     = "CERTIFICATE REQUEST"
	pemKey         = "EC PRIVATE KEY"
)

// CheckValidity returns Docker Swarm's error for a node certificate validity below [MinValidity], with which a cluster
// update that asks for it is refused.
func CheckValidity(d time.Duration) error {
	if d < MinValidity {
		return &StatusError{http.StatusBadRequest, "minimum certificate expiry time is: " + MinValidity.String()}
	}
	return nil
}

// RemovedFor gives for how long the managers of a cluster with this NodeCertExpiry refuse the certificate of a node that was removed: longer
// than certificates live, by default and by its spec, and a week for clocks that disagree.
func RemovedFor(expiry time.Duration) time.Duration {
	return max(DefaultValidity, expiry) + 7*24*time.Hour
}

// CAConfig is where a CA takes time and randomness from.
type CAConfig struct {
	Now  func() time.Time // nil: time.Now
	Rand io.Reader        // nil: crypto/rand.Reader; for the root key Go may use the system's source all the same
}

func (c CAConfig) withDefaults() CAConfig {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	return c
}

// CA is a certificate authority: a root certificate and its key. It is immutable; every manager can make one from the
// PEM texts in the cluster object, and only the leader uses it to sign.
type CA struct {
	cfg  CAConfig
	root *Root
	cert *x509.Certificate // the certificate of key, first of root's
	key  crypto.Signer
}

// NewCA creates the root of a new cluster: ECDSA P-256, common name swarm-ca, valid for 20 years.
func NewCA(cfg CAConfig) (*CA, error) {
	cfg = cfg.withDefaults()
	key, err := ecdsa.GenerateKey(elliptic.P256(), cfg.Rand)
	if err != nil {
		return nil, fmt.Errorf("create root CA: generate key: %w", err)
	}
	serial, err := newSerial(cfg.Rand)
	if err != nil {
		return nil, fmt.Errorf("create root CA: %w", err)
	}
	now := cfg.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: caName},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(rootValidity),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(cfg.Rand, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("create root CA: self-sign: %w", err)
	}
	return newCA(cfg, pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der}), key)
}

// LoadCA makes a CA from the PEM texts of an earlier one. rootPEM may hold several certificates; the key must belong to
// the first.
func LoadCA(rootPEM, keyPEM []byte, cfg CAConfig) (*CA, error) {
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("load root CA: %w", err)
	}
	ca, err := newCA(cfg.withDefaults(), rootPEM, key)
	if err != nil {
		return nil, fmt.Errorf("load root CA: %w", err)
	}
	return ca, nil
}

// errKeyMismatch is Docker Swarm's text.
var errKeyMismatch = errors.New("certificate key mismatch")

func newCA(cfg CAConfig, rootPEM []byte, key crypto.Signer) (*CA, error) {
	root, err := ParseRoot(rootPEM)
	if err != nil {
		return nil, err
	}
	ca := &CA{cfg: cfg, root: root, cert: root.certs[0], key: key}
	if !certifies(ca.cert, key) {
		return nil, fmt.Errorf("%w: the key does not belong to the root certificate", errKeyMismatch)
	}
	return ca, nil
}

// Root returns the root certificate, which is public.
func (ca *CA) Root() *Root { return ca.root }

// KeyPEM returns the private key for safekeeping in the replicated store. Whoever has it can forge any node.
func (ca *CA) KeyPEM() ([]byte, error) {
	b, err := marshalKey(ca.key)
	if err != nil {
		return nil, fmt.Errorf("serialise root CA key: %w", err)
	}
	return b, nil
}

// Issue signs the request csrPEM as id's certificate and returns it in PEM. Whatever subject and names the request asks
// for are ignored: only its key counts, of which it proves possession. The certificate is valid from an hour ago for
// the given time from now (0: [DefaultValidity]), at most until the root expires.
//
// A request that cannot be used is a [StatusError] with status 400.
func (ca *CA) Issue(csrPEM []byte, id Identity, validity time.Duration) ([]byte, error) {
	return ca.issue(csrPEM, id, ca.cfg.Now().Add(-backdate), validity)
}

// issue is Issue with another beginning.
func (ca *CA) issue(csrPEM []byte, id Identity, notBefore time.Time, validity time.Duration) ([]byte, error) {
	csr, err := parseRequest(csrPEM)
	if err != nil {
		return nil, err
	}
	unit, err := unitOf(id.Role)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for node %s: %w", id.NodeID, err)
	}
	if id.NodeID == "" || id.ClusterID == "" {
		return nil, fmt.Errorf("issue certificate for node %q of cluster %q: both must be named", id.NodeID, id.ClusterID)
	}
	serial, err := newSerial(ca.cfg.Rand)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for node %s: %w", id.NodeID, err)
	}
	if validity <= 0 {
		validity = DefaultValidity
	}
	notAfter := ca.cfg.Now().Add(validity)
	if notAfter.After(ca.cert.NotAfter) {
		notAfter = ca.cert.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject: pkix.Name{
			CommonName:         id.NodeID,
			OrganizationalUnit: []string{unit},
			Organization:       []string{id.ClusterID},
		},
		DNSNames:              namesOf(unit, id),
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(ca.cfg.Rand, template, ca.cert, csr.PublicKey, ca.key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for node %s: sign: %w", id.NodeID, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der}), nil
}

// namesOf gives the names that a node's certificate bears besides its subject.
func namesOf(unit string, id Identity) []string {
	names := []string{unit, id.NodeID}
	if id.Role == Manager {
		names = append(names, caName) // any manager may answer requests for certificates
	}
	return names
}

// CrossSign certifies the first of other's certificates with this CA's key and returns that in PEM: whoever trusts this CA's
// root only then verifies what other's key signed, if it is given the result as well.
func (ca *CA) CrossSign(other *Root) ([]byte, error) {
	serial, err := newSerial(ca.cfg.Rand)
	if err != nil {
		return nil, fmt.Errorf("cross-sign root CA: %w", err)
	}
	target := other.certs[0]
	template := &x509.Certificate{
		SerialNumber:          serial,
		RawSubject:            target.RawSubject,
		SubjectKeyId:          target.SubjectKeyId,
		NotBefore:             target.NotBefore,
		NotAfter:              target.NotAfter,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(ca.cfg.Rand, template, ca.cert, target.PublicKey, ca.key)
	if err != nil {
		return nil, fmt.Errorf("cross-sign root CA: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der}), nil
}

// newSerial returns 128 random bits: unique without a counter that managers would have to share.
func newSerial(random io.Reader) (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := io.ReadFull(random, b); err != nil {
		return nil, fmt.Errorf("read random serial number: %w", err)
	}
	b[0] &= 0x7f // keeps the DER integer at 16 bytes
	b[15] |= 1   // and never zero
	return new(big.Int).SetBytes(b), nil
}
