package identity

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"
)

// maxExpired is how long a certificate that has expired is good for its own renewal: long enough for a machine that was put
// away, and an end to what somebody can do who finds an old disk of a node that is still a member. Docker Swarm renews none. It is no
// limit for managers: where all were off for longer, the first that has certified itself would else refuse the others for good; and
// whoever has a manager's disk has the root's key.
const maxExpired = 365 * 24 * time.Hour

// Guard decides who may call a handler, by certificate. A connection keeps the certificate it was made with, and a demoted
// manager may keep its own: what the guard is told of removed and demoted nodes counts for more.
type Guard struct {
	store   *Store
	removed func(nodeID string) bool
	demoted func(nodeID string) bool
	log     *slog.Logger
}

// GuardConfig configures a Guard.
type GuardConfig struct {
	// Store says which cluster is ours.
	Store *Store
	// Removed reports whether a node was removed from the cluster while its certificate is still valid. It is asked on
	// every request, concurrently. Nil means that none was.
	Removed func(nodeID string) bool
	// Demoted reports whether a node is a worker although it has, or may have, a manager's certificate that is still valid.
	// It is asked on every request of a manager, concurrently. Nil means that certificates say it all.
	Demoted func(nodeID string) bool
	// Logger hears of refusals at level Debug; nil is silence.
	Logger *slog.Logger
}

// NewGuard returns a guard.
func NewGuard(cfg GuardConfig) (*Guard, error) {
	if cfg.Store == nil {
		return nil, errors.New("guard: no credential store given")
	}
	if cfg.Removed == nil {
		cfg.Removed = func(string) bool { return false }
	}
	if cfg.Demoted == nil {
		cfg.Demoted = func(string) bool { return false }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Guard{store: cfg.Store, removed: cfg.Removed, demoted: cfg.Demoted, log: cfg.Logger}, nil
}

// RequireRole returns a handler that lets through to next only nodes of our cluster that were not removed and whose
// certificate bears one of roles; next finds the caller by [FromContext]. Everybody else gets status 403 and the reason
// as {"message": ...}.
func (g *Guard) RequireRole(next http.Handler, roles ...Role) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, err := g.identify(r)
		if err == nil && !slices.Contains(roles, id.Role) {
			err = forbidden("node %s is a %s, and this is for %s only", id.NodeID, id.Role, plural(roles))
		}
		if err != nil {
			g.log.Debug("request refused", "path", r.URL.Path, "addr", r.RemoteAddr, "node", id.NodeID, "err", err)
			writeError(w, err)
			return
		}
		next.ServeHTTP(w, r.WithContext(NewContext(r.Context(), id)))
	})
}

// identify returns the node that sent r, or an error with status 403.
func (g *Guard) identify(r *http.Request) (Identity, error) { return g.recognise(r, FromTLS) }

// identifyRenewing is identify for requests to renew a certificate, which may have expired: see [RenewProtocol].
func (g *Guard) identifyRenewing(r *http.Request) (Identity, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 || len(r.TLS.VerifiedChains) > 0 {
		return g.identify(r)
	}
	return g.recognise(r, func(cs *tls.ConnectionState) (Identity, error) {
		own, err := g.store.required()
		if err != nil {
			return Identity{}, err
		}
		now, leaf := g.store.cfg.Now(), cs.PeerCertificates[0]
		at := now
		if at.After(leaf.NotAfter) {
			at = leaf.NotAfter
		}
		id, err := verifyChain(cs.PeerCertificates, own.Root, at, x509.ExtKeyUsageClientAuth)
		manager := id.Role == Manager && !g.demoted(id.NodeID)
		if err == nil && !manager && now.Sub(leaf.NotAfter) > maxExpired {
			err = fmt.Errorf("the certificate of node %s has expired at %s, more than %d days ago, and is not renewed any more: leave the swarm and join again",
				id.NodeID, stamp(leaf.NotAfter), maxExpired/(24*time.Hour))
		}
		return id, err
	})
}

// recognise returns the node that from reads from the connection of r if it is one of ours.
func (g *Guard) recognise(r *http.Request, from func(*tls.ConnectionState) (Identity, error)) (Identity, error) {
	own := g.store.Current()
	if own == nil {
		return Identity{}, &StatusError{http.StatusServiceUnavailable, ErrNotJoined.Error()}
	}
	id, err := from(r.TLS)
	if errors.Is(err, errNoCertificate) {
		return Identity{}, forbidden("a node's certificate is required")
	}
	if err != nil {
		return Identity{}, forbidden("%s", err)
	}
	if id.ClusterID != own.Identity.ClusterID {
		return id, forbidden("node %s belongs to cluster %s, this is cluster %s", id.NodeID, id.ClusterID, own.Identity.ClusterID)
	}
	if g.removed(id.NodeID) {
		return id, ErrRemoved
	}
	if id.Role == Manager && g.demoted(id.NodeID) {
		id.Role = Worker
	}
	return id, nil
}

func forbidden(format string, args ...any) error {
	return &StatusError{http.StatusForbidden, "Permission denied: " + fmt.Sprintf(format, args...)}
}

// plural names roles in a sentence: "workers and managers".
func plural(roles []Role) string {
	words := make([]string, len(roles))
	for i, r := range roles {
		words[i] = string(r) + "s"
	}
	if len(words) == 0 {
		return "nobody"
	}
	return strings.Join(words, " and ")
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// An error here means that the client is gone; there is nobody left to tell.
	_ = json.NewEncoder(w).Encode(body)
}
