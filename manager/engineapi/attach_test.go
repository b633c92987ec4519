package engineapi

import (
	"net/http"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// Two owners of one address are worse than a container that is refused.
func TestContainersOnNetworksOfTheSwarm(t *testing.T) {
	w := newWorld(t)
	front, back := &cluster.Network{}, &cluster.Network{}
	front.ID, front.Spec.Name, front.Spec.Attachable = "frontnet", "front", true
	back.ID, back.Spec.Name = "backnet", "back"
	for _, n := range []*cluster.Network{front, back} {
		n.Spec.DriverConfiguration, n.Spec.Scope = &swarm.Driver{Name: "overlay"}, "swarm"
	}
	w.control.put(t, append(aCluster(), front, back)...)
	w.engine.add(standIn("backnet", "back-1"))
	w.engine.add(networkNamed("mine", nil))

	on := func(mode string, more ...string) map[string]any {
		endpoints := map[string]any{}
		for _, m := range more {
			endpoints[m] = map[string]any{}
		}
		return map[string]any{"Image": "app", "HostConfig": map[string]any{"NetworkMode": mode}, "NetworkingConfig": map[string]any{"EndpointsConfig": endpoints}}
	}
	const denied, later = "rpc error: code = PermissionDenied desc = network back not manually attachable", "docker service create --network front"
	for _, c := range []struct {
		body   any
		status int
		text   string
	}{
		{on("back"), http.StatusForbidden, denied},
		{on("backnet"), http.StatusForbidden, denied},
		{on("engback-1"), http.StatusForbidden, "not manually attachable"}, // by the engine's id of this node's part
		{on("bridge", "back"), http.StatusForbidden, denied},
		{on("front"), http.StatusNotImplemented, later},
	} {
		a := w.do("POST", "/v1.41/containers/create?name=x", c.body)
		if a.status != c.status || !strings.Contains(a.message(), c.text) {
			t.Errorf("%v: %d %s, want %d %s", c.body, a.status, a.message(), c.status, c.text)
		}
	}
	if a := w.do("POST", "/networks/back/connect", map[string]any{"Container": "c1"}); a.status != http.StatusForbidden || !strings.Contains(a.message(), denied) {
		t.Errorf("connect: %d %s", a.status, a.message())
	}
	if seen := w.engine.seen(); strings.Contains(seen, "POST") {
		t.Errorf("the engine saw:\n%s", seen)
	}
	for _, mode := range []string{"", "default", "bridge", "host", "none", "mine", "container:c1"} {
		w.do("POST", "/containers/create?name=of-"+mode, on(mode))
		if seen := w.engine.seen(); !strings.Contains(seen, "POST /containers/create?name=of-"+mode) {
			t.Errorf("%s: the engine saw:\n%s", mode, seen)
		}
	}
	w.do("POST", "/networks/mine/connect", map[string]any{"Container": "c1"})
	if seen := w.engine.seen(); !strings.Contains(seen, "POST /networks/mine/connect") {
		t.Errorf("the engine saw:\n%s", seen)
	}
}
