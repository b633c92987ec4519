package identity

import (
	"context"
	"fmt"
	"net/http"

	"github.com/docker/docker/api/types/swarm"
)

// IssueRequest asks for a certificate: with the join token by a newcomer, with the current certificate of the connection by
// a node. It is the body of POST [IssuePath].
type IssueRequest struct {
	// CSR is the signing request in PEM; only its key is used.
	CSR string
	// Token is a newcomer's join token; empty at renewal.
	Token string `json:",omitempty"`
	// Availability is what a newcomer wants to be ("" means active); ignored at renewal.
	Availability swarm.NodeAvailability `json:",omitempty"`
	// NodeID may be set at renewal only, to the node's own id: it guards against answering with another node's certificate.
	NodeID string `json:",omitempty"`
	// Forwarded is set by a follower that passes a request on to the leader. It is believed only of managers.
	Forwarded *Forwarded `json:",omitempty"`
}

// Forwarded says on whose behalf a follower forwards a request.
type Forwarded struct {
	// Peer is the node that the follower identified; nil for a newcomer with a token.
	Peer *Identity `json:",omitempty"`
	// Addr is the network address the request came from, for the leader's log and the node's status.
	Addr string `json:",omitempty"`
}

// IssueResponse is the answer to an IssueRequest.
type IssueResponse struct {
	Certificate string // PEM
	NodeID      string
	Role        Role
}

// Issuer is the manager's side of issuing: it decides, records the node in the store and signs. It is called concurrently.
type Issuer interface {
	// RootPEM returns the root certificate, byte for byte as join tokens carry its digest.
	RootPEM() []byte
	// Issue answers a request. peer is the node whose certificate authorises it, and nil for a newcomer with a token; it
	// was verified, of this cluster and not removed. addr is where the request came from. An error with a method StatusCode() int
	// (such as [StatusError]) is answered with that status, others with 500; their words reach the user.
	//
	// A follower hands the request to the leader by [Client.ForwardIssue].
	Issue(ctx context.Context, req IssueRequest, peer *Identity, addr string) (IssueResponse, error)
}

// Grant is what a request for a certificate entitles to.
type Grant struct {
	NodeID string
	Role   Role // of the token, or of the current certificate at renewal
	// Renewal is true when the node exists: the certificate must then carry the role that the node object has now, which is how
	// promotion and demotion reach the node. Otherwise the node object is to be created, or exists already
	// because the answer to an earlier attempt was lost.
	Renewal bool
}

// Authorise decides what req entitles to in a cluster with these tokens: the role of the token for a newcomer, the
// same node again for peer. Errors are [StatusError]s, among them [ErrInvalidToken].
func Authorise(tokens swarm.JoinTokens, req IssueRequest, peer *Identity) (Grant, error) {
	if req.Token == "" && peer != nil {
		if req.NodeID != "" && req.NodeID != peer.NodeID {
			return Grant{}, forbidden("node %s asked for the certificate of node %s", peer.NodeID, req.NodeID)
		}
		return Grant{NodeID: peer.NodeID, Role: peer.Role, Renewal: true}, nil
	}
	role, ok := roleOf(tokens, req.Token)
	if !ok {
		return Grant{}, ErrInvalidToken
	}
	if req.NodeID != "" {
		return Grant{}, badRequest("a node id can be asked for only with that node's current certificate")
	}
	switch req.Availability {
	case "", swarm.NodeAvailabilityActive, swarm.NodeAvailabilityPause, swarm.NodeAvailabilityDrain:
	default:
		return Grant{}, badRequest("invalid Availability: %q", req.Availability)
	}
	id, err := NodeIDFor([]byte(req.CSR))
	if err != nil {
		return Grant{}, err
	}
	return Grant{NodeID: id, Role: role}, nil
}

func badRequest(format string, args ...any) error {
	return &StatusError{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}
