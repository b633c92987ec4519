package identity

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// minRootValidity is how long a root that somebody brings must be valid at least, as in Docker Swarm.
const minRootValidity = 365 * 24 * time.Hour

// Configure gives the cluster that c becomes when want replaces its CAConfig: the same root, or the beginning, the change or the
// end of a rotation (swarm-semantics.md, 8.5). Signing certificate and key of want are taken into the root and not kept in the
// spec. External CAs that the result depends on have to sign for this manager; see reachable. Refusals are [*StatusError]s in Docker Swarm's words.
func (a *Authority) Configure(ctx context.Context, c *cluster.Cluster, want swarm.CAConfig) (*cluster.Cluster, error) {
	next := *c
	next.Spec.CAConfig = want
	next.Spec.CAConfig.SigningCACert, next.Spec.CAConfig.SigningCAKey = "", ""
	want.SigningCACert = string(normalised([]byte(want.SigningCACert)))
	if sameCA(c, want) {
		return &next, nil
	}
	if err := a.configure(ctx, &next, want); err != nil {
		return nil, err
	}
	if err := a.tryNamed(ctx, c, &next); err != nil {
		return nil, err
	}
	next.LastForcedRotation = want.ForceRotate
	return &next, describeRoot(&next)
}

// sameCA reports whether want asks for nothing that concerns who signs. Then nobody needs to be asked: settings and tokens can be
// changed while an external CA is away. Certificates that must not live as long as they might so far are another matter: an external
// CA decides how long they do, and would have none renewed that live longer.
func sameCA(c *cluster.Cluster, want swarm.CAConfig) bool {
	return want.SigningCACert == "" && want.SigningCAKey == "" && want.ForceRotate == c.LastForcedRotation &&
		RemovedFor(want.NodeCertExpiry) >= RemovedFor(c.Spec.CAConfig.NodeCertExpiry) &&
		slices.EqualFunc(want.ExternalCAs, c.Spec.CAConfig.ExternalCAs, func(a, b *swarm.ExternalCA) bool {
			return a.Protocol == b.Protocol && a.URL == b.URL && a.CACert == b.CACert && maps.Equal(a.Options, b.Options)
		})
}

// configure changes the root, its key and the rotation of next.
func (a *Authority) configure(ctx context.Context, next *cluster.Cluster, want swarm.CAConfig) error {
	if want.SigningCAKey != "" && want.SigningCACert == "" {
		return badRequest("if a signing CA key is provided, the signing CA cert must also be provided")
	}
	current := normalised(next.RootCA)
	same := bytes.Equal(current, []byte(want.SigningCACert))
	if len(next.RootCAKey) == 0 && !(same && want.SigningCAKey != "") {
		if err := a.reachable(ctx, externalURLs(want.ExternalCAs, current, current), current, "current", want.NodeCertExpiry); err != nil {
			return err
		}
	}
	if want.SigningCACert == "" {
		if want.ForceRotate != next.LastForcedRotation {
			ca, err := NewCA(a.ca)
			if err != nil {
				return err
			}
			return a.begin(ctx, next, want, ca.root, ca)
		}
		if r := next.Rotation; r != nil && len(r.RootCAKey) == 0 {
			root := normalised(r.RootCA)
			return a.reachable(ctx, externalURLs(want.ExternalCAs, current, root), root, "next", want.NodeCertExpiry)
		}
		return nil
	}
	root, ca, err := a.brought(want)
	if err != nil {
		return err
	}
	if ca == nil {
		if err := a.reachable(ctx, externalURLs(want.ExternalCAs, current, root.pem), root.pem, "desired", want.NodeCertExpiry); err != nil {
			return err
		}
	}
	var key []byte
	if ca != nil {
		if key, err = ca.KeyPEM(); err != nil {
			return err
		}
	}
	switch r := next.Rotation; {
	case same: // only who holds the key changes; a rotation under way is given up
		next.RootCAKey, next.Rotation = key, nil
		return nil
	case r != nil && bytes.Equal(normalised(r.RootCA), root.pem):
		changed := *r
		changed.RootCAKey = key
		next.Rotation = &changed
		return nil
	}
	return a.begin(ctx, next, want, root, ca)
}

