package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/docker/docker/api/types/swarm"
)

// Role is what a certificate entitles its holder to. It is the Engine API's own type.
type Role = swarm.NodeRole

// The roles a node can have. A manager may do whatever a worker may.
const (
	Worker  Role = swarm.NodeRoleWorker
	Manager Role = swarm.NodeRoleManager
)

// Organisational units that stand for the roles in a certificate, and the name a manager bears as certificate
// authority. Docker Swarm's values, so that certificates look alike to tools that read them.
const (
	workerUnit  = "swarm-worker"
	managerUnit = "swarm-manager"
	caName      = "swarm-ca"
)

func unitOf(r Role) (string, error) {
	switch r {
	case Worker:
		return workerUnit, nil
	case Manager:
		return managerUnit, nil
	}
	return "", fmt.Errorf("role %q is neither %q nor %q", r, Worker, Manager)
}

// Identity is who a node is, as its certificate says.
type Identity struct {
	NodeID    string
	ClusterID string
	Role      Role
}

// errNoCertificate is for connections that are encrypted but anonymous.
var errNoCertificate = errors.New("the peer presented no certificate")

// FromTLS returns who is at the other end of a connection accepted with [ServerTLS]. It fails when the peer gave no
// certificate, when the certificate was not verified against the cluster's root, or when it is not a node's.
func FromTLS(cs *tls.ConnectionState) (Identity, error) {
	if cs == nil {
		return Identity{}, errors.New("identify peer: the connection is not TLS")
	}
	if len(cs.PeerCertificates) == 0 {
		return Identity{}, fmt.Errorf("identify peer: %w", errNoCertificate)
	}
	if len(cs.VerifiedChains) == 0 {
		return Identity{}, errors.New("identify peer: its certificate was not verified")
	}
	id, err := fromCertificate(cs.VerifiedChains[0][0])
	if err != nil {
		return Identity{}, fmt.Errorf("identify peer: %w", err)
	}
	return id, nil
}

// fromCertificate reads an identity from a certificate whose signature the caller has verified or will verify. Fields
// that occur twice are refused rather than picked from: no certificate of ours has them.
func fromCertificate(cert *x509.Certificate) (Identity, error) {
	sub := cert.Subject
	if sub.CommonName == "" || len(sub.OrganizationalUnit) != 1 || len(sub.Organization) != 1 || sub.Organization[0] == "" {
		return Identity{}, fmt.Errorf("certificate of %q is not a node certificate: it must name a node id, a role and a cluster", sub)
	}
	id := Identity{NodeID: sub.CommonName, ClusterID: sub.Organization[0]}
	switch sub.OrganizationalUnit[0] {
	case workerUnit:
		id.Role = Worker
	case managerUnit:
		id.Role = Manager
	default:
		return Identity{}, fmt.Errorf("certificate of node %s names the role %q, which is none of %s and %s",
			id.NodeID, sub.OrganizationalUnit[0], workerUnit, managerUnit)
	}
	return id, nil
}

type contextKey struct{}

// NewContext returns a context that carries id as the caller of a request. [Guard.RequireRole] does this for handlers;
// it is exported for calls that do not arrive over the network.
func NewContext(ctx context.Context, id Identity) context.Context {
	return context.WithValue(ctx, contextKey{}, id)
}

// FromContext returns the caller of the request that ctx belongs to. ok is false outside [Guard.RequireRole].
func FromContext(ctx context.Context) (id Identity, ok bool) {
	id, ok = ctx.Value(contextKey{}).(Identity)
	return id, ok
}
