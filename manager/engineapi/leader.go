package engineapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/raftstore"
)

// endpoint is an endpoint of the swarm part: it runs on the leader, with its view of the cluster.
type endpoint func(c Control, w http.ResponseWriter, r *http.Request) error

const (
	// managerTimeout bounds a call to the managers, as Docker does.
	managerTimeout = 20 * time.Second
	// electionPatience is how long a request waits for a leader before it is refused: an election takes 1 to 2 s.
	electionPatience = 5 * time.Second
	leaderPoll       = 25 * time.Millisecond
)

// headerForwarded marks a request that came from another manager, so that a wrong idea of who leads cannot make managers
// pass it to and fro: the second one answers 421, and the first asks again who leads.
const headerForwarded = "Miniswarm-Forwarded"

var (
	errNoLeader = rpcErrorf(unknownCode, "The swarm does not have a leader. It's possible that too few managers are online. "+
		"Make sure more than half of the managers are online.")
	// errMisdirected: the request did not reach the leader and nothing was done.
	errMisdirected = errorf(http.StatusMisdirectedRequest, "this manager is not the leader")
	// errLeaderChanged: another manager leads than the one that was asked, which may never answer.
	errLeaderChanged = errors.New("another manager leads now")
	// errLeaderLost: nobody leads for so long that this manager is likely the one that is cut off.
	errLeaderLost = errors.New("there is no leader any more")
)

// onLeader serves an endpoint here if this manager leads, and else passes the request on to the leader.
func (s *Server) onLeader(e endpoint) http.Handler { return s.leaderOnly(e, managerTimeout) }

// streaming is onLeader for endpoints that have no time limit.
func (s *Server) streaming(e endpoint) http.Handler { return s.leaderOnly(e, 0) }

func (s *Server) leaderOnly(e endpoint, limit time.Duration) http.Handler {
	return handler(func(w http.ResponseWriter, r *http.Request) error {
		c, err := s.control(r)
		if err != nil {
			return err
		}
		if limit > 0 {
			ctx, cancel := context.WithTimeout(r.Context(), limit)
			defer cancel()
			r = r.WithContext(ctx)
		}
		if limit > 0 && wantsStale(r) {
			return e(onItsOwn(c, w), w, r)
		}
		body, err := wholeBody(r)
		if err != nil {
			return err
		}
		patience, cancel := context.WithTimeout(r.Context(), electionPatience)
		defer cancel()
		for {
			r.Body = io.NopCloser(bytes.NewReader(body))
			err := s.onceOnLeader(patience, c, e, w, r)
			if !again(err) {
				return err
			}
			if r.Header.Get(headerForwarded) != "" {
				return errMisdirected
			}
			select { // nothing was done: the leader is another one, or about to be elected
			case <-patience.Done():
				return errNoLeader
			case <-time.After(leaderPoll):
			}
			if c, err = s.control(r); err != nil { // it is no manager any more: nobody will tell it who leads
				return err
			}
		}
	})
}

// control is Local.Control for a request. That this machine is no manager is nothing to tell the clients of another one, which took it
// for the leader: that one asks again who leads.
func (s *Server) control(r *http.Request) (Control, error) {
	c, err := s.cfg.Local.Control()
	if err != nil && r.Header.Get(headerForwarded) != "" {
		return nil, errMisdirected
	}
	return c, err
}

// onceOnLeader carries the request out here or at the leader. An error for which again is true has changed and answered
// nothing.
func (s *Server) onceOnLeader(patience context.Context, c Control, e endpoint, w http.ResponseWriter, r *http.Request) error {
	self, id, addr, err := s.awaitLeader(patience, c, r)
	switch {
	case err != nil:
		return err
	case self:
		return e(patientControl{c}, w, r)
	}
	return s.forward(c, id, addr, w, r)
}

// patientControl is that of a leader, which may lose the others while a request is under way.
type patientControl struct{ Control }

// Read waits for a majority, but not for longer without a leader than a request waits for one.
func (c patientControl) Read(ctx context.Context) (*cluster.Snapshot, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer time.AfterFunc(electionPatience, func() {
		if self, _, addr := c.Leader(); !self && addr == "" {
			cancel(errNoLeader)
		}
	}).Stop()
	snap, err := c.Control.Read(ctx)
	if err != nil && errors.Is(context.Cause(ctx), errNoLeader) {
		return nil, errNoLeader
	}
	return snap, err
}