// tryNamed has external CAs sign for this manager before they do in place of a key that the managers have: once they are set up
// nobody else signs, so that one that cannot would end joins, promotions and renewals. What was named for the root before needs no
// trial, unless certificates are not to live as long as they might so far. Where there is no key configure has tried them.
func (a *Authority) tryNamed(ctx context.Context, before, next *cluster.Cluster) error {
	root, key, _ := signing(next)
	if len(key) == 0 {
		return nil
	}
	var known []string
	if was, _, _ := signing(before); bytes.Equal(normalised(was), normalised(root)) || bytes.Equal(normalised(before.RootCA), normalised(root)) {
		known = externalURLs(before.Spec.CAConfig.ExternalCAs, before.RootCA, root)
	}
	urls := externalURLs(next.Spec.CAConfig.ExternalCAs, next.RootCA, root)
	expiry := next.Spec.CAConfig.NodeCertExpiry
	isNew := func(u string) bool { return !slices.Contains(known, u) }
	if !slices.ContainsFunc(urls, isNew) && (len(urls) == 0 || RemovedFor(expiry) >= RemovedFor(before.Spec.CAConfig.NodeCertExpiry)) {
		return nil
	}
	which := "current"
	if next.Rotation != nil {
		which = "desired"
	}
	return a.reachable(ctx, urls, root, which, expiry)
}

// FirstRoot makes the root of a new cluster, or takes the one that want brings with its key. One whose key stays with an external CA
// is what [Authority.ConfigureFirst] then changes over to: whoever speaks to that CA needs a certificate.
func (a *Authority) FirstRoot(want swarm.CAConfig) (*CA, error) {
	switch {
	case want.SigningCAKey == "" && (want.SigningCACert == "" || len(want.ExternalCAs) > 0):
		return NewCA(a.ca)
	case want.SigningCACert == "" || want.SigningCAKey == "":
		return nil, badRequest("the root CA of a new swarm needs both its certificate and its key, or an external CA that has the key")
	}
	want.SigningCACert = string(normalised([]byte(want.SigningCACert)))
	_, ca, err := a.brought(want)
	return ca, err
}

// ConfigureFirst gives the new cluster c, whose root is FirstRoot's, with the CAConfig that it is founded with; see
// [Authority.Configure].
func (a *Authority) ConfigureFirst(ctx context.Context, c *cluster.Cluster, want swarm.CAConfig) (*cluster.Cluster, error) {
	founded := *c
	founded.LastForcedRotation = want.ForceRotate // there is nothing to rotate from
	if want.SigningCAKey != "" {
		want.SigningCACert, want.SigningCAKey = "", "" // FirstRoot has them
	}
	want.NodeCertExpiry = c.Spec.CAConfig.NodeCertExpiry
	return a.Configure(ctx, &founded, want)
}

