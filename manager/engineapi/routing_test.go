package engineapi

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/raftstore"
)

func TestEveryListIsAListAndAnswersWithAndWithoutVersion(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{"/nodes", "/services", "/tasks", "/secrets", "/configs"} {
		for _, prefix := range []string{"", "/v1.24", "/v1.41", "/v1.51"} {
			a := w.do("GET", prefix+path, nil)
			if a.status != http.StatusOK || a.body != "[]" || a.header.Get("Content-Type") != "application/json" {
				t.Errorf("GET %s%s: %d %q %s", prefix, path, a.status, a.body, a.header.Get("Content-Type"))
			}
			if h := w.do("HEAD", prefix+path, nil); h.status != http.StatusOK || h.body != "" {
				t.Errorf("HEAD %s%s: %d %q", prefix, path, h.status, h.body)
			}
		}
	}
}

func TestWhatIsNotTheSwarmsGoesToTheEngineUnchanged(t *testing.T) {
	w := newWorld(t)
	for _, path := range []string{"/echo?a=1&b=x;y&c=%2F", "/v1.41/echo?q=%7B%22a%22%3A1%7D"} {
		req, _ := http.NewRequestWithContext(t.Context(), "POST", "http://docker"+path, strings.NewReader("body"))
		resp, err := w.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		if _, err := copyAll(&b, resp); err != nil {
			t.Fatal(err)
		}
		if want := "POST " + path + " body"; b.String() != want || resp.Trailer.Get("X-Sum") != "4" {
			t.Errorf("got %q with trailer %q, want %q with 4", b.String(), resp.Trailer.Get("X-Sum"), want)
		}
	}
	w.refused("PUT", "/services", nil, http.StatusNotFound, "page not found")
	w.refused("GET", "/miniswarm/nothing", nil, http.StatusNotFound, "page not found")
	if !strings.Contains(w.engine.seen(), "PUT /services") || strings.Contains(w.engine.seen(), "miniswarm") {
		t.Errorf("the engine saw:\n%s", w.engine.seen())
	}
}

func TestEngineThatIsDown(t *testing.T) {
	w := newWorld(t)
	w.control.put(t, aCluster()...)
	w.serve("/nowhere/engine.sock")
	if a := w.do("GET", "/containers/json", nil); a.status != http.StatusBadGateway || !strings.Contains(a.message(), "the Docker Engine at unix:///nowhere/engine.sock does not answer") {
		t.Errorf("passed through: %d %s", a.status, a.body)
	}
	if a := w.do("HEAD", "/_ping", nil); a.status != http.StatusOK || a.header.Get("Swarm") != "active/manager" || a.header.Get("Api-Version") != fallbackAPIVersion {
		t.Errorf("ping: %d %v", a.status, a.header)
	}
	info := must[struct {
		Swarm    swarm.Info
		Warnings []string
	}](w, http.StatusOK, "GET", "/info", nil)
	if !info.Swarm.ControlAvailable || len(info.Warnings) != 1 || !strings.Contains(info.Warnings[0], "does not answer") {
		t.Errorf("info: %+v", info)
	}
	v := must[struct {
		ApiVersion string
		Components []struct{ Name string }
	}](w, http.StatusOK, "GET", "/version", nil)
	if v.ApiVersion == "" || len(v.Components) != 1 || v.Components[0].Name != "miniswarm" {
		t.Errorf("version: %+v", v)
	}
	nets := must[[]struct{ Name string }](w, http.StatusOK, "GET", "/networks", nil)
	if len(nets) != 1 || nets[0].Name != "ingress" {
		t.Errorf("networks: %+v", nets)
	}
}

