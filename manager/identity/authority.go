package identity

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/miniswarm/miniswarm/cluster"
)

// AuthorityConfig configures an Authority.
type AuthorityConfig struct {
	// Store holds this manager's credentials, which external CAs may want to see. Required.
	Store  *Store
	Now    func() time.Time // nil: time.Now
	Rand   io.Reader        // nil: crypto/rand.Reader
	Logger *slog.Logger     // hears of external CAs that do not answer; nil is silence
}

// Authority is the certificate authority as the cluster object describes it: its root, the root that is about to take that
// one's place, external CAs. It keeps no state; all of it is in the objects it is given. Only the leader uses it,
// except for [Authority.SignOwn].
type Authority struct {
	cfg AuthorityConfig
	ca  CAConfig
}

// NewAuthority returns an authority.
func NewAuthority(cfg AuthorityConfig) (*Authority, error) {
	if cfg.Store == nil {
		return nil, errors.New("certificate authority: no credential store given")
	}
	ca := CAConfig{Now: cfg.Now, Rand: cfg.Rand}.withDefaults()
	cfg.Now, cfg.Rand = ca.Now, ca.Rand
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Authority{cfg: cfg, ca: ca}, nil
}

// signing gives the root that certificates are issued by, its key if the managers have it, and what has to follow such a
// certificate for those who know only the root before.
func signing(c *cluster.Cluster) (root, key, crossSigned []byte) {
	if r := c.Rotation; r != nil {
		return r.RootCA, r.RootCAKey, r.CrossSigned
	}
	return c.RootCA, c.RootCAKey, nil
}

// SigningURLs gives where external CAs sign certificates of cluster c at present; none if the managers do.
func SigningURLs(c *cluster.Cluster) []string {
	root, _, _ := signing(c)
	return externalURLs(c.Spec.CAConfig.ExternalCAs, c.RootCA, root)
}

// HasKey reports whether c has a key by which [Authority.SignHere] can sign.
func HasKey(c *cluster.Cluster) bool {
	_, key, _ := signing(c)
	return len(key) > 0 || len(c.RootCAKey) > 0
}

// Sign certifies the key of csrPEM for id in cluster c, with the validity that its spec asks for, and returns the certificate in
// PEM. An external CA that is set up for the root signs in place of the managers' own key, as in Docker Swarm; what it
// answers is checked. During a rotation the cross-signed root follows, so that the certificate descends from both roots.
func (a *Authority) Sign(ctx context.Context, c *cluster.Cluster, csrPEM []byte, id Identity) ([]byte, error) {
	rootPEM, keyPEM, crossSigned := signing(c)
	if urls := externalURLs(c.Spec.CAConfig.ExternalCAs, c.RootCA, rootPEM); len(urls) > 0 {
		root, err := ParseRoot(rootPEM)
		if err != nil {
			return nil, fmt.Errorf("issue certificate for node %s: %w", id.NodeID, err)
		}
		cert, err := a.signExternally(ctx, urls, root, csrPEM, id, c.Spec.CAConfig.NodeCertExpiry)
		if err != nil {
			return nil, fmt.Errorf("issue certificate for node %s: %w", id.NodeID, err)
		}
		return append(cert, crossSigned...), nil
	}
	if len(keyPEM) == 0 {
		return nil, &StatusError{http.StatusServiceUnavailable, "no certificate can be issued: the managers do not have the key of the root CA, and " +
			"no external CA is set up for it; name one with \"swarm update --external-ca\""}
	}
	return a.signWith(c, rootPEM, keyPEM, crossSigned, csrPEM, id)
}

// SignHere is Sign with the key that c has, where the external CA that should sign cannot be had: for a cluster that is recovered.
// While the root rotates to one whose key is not there, it is the key of the root before; the rotation then waits for this node.
func (a *Authority) SignHere(c *cluster.Cluster, csrPEM []byte, id Identity) ([]byte, error) {
	rootPEM, keyPEM, crossSigned := signing(c)
	if len(keyPEM) == 0 {
		rootPEM, keyPEM, crossSigned = c.RootCA, c.RootCAKey, nil
	}
	return a.signWith(c, rootPEM, keyPEM, crossSigned, csrPEM, id)
}

func (a *Authority) signWith(c *cluster.Cluster, rootPEM, keyPEM, crossSigned, csrPEM []byte, id Identity) ([]byte, error) {
	ca, err := LoadCA(rootPEM, keyPEM, a.ca)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for node %s: %w", id.NodeID, err)
	}
	cert, err := ca.Issue(csrPEM, id, c.Spec.CAConfig.NodeCertExpiry)
	if err != nil {
		return nil, err
	}
	return append(cert, crossSigned...), nil
}

// SignOwn is how a manager whose certificate has expired helps itself where no other manager can: when the whole cluster was
// off for longer than certificates live, none accepts another's connections, so that there is no leader to ask. It has
// the key of the root, in the store that it opened itself, and could sign whatever it likes; c is the cluster as that
// store knows it. It is the caller's part to make sure that the node is a manager there.
//
// The certificate begins when the expired one began. So it is valid now, and also if now should turn out to be wrong: a clock that
// jumped ahead would otherwise leave a manager with a certificate from the future once it is set right. As more than
// half of its time has passed the renewer replaces it as soon as there is a leader.
func (a *Authority) SignOwn(c *cluster.Cluster, csrPEM []byte, own *Credentials) ([]byte, error) {
	rootPEM, keyPEM, crossSigned := signing(c)
	if len(keyPEM) == 0 {
		return nil, errors.New("renew this manager's own certificate: the key of the root CA is not here but with an external CA")
	}
	ca, err := LoadCA(rootPEM, keyPEM, a.ca)
	if err != nil {
		return nil, fmt.Errorf("renew this manager's own certificate: %w", err)
	}
	notBefore, _ := own.Validity()
	cert, err := ca.issue(csrPEM, own.Identity, notBefore, c.Spec.CAConfig.NodeCertExpiry)
	if err != nil {
		return nil, fmt.Errorf("renew this manager's own certificate: %w", err)
	}
	return append(cert, crossSigned...), nil
}
