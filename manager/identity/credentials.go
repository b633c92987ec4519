package identity

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/docker/docker/api/types/swarm"
)

// Credentials are what a node proves its identity with: certificate, key, and the root it trusts. They are immutable;
// renewal and a rotation of the root make new ones.
type Credentials struct {
	Identity Identity
	Root     *Root
	leaf     *x509.Certificate
	issuer   *x509.Certificate // of leaf: a root, or the cross-signed certificate of one
	tls      *tls.Certificate
	certPEM  []byte
	keyPEM   []byte
}

// ParseCredentials checks that the certificate is a node's, that it is signed by the root and that the key is its own. It does
// not look at the clock: see [Credentials.CheckTime].
func ParseCredentials(rootPEM, certPEM, keyPEM []byte) (*Credentials, error) {
	root, err := ParseRoot(rootPEM)
	if err != nil {
		return nil, err
	}
	chain, err := parseCertificates(certPEM)
	if err != nil {
		return nil, fmt.Errorf("node certificate: %w", err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("node key: %w", err)
	}
	leaf := chain[0]
	id, err := fromCertificate(leaf)
	if err != nil {
		return nil, fmt.Errorf("node certificate: %w", err)
	}
	if !certifies(leaf, key) {
		return nil, fmt.Errorf("node key: it does not belong to the certificate of node %s", id.NodeID)
	}
	// Whether it is valid now is another question than whether it is of this cluster. A complaint about the root's own
	// validity comes after its signature was found good.
	_, err = verifyChain(chain, root, leaf.NotAfter, x509.ExtKeyUsageClientAuth)
	if _, ok := errors.AsType[*ClockError](err); err != nil && !ok {
		return nil, fmt.Errorf("node certificate: the root CA certificate next to it did not sign it: %w", err)
	}
	c := &Credentials{Identity: id, Root: root, leaf: leaf, issuer: issuerOf(chain, root), certPEM: certPEM, keyPEM: keyPEM}
	c.tls = &tls.Certificate{PrivateKey: key, Leaf: leaf}
	for _, cert := range chain {
		c.tls.Certificate = append(c.tls.Certificate, cert.Raw)
	}
	return c, nil
}

// Validity returns when the certificate begins and ceases to be valid.
func (c *Credentials) Validity() (notBefore, notAfter time.Time) {
	return c.leaf.NotBefore, c.leaf.NotAfter
}

// TLSInfo describes trust and issuer the way nodes show them in the Engine API. While the cluster changes over to another
// root, the issuer is the root that signed the node's certificate, whichever that is.
func (c *Credentials) TLSInfo() swarm.TLSInfo {
	info := c.Root.TLSInfo()
	info.CertIssuerSubject, info.CertIssuerPublicKey = bytes.Clone(c.issuer.RawSubject), bytes.Clone(c.issuer.RawSubjectPublicKeyInfo)
	return info
}

// issuerOf finds who signed chain[0], which descends from root.
func issuerOf(chain []*x509.Certificate, root *Root) *x509.Certificate {
	for _, c := range slices.Concat(chain[1:], root.certs) {
		if chain[0].CheckSignatureFrom(c) == nil {
			return c
		}
	}
	return root.certs[0]
}

// CheckTime returns an error that matches [ErrExpired] if the certificate has expired at now, and [ErrClockBehind] if it is not valid
// yet.
func (c *Credentials) CheckTime(now time.Time) error {
	switch {
	case now.After(c.leaf.NotAfter):
		return fmt.Errorf("%w (the certificate of node %s was valid until %s, this machine's clock says %s)",
			ErrExpired, c.Identity.NodeID, stamp(c.leaf.NotAfter), stamp(now))
	case now.Before(c.leaf.NotBefore):
		return fmt.Errorf("the certificate of node %s is valid only from %s, but this machine's clock says %s: %w",
			c.Identity.NodeID, stamp(c.leaf.NotBefore), stamp(now), ErrClockBehind)
	}
	return nil
}

// verifyChain checks that chain[0] descends from root by way of the rest of chain, and is valid at the given time for usage.
func verifyChain(chain []*x509.Certificate, root *Root, at time.Time, usage x509.ExtKeyUsage) (Identity, error) {
	if len(chain) == 0 {
		return Identity{}, errNoCertificate
	}
	opts := x509.VerifyOptions{
		Roots:         root.pool,
		Intermediates: x509.NewCertPool(),
		CurrentTime:   at,
		KeyUsages:     []x509.ExtKeyUsage{usage},
	}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := chain[0].Verify(opts); err != nil {
		if expired, ok := errors.AsType[x509.CertificateInvalidError](err); ok && expired.Reason == x509.Expired {
			c := expired.Cert
			return Identity{}, &ClockError{Local: at, NotBefore: c.NotBefore, NotAfter: c.NotAfter}
		}
		if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
			return Identity{}, fmt.Errorf("%w: its certificate is not signed by this cluster's root CA", ErrOtherCluster)
		}
		return Identity{}, fmt.Errorf("verify certificate: %w", err)
	}
	return fromCertificate(chain[0])
}
