package engineapi

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"

	"github.com/docker/docker/api/types/network"
)

// A container of a person's own cannot be put on a network of the swarm: it would be given an address by its engine, which does not
// know that the swarm gives the same one to somebody else on another node. Swarm allocates it through a task of its own
// kind (swarm-semantics, 5.6); until there is such a thing here, what would end in two owners of one address is refused.

// createContainer refuses containers on networks of the swarm and leaves the others to the engine.
func (s *Server) createContainer(w http.ResponseWriter, r *http.Request) error {
	var req struct {
		HostConfig       struct{ NetworkMode string }
		NetworkingConfig struct{ EndpointsConfig map[string]json.RawMessage }
	}
	again, err := peek(r, &req)
	if err != nil {
		return err
	}
	refs := []string{req.HostConfig.NetworkMode}
	for ref := range req.NetworkingConfig.EndpointsConfig {
		refs = append(refs, ref)
	}
	for _, ref := range refs {
		if err := s.unattachable(r.Context(), ref); err != nil {
			return err
		}
	}
	s.toEngine(w, again)
	return nil
}

// connectContainer does the same where a container is connected to a network later.
func (s *Server) connectContainer(w http.ResponseWriter, r *http.Request) error {
	if err := s.unattachable(r.Context(), r.PathValue("id")); err != nil {
		return err
	}
	s.toEngine(w, r)
	return nil
}

// peek reads what a request asks for, as far as it can be read, and gives the request as it was.
func peek(r *http.Request, into any) (*http.Request, error) {
	body, err := wholeBody(r)
	if err != nil {
		return nil, err
	}
	_ = json.Unmarshal(body, into) // what is wrong with it the engine says
	again := r.WithContext(r.Context())
	again.Body, again.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	return again, nil
}

// unattachable says why a container cannot be put on the network that ref names; nil where that is for the engine to decide.
func (s *Server) unattachable(ctx context.Context, ref string) error {
	if ref == "" || slices.Contains(predefinedNetworks, ref) {
		return nil
	}
	name, attachable, ok := s.swarmNetworkNamed(ctx, ref)
	switch {
	case !ok:
		return nil
	case !attachable:
		return errorf(http.StatusForbidden, "Could not attach to network %s: rpc error: code = PermissionDenied desc = network %s not manually attachable", ref, name)
	}
	return errorf(http.StatusNotImplemented, "Could not attach to network %s: containers outside of services cannot be put on networks of the swarm by this "+
		"version of miniswarm; run the container as a service: docker service create --network %s", ref, name)
}

// swarmNetworkNamed finds the network of the swarm, or this node's part of one, that ref names.
func (s *Server) swarmNetworkNamed(ctx context.Context, ref string) (name string, attachable, ok bool) {
	if snap := s.snapshot(ctx); snap != nil {
		n := snap.Network(ref)
		if n == nil {
			n = snap.NetworkNamed(ref)
		}
		if n != nil && n.Spec.Labels[labelPredefined] != "true" {
			return n.Spec.Name, n.Spec.Attachable, true
		}
	}
	var part network.Inspect
	if err := s.engine.get(ctx, "/networks/"+url.PathEscape(ref), nil, &part); err != nil || part.Labels[labelNetworkID] == "" {
		return "", false, false
	}
	name = part.Labels[labelNetworkName]
	if snap := s.snapshot(ctx); snap != nil {
		if n := snap.Network(part.Labels[labelNetworkID]); n != nil {
			return name, n.Spec.Attachable, true
		}
	}
	return name, false, true
}
