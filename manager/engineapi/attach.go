package engineapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// A container of a person's own on a network of the swarm must not be given an address by its engine, which does not know
// that the swarm gives the same one to somebody else on another node. The managers give it one (swarm-semantics, 5.6), and
// the engine is asked for a container with that address. What is asked for beyond that is passed on as it came.

// createContainer puts containers that name networks of the swarm on them, and leaves the others to the engine.
func (s *Server) createContainer(w http.ResponseWriter, r *http.Request) error {
	body, err := wholeBody(r)
	if err != nil {
		return err
	}
	c, err := readContainer(body)
	if err != nil { // what is wrong with it the engine says
		s.toEngine(w, withBody(r, body))
		return nil
	}
	var made []*Attachment
	defer func() {
		for _, at := range made {
			at.Done()
		}
	}()
	for _, ref := range c.networks() {
		at, err := s.attach(r.Context(), ref, protocol.AttachRequest{Names: c.names(r.URL.Query().Get("name"), ref), Address: c.address(ref)})
		if err != nil {
			return err
		}
		if at != nil {
			made = append(made, at)
			c.put(ref, at)
		}
	}
	if len(made) > 0 {
		if body, err = c.encode(); err != nil {
			return fmt.Errorf("create a container on networks of the swarm: %w", err)
		}
		var end context.CancelFunc
		r, end = toTheEnd(r)
		defer end()
	}
	s.toEngine(w, withBody(r, body))
	return nil
}

// toTheEnd gives a request that goes on when its client goes away. Engines do so too: the place of a container that is
// being made must not be given up before the engine has said what became of it.
func toTheEnd(r *http.Request) (*http.Request, context.CancelFunc) {
	ctx, end := context.WithCancel(context.WithoutCancel(r.Context()))
	return r.WithContext(ctx), end
}

// connectContainer does the same where a container is connected to a network later.
func (s *Server) connectContainer(w http.ResponseWriter, r *http.Request) error {
	body, err := wholeBody(r)
	if err != nil {
		return err
	}
	ref := r.PathValue("id")
	req := object{}
	var container string
	if json.Unmarshal(body, &req) != nil || req.read("Container", &container) != nil {
		s.toEngine(w, withBody(r, body))
		return nil
	}
	var have struct{ ID, Name string }
	if err := s.engine.get(r.Context(), "/containers/"+url.PathEscape(container)+"/json", nil, &have); err != nil {
		if status, _ := statusOf(err); status == http.StatusNotFound {
			return err // Docker looks for the container first
		}
	}
	var endpoint network.EndpointSettings
	_ = req.read("EndpointConfig", &endpoint)
	ask := protocol.AttachRequest{ContainerID: have.ID, Names: append(nameOf(have.Name), endpoint.Aliases...)}
	if endpoint.IPAMConfig != nil {
		ask.Address = endpoint.IPAMConfig.IPv4Address
	}
	at, err := s.attach(r.Context(), ref, ask)
	if err != nil {
		return err
	}
	if at == nil {
		s.toEngine(w, withBody(r, body))
		return nil
	}
	defer at.Done()
	settings := req.object("EndpointConfig")
	settings.setAddress(at)
	req.set("EndpointConfig", settings)
	if body, err = json.Marshal(req); err != nil {
		return fmt.Errorf("connect a container to a network of the swarm: %w", err)
	}
	r, end := toTheEnd(r)
	defer end()
	s.toEngineNetwork(w, withBody(r, body), at.Network, "/connect")
	return nil
}

// settling answers once the managers know which containers have left their networks, as Docker does: whoever removed the
// last one may remove the network next.
func (s *Server) settling(next handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		body, err := wholeBody(r) // a held answer and its request cannot be on their way at once
		if err != nil {
			return err
		}
		r = withBody(r, body)
		answer := &heldAnswer{header: http.Header{}, status: http.StatusOK}
		if err := next(answer, r); err != nil {
			return err
		}
		s.cfg.Local.SettleAttachments(r.Context())
		maps.Copy(w.Header(), answer.header)
		w.WriteHeader(answer.status)
		_, _ = w.Write(answer.body.Bytes())
		return nil
	}
}

// heldAnswer keeps a short answer of the engine until it may be given.
type heldAnswer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *heldAnswer) Header() http.Header         { return a.header }
func (a *heldAnswer) Write(p []byte) (int, error) { return a.body.Write(p) }
func (a *heldAnswer) WriteHeader(status int) {
	if status >= http.StatusOK { // others come before the answer
		a.status = status
	}
}

func (s *Server) leaveToEngine(w http.ResponseWriter, r *http.Request) error {
	s.toEngine(w, r)
	return nil
}

// disconnectContainer takes a container off this node's part of a network; that it has gone the agent hears of the engine.
func (s *Server) disconnectContainer(w http.ResponseWriter, r *http.Request) error {
	if part := s.partOf(r.Context(), r.PathValue("id")); part != "" {
		s.toEngineNetwork(w, r, part, "/disconnect")
	} else {
		s.toEngine(w, r)
	}
	return nil
}

// partOf gives the engine's name of this node's part of the swarm network that ref names, "" if there is none.
func (s *Server) partOf(ctx context.Context, ref string) string {
	f, err := filters.ToJSON(filters.NewArgs(filters.Arg("label", labelNetworkID)))
	if err != nil {
		return ""
	}
	var list []network.Inspect
	if err := s.engine.get(ctx, "/networks", url.Values{"filters": {f}}, &list); err != nil {
		return "" // the engine says it again
	}
	for _, n := range list {
		if n.Labels[labelNetworkID] == ref || n.Labels[labelNetworkName] == ref {
			return n.Name
		}
	}
	return ""
}

