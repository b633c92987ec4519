package identity

import (
	"errors"
	"fmt"
	"net/http"
	"time"
)

// StatusError is an answer of a manager that is not success: the HTTP status and the words of the {"message": ...}
// body. The [Client] returns the same value that the server's [Issuer] returned, so errors.Is works across the network.
type StatusError struct {
	Status  int    // HTTP status code
	Message string // what the user reads
}

func (e *StatusError) Error() string { return e.Message }

// Is matches another StatusError with equal status and message.
func (e *StatusError) Is(target error) bool {
	t, ok := target.(*StatusError)
	return ok && *t == *e
}

// StatusCode returns the HTTP status. Errors of other packages that have this method are answered with theirs.
func (e *StatusError) StatusCode() int { return e.Status }

// Refusals, in Docker Swarm's words (swarm-semantics.md, 8.1 and 8.3).
var (
	// ErrInvalidToken is the answer to a well-formed token that is not, or no longer, one of the cluster's.
	ErrInvalidToken error = &StatusError{http.StatusBadRequest, "A valid join token is necessary to join this cluster"}
	// ErrRemoved is the answer to every request of a node that was removed from the cluster.
	ErrRemoved error = &StatusError{http.StatusForbidden, "Permission denied: node ID was removed from swarm"}
)

var (
	// ErrExpired means that the node's certificate has expired, so that no peer accepts it for anything but its renewal.
	// Docker Swarm would have the node leave and join again.
	ErrExpired = errors.New("this node's certificate has expired")
	// ErrNotJoined means that the node has no certificate: it is not part of a cluster.
	ErrNotJoined = errors.New("this node has no certificate: it is not part of a swarm")
	// ErrClockBehind means that the node's certificate is not valid yet by its machine's clock.
	ErrClockBehind = errors.New("set the clock right")
	// ErrUnreachable means that nobody at the address answered; a later attempt may succeed.
	ErrUnreachable = errors.New("manager is unreachable")
	// ErrNotManager means that whoever answers at the address is not a miniswarm manager.
	ErrNotManager = errors.New("it is not a miniswarm manager")
	// ErrOtherCluster means that the manager at the address belongs to another cluster than the token or certificate.
	ErrOtherCluster = errors.New("it belongs to another cluster")
)

// ClockError means that a certificate is outside its validity although it should be fresh, which is what peers see
// whose clocks disagree.
type ClockError struct {
	Addr                string    // the peer
	Local               time.Time // this machine's clock
	Remote              time.Time // the peer's clock; zero when it could not be learned
	NotBefore, NotAfter time.Time // validity of the certificate that was refused
}

func (e *ClockError) Error() string {
	remote := "the clock there is not known"
	if !e.Remote.IsZero() {
		remote = fmt.Sprintf("the clock of %s says %s (%s)", e.Addr, stamp(e.Remote), apart(e.Local, e.Remote))
	}
	return fmt.Sprintf("clocks disagree: the certificate is valid from %s to %s, this machine's clock says %s, %s: "+
		"set both clocks right, for example by NTP, and try again",
		stamp(e.NotBefore), stamp(e.NotAfter), stamp(e.Local), remote)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// apart tells how far remote is from local in units a person would use.
func apart(local, remote time.Time) string {
	d, way := remote.Sub(local), "ahead"
	if d < 0 {
		d, way = -d, "behind"
	}
	switch {
	case d < 2*time.Second:
		return "the same"
	case d < 48*time.Hour:
		return d.Round(time.Second).String() + " " + way
	}
	return fmt.Sprintf("%d days %s", int((d.Hours()+12)/24), way)
}
