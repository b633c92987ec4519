package engineapi

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/registry"
	"github.com/docker/docker/api/types/swarm"
)

const someDigest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

// registryAnswers makes the engine know of one image, for whoever has the credentials "auth".
func (e *fakeEngine) registryAnswers(image string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.distribution = func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.PathValue("name") != image+"/json":
			writeError(w, errorf(http.StatusNotFound, "no such manifest: %s", r.PathValue("name")))
		case r.Header.Get(headerRegistryAuth) != "auth":
			writeError(w, errorf(http.StatusUnauthorized, "unauthorized: authentication required"))
		default:
			writeJSON(w, http.StatusOK, json.RawMessage(`{"Descriptor":{"digest":"`+someDigest+`"},"Platforms":[{"architecture":"amd64","os":"linux"}]}`))
		}
	}
}

func TestTheRegistryIsAskedThroughTheEngine(t *testing.T) {
	w := newWorld(t)
	w.control.put(t, aCluster()...)
	w.engine.registryAnswers("registry.example:5000/shop/app:1")
	for _, path := range []string{"/v1.41/distribution/registry.example:5000/shop/app:1/json", "/distribution/registry.example:5000%2Fshop%2Fapp:1/json", "/v1.99/distribution/registry.example:5000/shop/app:1/json"} {
		a := w.do("GET", path, nil, headerRegistryAuth, "auth")
		var found registry.DistributionInspect
		if err := json.Unmarshal([]byte(a.body), &found); err != nil || a.status != 200 || found.Descriptor.Digest != someDigest || len(found.Platforms) != 1 {
			t.Errorf("GET %s: %d %s %v", path, a.status, a.body, err)
		}
		w.refused("GET", path, nil, 401, "unauthorized: authentication required")
	}
	w.refused("GET", "/distribution/other/json", nil, 404, "no such manifest: other/json")

	// Clients that do not ask themselves have it done, and keep what they named.
	spec := serviceSpec("web")
	spec.TaskTemplate.ContainerSpec.Image = "registry.example:5000/shop/app:1"
	if a := w.do("POST", "/v1.29/services/create", spec, headerRegistryAuth, "auth"); a.status != 201 || !strings.HasSuffix(a.body, `"Warnings":null}`) {
		t.Errorf("create: %d %s", a.status, a.body)
	}
	stored := w.control.snapshot().ServiceNamed("web")
	if stored.Spec.TaskTemplate.ContainerSpec.Image != "registry.example:5000/shop/app:1@"+someDigest || stored.RegistryAuth != "auth" {
		t.Errorf("stored: %q, credentials %q", stored.Spec.TaskTemplate.ContainerSpec.Image, stored.RegistryAuth)
	}
	for name, c := range map[string]struct{ version, image string }{
		"a client that asks itself": {"/v1.30", "registry.example:5000/shop/app:1"},
		"an image that is pinned":   {"/v1.29", "app@" + someDigest},
	} {
		spec.Name, spec.TaskTemplate.ContainerSpec.Image = strings.ReplaceAll(name, " ", "-"), c.image
		id := must[swarm.ServiceCreateResponse](w, 201, "POST", c.version+"/services/create", spec).ID
		if got := w.control.snapshot().Service(id).Spec.TaskTemplate.ContainerSpec.Image; got != c.image {
			t.Errorf("%s: %q became %q", name, c.image, got)
		}
	}
}

func TestARegistryThatDoesNotAnswer(t *testing.T) {
	w := newWorld(t)
	left := make(chan struct{})
	w.engine.mu.Lock()
	w.engine.distribution = func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done(); close(left) }
	w.engine.mu.Unlock()
	r := httptest.NewRequestWithContext(t.Context(), "GET", "/distribution/app/json", nil)
	_, err := w.api.askRegistry(r, "/distribution/app/json", 20*time.Millisecond)
	if status, text := statusOf(err); status != http.StatusGatewayTimeout || text != "the registry did not answer within 20ms" {
		t.Errorf("%d %s", status, text)
	}
	<-left // the engine is not left asking
}