func again(err error) bool {
	var lost *raftstore.ErrNotLeader // this manager ceased to lead before anything was changed
	return errors.Is(err, errMisdirected) || errors.As(err, &lost)
}

// wholeBody reads the request's body, so that the request can be sent again. It is bounded.
func wholeBody(r *http.Request) ([]byte, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return nil, nil
	}
	b, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, errorf(http.StatusRequestEntityTooLarge, "the request body is larger than %d bytes", large.Limit)
	case err != nil:
		return nil, errorf(http.StatusBadRequest, "read the request body: %v", err)
	}
	return b, nil
}

// awaitLeader waits through an election, so that a change of leader is a short delay for clients and no error. A manager that
// is demoted meanwhile says so.
func (s *Server) awaitLeader(patience context.Context, c Control, r *http.Request) (self bool, id, addr string, err error) {
	for {
		if self, id, addr := c.Leader(); self || addr != "" {
			if !self && r.Header.Get(headerForwarded) != "" {
				return false, "", "", errMisdirected
			}
			return self, id, addr, nil
		}
		select {
		case <-patience.Done():
			return false, "", "", errNoLeader
		case <-time.After(leaderPoll):
		}
		if c, err = s.control(r); err != nil {
			return false, "", "", err
		}
	}
}

// forward passes a request on to the leader as it is. Meanwhile it watches who leads: a leader that was cut off may never
// answer, and a log that follows must not hang on it.
func (s *Server) forward(c Control, id, addr string, w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := context.WithCancelCause(r.Context())
	var watcher sync.WaitGroup
	watcher.Go(func() {
		tick := time.NewTicker(4 * leaderPoll)
		defer tick.Stop()
		led := time.Now()
		for {
			select {
			case <-ctx.Done():
				return
			case at := <-tick.C:
				switch self, now, addr := c.Leader(); {
				case self || now != "" && now != id:
					cancel(errLeaderChanged)
					return
				case addr != "":
					led = at
				case at.Sub(led) > electionPatience:
					cancel(errLeaderLost)
					return
				}
			}
		}
	})
	defer func() { cancel(nil); watcher.Wait() }()

	var failed error
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(&url.URL{Scheme: "https", Host: addr, Path: protocol.PathEngine})
			p.Out.URL.RawQuery = p.In.URL.RawQuery
			p.Out.Header.Set(headerForwarded, s.cfg.Local.Info().NodeID)
		},
		Transport:     c.Forward(id),
		FlushInterval: -1,
		ErrorLog:      slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
		ModifyResponse: func(resp *http.Response) error {
			if resp.StatusCode == http.StatusMisdirectedRequest {
				return errMisdirected
			}
			lastAnswer(resp.Header, resp.Request)
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, out *http.Request, err error) {
			lastAnswer(w.Header(), out)
			failed = s.forwardError(ctx, r, addr, err)
		},
	}
	proxy.ServeHTTP(w, original(r).WithContext(ctx))
	return failed
}

// forwardError says what became of a request that the leader did not answer. What surely was not carried out, or may be
// asked twice, is tried again.
func (s *Server) forwardError(ctx context.Context, r *http.Request, addr string, err error) error {
	var op *net.OpError
	safe := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch {
	case errors.Is(err, errMisdirected):
		return errMisdirected
	case r.Context().Err() != nil:
		return r.Context().Err()
	case safe, errors.As(err, &op) && op.Op == "dial":
		s.cfg.Logger.Debug("the leader did not answer; asking again who leads", "addr", addr, "err", err)
		return errMisdirected
	case errors.Is(context.Cause(ctx), errLeaderLost):
		return errorf(http.StatusServiceUnavailable, "the leader was lost while the request was on its way and there is no other, too few managers may be online; "+
			"look whether the request was carried out before you try again")
	case errors.Is(context.Cause(ctx), errLeaderChanged):
		return errorf(http.StatusServiceUnavailable, "the leader changed while the request was on its way; look whether it was carried out before you try again")
	}
	return errorf(http.StatusServiceUnavailable, "the leader at %s does not answer: %v; look whether the request was carried out before you try again", addr, err)
}
