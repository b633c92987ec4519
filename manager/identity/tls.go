package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
)

// RenewProtocol is what a client offers by ALPN, before HTTP/1.1, that connects to renew its certificate. On such a connection a server takes
// an expired certificate as well, so that a node that was off for longer than its certificate lived is still the node
// that it was (landscape.md, F19), and need not leave and join.
//
// This gives nobody more than the renewal itself. The handshake proves possession of the key, as on any connection: TLS has
// the client sign the transcript, whether its certificate is verified or not. But the connection counts as not
// verified, so that [FromTLS], and with it [Guard.RequireRole], refuses everything that asks who the peer is; the one handler
// that does not go by these is that of [IssuePath]. It verifies the chain up to the cluster's root as it was when
// the certificate expired, and the cluster; the issuer then looks for the node in the store, where one that was removed is
// missing for ever, not only until its certificate has expired. So an expired certificate is worth something to its node only
// while an operator has not removed the node, and to a thief of the key no more than the unexpired one was, with which he
// could have renewed just as well.
const RenewProtocol = "miniswarm-renew/1"

// httpProtocols are offered when the caller of ServerTLS or ClientTLS names none.
var httpProtocols = []string{"h2", "http/1.1"}

// ServerTLS returns the configuration of a node's listener. A client certificate is optional, since newcomers have none,
// but one that is given must be valid: an invalid one ends the handshake. Who may do what [Guard] decides.
//
// protocols are offered by ALPN in this order; none means HTTP/2 and HTTP/1.1. Clients that offer
// [RenewProtocol] get HTTP/1.1. The configuration follows the store: while it is empty handshakes fail.
func ServerTLS(store *Store, protocols ...string) *tls.Config {
	if len(protocols) == 0 {
		protocols = httpProtocols
	}
	conf := &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: protocols,
		Time:       store.cfg.Now,
		ClientAuth: tls.VerifyClientCertIfGiven,
		// A resumed session would carry its verdict past a renewal or a change of root, and connections here live long enough
		// to make resumption worthless.
		SessionTicketsDisabled: true,
	}
	// http.Server.ServeTLS wants to see a certificate source in the outer configuration.
	conf.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		c, err := store.required()
		if err != nil {
			return nil, err
		}
		return c.tls, nil
	}
	inner := conf.Clone()
	conf.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c, err := store.required()
		if err != nil {
			return nil, err
		}
		fresh := inner.Clone()
		fresh.ClientCAs = c.Root.pool
		if slices.Contains(hello.SupportedProtos, RenewProtocol) {
			fresh.NextProtos, fresh.ClientAuth = []string{"http/1.1"}, tls.RequestClientCert
		}
		return fresh, nil
	}
	return conf
}

// ClientTLS returns the configuration for connections to a node of the own cluster with the given role. A nodeID that is not
// empty must be the peer's too. Host names play no part: nodes are who their certificates say, wherever they are.
//
// Handshake errors match [ErrOtherCluster] or are a [*ClockError] where that is the reason.
func ClientTLS(store *Store, role Role, nodeID string, protocols ...string) *tls.Config {
	if len(protocols) == 0 {
		protocols = httpProtocols
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: protocols,
		Time:       store.cfg.Now,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c, err := store.required()
			if err != nil {
				return nil, err
			}
			return c.tls, nil
		},
		// The standard verification is by host name and by a root fixed in advance; VerifyConnection takes its place
		// and, unlike VerifyPeerCertificate, cannot be bypassed by resumption.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := store.verifyServer(cs, role, nodeID)
			return err
		},
	}
}

func (s *Store) required() (*Credentials, error) {
	if c := s.Current(); c != nil {
		return c, nil
	}
	return nil, ErrNotJoined
}

// verifyServer checks the peer that this node connected to.
func (s *Store) verifyServer(cs tls.ConnectionState, role Role, nodeID string) (Identity, error) {
	c, err := s.required()
	if err != nil {
		return Identity{}, err
	}
	id, err := verifyChain(cs.PeerCertificates, c.Root, s.cfg.Now(), x509.ExtKeyUsageServerAuth)
	switch {
	case err != nil:
		return Identity{}, err
	case id.ClusterID != c.Identity.ClusterID:
		return Identity{}, fmt.Errorf("%w: the peer is node %s of cluster %s, this node is of cluster %s",
			ErrOtherCluster, id.NodeID, id.ClusterID, c.Identity.ClusterID)
	case id.Role != role:
		return Identity{}, fmt.Errorf("the peer is node %s, a %s, where a %s is wanted", id.NodeID, id.Role, role)
	case nodeID != "" && id.NodeID != nodeID:
		return Identity{}, fmt.Errorf("the peer is node %s where node %s is wanted: its address may have been given to another node",
			id.NodeID, nodeID)
	}
	return id, nil
}

// ServerIdentity returns who is at the other end of a connection made with [ClientTLS], whose state is cs.
func (s *Store) ServerIdentity(cs *tls.ConnectionState) (Identity, error) {
	if cs == nil || len(cs.PeerCertificates) == 0 {
		return Identity{}, errors.New("identify server: the connection is not TLS or not complete")
	}
	return fromCertificate(cs.PeerCertificates[0])
}
