package engineapi

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/raftstore"
)

const failed = "rpc error: code = FailedPrecondition desc = "

func TestNodes(t *testing.T) {
	w := newWorld(t)
	one, two, three := aManager("node1", "vm1"), aNode("node2", "vm2"), aNode("node3", "vm2")
	two.Spec.Labels = map[string]string{"zone": "a"}
	two.Description.Engine.Labels = map[string]string{"disk": "ssd"}
	three.Status.State = swarm.NodeStateDown
	svc := aService("svc1", "web", 1)
	w.control.put(t, append(aCluster(), one, two, three, svc, aTask("task1", svc, 1, "node3", swarm.TaskStateRunning), aTask("task2", svc, 1, "node3", swarm.TaskStateFailed))...)
	for _, c := range []struct{ query, want string }{
		{"", "node1 node2 node3"}, {filtersOf("name", "vm"), "node1 node2 node3"}, {filtersOf("name", "vm1"), "node1"}, {filtersOf("id", "node2"), "node2"},
		{filtersOf("label", "disk=ssd"), "node2"}, {filtersOf("label", "zone"), ""}, {filtersOf("node.label", "zone=a"), "node2"}, {filtersOf("role", "manager"), "node1"},
		{filtersOf("role", "Worker"), "node2 node3"}, {filtersOf("membership", "accepted"), "node1 node2 node3"}, {filtersOf("membership", "pending"), ""},
	} {
		var ids []string
		for _, n := range must[[]swarm.Node](w, 200, "GET", "/nodes?"+c.query, nil) {
			ids = append(ids, n.ID)
		}
		if got := strings.Join(ids, " "); got != c.want {
			t.Errorf("%s: %q, want %q", c.query, got, c.want)
		}
	}
	w.refused("GET", "/nodes?"+filtersOf("role", "king"), nil, 500, "Invalid role filter: 'king'")
	w.refused("GET", "/nodes?"+filtersOf("membership", "maybe"), nil, 500, "Invalid membership filter: 'maybe'")
	w.refused("GET", "/nodes?"+filtersOf("names", "vm1"), nil, 400, "invalid filter 'names'")
	if n := must[swarm.Node](w, 200, "GET", "/nodes/vm1", nil); n.ManagerStatus == nil || !n.ManagerStatus.Leader || n.ManagerStatus.Reachability != "reachable" || n.ManagerStatus.Addr != "10.0.0.1:2377" {
		t.Errorf("vm1: %+v", n.ManagerStatus)
	}
	if a := w.do("GET", "/nodes/node2", nil); strings.Contains(a.body, "ManagerStatus") || !strings.Contains(a.body, `"Labels":{"zone":"a"}`) {
		t.Errorf("node2: %s", a.body)
	}
	w.refused("GET", "/nodes/vm2", nil, 400, "node vm2 is ambiguous (2 matches found)")
	w.refused("GET", "/nodes/vm9", nil, 404, "node vm9 not found")

	version := func(id string) uint64 { return w.control.snapshot().Node(id).Version.Index }
	spec := swarm.NodeSpec{Role: "worker", Availability: "drain", Annotations: swarm.Annotations{Labels: map[string]string{"a": "b"}}}
	w.refused("POST", "/nodes/node2/update?version=x", spec, 400, `invalid node version 'x': strconv.ParseUint: parsing "x": invalid syntax`)
	w.refused("POST", "/nodes/node2/update?version=9999", spec, 500, "rpc error: code = Unknown desc = update out of sequence")
	w.refused("POST", "/nodes/node2/update?version=1", swarm.NodeSpec{Role: "worker", Availability: "asleep"}, 400, `invalid Availability: "asleep"`)
	w.refused("POST", "/nodes/node2/update?version=1", swarm.NodeSpec{Role: "king", Availability: "active"}, 400, `invalid Role: "king"`)
	w.refused("POST", "/nodes/node1/update?version=1", swarm.NodeSpec{Role: "worker", Availability: "active"}, 400, "rpc error: code = FailedPrecondition desc = attempting to demote the last manager of the swarm")
	if a := w.do("POST", fmt.Sprintf("/nodes/node2/update?version=%d", version("node2")), spec); a.status != 200 {
		t.Errorf("update: %d %s", a.status, a.body)
	}
	if n := w.control.snapshot().Node("node2"); n.Spec.Availability != "drain" || n.Spec.Labels["a"] != "b" || n.Spec.Labels["zone"] != "" {
		t.Errorf("updated: %+v", n.Spec)
	}

	w.refused("DELETE", "/nodes/node1?force=1", nil, 400, failed+"node node1 is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal")
	w.refused("DELETE", "/nodes/node2", nil, 400, failed+"node node2 is not down and can't be removed")
	if a := w.do("DELETE", "/nodes/node3", nil); a.status != 200 {
		t.Errorf("remove: %d %s", a.status, a.body)
	}
	snap := w.control.snapshot()
	if snap.Node("node3") != nil || snap.Task("task1").Status.State != swarm.TaskStateOrphaned || snap.Task("task2").Status.State != swarm.TaskStateFailed || snap.Cluster().Removed["node3"].Before(time.Now()) {
		t.Errorf("removed: %+v %+v", snap.Task("task1").Status, snap.Cluster().Removed)
	}
}

