package engineapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"github.com/docker/docker/api/types/versions"
)

// engine is the connection to the local Docker Engine.
type engine struct {
	host  string // as configured, for messages
	http  *http.Client
	proxy *httputil.ReverseProxy
	face  face
}

// engineHost is the host in requests to the engine, which takes any.
const engineHost = "docker"

func newEngine(host string, logger *slog.Logger) (*engine, error) {
	network, addr, err := splitHost(host)
	if err != nil {
		return nil, err
	}
	e := &engine{host: host}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, addr)
		},
		// What the engine sends is passed on as it is.
		DisableCompression:  true,
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     time.Minute,
	}
	e.http = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	e.proxy = &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(&url.URL{Scheme: "http", Host: engineHost})
			p.Out.URL.RawQuery = p.In.URL.RawQuery
			p.Out.Host = engineHost
		},
		Transport:     transport,
		FlushInterval: -1, // logs, stats and builds must not wait for a buffer to fill
		ErrorLog:      slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
		ModifyResponse: func(resp *http.Response) error {
			e.face.learn(resp.Header)
			lastAnswer(resp.Header, resp.Request)
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			lastAnswer(w.Header(), r)
			if r.Context().Err() == nil {
				writeError(w, e.unreachable(err))
			}
		},
	}
	return e, nil
}

// splitHost takes a DOCKER_HOST value apart. A unix socket and plain TCP are all that a local engine needs.
func splitHost(host string) (network, addr string, err error) {
	scheme, rest, ok := strings.Cut(host, "://")
	switch {
	case ok && scheme == "unix" && rest != "":
		return "unix", rest, nil
	case ok && (scheme == "tcp" || scheme == "http") && rest != "":
		if addr, _, err := net.SplitHostPort(rest); err == nil && addr != "" {
			return "tcp", rest, nil
		}
	}
	return "", "", fmt.Errorf("engine %q: give it as unix:///path or tcp://host:port", host)
}

func (e *engine) unreachable(err error) error {
	return errorf(http.StatusBadGateway, "the Docker Engine at %s does not answer: %v; is it running?", e.host, err)
}

// isUnreachable says that an error means that the engine did not answer.
func isUnreachable(err error) bool {
	var e *apiError
	return errors.As(err, &e) && e.status == http.StatusBadGateway
}

// ServeHTTP passes a request to the engine, streams and hijacked connections included. The engine may answer while the
// request's body is still on its way (docker load does), which HTTP/1 servers must be told.
func (e *engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.proxy.ServeHTTP(w, duplex(w, r))
}

// open sends a request to the engine and gives the answer, whatever its status. A version in the path that is too new for
// the engine is left out. The caller closes the body.
func (e *engine) open(ctx context.Context, method, path string, query url.Values, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+engineHost+path, nil)
	if err != nil {
		return nil, err
	}
	req.URL.RawQuery = query.Encode()
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := e.http.Do(req)
	if err != nil {
		return nil, e.unreachable(err)
	}
	m := versionPrefix.FindStringSubmatch(path)
	if m != nil && resp.StatusCode == http.StatusBadRequest && versions.GreaterThan(m[1], resp.Header.Get("Api-Version")) {
		resp.Body.Close()
		return e.open(ctx, method, path[len(m[0])-len(m[2]):], query, header)
	}
	return resp, nil
}

// maxEngineAnswer bounds what is read of an answer that is merged; lists of a busy engine are well below it.
const maxEngineAnswer = 64 << 20

// get asks the engine and decodes its answer into v. An error the engine answers is passed on with its status and text; one that says
// nothing for mergeTimeout does not answer.
func (e *engine) get(ctx context.Context, path string, query url.Values, v any) error {
	ctx, cancel := context.WithTimeout(ctx, mergeTimeout)
	defer cancel()
	resp, err := e.open(ctx, http.MethodGet, path, query, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return decodeAnswer(resp, v)
}

func decodeAnswer(resp *http.Response, v any) error {
	body := io.LimitReader(resp.Body, maxEngineAnswer)
	if resp.StatusCode >= http.StatusMultipleChoices {
		var said struct{ Message string }
		if err := json.NewDecoder(body).Decode(&said); err != nil || said.Message == "" {
			said.Message = "the Docker Engine answered " + resp.Status
		}
		return errorf(resp.StatusCode, "%s", said.Message)
	}
	if err := json.NewDecoder(body).Decode(v); err != nil && !errors.Is(err, io.EOF) {
		return errorf(http.StatusBadGateway, "read the answer of the Docker Engine: %v", err)
	}
	return nil
}

// toEngine passes a request to the local engine under the path it came with.
func (s *Server) toEngine(w http.ResponseWriter, r *http.Request) { s.engine.ServeHTTP(w, original(r)) }
