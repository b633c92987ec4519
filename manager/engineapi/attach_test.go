package engineapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// containers has the engine take requests about containers and tell what they were; container c1 exists.
func (e *fakeEngine) containers() (asked func() string) {
	var all []string
	e.mu.Lock()
	defer e.mu.Unlock()
	e.others = func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			if r.URL.Path == "/containers/c1/json" {
				_, _ = io.WriteString(w, `{"Id":"c1c1c1","Name":"/one"}`)
				return
			}
			writeError(w, errorf(http.StatusNotFound, "No such container: %s", strings.Split(r.URL.Path, "/")[2]))
			return
		}
		body, _ := io.ReadAll(r.Body)
		e.mu.Lock()
		all = append(all, original(r).URL.RequestURI()+" "+string(body))
		e.mu.Unlock()
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"Id":"c2","Warnings":[]}`)
	}
	return func() string {
		e.mu.Lock()
		defer e.mu.Unlock()
		text := strings.Join(all, "\n")
		all = nil
		return text
	}
}

// places has the managers give places on network front and refuse network back; log tells what was asked and done.
func (w *world) places() (log func() string) {
	var lines []string
	var open sync.WaitGroup // places that are not settled: the answer is on its way a little before
	next := netip.MustParseAddr("10.0.1.5")
	w.local.attach = func(req protocol.AttachRequest) (*Attachment, error) {
		lines = append(lines, fmt.Sprintf("%s %v %q %q", req.Network, req.Names, req.ContainerID, req.Address))
		switch req.Network {
		case "front", "frontnet":
		case "back", "backnet":
			return nil, rpcErrorf(permissionDenied, "network back not manually attachable")
		default:
			return nil, rpcErrorf(notFound, "network %s not found", req.Network)
		}
		open.Add(1)
		at := &Attachment{Network: "front-1", Address: next, Resolver: netip.MustParseAddr("10.0.1.2"), Done: func() {
			w.local.mu.Lock()
			defer w.local.mu.Unlock()
			lines = append(lines, "done")
			open.Done()
		}}
		if req.Address != "" {
			at.Address = netip.MustParseAddr(req.Address)
		}
		next = next.Next()
		return at, nil
	}
	return func() string {
		open.Wait()
		w.local.mu.Lock()
		defer w.local.mu.Unlock()
		text := strings.Join(lines, "\n")
		lines = nil
		return text
	}
}

// Whatever a container asks for beyond its network reaches the engine as it was; the network is the engine's, and the
// address the swarm's.
func TestContainersOnNetworksOfTheSwarm(t *testing.T) {
	w := newWorld(t)
	w.local.set(swarm.Info{NodeID: "node2", LocalNodeState: swarm.LocalNodeStateActive}, nil, errWorker)
	asked, log := w.engine.containers(), w.places()
	w.engine.add(networkNamed("mine", nil))

	for _, c := range []struct{ path, body, engine, managers string }{
		{"/v1.41/containers/create?name=x", `{"Image":"app","Future":1.50,"HostConfig":{"NetworkMode":"front","Memory":9007199254740993},"NetworkingConfig":{"EndpointsConfig":{"front":{"Aliases":["www"]}}}}`,
			`/v1.41/containers/create?name=x {"Future":1.50,"HostConfig":{"Dns":["10.0.1.2"],"Memory":9007199254740993,"NetworkMode":"front-1"},"Image":"app","NetworkingConfig":{"EndpointsConfig":{"front-1":{"Aliases":["www"],"IPAMConfig":{"IPv4Address":"10.0.1.5"}}}}}`,
			`front [x www] "" ""` + "\ndone"},
		{"/containers/create", `{"hostconfig":{"networkmode":"front","DNS":["9.9.9.9"]}}`, // as written by hand
			`/containers/create {"NetworkingConfig":{"EndpointsConfig":{"front-1":{"IPAMConfig":{"IPv4Address":"10.0.1.6"}}}},"hostconfig":{"DNS":["9.9.9.9"],"networkmode":"front-1"}}`,
			`front [] "" ""` + "\ndone"},
		{"/containers/create", `{"HostConfig":{"NetworkMode":"mine"},"NetworkingConfig":{"EndpointsConfig":{"front":{"IPAMConfig":{"IPv4Address":"10.0.1.99"}},"mine":{}}}}`,
			`/containers/create {"HostConfig":{"Dns":["10.0.1.2"],"NetworkMode":"mine"},"NetworkingConfig":{"EndpointsConfig":{"front-1":{"IPAMConfig":{"IPv4Address":"10.0.1.99"}},"mine":{}}}}`,
			`front [] "" "10.0.1.99"` + "\ndone"},
		{"/networks/front/connect", `{"Container":"c1","EndpointConfig":{"Aliases":["a"]}}`,
			`/networks/front-1/connect {"Container":"c1","EndpointConfig":{"Aliases":["a"],"IPAMConfig":{"IPv4Address":"10.0.1.8"}}}`,
			`front [one a] "c1c1c1" ""` + "\ndone"},
		{"/v1.41/networks/front/connect", `{"Container":"c1"}`,
			`/v1.41/networks/front-1/connect {"Container":"c1","EndpointConfig":{"IPAMConfig":{"IPv4Address":"10.0.1.9"}}}`,
			`front [one] "c1c1c1" ""` + "\ndone"},
		// What is none of the swarm's.
		{"/containers/create", `{"HostConfig":{"NetworkMode":"nosuch"}}`, `/containers/create {"HostConfig":{"NetworkMode":"nosuch"}}`, `nosuch [] "" ""`},
		{"/containers/create", `not JSON`, `/containers/create not JSON`, ""},
		{"/networks/mine/connect", `{"Container":"c1"}`, `/networks/mine/connect {"Container":"c1"}`, ""},
		{"/networks/mine/disconnect", `{"Container":"c1"}`, `/networks/mine/disconnect {"Container":"c1"}`, ""},
	} {
		if a := w.do("POST", c.path, c.body); a.status != http.StatusCreated {
			t.Errorf("%s: %d %s", c.body, a.status, a.message())
		}
		if got := asked(); got != c.engine {
			t.Errorf("%s %s: the engine was asked\n%s\nwant\n%s", c.path, c.body, got, c.engine)
		}
		if got := log(); got != c.managers {
			t.Errorf("%s %s: the managers were asked\n%s\nwant\n%s", c.path, c.body, got, c.managers)
		}
	}
	for _, mode := range []string{"", "default", "bridge", "host", "none", "mine", "container:c1"} {
		w.do("POST", "/containers/create?name=of-"+mode, map[string]any{"HostConfig": map[string]any{"NetworkMode": mode}})
		if got := asked() + log(); !strings.Contains(got, "of-"+mode) || strings.Contains(got, "done") {
			t.Errorf("%s: %s", mode, got)
		}
	}

	part := standIn("frontnet", "front-1") // the engine had a network of that name already
	part.Labels[labelNetworkName] = "front"
	w.engine.add(part)
	w.engine.add(standIn("backnet", "back-1"))
	for _, ref := range []string{"front", "frontnet"} { // by the swarm's name and id
		w.do("POST", "/v1.41/networks/"+ref+"/disconnect", `{"Container":"c1"}`)
		if got := asked(); got != `/v1.41/networks/front-1/disconnect {"Container":"c1"}` {
			t.Errorf("disconnect from %s: %s", ref, got)
		}
	}
	// What takes containers off networks is answered once the managers know.
	w.local.mu.Lock()
	w.local.settled = 0
	w.local.mu.Unlock()
	if a := w.do("DELETE", "/v1.41/containers/c1?force=1", nil); a.status != http.StatusCreated || a.body != `{"Id":"c2","Warnings":[]}` {
		t.Errorf("the engine's answer became %d %s", a.status, a.body)
	}
	if got := asked(); got != "/v1.41/containers/c1?force=1 " {
		t.Errorf("remove: %s", got)
	}
	w.local.mu.Lock()
	if w.local.settled != 1 {
		t.Errorf("settled %d times", w.local.settled)
	}
	w.local.mu.Unlock()
	log()
	const denied = "Could not attach to network %s: rpc error: code = PermissionDenied desc = network back not manually attachable"
	for _, ref := range []string{"back", "backnet", "engback-1"} { // also by the engine's id of this node's part
		w.refused("POST", "/containers/create", map[string]any{"HostConfig": map[string]any{"NetworkMode": ref}}, http.StatusForbidden, fmt.Sprintf(denied, ref))
		w.refused("POST", "/networks/"+ref+"/connect", map[string]any{"Container": "c1"}, http.StatusForbidden, fmt.Sprintf(denied, ref))
	}
	// Of two networks the second is refused: the first place is given up.
	log()
	w.refused("POST", "/containers/create", `{"HostConfig":{"NetworkMode":"front"},"NetworkingConfig":{"EndpointsConfig":{"back":{}}}}`, http.StatusForbidden, fmt.Sprintf(denied, "back"))
	if got := log(); !strings.HasSuffix(got, "done") {
		t.Errorf("the place on the first network is kept:\n%s", got)
	}
	w.refused("POST", "/networks/front/connect", map[string]any{"Container": "nosuch"}, http.StatusNotFound, "No such container: nosuch")
	if got := asked() + log(); got != "" {
		t.Errorf("after refusals: %s", got)
	}

	// Part of no swarm: all is the engine's.
	w.local.set(swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive}, nil, errNever)
	w.do("POST", "/containers/create", map[string]any{"HostConfig": map[string]any{"NetworkMode": "front"}})
	if got := log(); got != "" {
		t.Errorf("outside of a swarm: %s", got)
	}
}

// A client that goes away leaves the engine at work: the place is held until that is done.
func TestAPlaceIsHeldUntilTheEngineIsDone(t *testing.T) {
	for _, c := range []struct{ path, body string }{
		{"/containers/create", `{"HostConfig":{"NetworkMode":"front"}}`},
		{"/networks/front/connect", `{"Container":"c1"}`},
	} {
		w := newWorld(t)
		w.engine.containers()
		log := w.places()
		begun, release := make(chan struct{}), make(chan struct{})
		w.engine.mu.Lock()
		others := w.engine.others
		w.engine.others = func(rw http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				close(begun)
				<-release
			}
			others(rw, r)
		}
		w.engine.mu.Unlock()
		ctx, leave := context.WithCancel(t.Context())
		r := httptest.NewRequestWithContext(ctx, "POST", c.path, strings.NewReader(c.body))
		r.Header.Set("Content-Type", "application/json")
		answer, answered := httptest.NewRecorder(), make(chan struct{})
		go func() {
			defer close(answered)
			w.api.Socket().ServeHTTP(answer, r)
		}()
		<-begun
		leave()
		close(release)
		<-answered
		if got := log(); answer.Code != http.StatusCreated || !strings.HasSuffix(got, "done") {
			t.Errorf("%s: it ended with %d %s, %s", c.path, answer.Code, answer.Body, got)
		}
	}
}

// Clients look up the service of every task they see; these tasks have none.
func TestAttachmentsAreListedOnDemand(t *testing.T) {
	w := newWorld(t)
	place := &cluster.Task{}
	place.ID, place.NodeID, place.DesiredState, place.Status.State = "place1", "node1", swarm.TaskStateRunning, swarm.TaskStateRunning
	place.Spec.NetworkAttachmentSpec, place.Spec.Runtime = &swarm.NetworkAttachmentSpec{ContainerID: "c1"}, swarm.RuntimeNetworkAttachment
	place.Spec.Networks = []swarm.NetworkAttachmentConfig{{Target: "frontnet"}}
	front := &cluster.Network{}
	front.ID, front.Spec.Name, front.Spec.Attachable = "frontnet", "front", true
	w.control.put(t, append(aCluster(), front, place, aNode("node1", "vm1"))...)
	listed := func(query string) bool {
		var all []swarm.Task
		a := w.do("GET", "/tasks?filters="+url.QueryEscape(query), nil)
		if err := json.Unmarshal([]byte(a.body), &all); err != nil {
			t.Fatalf("%v: %s", err, a.body)
		}
		return slices.ContainsFunc(all, func(task swarm.Task) bool { return task.ID == "place1" })
	}
	for query, want := range map[string]bool{
		"{}": false, `{"node":["node1"]}`: false, `{"desired-state":["running"]}`: false, `{"runtime":["container"]}`: false,
		`{"runtime":["attachment"]}`: true, `{"runtime":["attachment"],"node":["node1"]}`: true,
	} {
		if got := listed(query); got != want {
			t.Errorf("tasks by %s: shows it: %v", query, got)
		}
	}
	if a := w.do("GET", "/tasks/place1", nil); a.status != http.StatusOK || !strings.Contains(a.body, `"NetworkAttachmentSpec":{"ContainerID":"c1"}`) {
		t.Errorf("%d %s", a.status, a.body)
	}
	w.refused("DELETE", "/networks/front", nil, http.StatusBadRequest, "rpc error: code = FailedPrecondition desc = network frontnet is in use by task place1 (container c1 on node vm1)")
}