func TestTasks(t *testing.T) {
	w := newWorld(t)
	web, other := aService("svc1", "web", 2), aService("svc2", "other", 1)
	web.Spec.Labels = map[string]string{"stack": "shop"}
	web.SpecVersion.Index = 7
	old := aTask("task3", web, 2, "node1", swarm.TaskStateShutdown)
	old.DesiredState, old.SpecVersion.Index = swarm.TaskStateShutdown, 3
	old.Spec.ContainerSpec = &swarm.ContainerSpec{Image: "app:0"}
	pending := aTask("task2", web, 2, "", swarm.TaskStatePending)
	orphan := aTask("task9", aService("svc9", "gone", 1), 1, "node1", swarm.TaskStateRunning)
	w.control.put(t, aNode("node1", "vm1"), aNode("node2", "vm2"), web, other, aTask("task1", web, 1, "node1", swarm.TaskStateRunning), pending, old,
		aTask("task4", other, 1, "node2", swarm.TaskStateRunning), orphan)
	for _, c := range []struct{ query, want string }{
		{"", "task1 task2 task3 task4 task9"}, {filtersOf("service", "web"), "task1 task2 task3"}, {filtersOf("service", "svc2"), "task4"}, {filtersOf("node", "vm1"), "task1 task3 task9"},
		{filtersOf("service", "web", "node", "vm1"), "task1 task3"}, {filtersOf("desired-state", "running"), "task1 task2 task4"}, {filtersOf("desired-state", "Shutdown"), "task3"},
		{filtersOf("name", "web.1"), "task1"}, {filtersOf("id", "task"), "task1 task2 task3 task4 task9"}, {filtersOf("label", "stack=shop"), "task1 task2 task3"},
		{filtersOf("service", "web", "_up-to-date", "true"), "task1 task2"}, {filtersOf("runtime", "container", "service", "other"), "task4"}, {filtersOf("runtime", "plugin"), ""},
		{"filters=" + url.QueryEscape(`{"service":["web","other"],"desired-state":["running"]}`), "task1 task2 task4"},
	} {
		var ids []string
		for _, task := range must[[]swarm.Task](w, 200, "GET", "/tasks?"+c.query, nil) {
			ids = append(ids, task.ID)
		}
		if got := strings.Join(ids, " "); got != c.want {
			t.Errorf("%s: %q, want %q", c.query, got, c.want)
		}
	}
	w.refused("GET", "/tasks?"+filtersOf("service", "nothing"), nil, 404, "service nothing not found")
	w.refused("GET", "/tasks?"+filtersOf("node", "nothing"), nil, 404, "node nothing not found")
	w.refused("GET", "/tasks?"+filtersOf("desired-state", "asleep"), nil, 500, "Invalid desired-state filter: 'asleep'")
	w.refused("GET", "/tasks?"+filtersOf("state", "running"), nil, 400, "invalid filter 'state'")
	for _, ref := range []string{"task1", "web.1.task1"} {
		task := must[swarm.Task](w, 200, "GET", "/tasks/"+ref, nil)
		if task.ID != "task1" || task.Status.ContainerStatus == nil || task.Labels == nil {
			t.Errorf("%s: %+v", ref, task)
		}
	}
	w.refused("GET", "/tasks/web.2.task1", nil, 404, "task web.2.task1 not found")
	w.refused("GET", "/tasks/task", nil, 400, "task task is ambiguous (5 matches found)")
}

