package engineapi

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/orchestrator"
)

// FuzzBodies sends arbitrary bodies to every endpoint that takes one: whatever they are, the answer is no fault, and what
// is accepted can be shown and explained.
func FuzzBodies(f *testing.F) {
	for _, seed := range []string{
		`{}`, `null`, `{"Name":"a","TaskTemplate":{"ContainerSpec":{"Image":"a"}}}`,
		`{"Name":"web","Labels":null,"TaskTemplate":{"ContainerSpec":{"Image":"app","Secrets":[null,{"File":null}],"Configs":[{"Runtime":{}}],"Mounts":[{"Target":"{{.Task.ID}}","VolumeOptions":{"DriverConfig":{}}}],"Privileges":{"CredentialSpec":{"Config":"x"}},"Healthcheck":{"Test":null}},"Placement":{"Constraints":["node.id==x","=="],"Preferences":[{"Spread":{"SpreadDescriptor":"x"}}],"Platforms":[{}]},"Resources":{"Limits":{"NanoCPUs":-1},"Reservations":{"GenericResources":[{"NamedResourceSpec":{"Kind":"g"}},{"DiscreteResourceSpec":{"Kind":"g","Value":-5}}]}},"Networks":[{"Target":"host"},{"Target":"x"}],"RestartPolicy":{"MaxAttempts":1,"Delay":-1}},"Mode":{"Global":{}},"UpdateConfig":{"Parallelism":18446744073709551615},"EndpointSpec":{"Mode":"vip","Ports":[{"TargetPort":1,"PublishedPort":0},{"PublishMode":"host","Protocol":"sctp"}]}}`,
		`{"Name":"n","Driver":"overlay","IPAM":{"Config":[{"Subnet":"10.9.0.0/24","IPRange":"::/0","Gateway":"10.9.0.1"}]},"ConfigFrom":{"Network":"x"},"Options":{"a":"b"}}`,
		`{"Name":"s","Data":"eA==","Driver":{"Name":""},"Templating":{}}`, `{"Role":"worker","Availability":"active","Labels":{"a":"b"}}`,
		`{"Name":"default","CAConfig":{"ExternalCAs":[null]},"TaskDefaults":{"LogDriver":null},"Orchestration":{"TaskHistoryRetentionLimit":-1}}`,
	} {
		for path := range 7 {
			f.Add(path, seed)
		}
	}
	paths := []string{"/services/create", "/services/web/update?version=2", "/networks/create", "/secrets/create", "/configs/create", "/nodes/node1/update?version=2", "/swarm/update?version=1"}
	f.Fuzz(func(t *testing.T, path int, body string) {
		c := newFakeControl()
		l := &fakeLocal{}
		l.set(swarm.Info{NodeID: "node1", LocalNodeState: swarm.LocalNodeStateActive, ControlAvailable: true}, c, nil)
		s, err := New(Config{Local: l, Engine: "unix:///nowhere", Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		c.put(t, aCluster()...)
		c.put(t, aManager("node1", "vm1"), aService("svc1", "web", 1))
		do := func(method, path, body string) *httptest.ResponseRecorder {
			r := httptest.NewRequestWithContext(context.Background(), method, path, strings.NewReader(body))
			if body != "" {
				r.Header.Set("Content-Type", "application/json")
			}
			w := httptest.NewRecorder()
			s.Socket().ServeHTTP(w, r)
			if strings.Contains(w.Body.String(), "met a fault") {
				t.Fatalf("%s %s %s: %s", method, path, body, w.Body)
			}
			return w
		}
		at := paths[uint(path)%uint(len(paths))]
		if w := do("POST", at, body); w.Code >= 300 {
			return
		}
		for _, list := range []string{"/services?status=true", "/networks", "/secrets", "/configs", "/nodes", "/swarm", "/tasks"} {
			if w := do("GET", list, ""); w.Code != http.StatusOK || !json.Valid(w.Body.Bytes()) {
				t.Errorf("after POST %s %s: GET %s: %d %s", at, body, list, w.Code, w.Body)
			}
		}
		small := true
		for svc := range c.snapshot().Services() {
			m := svc.Spec.Mode.Replicated
			small = small && (m == nil || *m.Replicas <= 100)
		}
		if small { // what is accepted can be worked with
			for range 3 {
				plan := orchestrator.Next(c.snapshot(), c.now, c.IDs())
				if _, err := c.Update(t.Context(), func(*cluster.Snapshot) (*cluster.Txn, error) {
					return &cluster.Txn{Time: c.now, Changes: plan.Changes}, nil
				}); err != nil {
					t.Fatalf("after POST %s %s: %v", at, body, err)
				}
			}
		}
		for o := range c.snapshot().Objects(cluster.KindService) {
			if w := do("GET", "/miniswarm/services/"+o.ObjectID()+"/explain", ""); w.Code != http.StatusOK {
				t.Errorf("explain after POST %s %s: %d %s", at, body, w.Code, w.Body)
			}
		}
	})
}

// FuzzRequests sends arbitrary paths and queries to the endpoints that read them: the answer is no fault.
func FuzzRequests(f *testing.F) {
	methods := []string{http.MethodGet, http.MethodDelete, http.MethodPost, http.MethodHead}
	for _, target := range []string{
		`/services?status=true&filters={"mode":["replicated"],"label":["a=b"],"id":["x"]}`, `/tasks?filters={"desired-state":["running"],"service":["web"],"node":["self"]}`,
		`/nodes?filters={"role":["worker"],"membership":["x"],"node.label":["a"]}`, `/networks?filters={"scope":["swarm"],"dangling":["true"]}`, `/services/web?insertDefaults=true`,
		`/tasks/t/logs?stdout=1&since=9e99&tail=-1&details=x`, `/services/web/logs?follow=x&stdout=1&tail=all`, `/events?since=1&until=-5&filters={"type":["service"]}`, `/v1.41/services`, `/v0.0/nodes/`,
		`/secrets/%2e%2e/..`, `/configs?filters=[`, `/services/web/update?version=-1&rollback=x&registryAuthFrom=y`, `/miniswarm/services/web/explain?verbose=x`, `/nodes/node1?force=maybe`, `/swarm/unlockkey`,
		`/services/create?rollback=previous`, `/networks/ingress?scope=x&verbose=y`, `/info?x`, `/_ping`, `/version`, `/v1.999/info`, `/services?filters={"name":{"web":true}}`, `//services`,
	} {
		for m := range methods {
			f.Add(m, target, "")
		}
	}
	f.Add(2, "/services/web/update?version=2&rollback=previous", "{}")
	f.Fuzz(func(t *testing.T, method int, target, body string) {
		u, err := url.ParseRequestURI(target)
		if err != nil || u.Host != "" || !strings.HasPrefix(u.Path, "/") {
			return
		}
		c := newFakeControl()
		l := &fakeLocal{}
		l.set(swarm.Info{NodeID: "node1", LocalNodeState: swarm.LocalNodeStateActive, ControlAvailable: true}, c, nil)
		s, err := New(Config{Local: l, Engine: "unix:///nowhere", Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		c.put(t, aCluster()...)
		c.put(t, aManager("node1", "vm1"), aService("svc1", "web", 1))
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond) // logs and events go on for ever
		defer cancel()
		r := (&http.Request{Method: methods[uint(method)%uint(len(methods))], URL: u, Header: http.Header{}, Host: "docker", Body: io.NopCloser(strings.NewReader(body)), RequestURI: target}).WithContext(ctx)
		if body != "" {
			r.Header.Set("Content-Type", "application/json")
		}
		w := httptest.NewRecorder()
		s.Socket().ServeHTTP(w, r)
		if strings.Contains(w.Body.String(), "met a fault") {
			t.Fatalf("%s %s: %s", r.Method, target, w.Body)
		}
	})
}
