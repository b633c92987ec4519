package manager

import (
	"encoding/json"
	"net"
	"net/http"
	"time"

	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/dispatcher"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/raftstore"
)

// newHandler builds the cluster port's handler.
func (m *Manager) newHandler() (http.Handler, error) {
	guard, err := identity.NewGuard(identity.GuardConfig{Store: m.cfg.Credentials, Logger: m.cfg.Logger, Removed: m.gone, Demoted: m.demoted})
	if err != nil {
		return nil, err
	}
	ca, err := identity.NewHandler(identity.HandlerConfig{Issuer: &issuer{m: m}, Guard: guard, Now: m.cfg.Now, Logger: m.cfg.Logger})
	if err != nil {
		return nil, err
	}
	// A node that was removed while it was away is let in to hear so: it must end its tasks, which run elsewhere by now. The
	// dispatcher gives it nothing else.
	door, err := identity.NewGuard(identity.GuardConfig{Store: m.cfg.Credentials, Logger: m.cfg.Logger})
	if err != nil {
		return nil, err
	}
	// Members of the raft group are judged by the group: a replica that lags may not know yet that its leader is a manager,
	// and must hear it to find out.
	peers, err := identity.NewGuard(identity.GuardConfig{Store: m.cfg.Credentials, Logger: m.cfg.Logger, Removed: m.removed})
	if err != nil {
		return nil, err
	}
	nodes, managers := []identity.Role{identity.Worker, identity.Manager}, []identity.Role{identity.Manager}
	mux := http.NewServeMux()
	mux.Handle(protocol.PathCA+"/", prompt(ca))
	mux.Handle("GET "+protocol.PathSession, door.RequireRole(http.HandlerFunc(m.serveSession), nodes...))
	mux.Handle("GET "+protocol.PathStreams+"/{id}", guard.RequireRole(http.HandlerFunc(m.serveStream), nodes...))
	mux.Handle("POST "+protocol.PathAttach, guard.RequireRole(http.HandlerFunc(m.serveAttach), nodes...))
	mux.Handle("POST "+protocol.PathMembers, peers.RequireRole(prompt(http.HandlerFunc(m.serveJoin)), managers...))
	mux.Handle(protocol.PathRaft+"/", peers.RequireRole(asItself(m.cfg.Store.Handler()), managers...))
	if m.cfg.About != nil {
		for _, path := range []string{"/metrics", "/healthz", "/readyz"} {
			mux.Handle("GET "+path, guard.RequireRole(m.cfg.About, nodes...))
		}
	}
	if m.cfg.EngineAPI != nil {
		mux.Handle(protocol.PathEngine+"/", guard.RequireRole(http.StripPrefix(protocol.PathEngine, m.cfg.EngineAPI), managers...))
	}
	return mux, nil
}

// bodyTimeout bounds how long a caller may take to send a request.
const bodyTimeout = 10 * time.Second

// prompt refuses to wait for the bodies of slow callers, among whom may be anybody. It is for small requests: streams
// set limits of their own.
func prompt(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout)); err != nil {
			writeError(w, http.StatusInternalServerError, "limit the time of a request: "+err.Error())
			return
		}
		next.ServeHTTP(w, r)
	})
}

// asItself lets members of the raft group speak for their own node only.
func asItself(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller, _ := identity.FromContext(r.Context())
		if node := r.Header.Get(raftstore.HeaderNode); node != "" && node != caller.NodeID {
			writeError(w, http.StatusForbidden, "node "+caller.NodeID+" cannot speak for node "+node)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// removed says whether a node was removed from the cluster and its certificate may still be valid.
func (m *Manager) removed(nodeID string) bool {
	c := m.cfg.Store.Snapshot().Cluster()
	if c == nil {
		return false
	}
	until, ok := c.Removed[nodeID]
	return ok && time.Now().Before(until)
}

// gone says whether a node is none of the cluster: it was removed, or it is not known to a leader, who knows all there are. A certificate
// from when --cert-expiry was longer may outlive what the cluster remembers of its node's removal.
func (m *Manager) gone(nodeID string) bool {
	return m.removed(nodeID) || m.cfg.Store.Leadership().Leader && m.cfg.Store.Snapshot().Node(nodeID) == nil
}

// demoted says whether a node is a worker by now, as far as this manager knows.
func (m *Manager) demoted(nodeID string) bool {
	n := m.cfg.Store.Snapshot().Node(nodeID)
	return n != nil && n.Role == identity.Worker
}

// redirect answers a request that only the leader can serve.
func (m *Manager) redirect(w http.ResponseWriter) {
	_, _, addr := m.Leader()
	w.Header().Set(protocol.HeaderLeader, addr)
	if addr == "" {
		writeError(w, http.StatusServiceUnavailable, "the swarm has no leader at present")
		return
	}
	writeError(w, http.StatusMisdirectedRequest, "this manager is not the leader; the leader is at "+addr)
}

// upgraded gives the dispatcher that takes over the connection of a node's request, or answers that there is none, or that the
// request is none for it.
func (m *Manager) upgraded(w http.ResponseWriter, r *http.Request) (d *dispatcher.Dispatcher, nodeID string, ok bool) {
	caller, _ := identity.FromContext(r.Context())
	if d = m.Dispatcher(); d == nil {
		m.redirect(w)
		return nil, "", false
	}
	if r.Header.Get("Upgrade") != protocol.UpgradeStream {
		w.Header().Set("Upgrade", protocol.UpgradeStream)
		writeError(w, http.StatusUpgradeRequired, r.URL.Path+" is opened by an upgrade to "+protocol.UpgradeStream)
		return nil, "", false
	}
	return d, caller.NodeID, true
}

func (m *Manager) serveSession(w http.ResponseWriter, r *http.Request) {
	d, nodeID, ok := m.upgraded(w, r)
	if !ok {
		return
	}
	remote, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		remote = r.RemoteAddr
	}
	if own, _, err := net.SplitHostPort(m.cfg.Addr); err == nil && nodeID == m.cfg.NodeID {
		remote = own // its agent may have come over the loopback
	}
	d.ServeSession(w, r, nodeID, remote)
}

// serveStream takes a stream that the leader has asked a node for.
func (m *Manager) serveStream(w http.ResponseWriter, r *http.Request) {
	if d, nodeID, ok := m.upgraded(w, r); ok {
		d.ServeStream(w, r, nodeID, r.PathValue("id"))
	}
}

// writeError answers with Docker's form of an error.
func writeError(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": message})
}
