package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"
)

// Paths that a manager serves to everybody, with or without a certificate.
const (
	RootPath  = "/ca/root"
	IssuePath = "/ca/issue"
)

// maxRequestBytes bounds what an anonymous peer can make a manager read. A request with a chain of any sane length is
// below 4 KiB.
const maxRequestBytes = 64 << 10

// HandlerConfig configures NewHandler.
type HandlerConfig struct {
	Issuer Issuer
	// Guard recognises nodes that renew; its own store says which cluster this is.
	Guard *Guard
	// Now is sent in the Date header, from which a newcomer learns that clocks disagree. Nil means time.Now.
	Now func() time.Time
	// Logger hears of certificates issued and refused; nil is silence.
	Logger *slog.Logger
}

type handler struct {
	HandlerConfig
}

// NewHandler returns the handler for [RootPath] and [IssuePath], to be served through [ServerTLS] by managers. It needs no
// client certificate; it checks one that is given. The http.Server around it sets the time limits.
func NewHandler(cfg HandlerConfig) (http.Handler, error) {
	if cfg.Issuer == nil || cfg.Guard == nil {
		return nil, errors.New("certificate handler: issuer and guard must be given")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	h := &handler{cfg}
	return http.HandlerFunc(h.serve), nil
}

func (h *handler) serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Date", h.Now().UTC().Format(http.TimeFormat))
	want := map[string]string{RootPath: http.MethodGet, IssuePath: http.MethodPost}[r.URL.Path]
	switch {
	case want == "":
		writeError(w, &StatusError{http.StatusNotFound, "page not found"})
	case r.Method != want:
		w.Header().Set("Allow", want)
		writeError(w, &StatusError{http.StatusMethodNotAllowed, fmt.Sprintf("%s %s: only %s is allowed", r.Method, r.URL.Path, want)})
	case want == http.MethodGet:
		h.root(w)
	default:
		h.issue(w, r)
	}
}

func (h *handler) root(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/x-pem-file")
	_, _ = w.Write(h.Issuer.RootPEM()) // an error means that the client is gone
}

func (h *handler) issue(w http.ResponseWriter, r *http.Request) {
	var req IssueRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequestBytes)).Decode(&req); err != nil {
		refusal := &StatusError{http.StatusBadRequest, "certificate request: " + err.Error()}
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			refusal.Status = http.StatusRequestEntityTooLarge
		}
		writeError(w, refusal)
		return
	}
	peer, addr, err := h.onBehalfOf(r, &req)
	if err != nil {
		h.Logger.Warn("certificate refused", "addr", r.RemoteAddr, "err", err)
		writeError(w, err)
		return
	}
	resp, err := h.Issuer.Issue(r.Context(), req, peer, addr)
	if err != nil {
		h.Logger.Warn("certificate refused", "addr", addr, "err", err)
		writeError(w, err)
		return
	}
	h.Logger.Info("certificate issued", "addr", addr, "node", resp.NodeID, "role", resp.Role, "renewal", peer != nil)
	writeJSON(w, http.StatusOK, resp)
}

// onBehalfOf returns the node that asks for a certificate, nil for a newcomer, and the address it asks from. With a
// forwarded request that is not the peer of this connection.
func (h *handler) onBehalfOf(r *http.Request, req *IssueRequest) (*Identity, string, error) {
	forwarded := req.Forwarded
	req.Forwarded = nil // the issuer sees a forwarded request as if it had come directly
	if forwarded == nil && req.Token != "" {
		return nil, r.RemoteAddr, nil
	}
	identify := h.Guard.identify
	if forwarded == nil {
		identify = h.Guard.identifyRenewing
	}
	id, err := identify(r)
	switch {
	case err != nil && forwarded == nil && (r.TLS == nil || len(r.TLS.PeerCertificates) == 0):
		return nil, "", ErrInvalidToken // neither token nor certificate: Swarm's answer
	case err != nil:
		return nil, "", err
	case forwarded == nil:
		return &id, r.RemoteAddr, nil
	case id.Role != Manager:
		return nil, "", forbidden("node %s is a %s, and only managers may forward requests", id.NodeID, id.Role)
	case req.Token != "":
		return nil, forwarded.Addr, nil
	case forwarded.Peer == nil:
		return nil, "", ErrInvalidToken
	case forwarded.Peer.ClusterID != id.ClusterID:
		return nil, "", forbidden("node %s belongs to cluster %s, this is cluster %s",
			forwarded.Peer.NodeID, forwarded.Peer.ClusterID, id.ClusterID)
	case h.Guard.removed(forwarded.Peer.NodeID):
		return nil, "", ErrRemoved
	}
	return forwarded.Peer, forwarded.Addr, nil
}

// writeError answers with the error's words and its status, 500 if it has none.
func writeError(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	var coder interface{ StatusCode() int }
	switch {
	case errors.As(err, &coder):
		status = coder.StatusCode()
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		status = http.StatusServiceUnavailable
	}
	writeJSON(w, status, message{err.Error()})
}

type message struct {
	Message string `json:"message"`
}
