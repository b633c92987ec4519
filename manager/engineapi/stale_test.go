package engineapi

import (
	"net/http"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/swarm"
)

// A manager without a leader answers who is content with what it knows, and says how old that may be; it changes nothing.
func TestStaleReadsNeedNoLeader(t *testing.T) {
	w := newWorld(t)
	w.control.put(t, append(aCluster(), aManager("node1", "vm1"))...)
	w.control.setLeader(false, "node2", "10.0.0.2:2377")
	nodes := must[[]swarm.Node](w, http.StatusOK, "GET", "/nodes?stale=true", nil)
	if len(nodes) == 0 {
		t.Error("no nodes are listed")
	}
	for _, path := range []string{"/services?stale=1", "/tasks?stale=true", "/secrets?stale=true", "/configs?stale=true", "/swarm?stale=true", "/nodes/" + nodes[0].ID + "?stale=true"} {
		a := w.do("GET", path, nil)
		if got := a.header.Get(HeaderStale); a.status != http.StatusOK || !strings.HasSuffix(got, "age=12.3") || !strings.HasPrefix(got, "index=") || strings.HasPrefix(got, "index=0") {
			t.Errorf("%s: %d, stale %q", path, a.status, got)
		}
	}
	w.control.setLeader(false, "", "")
	if a := w.do("GET", "/v1.41/nodes", nil, HeaderStale, "true"); a.status != http.StatusOK || !strings.HasSuffix(a.header.Get(HeaderStale), "age=unknown") {
		t.Errorf("asked by a header: %d, stale %q", a.status, a.header.Get(HeaderStale))
	}
	w.refused("POST", "/services/create?stale=true", serviceSpec("web"), http.StatusInternalServerError, errNoLeader.Error())
	w.control.setLeader(true, "node1", "")
	if a := w.do("GET", "/nodes", nil); a.header.Get(HeaderStale) != "" {
		t.Errorf("an answer of the leader's says that it is stale: %q", a.header.Get(HeaderStale))
	}
}