func TestErrorsOfNodesThatAreNoManagers(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		state swarm.LocalNodeState
		err   error
	}{{swarm.LocalNodeStateInactive, errNever}, {swarm.LocalNodeStateActive, errWorker}} {
		w.local.set(swarm.Info{LocalNodeState: c.state}, nil, c.err)
		for _, p := range []string{"GET /swarm", "POST /swarm/update?version=1", "GET /swarm/unlockkey", "GET /nodes", "GET /nodes/x", "DELETE /nodes/x", "POST /nodes/x/update?version=1",
			"GET /services", "POST /services/create", "GET /services/x", "POST /services/x/update?version=1", "DELETE /services/x", "GET /services/x/logs?stdout=1",
			"GET /tasks", "GET /tasks/x", "GET /tasks/x/logs?stdout=1", "GET /secrets", "POST /secrets/create", "DELETE /secrets/x", "GET /configs", "POST /configs/create",
			"GET /miniswarm/tasks/x/explain", "POST /miniswarm/tasks/x/engine/containers/x/exec", "GET /miniswarm/services/x/explain", "POST /swarm/unlock"} {
			method, path, _ := strings.Cut(p, " ")
			w.refused(method, path, nil, http.StatusServiceUnavailable, c.err.Error())
		}
		w.refused("POST", "/networks/create", map[string]any{"Name": "n", "Driver": "overlay"}, http.StatusForbidden, c.err.Error())
	}
}

func TestBodiesThatAreNoJSON(t *testing.T) {
	w := newWorld(t)
	w.control.put(t, aCluster()...)
	for _, path := range []string{"/services/create", "/secrets/create", "/configs/create", "/swarm/init", "/swarm/join", "/networks/create", "/nodes/x/update?version=1", "/services/x/update?version=1", "/swarm/update?version=1", "/swarm/unlock"} {
		for _, c := range []struct{ body, text string }{
			{"{", "invalid JSON: unexpected EOF"},
			{" ", "invalid JSON: got EOF while reading request body"},
			{"nonsense", "invalid JSON: invalid character 'o' in literal null (expecting 'u')"},
			{"[1]", "invalid JSON: json: cannot unmarshal array into Go value of type "},
			{"{} {}", "unexpected content after JSON"},
		} {
			a := w.do("POST", path, c.body)
			if a.status != http.StatusBadRequest || !strings.HasPrefix(a.message(), c.text) {
				t.Errorf("POST %s %q: %d %s", path, c.body, a.status, a.body)
			}
		}
		if a := w.do("POST", path, "a=b", "Content-Type", "application/x-www-form-urlencoded"); a.status != http.StatusBadRequest ||
			a.message() != "unsupported Content-Type header (application/x-www-form-urlencoded): must be 'application/json'" {
			t.Errorf("POST %s as a form: %d %s", path, a.status, a.body)
		}
		if a := w.do("POST", path, `{"Name":"`+strings.Repeat("x", maxBody)+`"}`); a.status != http.StatusRequestEntityTooLarge {
			t.Errorf("POST %s with a huge body: %d %s", path, a.status, a.body)
		}
	}
}

func TestSwarmMembership(t *testing.T) {
	w := newWorld(t)
	w.refused("POST", "/swarm/init", swarm.InitRequest{}, http.StatusServiceUnavailable, errAlready.Error())
	w.refused("POST", "/swarm/join", swarm.JoinRequest{}, http.StatusServiceUnavailable, errAlready.Error())
	w.local.set(swarm.Info{}, nil, errNever)
	w.refused("POST", "/swarm/init", swarm.InitRequest{Spec: swarm.Spec{Annotations: swarm.Annotations{Name: "mine"}}}, http.StatusBadRequest, `swarm spec must be named "default"`)
	if a := w.do("POST", "/swarm/init", swarm.InitRequest{ListenAddr: "0.0.0.0:2377"}); a.status != http.StatusOK || a.body != `"node1"` {
		t.Errorf("init: %d %s", a.status, a.body)
	}
	w.local.set(swarm.Info{}, nil, errNever)
	w.refused("POST", "/swarm/join", swarm.JoinRequest{}, http.StatusBadRequest, "at least 1 RemoteAddr is required to join")
	w.refused("POST", "/swarm/join", swarm.JoinRequest{RemoteAddrs: []string{"10.0.0.1"}, JoinToken: "bad"}, http.StatusBadRequest, "rpc error: code = InvalidArgument desc = A valid join token is necessary to join this cluster")
	if a := w.do("POST", "/swarm/join", swarm.JoinRequest{RemoteAddrs: []string{"10.0.0.1"}, JoinToken: "SWMTKN-1-good"}); a.status != http.StatusOK || a.body != "" {
		t.Errorf("join: %d %s", a.status, a.body)
	}
	if a := w.do("POST", "/swarm/leave", nil); a.status != http.StatusServiceUnavailable {
		t.Errorf("leave: %d %s", a.status, a.body)
	}
	if a := w.do("POST", "/swarm/leave?force=true", nil); a.status != http.StatusOK {
		t.Errorf("leave by force: %d %s", a.status, a.body)
	}
}

