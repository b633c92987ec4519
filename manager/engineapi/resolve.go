package engineapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/registry"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/api/types/versions"

	"github.com/miniswarm/miniswarm/cluster"
)

// unknownNetwork: the swarm has no such network, though the engine may have.
type unknownNetwork struct{ name string }

func (e *unknownNetwork) Error() string   { return "network " + e.name + " not found" }
func (e *unknownNetwork) StatusCode() int { return http.StatusInternalServerError }

// resolveSpec turns the names of networks into ids. Services may be on the host's or the bridge network of their nodes, for
// which the swarm has stand-ins; created are those that a service asks for first. The result shares nothing that is changed
// with spec.
func resolveSpec(snap *cluster.Snapshot, spec swarm.ServiceSpec, ids cluster.IDs) (resolved swarm.ServiceSpec, created []cluster.Change, err error) {
	if len(spec.TaskTemplate.Networks) == 0 {
		return spec, nil, nil
	}
	nets := make([]swarm.NetworkAttachmentConfig, len(spec.TaskTemplate.Networks))
	for i, cfg := range spec.TaskTemplate.Networks {
		found := snap.Matches(cluster.KindNetwork, cfg.Target)
		switch {
		case len(found) == 1:
			cfg.Target = found[0].ObjectID()
		case len(found) > 1:
			return spec, nil, errorf(http.StatusInternalServerError, "network %s is ambiguous (%d matches found)", cfg.Target, len(found))
		case cfg.Target == network.NetworkHost || cfg.Target == network.NetworkBridge:
			n := predefinedNetwork(cfg.Target)
			n.ID = ids.Next()
			created = append(created, cluster.CreateOf(n))
			cfg.Target = n.ID
		case cfg.Target == network.NetworkNone:
			return spec, nil, errorf(http.StatusNotFound, "could not find the corresponding predefined swarm network: network %s not found", cfg.Target)
		default:
			return spec, nil, &unknownNetwork{cfg.Target}
		}
		nets[i] = cfg
	}
	spec.TaskTemplate.Networks = nets
	return spec, created, nil
}

// predefinedNetwork is the swarm's stand-in for a network that every engine has; lists leave it out.
func predefinedNetwork(name string) *cluster.Network {
	n := &cluster.Network{}
	n.Spec.Name, n.Spec.Labels, n.Spec.Scope = name, map[string]string{labelPredefined: "true"}, "local"
	n.Spec.DriverConfiguration = &swarm.Driver{Name: name}
	n.DriverState = swarm.Driver{Name: name}
	return n
}

// explainNetwork words the error about an unknown network as Docker does where the engine has a network of that name.
func (s *Server) explainNetwork(ctx context.Context, err error) error {
	var unknown *unknownNetwork
	if errors.As(err, &unknown) && s.engineHasNetwork(ctx, unknown.name) {
		return errorf(http.StatusForbidden, "The network %s cannot be used with services. Only networks scoped to the swarm can be used, "+
			"such as those created with the overlay driver.", unknown.name)
	}
	return err
}

// registryPatience bounds how long clients wait for a registry by way of the engine, whose own limits add up to 25 s for one
// that does not answer, with two protocols to try. All that is lost is the digest.
const registryPatience = 10 * time.Second

// inspectDistribution is the engine's answer about an image in its registry, in a bounded time. The docker command asks it
// before it creates a service, and warns where it fails.
func (s *Server) inspectDistribution(w http.ResponseWriter, r *http.Request) error {
	resp, err := s.askRegistry(r, original(r).URL.EscapedPath(), registryPatience)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body) // a client that is gone has nobody to be told
	return nil
}

// askRegistry has the engine ask a registry with the credentials of r. The body must be closed.
func (s *Server) askRegistry(r *http.Request, path string, patience time.Duration) (*http.Response, error) {
	header := http.Header{}
	if auth := r.Header.Get(headerRegistryAuth); auth != "" {
		header.Set(headerRegistryAuth, auth)
	}
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	resp, err := s.engine.open(ctx, http.MethodGet, path, nil, header)
	if err != nil {
		cancel()
		if ctx.Err() != nil && r.Context().Err() == nil {
			return nil, errorf(http.StatusGatewayTimeout, "the registry did not answer within %s", patience)
		}
		return nil, err
	}
	resp.Body = &bodyOf{resp.Body, cancel}
	return resp, nil
}

// bodyOf is a body whose request's context ends with it.
type bodyOf struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (b *bodyOf) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}

// resolveForOldClient pins the image's digest for clients older than API 1.30, which leave that to the daemon; newer
// ones ask /distribution themselves.
func (s *Server) resolveForOldClient(r *http.Request, spec *swarm.ServiceSpec) []string {
	if !versions.LessThan(apiVersion(r), "1.30") {
		return nil
	}
	image := spec.TaskTemplate.ContainerSpec.Image
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return nil // refused with words by the validation
	}
	if _, pinned := named.(reference.Digested); pinned {
		return nil
	}
	named = reference.TagNameOnly(named)
	digest, err := s.imageDigest(r, reference.FamiliarString(named))
	if err != nil {
		s.cfg.Logger.Warn("an image's digest is not known", "image", image, "err", err)
		return []string{fmt.Sprintf("image %s could not be accessed on a registry to record\nits digest. Each node will access %s independently,\n"+
			"possibly leading to different nodes running different\nversions of the image.\n", image, image)}
	}
	spec.TaskTemplate.ContainerSpec.Image = reference.FamiliarString(named) + "@" + digest
	return nil
}

func (s *Server) imageDigest(r *http.Request, image string) (string, error) {
	resp, err := s.askRegistry(r, "/distribution/"+url.PathEscape(image)+"/json", registryPatience)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var answer registry.DistributionInspect
	if err := decodeAnswer(resp, &answer); err != nil {
		return "", err
	}
	return answer.Descriptor.Digest.String(), nil
}
