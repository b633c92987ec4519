package engineapi

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/lab"
)

// TestErrorsAreDockerSwarms asks a real Docker Swarm and miniswarm for the same impossible things and compares what they
// say. Docker's engine is the one of the machine (20.10), whose swarm part is older than the contract; the differences
// that are meant are listed with their reasons.
func TestErrorsAreDockerSwarms(t *testing.T) {
	l := lab.ForTest(t, lab.Options{Nodes: 1, NoDaemon: true})
	host, err := l.Host("vm1")
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs, mine, docker := bothSwarms(t, host)
	// Differences that are meant, with their reasons; what ours says there is in the other tests.
	meant := map[string]string{
		"more than can be":               "Docker takes any number and dies of it",
		"more at a time than can be":     "Docker takes any number and dies of it",
		"more completions than can be":   "Docker takes any number and dies of it",
		"network of the engine":          "20.10 says it in other words",
		"port out of range":              "Docker stores it, and no task can ever run",
		"no target port":                 "Docker stores it, and no task can ever run",
		"protocol":                       "Docker takes any word for tcp",
		"template in env":                "the end of the text is Go's",
		"template in a mount":            "the end of the text is Go's",
		`GET /services?filters=nonsense`: "newer engines say no more than that the filter is invalid", `GET /services?filters=[]`: "the same", `GET /services?filters={"name":"other"}`: "the same",
		`GET /tasks?filters={"service":[""]}`: "20.10 finds the one service there is by the beginning of its id",
		"GET /services/other/logs":            "newer engines call it a bad request in other words", "GET /services/other/logs?stdout=0&stderr=false": "the same",
		"GET /services/other/logs?stdout=1&since=x": "newer engines call it a bad request",
	}
	// What newer engines say otherwise than 20.10 does: the texts are theirs.
	newer := strings.NewReplacer("Invalid filter", "invalid filter", "unsupported registryAuthFrom value", "invalid registryAuthFrom 'moon'")
	compare := func(name, method, path string, body func(refs) any) {
		t.Helper()
		if why := meant[name]; why != "" {
			return
		}
		ask := func(w *world, r refs) string {
			a := w.do(method, strings.NewReplacer("OTHER", r.other, "SECRET", r.secret).Replace(path), body(r))
			text := a.message()
			if a.status < 300 {
				text = "(done)"
			}
			var list []json.RawMessage
			if json.Unmarshal([]byte(a.body), &list) == nil && !strings.Contains(path, "/networks") && !strings.Contains(path, "/tasks") { // of those each has its own
				text = fmt.Sprintf("(%d objects)", len(list))
			}
			for id, word := range map[string]string{r.other: "OTHER", r.secret: "SECRET", r.config: "CONFIG"} {
				text = strings.ReplaceAll(text, id, word)
			}
			for _, n := range must[[]network.Inspect](w, 200, "GET", "/networks", nil) {
				text = strings.ReplaceAll(text, n.ID, "ID-OF-"+n.Name)
			}
			for _, n := range must[[]swarm.Node](w, 200, "GET", "/nodes", nil) {
				text = strings.ReplaceAll(text, n.ID, "NODE")
			}
			return fmt.Sprintf("%d %s", a.status, text)
		}
		o, d := ask(ours, mine), newer.Replace(ask(theirs, docker))
		o = strings.Replace(o, "400 invalid JSON: ", "400 ", 1)
		if o != d {
			t.Errorf("%s:\nminiswarm %s\nDocker    %s", name, o, d)
		}
	}
	for i, c := range refusedServices(refs{}) {
		compare(c.name, "POST", "/services/create", func(r refs) any {
			spec := serviceSpec("web")
			refusedServices(r)[i].change(&spec)
			return spec
		})
	}
	nothing := func(refs) any { return nil }
	is := func(v any) func(refs) any { return func(refs) any { return v } }
	for _, p := range []string{"GET /services/nothing", "DELETE /services/nothing", "GET /nodes/nothing", "DELETE /nodes/nothing", "DELETE /nodes/self", "GET /tasks/nothing", "GET /secrets/nothing", "DELETE /secrets/nothing",
		"GET /configs/nothing", "DELETE /configs/nothing", "GET /networks/nothing", "DELETE /networks/nothing", "DELETE /secrets/pass", "DELETE /configs/conf", "DELETE /networks/back", "DELETE /networks/ingress",
		"GET /services?filters={\"colour\":[\"red\"]}", "GET /nodes?filters={\"role\":[\"king\"]}", "GET /nodes?filters={\"membership\":[\"maybe\"]}", "GET /tasks?filters={\"service\":[\"nothing\"]}",
		"GET /tasks?filters={\"node\":[\"nothing\"]}", "GET /tasks?filters={\"desired-state\":[\"asleep\"]}", "GET /configs?filters={\"names\":[\"a\"]}", "GET /networks?filters={\"colour\":[\"red\"]}", "GET /networks?filters={\"dangling\":[\"odd\"]}",
		"GET /services/other?insertDefaults=x", "GET /services?status=maybe", "GET /services/nothing/logs?stdout=1", "GET /tasks/nothing/logs?stdout=1", "GET /services/other/logs?stdout=1&tail=x", "GET /services/other/logs?stdout=1&tail=-1",
		"GET /services?filters={\"mode\":[\"odd\"]}", "GET /services?filters={\"runtime\":[\"odd\"]}", "GET /services?filters={\"name\":[\"OTHER\"]}", "GET /services?filters={\"name\":[\"othe\"]}", "GET /services?filters={\"name\":[\"OTHe\"]}",
		"GET /services?filters={\"name\":[\"\"]}", "GET /services?filters={\"label\":[\"\"]}", "GET /services?filters={\"label\":[\"a=\"]}", "GET /services?filters={\"id\":[\"OTHER\"]}", "GET /services?filters={\"id\":[\"zz\"],\"name\":[\"other\"]}", "GET /services?filters={}",
		"GET /services?filters=nonsense", "GET /services?filters=[]", "GET /services?filters={\"name\":\"other\"}", "GET /services?filters={\"name\":{\"other\":true}}", "GET /services?filters={\"name\":{\"other\":false}}",
		"GET /nodes?filters={\"membership\":[\"accepted\"]}", "GET /nodes?filters={\"membership\":[\"pending\"]}", "GET /nodes?filters={\"role\":[\"Manager\"]}", "GET /nodes?filters={\"role\":[\"\"]}", "GET /nodes?filters={\"name\":[\"vm\"]}",
		"GET /nodes?filters={\"node.label\":[\"none\"]}", "GET /nodes?filters={\"label\":[\"none=1\"]}", "GET /nodes?filters={\"engine.label\":[\"none=1\"]}", "GET /tasks?filters={\"runtime\":[\"odd\"]}", "GET /tasks?filters={\"_up-to-date\":[\"odd\"]}",
		"GET /tasks?filters={\"desired-state\":[\"\"]}", "GET /tasks?filters={\"desired-state\":[\"RUNNING\"]}", "GET /tasks?filters={\"state\":[\"running\"]}", "GET /tasks?filters={\"service\":[\"\"]}", "GET /tasks?filters={\"node\":[\"self\"]}",
		"GET /secrets?filters={\"names\":[\"pass\"]}", "GET /secrets?filters={\"names\":[\"pas\"]}", "GET /secrets?filters={\"name\":[\"pas\"]}", "GET /secrets?filters={\"id\":[\"SECRET\"]}", "GET /secrets?filters={\"label\":[\"none\"]}", "GET /secrets?filters={\"colour\":[\"red\"]}",
		"GET /configs?filters={\"name\":[\"con\"]}", "GET /configs?filters={\"id\":[\"zz\"]}", "GET /configs?filters={\"colour\":[\"red\"]}", "GET /networks?filters={\"type\":[\"odd\"]}", "GET /networks?filters={\"scope\":[\"odd\"]}", "GET /networks?filters={\"dangling\":[\"1\",\"0\"]}",
		"GET /networks/back?verbose=odd", "GET /networks/back?scope=odd", "GET /networks/back?scope=local", "GET /networks/back?scope=swarm", "GET /services/other/logs", "GET /services/other/logs?stdout=1&since=x", "GET /services/other/logs?stdout=0&stderr=false",
		"DELETE /services", "DELETE /tasks/nothing", "PUT /services/other", "GET /services/create", "POST /services/other", "GET /services/other/update", "POST /secrets", "GET /swarm/init", "POST /nodes", "GET /nothing/at/all", "GET /services/", "GET /services/other/",
		"GET /swarm/unlockkey", "POST /networks/prune?filters={\"colour\":[\"red\"]}"} {
		method, path, _ := strings.Cut(p, " ")
		compare(p, method, strings.ReplaceAll(strings.ReplaceAll(path, `"`, "%22"), "{", "%7B"), nothing)
	}
	spec := serviceSpec("other")
	renamed, global, bad := serviceSpec("renamed"), serviceSpec("other"), serviceSpec("other")
	global.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}}
	bad.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{}
	for _, c := range []struct {
		path string
		body any
	}{
		{"/services/create", "{"}, {"/services/create", " "}, {"/services/create", "[]"}, {"/services/create", `{"Mode":1}`},
		{"/services/OTHER/update", spec}, {"/services/OTHER/update?version=x", spec}, {"/services/OTHER/update?version=1", spec}, {"/services/OTHER/update?version=1&rollback=sideways", spec},
		{"/services/OTHER/update?version=1&registryAuthFrom=previous-spec", spec}, {"/services/OTHER/update?version=1", renamed}, {"/services/OTHER/update?version=1", global},
		{"/services/OTHER/update?version=1", bad}, {"/services/nothing/update?version=1", spec}, {"/services/OTHER/update?version=1&rollback=previous", spec},
		{"/nodes/self/update?version=1", swarm.NodeSpec{Role: "king", Availability: "active"}}, {"/nodes/self/update?version=1", swarm.NodeSpec{Role: "manager", Availability: "asleep"}}, {"/nodes/nothing/update", swarm.NodeSpec{}}, {"/nodes/nothing/update?version=1", swarm.NodeSpec{Role: "manager", Availability: "active"}},
		{"/secrets/create", map[string]any{"Name": ""}}, {"/secrets/create", map[string]any{"Name": "a-", "Data": []byte("x")}}, {"/secrets/create", map[string]any{"Name": "a"}}, {"/secrets/create", map[string]any{"Name": "pass", "Data": []byte("x")}},
		{"/secrets/create", map[string]any{"Name": "PASS", "Data": []byte("x")}}, {"/secrets/create", `{"Name":"a","Data":"no base64"}`}, {"/secrets/create", map[string]any{"Name": "d", "Driver": map[string]any{}}}, {"/secrets/create", map[string]any{"Name": "a", "Data": make([]byte, maxSecret)}},
		{"/configs/create", map[string]any{"Name": "a"}}, {"/configs/create", map[string]any{"Name": "conf", "Data": []byte("x")}}, {"/configs/create", map[string]any{"Name": "a", "Data": make([]byte, maxConfig)}},
		{"/secrets/SECRET/update", map[string]any{"Name": "pass"}}, {"/secrets/SECRET/update?version=x", map[string]any{"Name": "pass"}}, {"/secrets/SECRET/update?version=1", map[string]any{"Name": "pass"}}, {"/secrets/SECRET/update?version=1", map[string]any{"Name": "other"}}, {"/secrets/nothing/update?version=1", map[string]any{"Name": "pass"}},
		{"/secrets/SECRET/update?version=1", map[string]any{"Name": "pass", "Data": []byte("y")}}, {"/configs/nothing/update?version=1", map[string]any{"Name": "conf"}},
		{"/v1.36/secrets/create", map[string]any{"Name": "t", "Data": []byte("x"), "Templating": map[string]any{"Name": "golang"}}},
		{"/v1.36/configs/create", map[string]any{"Name": "t", "Data": []byte("x"), "Templating": map[string]any{"Name": "golang"}}},
		{"/secrets/create", map[string]any{"Name": "two words", "Data": []byte("x")}}, {"/configs/create", map[string]any{"Name": "", "Data": []byte("x")}},
		{"/swarm/update", swarm.Spec{}}, {"/swarm/update?version=0", swarm.Spec{Annotations: swarm.Annotations{Name: "default"}}}, {"/swarm/update?version=0&rotateWorkerToken=x", swarm.Spec{}}, {"/swarm/update?version=0&rotateManagerUnlockKey=x", swarm.Spec{}},
		{"/swarm/update?version=0", swarm.Spec{CAConfig: swarm.CAConfig{NodeCertExpiry: 5}}}, {"/swarm/update?version=0", swarm.Spec{Annotations: swarm.Annotations{Name: "mine"}}},
		{"/swarm/join", swarm.JoinRequest{}}, {"/swarm/unlock", swarm.UnlockRequest{UnlockKey: "x"}}, {"/swarm/init", swarm.InitRequest{}},
		{"/networks/create", network.CreateRequest{Name: "back", CreateOptions: network.CreateOptions{Driver: "overlay"}}}, {"/networks/create", network.CreateRequest{Name: "back", CreateOptions: network.CreateOptions{Driver: "bridge"}}},
		{"/networks/create", network.CreateRequest{Name: "host", CreateOptions: network.CreateOptions{Driver: "overlay"}}},
		{"/networks/create", network.CreateRequest{Name: "a.b", CreateOptions: network.CreateOptions{Driver: "overlay"}}}, {"/networks/create", network.CreateRequest{Name: "in2", CreateOptions: network.CreateOptions{Driver: "overlay", Ingress: true}}},
		{"/networks/create", network.CreateRequest{Name: "in2", CreateOptions: network.CreateOptions{Driver: "overlay", Ingress: true, Attachable: true}}},
		{"/networks/create", network.CreateRequest{Name: "n", CreateOptions: network.CreateOptions{Driver: "overlay", IPAM: &network.IPAM{Config: []network.IPAMConfig{{Subnet: "10.9.0.0/24", Gateway: "10.8.0.1"}}}}}},
		{"/networks/create", network.CreateRequest{Name: "n", CreateOptions: network.CreateOptions{Driver: "overlay", Labels: map[string]string{labelPredefined: "true"}}}},
	} {
		raw, _ := json.Marshal(c.body)
		compare(fmt.Sprintf("POST %s %.150s", c.path, raw), "POST", c.path, is(c.body))
	}
}

