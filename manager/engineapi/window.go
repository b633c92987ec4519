package engineapi

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// taskEngine answers /miniswarm/tasks/{id}/engine/...: the part of the Engine API that concerns the container of a task,
// wherever that is, so that Docker's own client can run commands in it (exec) and copy files. The leader reaches the node
// through a stream that the node opens; other managers pass the request on to the leader.
//
// Bodies are as long as the files that are copied and are not kept, so that a request with one is not sent again when the
// leader changes, as [Server.onLeader] would.
func (s *Server) taskEngine(w http.ResponseWriter, r *http.Request) error {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		s.streaming(s.reachTask).ServeHTTP(w, r)
		return nil
	}
	c, err := s.control(r)
	if err != nil {
		return err
	}
	patience, cancel := context.WithTimeout(r.Context(), electionPatience)
	self, id, addr, err := s.awaitLeader(patience, c, r)
	cancel()
	switch {
	case err != nil:
		return err
	case self:
		return s.reachTask(c, w, r)
	}
	if err = s.forward(c, id, addr, w, duplex(w, r)); again(err) {
		return errorf(http.StatusServiceUnavailable, "the leader changed while the request was on its way; try again")
	}
	return err
}

// reachTask is the leader's part of taskEngine.
func (s *Server) reachTask(c Control, w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := context.WithTimeout(r.Context(), managerTimeout)
	snap, err := c.Read(ctx)
	cancel()
	if err != nil {
		return err
	}
	t, err := findTask(snap, r.PathValue("id"))
	switch {
	case err != nil:
		return err
	case t.NodeID == "":
		return errorf(http.StatusConflict, "task %s has no node yet: it is %s", t.ID, t.Status.State)
	}
	node := nodeName(snap, t.NodeID)
	if n := snap.Node(t.NodeID); n != nil && n.Status.State == swarm.NodeStateDown {
		return errorf(http.StatusServiceUnavailable, "node %s of task %s is down", node, t.ID)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(&url.URL{Scheme: "http", Host: t.NodeID})
			p.Out.URL.Path, p.Out.URL.RawPath = "/tasks/"+t.ID+"/"+r.PathValue("rest"), ""
			p.Out.URL.RawQuery = p.In.URL.RawQuery
			p.Out.Header.Del(headerForwarded)
		},
		// A stream for each request: they are few, and none outlives what it was for.
		Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.Dial(ctx, t.NodeID) }},
		FlushInterval:  -1, // what a command writes must not wait for a buffer to fill
		ErrorLog:       slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
		ModifyResponse: func(resp *http.Response) error { lastAnswer(resp.Header, resp.Request); return nil },
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			lastAnswer(w.Header(), r)
			if r.Context().Err() == nil {
				writeError(w, errorf(http.StatusServiceUnavailable, "reach task %s on node %s: %v", t.ID, node, err))
			}
		},
	}
	proxy.ServeHTTP(w, duplex(w, r)) // a node may answer before it has read all
	return nil
}

// nodeName is what people call a node.
func nodeName(snap *cluster.Snapshot, id string) string {
	if n := snap.Node(id); n != nil && n.Description.Hostname != "" {
		return n.Description.Hostname
	}
	return id
}