// brought checks a root that an operator brings. ca is nil if the key stays with an external CA.
func (a *Authority) brought(want swarm.CAConfig) (*Root, *CA, error) {
	root, err := ParseRoot([]byte(want.SigningCACert))
	if err != nil {
		return nil, nil, badRequest("%s", err)
	}
	for _, cert := range root.certs {
		own := x509.NewCertPool()
		own.AddCert(cert)
		opts := x509.VerifyOptions{Roots: own, CurrentTime: a.cfg.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
		if _, err := cert.Verify(opts); err != nil {
			return nil, nil, badRequest("error while validating Root CA Certificate: %s", err)
		}
	}
	var ca *CA
	if want.SigningCAKey != "" {
		// The words are about certificate and key; none of them is a part of the key.
		ca, err = LoadCA(root.pem, []byte(want.SigningCAKey), a.ca)
		if errors.Is(err, errKeyMismatch) {
			err = errKeyMismatch
		}
		if err != nil {
			return nil, nil, badRequest("%s", err)
		}
	}
	switch {
	case len(root.certs) != 1:
		return nil, nil, badRequest("the desired CA certificate cannot contain multiple certificates")
	case root.certs[0].NotAfter.Before(a.cfg.Now().Add(minRootValidity)):
		return nil, nil, badRequest("CA certificate expires too soon: on %s; bring one that is valid until %s at the least, a year from now",
			root.certs[0].NotAfter.UTC().Format(time.DateOnly), a.cfg.Now().Add(minRootValidity).UTC().Format(time.DateOnly))
	}
	return root, ca, nil
}

// begin starts a rotation to root, in place of one that may be under way. Certificates that were issued in the course of that
// descend from the present root as well, so that nothing needs to be undone. ca is nil if an external CA has root's key.
func (a *Authority) begin(ctx context.Context, next *cluster.Cluster, want swarm.CAConfig, root *Root, ca *CA) error {
	old, err := ParseRoot(next.RootCA)
	if err != nil {
		return fmt.Errorf("rotate root CA: %w", err)
	}
	if bytes.Equal(old.certs[0].RawSubjectPublicKeyInfo, root.certs[0].RawSubjectPublicKeyInfo) {
		return badRequest("Cannot update to a cert with an identical key")
	}
	rotation := &cluster.RootRotation{RootCA: root.pem}
	if ca != nil {
		if rotation.RootCAKey, err = ca.KeyPEM(); err != nil {
			return err
		}
	}
	switch {
	case len(next.RootCAKey) > 0:
		signer, err := LoadCA(next.RootCA, next.RootCAKey, a.ca)
		if err != nil {
			return fmt.Errorf("rotate root CA: %w", err)
		}
		rotation.CrossSigned, err = signer.CrossSign(root)
		if err != nil {
			return fmt.Errorf("rotate root CA: %w", err)
		}
	case ca == nil:
		return badRequest("rotating from one external CA to a different external CA is not supported")
	default:
		current := normalised(next.RootCA)
		rotation.CrossSigned, err = a.crossSignExternally(ctx, externalURLs(want.ExternalCAs, current, current), old, ca)
		if err != nil {
			return fmt.Errorf("rotate root CA: have the external CA of the present root sign the new one: %w", err)
		}
	}
	next.Rotation = rotation
	return nil
}

// Complete gives the cluster that c becomes when its rotation ends: the old root is forgotten, and with it the join tokens,
// which carry its digest.
func (a *Authority) Complete(c *cluster.Cluster) (*cluster.Cluster, error) {
	next := *c
	next.RootCA, next.RootCAKey, next.Rotation = c.Rotation.RootCA, c.Rotation.RootCAKey, nil
	var err error
	if next.JoinTokens, err = NewJoinTokens(next.RootCA, a.cfg.Rand); err != nil {
		return nil, fmt.Errorf("complete the rotation of the root CA: %w", err)
	}
	return &next, describeRoot(&next)
}

// describeRoot has the cluster show its root as Docker Swarm does: trusted is the root before, issuer the one after.
func describeRoot(c *cluster.Cluster) error {
	root, err := ParseRoot(c.RootCA)
	if err != nil {
		return fmt.Errorf("describe the root CA: %w", err)
	}
	c.TLSInfo, c.RootRotationInProgress = root.TLSInfo(), c.Rotation != nil
	if c.Rotation == nil {
		return nil
	}
	if root, err = ParseRoot(c.Rotation.RootCA); err != nil {
		return fmt.Errorf("describe the root CA: %w", err)
	}
	issuer := root.TLSInfo()
	c.TLSInfo.CertIssuerSubject, c.TLSInfo.CertIssuerPublicKey = issuer.CertIssuerSubject, issuer.CertIssuerPublicKey
	return nil
}

// Outstanding gives the ids of the nodes that have not shown yet that their certificate is of the cluster's new root: a rotation
// waits for all of them, also for those that are down (swarm-semantics.md, 8.5).
func Outstanding(snap *cluster.Snapshot) (ids []string) {
	c := snap.Cluster()
	if c == nil || c.Rotation == nil {
		return nil
	}
	for n := range snap.Nodes() {
		shown := n.Description.TLSInfo
		if !bytes.Equal(shown.CertIssuerPublicKey, c.TLSInfo.CertIssuerPublicKey) || !bytes.Equal(shown.CertIssuerSubject, c.TLSInfo.CertIssuerSubject) {
			ids = append(ids, n.ID)
		}
	}
	return ids
}

// normalised gives certificates in PEM without what people write around them, so that equal ones are equal texts; what is none is
// returned as it is.
func normalised(text []byte) []byte {
	certs, err := parseCertificates(text)
	if err != nil {
		return text
	}
	return encodeCertificates(certs...)
}