func TestUpToDate(t *testing.T) {
	c := newFakeControl()
	svc := aService("svc1", "web", 1)
	svc.SpecVersion.Index = 5
	n := aNode("node1", "vm1")
	n.Spec.Labels = map[string]string{"zone": "a"}
	c.put(t, n)
	snap := c.snapshot()
	task := func(change func(*cluster.Task)) *cluster.Task {
		task := aTask("t", svc, 1, "node1", swarm.TaskStateRunning)
		task.SpecVersion.Index = 4
		spec := *task.Spec.ContainerSpec
		task.Spec.ContainerSpec = &spec
		change(task)
		return task
	}
	placed := *svc
	placed.Spec.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.labels.zone==a"}}
	elsewhere := *svc
	elsewhere.Spec.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.labels.zone==b"}}
	vip := *svc
	vip.Spec.EndpointSpec = &swarm.EndpointSpec{Mode: "vip"}
	ports := *svc
	ports.Spec.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80}}}
	same := func(*cluster.Task) {}
	for _, tc := range []struct {
		name string
		svc  *cluster.Service
		task *cluster.Task
		want bool
	}{
		{"the same version", svc, task(func(t *cluster.Task) { t.SpecVersion.Index = 5; t.Spec.ForceUpdate = 9 }), true},
		{"another version of the same template", svc, task(same), true},
		{"another image", svc, task(func(t *cluster.Task) { t.Spec.ContainerSpec.Image = "x" }), false},
		{"forced", svc, task(func(t *cluster.Task) { t.Spec.ForceUpdate = 1 }), false},
		{"constraints that the node meets", &placed, task(same), true},
		{"constraints that it does not meet", &elsewhere, task(same), false},
		{"constraints of a task without a node", &placed, task(func(t *cluster.Task) { t.NodeID = "" }), false},
		{"no constraints any more", svc, task(func(t *cluster.Task) { t.Spec.Placement = placed.Spec.TaskTemplate.Placement }), true},
		{"the default endpoint in words", &vip, task(same), true},
		{"another endpoint", &ports, task(same), false},
		{"other credentials", svc, task(func(t *cluster.Task) { t.RegistryAuth = "x" }), true},
	} {
		if got := upToDate(snap, tc.svc, tc.task); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

func TestSecretsAndConfigs(t *testing.T) {
	w := newWorld(t)
	w.control.put(t, aCluster()...)
	named := func(name string, data []byte) map[string]any {
		return map[string]any{"Name": name, "Data": data, "Labels": map[string]string{"k": "v"}}
	}
	for _, kind := range []struct {
		name string
		size int
	}{{"secret", maxSecret}, {"config", maxConfig}} {
		t.Run(kind.name, func(t *testing.T) {
			list, create := "/"+kind.name+"s", "/"+kind.name+"s/create"
			w.refused("POST", create, named("", []byte("x")), 400, invalid+"name must be provided")
			badName := invalid + "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]"
			w.refused("POST", create, named("a-", []byte("x")), 400, badName)
			w.refused("POST", create, named(strings.Repeat("a", 65), []byte("x")), 400, badName)
			size := fmt.Sprintf("%s%s data must be larger than 0 and less than %d bytes", invalid, kind.name, kind.size)
			w.refused("POST", create, named("a", nil), 400, size)
			w.refused("POST", create, named("a", make([]byte, kind.size)), 400, size)
			if a := w.do("POST", create, `{"Name":"a","Data":"no base64"}`); a.status != 400 || !strings.Contains(a.message(), "illegal base64 data") {
				t.Errorf("bad data: %d %s", a.status, a.body)
			}
			id := must[struct{ ID string }](w, 201, "POST", create, named("a.b-c_1", make([]byte, kind.size-1))).ID
			if len(id) != 25 {
				t.Errorf("id %q", id)
			}
			w.refused("POST", create, named("a.b-c_1", []byte("x")), 409, "rpc error: code = AlreadyExists desc = "+kind.name+" a.b-c_1 already exists")
			w.refused("POST", create, named("A.B-C_1", []byte("x")), 409, "rpc error: code = AlreadyExists desc = "+kind.name+" A.B-C_1 already exists")
			must[struct{ ID string }](w, 201, "POST", create, named("small", []byte("text")))

			a := w.do("GET", list+"/small", nil)
			if shown := strings.Contains(a.body, `"Data":"dGV4dA=="`); shown != (kind.name == "config") {
				t.Errorf("data shown: %v in %s", shown, a.body)
			}
			for query, want := range map[string]int{filtersOf("name", "sm"): 1, filtersOf("name", "mall"): 0, filtersOf("label", "k=v"): 2, filtersOf("id", id[:6]): 1} {
				if got := must[[]json.RawMessage](w, 200, "GET", list+"?"+query, nil); len(got) != want {
					t.Errorf("%s: %d", query, len(got))
				}
			}
			if kind.name == "secret" {
				if got := must[[]json.RawMessage](w, 200, "GET", list+"?"+filtersOf("names", "small"), nil); len(got) != 1 {
					t.Errorf("names: %d", len(got))
				}
			} else {
				w.refused("GET", list+"?"+filtersOf("names", "small"), nil, 400, "invalid filter 'names'")
			}

			var stored struct{ Version swarm.Version }
			if err := json.Unmarshal([]byte(a.body), &stored); err != nil {
				t.Fatal(err)
			}
			update := fmt.Sprintf("%s/small/update?version=%d", list, stored.Version.Index)
			w.refused("POST", list+"/small/update?version=", named("small", nil), 400, "invalid "+kind.name+" version")
			w.refused("POST", list+"/small/update?version=99999", named("small", nil), 500, "rpc error: code = Unknown desc = update out of sequence")
			w.refused("POST", update, named("other", nil), 400, invalid+"only updates to Labels are allowed")
			w.refused("POST", update, named("small", []byte("changed")), 400, invalid+"only updates to Labels are allowed")
			if a := w.do("POST", update, map[string]any{"Name": "small", "Labels": map[string]string{"new": "1"}}); a.status != 200 {
				t.Errorf("labels: %d %s", a.status, a.body)
			}
			if a := w.do("GET", list+"/small", nil); !strings.Contains(a.body, `"Labels":{"new":"1"}`) {
				t.Errorf("labels: %s", a.body)
			}
			w.refused("DELETE", list+"/nothing", nil, 404, kind.name+" nothing not found")
			if a := w.do("DELETE", list+"/small", nil); a.status != 204 || a.body != "" {
				t.Errorf("remove: %d %s", a.status, a.body)
			}
		})
	}
	w.refused("POST", "/secrets/create", map[string]any{"Name": "d", "Driver": map[string]any{}}, 400, invalid+"secret driver must have a name")
	w.refused("POST", "/secrets/create", map[string]any{"Name": "d", "Driver": map[string]any{"Name": "vault"}}, 501,
		`rpc error: code = Unimplemented desc = secret d: secret drivers are not supported (driver "vault"): give its data instead`)
	spec := serviceSpec("windows")
	spec.TaskTemplate.ContainerSpec.Privileges = &swarm.Privileges{CredentialSpec: &swarm.CredentialSpec{Config: "conf"}}
	w.refused("POST", "/services/create", spec, 501,
		"rpc error: code = Unimplemented desc = credential specs from configs are not supported: name a file on the nodes instead (file://...)")
	templated := map[string]any{"Name": "t", "Data": []byte("x"), "Templating": map[string]any{"Name": "golang"}}
	w.refused("POST", "/v1.36/secrets/create", templated, 400, "secret templating is not supported on the specified API version: 1.36")
	w.refused("POST", "/v1.36/configs/create", templated, 400, "config templating is not supported on the specified API version: 1.36")
}

func TestPayloadsInUseStay(t *testing.T) {
	w := newWorld(t)
	s, c := &cluster.Secret{}, &cluster.Config{}
	s.ID, s.Spec.Name = "sec1", "pass"
	c.ID, c.Spec.Name = "conf1", "conf"
	a, b := aService("a", "b-user", 1), aService("b", "a-user", 1)
	for _, svc := range []*cluster.Service{a, b} {
		svc.Spec.TaskTemplate.ContainerSpec.Secrets = []*swarm.SecretReference{{SecretID: "sec1", SecretName: "pass"}}
	}
	a.Spec.TaskTemplate.ContainerSpec.Configs = []*swarm.ConfigReference{{ConfigID: "conf1", ConfigName: "conf"}}
	w.control.put(t, s, c, a, b)
	w.refused("DELETE", "/secrets/pass", nil, 400, invalid+"secret 'pass' is in use by the following services: a-user, b-user")
	w.refused("DELETE", "/configs/conf", nil, 400, invalid+"config 'conf' is in use by the following service: b-user")
}

func TestSwarmInspectAndUpdate(t *testing.T) {
	w := newWorld(t)
	w.control.put(t, aCluster()...)
	a := w.do("GET", "/swarm", nil)
	if strings.Contains(a.body, "RootCAKey") || strings.Contains(a.body, "UnlockKey") || !strings.Contains(a.body, `"JoinTokens":{"Worker":"SWMTKN-1-w","Manager":"SWMTKN-1-m"}`) {
		t.Errorf("%s", a.body)
	}
	if key := must[swarm.UnlockKeyResponse](w, 200, "GET", "/swarm/unlockkey", nil); key.UnlockKey != "" {
		t.Errorf("unlock key %q", key.UnlockKey)
	}
	w.refused("POST", "/swarm/unlock", swarm.UnlockRequest{UnlockKey: "x"}, 409, "swarm is not locked")

	sw := must[swarm.Swarm](w, 200, "GET", "/swarm", nil)
	update := func(query string) string {
		return fmt.Sprintf("/swarm/update?version=%d%s", w.control.snapshot().Cluster().Version.Index, query)
	}
	change := func(f func(*swarm.Spec)) swarm.Spec { spec := sw.Spec; f(&spec); return spec }
	w.refused("POST", "/swarm/update?version=x", sw.Spec, 400, `invalid swarm version 'x': strconv.ParseUint: parsing "x": invalid syntax`)
	w.refused("POST", "/swarm/update?version=99", sw.Spec, 500, "rpc error: code = Unknown desc = update out of sequence")
	w.refused("POST", update("&rotateWorkerToken=x"), sw.Spec, 400, "invalid value for rotateWorkerToken: x")
	w.refused("POST", update("&rotateManagerToken=x"), sw.Spec, 400, "invalid value for rotateManagerToken: x")
	w.refused("POST", update("&rotateManagerUnlockKey=x"), sw.Spec, 400, "invalid value for rotateManagerUnlockKey: x")
	w.refused("POST", update(""), change(func(s *swarm.Spec) { s.Name = "mine" }), 400, `swarm spec must be named "default"`)
	w.refused("POST", update(""), change(func(s *swarm.Spec) { s.CAConfig.NodeCertExpiry = time.Minute }), 400, invalid+"minimum certificate expiry time is: 1h0m0s")
	w.refused("POST", update(""), change(func(s *swarm.Spec) { s.Dispatcher.HeartbeatPeriod = -1 }), 400, invalid+"heartbeat time period cannot be a negative duration")
	w.refused("POST", update(""), change(func(s *swarm.Spec) { s.Dispatcher.HeartbeatPeriod = time.Millisecond }), 400, invalid+"minimum heartbeat time period is: 100ms")
	unlock := func() string {
		return must[swarm.UnlockKeyResponse](w, 200, "GET", "/swarm/unlockkey", nil).UnlockKey
	}
	locking := change(func(s *swarm.Spec) { s.EncryptionConfig.AutoLockManagers = true })
	keys := map[string]bool{}
	for i, step := range []struct {
		query string
		spec  swarm.Spec
		keys  int // that were seen, with this one
	}{
		{"&rotateManagerUnlockKey=true", sw.Spec, 1}, // there is nothing to rotate
		{"", locking, 2},
		{"", locking, 2},
		{"&rotateManagerUnlockKey=true", locking, 3},
		{"&rotateManagerUnlockKey=false", locking, 3},
		{"", sw.Spec, 3}, // none again
		{"", locking, 4},
	} {
		a := w.do("POST", update(step.query), step.spec)
		keys[unlock()] = true
		if a.status != 200 || len(keys) != step.keys {
			t.Errorf("step %d: %d %s; %d keys, want %d", i, a.status, a.body, len(keys), step.keys)
		}
		if all := w.do("GET", "/swarm", nil).body + w.do("GET", "/info", nil).body; keys[unlock()] && unlock() != "" && strings.Contains(all, unlock()) {
			t.Errorf("the unlock key is shown: %s", all)
		}
	}
	w.local.set(swarm.Info{LocalNodeState: swarm.LocalNodeStateLocked}, nil, errorf(503, "Swarm is encrypted and needs to be unlocked before it can be used."))
	w.refused("GET", "/swarm", nil, 503, "Swarm is encrypted and needs to be unlocked before it can be used.")
	if a := w.do("GET", "/_ping", nil); a.header.Get("Swarm") != "locked" {
		t.Errorf("ping of a locked node says %q", a.header.Get("Swarm"))
	}
	w.refused("POST", "/swarm/unlock", swarm.UnlockRequest{UnlockKey: "x"}, 401, "swarm could not be unlocked: invalid key provided")
	if a := w.do("POST", "/swarm/unlock", swarm.UnlockRequest{UnlockKey: "SWMKEY-1-good"}); a.status != 200 || a.body != "" {
		t.Errorf("unlock: %d %s", a.status, a.body)
	}
	w.local.set(swarm.Info{NodeID: "node1", LocalNodeState: swarm.LocalNodeStateActive}, w.control, nil)

	limit := int64(2)
	if a := w.do("POST", update(""), change(func(s *swarm.Spec) { s.Orchestration.TaskHistoryRetentionLimit = &limit })); a.status != 200 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if got := must[swarm.Swarm](w, 200, "GET", "/swarm", nil); *got.Spec.Orchestration.TaskHistoryRetentionLimit != 2 || got.JoinTokens != sw.JoinTokens {
		t.Errorf("%+v", got)
	}
}

// TestRotateCA is about what the API says of it; what it does is package identity's.
func TestRotateCA(t *testing.T) {
	w := newWorld(t)
	w.control.put(t, aCluster()...)
	old := testCA().Root().TLSInfo()
	ca, err := identity.NewCA(identity.CAConfig{})
	if err != nil {
		t.Fatal(err)
	}
	key, err := ca.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	get := func() swarm.Swarm { t.Helper(); return must[swarm.Swarm](w, 200, "GET", "/swarm", nil) }
	update := func() string {
		return fmt.Sprintf("/swarm/update?version=%d", w.control.snapshot().Cluster().Version.Index)
	}
	with := func(f func(*swarm.CAConfig)) swarm.Spec { spec := get().Spec; f(&spec.CAConfig); return spec }
	for want, f := range map[string]func(*swarm.CAConfig){
		invalid + "if a signing CA key is provided, the signing CA cert must also be provided": func(c *swarm.CAConfig) { c.SigningCAKey = string(key) },
		invalid + "there must be at least one valid, reachable external CA corresponding to the desired CA certificate": func(c *swarm.CAConfig) {
			c.SigningCACert = string(ca.Root().PEM())
		},
		`invalid protocol: "x"`: func(c *swarm.CAConfig) { c.ExternalCAs = []*swarm.ExternalCA{{Protocol: "x"}} },
		`invalid protocol: ""`:  func(c *swarm.CAConfig) { c.ExternalCAs = []*swarm.ExternalCA{nil} },
	} {
		w.refused("POST", update(), with(f), 400, want)
	}
	if a := w.do("POST", update(), with(func(c *swarm.CAConfig) { c.ForceRotate++ })); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	generated := get()
	if !generated.RootRotationInProgress || generated.TLSInfo.TrustRoot != old.TrustRoot || string(generated.TLSInfo.CertIssuerPublicKey) == string(old.CertIssuerPublicKey) {
		t.Errorf("a rotation shows as %+v", generated.TLSInfo)
	}
	// An update that is about something else changes nothing of it, nor does it need the key that nobody was shown.
	if a := w.do("POST", update(), get().Spec); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	if now := get(); !reflect.DeepEqual(now.TLSInfo, generated.TLSInfo) || !now.RootRotationInProgress {
		t.Errorf("after another update it shows as %+v", now.TLSInfo)
	}
	a := w.do("POST", update(), with(func(c *swarm.CAConfig) { c.SigningCACert, c.SigningCAKey = string(ca.Root().PEM()), string(key) }))
	if a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	own := ca.Root().TLSInfo()
	if now := get(); string(now.TLSInfo.CertIssuerPublicKey) != string(own.CertIssuerPublicKey) || now.TLSInfo.TrustRoot != old.TrustRoot {
		t.Errorf("a rotation to a root that was brought shows as %+v", now.TLSInfo)
	}
	for _, path := range []string{"/swarm", "/info"} {
		if a := w.do("GET", path, nil); strings.Contains(a.body, "PRIVATE") || strings.Contains(a.body, "CrossSigned") || strings.Contains(a.body, "SigningCA") {
			t.Errorf("%s shows keys: %s", path, a.body)
		}
	}
	if c := w.control.snapshot().Cluster(); c.Spec.CAConfig.SigningCAKey != "" || len(c.Rotation.RootCAKey) == 0 {
		t.Error("the key is not where it belongs")
	}
}

// A setting that is stored and changes nothing is said to.
func TestFewEntriesForSlowFollowersAreWarnedOf(t *testing.T) {
	w := newWorld(t)
	w.control.put(t, aCluster()...)
	var log strings.Builder
	w.api.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	for _, c := range []struct {
		keep uint64
		warn bool
	}{{100, true}, {100, false}, {raftstore.MinKeepEntries, false}, {9000, false}, {10, true}} {
		log.Reset()
		cl := w.control.snapshot().Cluster()
		spec := cl.Spec
		spec.Raft.LogEntriesForSlowFollowers = c.keep
		if a := w.do("POST", fmt.Sprintf("/swarm/update?version=%d", cl.Version.Index), spec); a.status != http.StatusOK {
			t.Fatalf("%d %s", a.status, a.body)
		}
		if warned := strings.Contains(log.String(), "LogEntriesForSlowFollowers has no effect"); warned != c.warn {
			t.Errorf("%d: warned %v: %s", c.keep, warned, log.String())
		}
	}
}