func TestPingSaysWhatThisNodeIs(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		info swarm.Info
		want string
	}{
		{swarm.Info{}, "inactive"},
		{swarm.Info{LocalNodeState: swarm.LocalNodeStatePending}, "pending"},
		{swarm.Info{LocalNodeState: swarm.LocalNodeStateError}, "error"},
		{swarm.Info{LocalNodeState: swarm.LocalNodeStateLocked}, "locked"},
		{swarm.Info{LocalNodeState: swarm.LocalNodeStateActive}, "active/worker"},
		{swarm.Info{LocalNodeState: swarm.LocalNodeStateActive, ControlAvailable: true}, "active/manager"},
	} {
		w.local.set(c.info, nil, errNever)
		for _, method := range []string{"GET", "HEAD"} {
			a := w.do(method, "/_ping", nil)
			if a.status != http.StatusOK || a.header.Get("Swarm") != c.want || a.header.Get("Api-Version") != "1.41" || a.header.Get("Ostype") != "linux" || a.header.Get("Builder-Version") != "1" {
				t.Errorf("%s: %d %v, want %s", method, a.status, a.header, c.want)
			}
			if want := map[string]string{"GET": "OK", "HEAD": ""}[method]; a.body != want {
				t.Errorf("%s: body %q", method, a.body)
			}
		}
	}
}

func TestInfoAndVersionAreTheEnginesWithOurs(t *testing.T) {
	w := newWorld(t)
	w.control.put(t, append(aCluster(), aManager("node1", "vm1"), aNode("node2", "vm2"))...)
	a := w.do("GET", "/v1.41/info", nil)
	var info map[string]json.RawMessage
	if err := json.Unmarshal([]byte(a.body), &info); err != nil {
		t.Fatal(err)
	}
	if string(info["MemTotal"]) != "12345678901234567" || string(info["FutureField"]) != `{"a":1}` {
		t.Errorf("fields of the engine changed: %s", a.body)
	}
	var sw swarm.Info
	if err := json.Unmarshal(info["Swarm"], &sw); err != nil {
		t.Fatal(err)
	}
	if sw.NodeID != "node1" || sw.Nodes != 2 || sw.Managers != 1 || sw.Cluster == nil || sw.Cluster.ID != "cluster1" || !sw.ControlAvailable || len(sw.Warnings) != 0 {
		t.Errorf("swarm: %s", info["Swarm"])
	}
	if strings.Contains(a.body, "SWMTKN") || strings.Contains(a.body, "PRIVATE KEY") {
		t.Errorf("info gives secrets away: %s", a.body)
	}
	second := aManager("node2", "vm2")
	w.control.put(t, second)
	w.control.members = append(w.control.members, memberOf(second))
	two := must[struct {
		Swarm    swarm.Info
		Warnings []string
	}](w, http.StatusOK, "GET", "/info", nil)
	if len(two.Warnings) != 2 || two.Warnings[1] != twoManagers || len(two.Swarm.Warnings) != 1 {
		t.Errorf("warnings with two managers: %q", two.Warnings)
	}
	v := must[struct {
		Version    string
		Components []struct{ Name, Version string }
	}](w, http.StatusOK, "GET", "/v1.51/version", nil)
	if v.Version != "20.10.24" || len(v.Components) != 2 || v.Components[1].Name != "miniswarm" || v.Components[1].Version != "1.2.3" {
		t.Errorf("version: %+v", v)
	}
	w.control.readErr = context.DeadlineExceeded
	lost := must[struct{ Swarm swarm.Info }](w, http.StatusOK, "GET", "/info", nil)
	if lost.Swarm.Error == "" || lost.Swarm.Cluster != nil {
		t.Errorf("info without a majority: %+v", lost.Swarm)
	}
}