// toEngineNetwork passes a request about a network on under the name that the engine has for it.
func (s *Server) toEngineNetwork(w http.ResponseWriter, r *http.Request, name, rest string) {
	r2 := r.WithContext(r.Context())
	r2.URL = &url.URL{Path: versionedPath(r, "/networks/"+name+rest), RawPath: versionedPath(r, "/networks/"+url.PathEscape(name)+rest), RawQuery: r.URL.RawQuery}
	s.engine.ServeHTTP(w, r2)
}

// attach gives a container a place on the network that ref names; nil where that is none of the swarm's and so for the
// engine to decide.
func (s *Server) attach(ctx context.Context, ref string, ask protocol.AttachRequest) (*Attachment, error) {
	if slices.Contains(predefinedNetworks, ref) || strings.HasPrefix(ref, "container:") || s.cfg.Local.Info().LocalNodeState != swarm.LocalNodeStateActive {
		return nil, nil
	}
	ask.Network = ref
	var have network.Inspect
	if err := s.engine.get(ctx, "/networks/"+url.PathEscape(ref), nil, &have); err == nil {
		if ask.Network = have.Labels[labelNetworkID]; ask.Network == "" {
			return nil, nil // the engine's own
		}
	}
	at, err := s.cfg.Local.Attach(ctx, ask)
	if err != nil {
		var refused interface{ StatusCode() int }
		if errors.As(err, &refused) && refused.StatusCode() == http.StatusNotFound {
			return nil, nil
		}
		status, text := statusOf(err)
		return nil, errorf(status, "Could not attach to network %s: %s", ref, text)
	}
	return at, nil
}

func withBody(r *http.Request, body []byte) *http.Request {
	again := r.WithContext(r.Context())
	again.Body, again.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	return again
}

// nameOf gives a container's name as one of its names on networks.
func nameOf(name string) []string {
	if name = strings.TrimPrefix(name, "/"); name == "" {
		return nil
	}
	return []string{name}
}

// object is a part of a request of which some fields are changed and the others, known here or not, are kept as they are.
type object map[string]json.RawMessage

// key is the field's name as the client wrote it: engines take any case.
func (o object) key(name string) string {
	for k := range o {
		if strings.EqualFold(k, name) {
			return k
		}
	}
	return name
}

// read decodes a field, if it is there.
func (o object) read(name string, into any) error {
	if raw, ok := o[o.key(name)]; ok {
		return json.Unmarshal(raw, into)
	}
	return nil
}

// object gives a field that is an object itself, an empty one where there is none.
func (o object) object(name string) object {
	part := object{}
	_ = o.read(name, &part)
	if part == nil { // null
		part = object{}
	}
	return part
}

func (o object) set(name string, v any) {
	raw, err := json.Marshal(v)
	if err == nil { // what is set here always has a form in JSON
		o[o.key(name)] = raw
	}
}

// setAddress has an endpoint's settings ask for the place's address.
func (o object) setAddress(at *Attachment) {
	ipam := o.object("IPAMConfig")
	ipam.set("IPv4Address", at.Address.String())
	o.set("IPAMConfig", ipam)
}

// containerRequest is a request for a new container, as far as it is about networks.
type containerRequest struct {
	all, host, networking object
	endpoints             map[string]object
	mode                  string
	dns                   []string
}

func readContainer(body []byte) (*containerRequest, error) {
	c := &containerRequest{}
	if err := json.Unmarshal(body, &c.all); err != nil {
		return nil, err
	}
	c.host, c.networking = c.all.object("HostConfig"), c.all.object("NetworkingConfig")
	err := errors.Join(c.host.read("NetworkMode", &c.mode), c.host.read("Dns", &c.dns), c.networking.read("EndpointsConfig", &c.endpoints))
	if c.endpoints == nil {
		c.endpoints = map[string]object{}
	}
	return c, err
}

// networks are what the container is to be on, that of its mode first.
func (c *containerRequest) networks() []string {
	refs := slices.Sorted(maps.Keys(c.endpoints))
	if c.mode == "" {
		return refs
	}
	return append([]string{c.mode}, slices.DeleteFunc(refs, func(ref string) bool { return ref == c.mode })...)
}

// endpoint gives what is asked for on a network.
func (c *containerRequest) endpoint(ref string) (e network.EndpointSettings) {
	if raw, err := json.Marshal(c.endpoints[ref]); err == nil {
		_ = json.Unmarshal(raw, &e)
	}
	return e
}

// names are what others on a network find the container by.
func (c *containerRequest) names(name, ref string) []string {
	return append(nameOf(name), c.endpoint(ref).Aliases...)
}

// address is the one that the person asks for, "" for any.
func (c *containerRequest) address(ref string) string {
	if e := c.endpoint(ref); e.IPAMConfig != nil {
		return e.IPAMConfig.IPv4Address
	}
	return ""
}

// put has the engine's network take the place of the swarm's that ref names.
func (c *containerRequest) put(ref string, at *Attachment) {
	e := c.endpoints[ref]
	if e == nil {
		e = object{}
	}
	e.setAddress(at)
	delete(c.endpoints, ref)
	c.endpoints[at.Network] = e
	if c.mode == ref {
		c.mode = at.Network
		c.host.set("NetworkMode", at.Network)
	}
	if len(c.dns) == 0 && at.Resolver.IsValid() {
		c.dns = []string{at.Resolver.String()}
		c.host.set("Dns", c.dns)
	}
}

func (c *containerRequest) encode() ([]byte, error) {
	c.networking.set("EndpointsConfig", c.endpoints)
	c.all.set("HostConfig", c.host)
	c.all.set("NetworkingConfig", c.networking)
	return json.Marshal(c.all)
}
