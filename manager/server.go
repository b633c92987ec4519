package manager

import (
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/dispatcher"
	"github.com/miniswarm/miniswarm/manager/identity"
)

// newHandler builds the cluster port's handler.
func (m *Manager) newHandler() (http.Handler, error) {
	guard, err := identity.NewGuard(identity.GuardConfig{Store: m.cfg.Credentials, Logger: m.cfg.Logger, Removed: m.removed})
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
	nodes, managers := []identity.Role{identity.Worker, identity.Manager}, []identity.Role{identity.Manager}
	mux := http.NewServeMux()
	mux.Handle(protocol.PathCA+"/", prompt(ca))
	mux.Handle("GET "+protocol.PathSession, door.RequireRole(http.HandlerFunc(m.serveSession), nodes...))
	mux.Handle("GET "+protocol.PathStreams+"/{id}", guard.RequireRole(http.HandlerFunc(m.serveStream), nodes...))
	mux.Handle("POST "+protocol.PathAttach, guard.RequireRole(http.HandlerFunc(m.serveAttach), nodes...))
	mux.Handle("POST "+protocol.PathMembers, guard.RequireRole(prompt(http.HandlerFunc(m.serveJoin)), managers...))
	mux.Handle(protocol.PathRaft+"/", guard.RequireRole(m.cfg.Store.Handler(), managers...))
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

// removed says whether a node was removed from the cluster and its certificate may still be valid.
func (m *Manager) removed(nodeID string) bool {
	c := m.cfg.Store.Snapshot().Cluster()
	if c == nil {
		return false
	}
	until, ok := c.Removed[nodeID]
	return ok && time.Now().Before(until)
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
	d.ServeSession(w, r, nodeID, remote)
}

// serveStream takes a stream that the leader has asked a node for.
func (m *Manager) serveStream(w http.ResponseWriter, r *http.Request) {
	if d, nodeID, ok := m.upgraded(w, r); ok {
		d.ServeStream(w, r, nodeID, r.PathValue("id"))
	}
}

// serveJoin adds the calling manager to the raft group. Asking again with another address moves the member there.
func (m *Manager) serveJoin(w http.ResponseWriter, r *http.Request) {
	if self, _, _ := m.Leader(); !self {
		m.redirect(w)
		return
	}
	caller, _ := identity.FromContext(r.Context())
	var req protocol.JoinRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096)).Decode(&req); err != nil {
		writeError(w, http.StatusBadRequest, "join request of node "+caller.NodeID+": "+err.Error())
		return
	}
	if addr, err := netip.ParseAddrPort(req.Addr); err != nil || addr.Port() == 0 || addr.Addr().IsUnspecified() {
		writeError(w, http.StatusBadRequest, "join request of node "+caller.NodeID+": "+strconv.Quote(req.Addr)+" is no address that others can reach, as ip:port")
		return
	}
	if m.cfg.Store.Snapshot().Node(caller.NodeID) == nil {
		writeError(w, http.StatusNotFound, "node "+caller.NodeID+" is not part of this swarm")
		return
	}
	member, err := m.cfg.Store.AddMember(r.Context(), protocol.Member{NodeID: caller.NodeID, Addr: req.Addr})
	if err != nil {
		writeError(w, http.StatusServiceUnavailable, "add manager "+caller.NodeID+": "+err.Error())
		return
	}
	_, err = m.cfg.Store.Propose(r.Context(), &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{
		cluster.PatchNode(caller.NodeID, cluster.NodePatch{Role: swarm.NodeRoleManager, RaftID: member.RaftID, ManagerAddr: req.Addr})}})
	if err != nil {
		writeError(w, http.StatusServiceUnavailable, "record manager "+caller.NodeID+": "+err.Error())
		return
	}
	m.cfg.Logger.Info("manager joined", "node", caller.NodeID, "addr", req.Addr)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(protocol.JoinResponse{RaftID: member.RaftID, Members: m.cfg.Store.Members()})
}

// writeError answers with Docker's form of an error.
func writeError(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": message})
}
