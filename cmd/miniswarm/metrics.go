package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"github.com/docker/docker/client"
	"github.com/urfave/cli/v2"
)

func metricsCommand(e *env) *cli.Command {
	return &cli.Command{Name: "metrics", Usage: "show a node's metrics, or serve all nodes' for Prometheus", ArgsUsage: "[NODE]", Category: clusterCategory,
		Description: "   miniswarm metrics              (this node's)\n   miniswarm metrics vm3          (another's, on a manager)\n   miniswarm metrics --listen 127.0.0.1:9323\n\n" +
			"With --listen it serves, until it is ended, /metrics, /healthz and /readyz of this node and /nodes/NODE/metrics, healthz and readyz of\n" +
			"any, and nothing else, on this machine alone: what the daemon's socket can do besides must not be had by a port.",
		Flags: []cli.Flag{&cli.StringFlag{Name: "listen", Usage: "serve at this `ADDRESS` of the loopback interface"}},
		Action: func(c *cli.Context) error {
			if c.NArg() > 1 || c.NArg() == 1 && c.IsSet("listen") {
				return usage("miniswarm metrics takes one NODE at the most, and none with --listen")
			}
			cl, err := newClient(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			if at := c.String("listen"); at != "" {
				return hint(serveMetrics(c.Context, e, cl, at), c)
			}
			path := "/metrics"
			if c.NArg() > 0 {
				path = "/miniswarm/nodes/" + url.PathEscape(c.Args().First()) + "/metrics"
			}
			text, err := get(c.Context, cl, path)
			if err != nil {
				return hint(err, c)
			}
			_, err = e.stdout.Write(text)
			return err
		}}
}

// serveMetrics passes what Prometheus may see on from the daemon's socket until ctx ends.
func serveMetrics(ctx context.Context, e *env, cl *client.Client, at string) error {
	host, _, err := net.SplitHostPort(at)
	if ip := net.ParseIP(host); err != nil || host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return usage("--listen %s: give an address of the loopback interface, as 127.0.0.1:9323: nothing here asks who is reading", at)
	}
	if _, err := cl.Ping(ctx); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", at)
	if err != nil {
		return fmt.Errorf("serve metrics: %w", err)
	}
	server := &http.Server{Handler: metricsRelay(cl.HTTPClient().Transport), ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	fmt.Fprintf(e.stderr, "Serving metrics at http://%s/metrics; Ctrl-C ends it.\n", ln.Addr())
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}

// metricsRelay answers the pages about nodes from the daemon's socket, which the transport leads to, and no others.
func metricsRelay(socket http.RoundTripper) http.Handler {
	to := func(path func(*http.Request) string) http.Handler {
		return &httputil.ReverseProxy{Transport: socket, Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL = &url.URL{Scheme: "http", Host: "miniswarm", Path: path(p.In)}
			p.Out.Host = "miniswarm"
		}}
	}
	mux := http.NewServeMux()
	for _, page := range []string{"metrics", "healthz", "readyz"} {
		mux.Handle("GET /"+page, to(func(*http.Request) string { return "/" + page }))
		other := to(func(r *http.Request) string { return "/miniswarm/nodes/" + r.PathValue("id") + "/" + page })
		mux.HandleFunc("GET /nodes/{id}/"+page, func(w http.ResponseWriter, r *http.Request) {
			if strings.ContainsAny(r.PathValue("id"), "/?%") {
				http.NotFound(w, r) // the name of no node, but perhaps of something else on the socket
				return
			}
			other.ServeHTTP(w, r)
		})
	}
	return mux
}