// bothSwarms gives a node of ours and a real Docker Swarm of one node with the same objects in them.
func bothSwarms(t *testing.T, host lab.Host) (ours, theirs *world, mine, docker refs) {
	t.Helper()
	ours = newWorld(t)
	ours.control.put(t, append(aCluster(), aManager("node1", "vm1"))...)
	theirs = &world{t: t, http: &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", host.EngineSocket)
	}}}}
	if a := theirs.do("POST", "/swarm/init", swarm.InitRequest{ListenAddr: "0.0.0.0:2377", AdvertiseAddr: host.Addr.String()}); a.status != 200 {
		t.Fatalf("init: %d %s", a.status, a.body)
	}
	prepare := func(w *world) refs {
		id := func(path string, body any) string { return must[struct{ ID string }](w, 201, "POST", path, body).ID }
		spec := serviceSpec("other")
		spec.EndpointSpec = &swarm.EndpointSpec{Ports: append(slices.Clone(otherPorts), swarm.PortConfig{Protocol: "udp", TargetPort: 53, PublishedPort: 30000, PublishMode: "ingress"})}
		r := refs{id("/secrets/create", map[string]any{"Name": "pass", "Data": []byte("x")}), id("/configs/create", map[string]any{"Name": "conf", "Data": []byte("x")}), ""}
		must[network.CreateResponse](w, 201, "POST", "/networks/create", network.CreateRequest{Name: "onlyhere", CreateOptions: network.CreateOptions{Driver: "bridge"}})
		must[network.CreateResponse](w, 201, "POST", "/networks/create", network.CreateRequest{Name: "back", CreateOptions: network.CreateOptions{Driver: "overlay"}})
		spec.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "back"}}
		spec.TaskTemplate.ContainerSpec.Secrets = []*swarm.SecretReference{{SecretID: r.secret, SecretName: "pass", File: &swarm.SecretReferenceFileTarget{Name: "f", UID: "0", GID: "0"}}}
		spec.TaskTemplate.ContainerSpec.Configs = []*swarm.ConfigReference{{ConfigID: r.config, ConfigName: "conf", File: &swarm.ConfigReferenceFileTarget{Name: "f", UID: "0", GID: "0"}}}
		r.other = id("/services/create", spec)
		return r
	}
	return ours, theirs, prepare(ours), prepare(theirs)
}

