package docker

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/client"
)

// newPasser gives a proxy to the engine. Every request has a connection of its own: they are few and some are long.
func newPasser(cli *client.Client) *httputil.ReverseProxy {
	dial := cli.Dialer()
	return &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(&url.URL{Scheme: "http", Host: "docker"})
			p.Out.URL.RawQuery = p.In.URL.RawQuery
			p.Out.Host = "docker"
		},
		Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }},
		FlushInterval: -1, // what a command writes must not wait for a buffer to fill
		ErrorLog:      slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() != nil {
				return
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusBadGateway)
			_ = json.NewEncoder(w).Encode(types.ErrorResponse{Message: ErrUnavailable.Error() + ": " + err.Error()})
		},
	}
}

// Pass implements Engine. The engine may answer while the request's body is still on its way.
func (a *Adapter) Pass(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).EnableFullDuplex() // not where w is a recorder
	a.passer.ServeHTTP(w, r)
}

// ExecContainer implements Engine.
func (a *Adapter) ExecContainer(ctx context.Context, execID string) (string, error) {
	if err := a.ready(ctx); err != nil {
		return "", err
	}
	e, err := a.cli.ContainerExecInspect(ctx, execID)
	return e.ContainerID, a.explain(ctx, err)
}
