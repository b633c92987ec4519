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
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// pagesOfNodes are what a manager shows of any node.
var pagesOfNodes = map[string]bool{"metrics": true, "healthz": true, "readyz": true, "doctor": true}

// aboutRoutes are the pages about nodes. Docker's API has none of these paths.
func (s *Server) aboutRoutes() {
	if s.cfg.About == nil {
		return
	}
	for _, page := range []string{"/metrics", "/healthz", "/readyz"} {
		s.socket.Handle("GET "+page, s.cfg.About)
	}
	s.socket.Handle("GET /miniswarm/doctor", http.StripPrefix("/miniswarm", s.cfg.About))
	s.both("GET /miniswarm/doctor/cluster", s.streaming(func(_ Control, w http.ResponseWriter, r *http.Request) error {
		http.StripPrefix("/miniswarm", s.cfg.About).ServeHTTP(w, r)
		return nil
	}))
	s.swarm.Handle("GET /miniswarm/nodes/{id}/{page}", s.streaming(s.pageOfNode))
	s.socket.Handle("GET /miniswarm/nodes/{id}/{page}", handler(s.anyPage))
}

// anyPage shows a page of this node itself without asking anybody, so that it is there when there is no leader.
func (s *Server) anyPage(w http.ResponseWriter, r *http.Request) error {
	page := r.PathValue("page")
	if id := s.cfg.Local.Info().NodeID; id == "" || id != r.PathValue("id") || !pagesOfNodes[page] {
		s.streaming(s.pageOfNode).ServeHTTP(w, r)
		return nil
	}
	http.StripPrefix("/miniswarm/nodes/"+r.PathValue("id"), s.cfg.About).ServeHTTP(w, r)
	return nil
}

// pageOfNode shows a page of another node, which the leader reaches through a stream that the node opens: workers have no
// port that could be asked.
func (s *Server) pageOfNode(c Control, w http.ResponseWriter, r *http.Request) error {
	page := r.PathValue("page")
	if !pagesOfNodes[page] {
		return notFoundHere(w, r)
	}
	ctx, cancel := context.WithTimeout(r.Context(), managerTimeout)
	snap, n, err := read[*cluster.Node](ctx, c, cluster.KindNode, r.PathValue("id"))
	cancel()
	switch {
	case err != nil:
		return err
	case n.Status.State == swarm.NodeStateDown:
		return errorf(http.StatusServiceUnavailable, "node %s is down", nodeName(snap, n.ID))
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(&url.URL{Scheme: "http", Host: n.ID})
			p.Out.URL.Path, p.Out.URL.RawPath = protocol.PathNode+"/"+page, ""
			p.Out.Header.Del(headerForwarded)
		},
		Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.Dial(ctx, n.ID) }},
		ErrorLog:       slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
		ModifyResponse: func(resp *http.Response) error { lastAnswer(resp.Header, resp.Request); return nil },
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			lastAnswer(w.Header(), r)
			if r.Context().Err() == nil {
				writeError(w, errorf(http.StatusServiceUnavailable, "reach node %s: %v", nodeName(snap, n.ID), err))
			}
		},
	}
	proxy.ServeHTTP(w, r)
	return nil
}