// shape gives the paths of a JSON document with the kind of what is there.
func shape(v any, path string, into map[string]string) {
	switch v := v.(type) {
	case map[string]any:
		into[path] = "object"
		for k, e := range v {
			shape(e, path+"."+k, into)
		}
	case []any:
		into[path] = "list"
		if len(v) > 0 {
			shape(v[0], path+"[]", into)
		}
	case nil:
		into[path] = "null"
	default:
		into[path] = fmt.Sprintf("%T", v)
	}
}

// TestShapesAreDockerSwarms compares which fields objects are shown with.
func TestShapesAreDockerSwarms(t *testing.T) {
	l := lab.ForTest(t, lab.Options{Nodes: 1, NoDaemon: true})
	host, err := l.Host("vm1")
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs, mine, docker := bothSwarms(t, host)
	ours.control.orchestrate(t)
	task := func(w *world, service string) string {
		var id string
		w.await("a task", func() bool {
			tasks := must[[]swarm.Task](w, 200, "GET", "/tasks?"+filtersOf("service", service), nil)
			if len(tasks) > 0 {
				id = tasks[0].ID
			}
			return len(tasks) > 0 && len(tasks[0].NetworksAttachments) > 0
		})
		return id
	}
	meant := map[string]string{
		".EnableIPv4": "newer engines say it", ".Volumes": "newer engines say it",
		".Labels": "{} is easier to read than null", ".Containers": "{} is easier to read than null", ".Peers": "nobody is on the network yet",
		".Status": "nothing runs there", ".NodeID": "the image is nowhere, so the tasks may be anywhere",
		".NetworksAttachments[].Network.Spec.IPAMOptions": "what was allocated is in IPAMOptions beside it", ".NetworksAttachments[].Network.Spec.DriverConfiguration.Name": "the ingress network names its driver",
	}
	ignored := func(k string) bool {
		for prefix := range meant {
			if k == prefix || strings.HasPrefix(k, prefix+".") || strings.HasPrefix(k, prefix+"[") {
				return true
			}
		}
		return false
	}
	for _, path := range []string{"/services/other", "/services/other?insertDefaults=true", "/secrets/pass", "/configs/conf", "/networks/back", "/networks/ingress", "/tasks/TASK"} {
		o, d := map[string]string{}, map[string]string{}
		shape(must[any](ours, 200, "GET", "/v1.41"+strings.Replace(path, "TASK", task(ours, mine.other), 1), nil), "", o)
		shape(must[any](theirs, 200, "GET", "/v1.41"+strings.Replace(path, "TASK", task(theirs, docker.other), 1), nil), "", d)
		for _, k := range slices.Sorted(maps.Keys(d)) {
			if o[k] != d[k] && !ignored(k) {
				t.Errorf("%s: %s is %q, Docker's %q", path, k, o[k], d[k])
			}
		}
		for _, k := range slices.Sorted(maps.Keys(o)) {
			if d[k] == "" && !ignored(k) {
				t.Errorf("%s: %s is %q, Docker has none", path, k, o[k])
			}
		}
	}
}