// follower is a manager that forwards to the leader of w.
func follower(t *testing.T, leader *world) *world {
	t.Helper()
	port := httptest.NewTLSServer(http.StripPrefix("/engine", leader.api.Cluster()))
	t.Cleanup(port.Close)
	f := newWorld(t)
	f.control.setLeader(false, "node1", strings.TrimPrefix(port.URL, "https://"))
	f.control.forward = func(string) http.RoundTripper { return port.Client().Transport }
	return f
}

func TestFollowersForwardToTheLeader(t *testing.T) {
	leader := newWorld(t)
	leader.control.put(t, aCluster()...)
	f := follower(t, leader)
	created := must[swarm.ServiceCreateResponse](f, http.StatusCreated, "POST", "/v1.41/services/create", serviceSpec("web"))
	if leader.control.snapshot().Service(created.ID) == nil {
		t.Fatal("the leader does not have the service")
	}
	if got := must[[]swarm.Service](f, http.StatusOK, "GET", `/v1.41/services?filters={"name":["web"]}`, nil); len(got) != 1 {
		t.Errorf("list through a follower: %+v", got)
	}
	f.refused("GET", "/services/nothing", nil, http.StatusNotFound, "service nothing not found")
	// The version in the path comes along: secret templates are refused to old clients.
	f.refused("POST", "/v1.36/secrets/create", swarm.SecretSpec{Annotations: swarm.Annotations{Name: "s"}, Templating: &swarm.Driver{Name: "golang"}, Data: []byte("x")},
		http.StatusBadRequest, "secret templating is not supported on the specified API version: 1.36")
}

func TestRequestsSurviveAChangeOfLeader(t *testing.T) {
	leader := newWorld(t)
	leader.control.put(t, aCluster()...)
	f := follower(t, leader)
	_, _, right := f.control.Leader()
	forward := f.control.forward

	// Each of these changes the leader while the request is under way, at a moment that is certain.
	onAsk := func(then func()) {
		f.control.onLeaderAsked = then
	}
	t.Run("no leader at first", func(t *testing.T) {
		f.control.setLeader(false, "", "")
		onAsk(func() { f.control.leader, f.control.addr = "node1", right })
		if a := f.do("GET", "/services", nil); a.status != http.StatusOK {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
	t.Run("demoted while it waits for a leader", func(t *testing.T) {
		f.control.setLeader(false, "", "")
		before := f.local.Info()
		onAsk(func() { f.local.set(before, nil, errWorker) })
		began := time.Now()
		f.refused("GET", "/services", nil, http.StatusServiceUnavailable, errWorker.Error())
		if took := time.Since(began); took > electionPatience/2 {
			t.Errorf("said so after %s", took)
		}
		f.local.set(before, f.control, nil)
	})
	t.Run("the asked one is no manager any more", func(t *testing.T) {
		f.control.setLeader(false, "node1", right)
		asked := 0
		leader.local.onControl = func() (Control, error) {
			if asked++; asked == 1 {
				return nil, errWorker
			}
			return leader.control, nil
		}
		defer func() { leader.local.onControl = nil }()
		if a := f.do("GET", "/services", nil); a.status != http.StatusOK {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
	t.Run("the asked one does not lead", func(t *testing.T) {
		leader.control.setLeader(false, "node3", "10.0.0.3:2377")
		leader.control.onLeaderAsked = func() { leader.control.self, leader.control.leader = true, "node1" }
		if a := f.do("POST", "/services/create", serviceSpec("moved")); a.status != http.StatusCreated {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
	t.Run("the leader does not answer the connection", func(t *testing.T) {
		f.control.setLeader(false, "node3", "127.0.0.1:1")
		onAsk(func() { f.control.leader, f.control.addr = "node1", right })
		if a := f.do("POST", "/services/create", serviceSpec("again")); a.status != http.StatusCreated {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
	t.Run("the leader is cut off", func(t *testing.T) {
		asked := make(chan struct{}, 1)
		f.control.setLeader(false, "node3", "10.9.9.9:2377")
		f.control.forward = func(id string) http.RoundTripper {
			if id == "node1" {
				return forward("node1")
			}
			return roundTripper(func(r *http.Request) (*http.Response, error) {
				asked <- struct{}{}
				<-r.Context().Done() // it never answers
				return nil, context.Cause(r.Context())
			})
		}
		for _, c := range []struct {
			method, path string
			body         any
			status       int
		}{{"GET", "/services", nil, http.StatusOK}, {"POST", "/services/create", serviceSpec("unsure"), http.StatusServiceUnavailable}} {
			f.control.setLeader(false, "node3", "10.9.9.9:2377")
			got := make(chan answer, 1)
			go func() { got <- f.do(c.method, c.path, c.body) }()
			<-asked
			f.control.setLeader(false, "node1", right)
			if a := <-got; a.status != c.status {
				t.Errorf("%s: %d %s", c.method, a.status, a.body)
			}
		}
	})
	t.Run("leadership is lost before the write", func(t *testing.T) {
		w := newWorld(t)
		w.control.put(t, aCluster()...)
		lost := &losesOnce{fakeControl: w.control}
		w.local.set(w.local.Info(), lost, nil)
		if a := w.do("POST", "/services/create", serviceSpec("once")); a.status != http.StatusCreated || lost.calls != 2 {
			t.Errorf("%d %s after %d calls", a.status, a.body, lost.calls)
		}
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// losesOnce refuses its first write as a store does that ceased to lead.
type losesOnce struct {
	*fakeControl
	calls int
}

func (l *losesOnce) Update(ctx context.Context, fn func(*cluster.Snapshot) (*cluster.Txn, error)) (uint64, error) {
	if l.calls++; l.calls == 1 {
		return 0, &raftstore.ErrNotLeader{}
	}
	return l.fakeControl.Update(ctx, fn)
}

func TestForwardedRequestsAreNotForwardedAgain(t *testing.T) {
	w := newWorld(t)
	w.control.setLeader(false, "node3", "10.0.0.3:2377")
	r := httptest.NewRequest("GET", "/services", nil)
	r.Header.Set(headerForwarded, "node2")
	rec := httptest.NewRecorder()
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // the follower would wait; here the patience is over at once
	w.api.Cluster().ServeHTTP(rec, r.WithContext(ctx))
	if rec.Code != http.StatusMisdirectedRequest {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

func TestAFaultIsAnAnswer(t *testing.T) {
	w := newWorld(t)
	w.api.socket.Handle("GET /fault", handler(func(http.ResponseWriter, *http.Request) error {
		var spec *swarm.ServiceSpec
		_ = spec.Name
		return nil
	}))
	if a := w.do("GET", "/fault", nil); a.status != http.StatusInternalServerError || !strings.Contains(a.message(), "nil pointer") {
		t.Errorf("%d %s", a.status, a.body)
	}
}
