package engineapi

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// clientVersions are the prefixes that clients of ten years put in front of a path, one that does not exist yet, and none.
var clientVersions = []string{"", "/v1.24", "/v1.30", "/v1.37", "/v1.40", "/v1.41", "/v1.44", "/v1.51", "/v1.99"}

// TestEveryEndpointInEveryVersion takes an object of each kind through its life as clients of each version do.
func TestEveryEndpointInEveryVersion(t *testing.T) {
	for _, v := range clientVersions {
		t.Run(strings.TrimPrefix(v, "/"), func(t *testing.T) {
			w := newWorld(t)
			w.control.put(t, append(aCluster(), aManager("node1", "vm1"), aNode("node2", "vm2"))...)
			step := func(status int, method, path string, body any) string {
				t.Helper()
				a := w.do(method, v+path, body)
				if a.status != status {
					t.Fatalf("%s %s: %d %s", method, path, a.status, a.body)
				}
				return a.body
			}
			index := func(k cluster.Kind, id string) uint64 {
				return w.control.snapshot().Object(k, id).ObjectMeta().Version.Index
			}
			for _, kind := range []cluster.Kind{cluster.KindSecret, cluster.KindConfig} {
				list := fmt.Sprintf("/%ss", kind)
				id := must[struct{ ID string }](w, 201, "POST", v+list+"/create", map[string]any{"Name": "a", "Data": []byte("x"), "Labels": map[string]string{"a": "b"}, "Colour": "an unknown field"}).ID
				for _, path := range []string{list, list + "/a", list + "/" + id, list + "/" + id[:5], list + "?" + filtersOf("label", "a=b")} {
					if body := step(200, "GET", path, nil); !strings.Contains(body, id) {
						t.Errorf("GET %s: %s", path, body)
					}
				}
				step(200, "POST", fmt.Sprintf("%s/a/update?version=%d", list, index(kind, id)), map[string]any{"Name": "a"})
				w.refused("POST", v+list+"/a/update?version=1", map[string]any{"Name": "a"}, 500, "rpc error: code = Unknown desc = update out of sequence")
				step(204, "DELETE", list+"/a", nil)
				w.refused("GET", v+list+"/a", nil, 404, kind.String()+" a not found")
			}

			netID := must[network.CreateResponse](w, 201, "POST", v+"/networks/create", network.CreateRequest{Name: "back", CreateOptions: network.CreateOptions{Driver: "overlay"}}).ID
			spec := serviceSpec("web")
			spec.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "back"}}
			spec.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80}}}
			id := must[swarm.ServiceCreateResponse](w, 201, "POST", v+"/services/create", spec).ID
			w.control.orchestrate(t)
			for _, path := range []string{"/services", "/services?status=1", "/services/web", "/services/" + id + "?insertDefaults=1", "/tasks", "/tasks?" + filtersOf("service", "web"), "/networks/back?verbose=1"} {
				if body := step(200, "GET", path, nil); !strings.Contains(body, id) && !strings.Contains(body, netID) {
					t.Errorf("GET %s: %s", path, body)
				}
			}
			checkAddresses(t, must[swarm.Service](w, 200, "GET", v+"/services/web", nil), must[[]swarm.Task](w, 200, "GET", v+"/tasks", nil))
			step(200, "POST", fmt.Sprintf("/services/web/update?version=%d", index(cluster.KindService, id)), spec)
			step(200, "POST", fmt.Sprintf("/services/web/update?version=%d&rollback=previous", index(cluster.KindService, id)), spec)
			w.refused("POST", v+"/services/web/update?version=1", spec, 500, "rpc error: code = Unknown desc = update out of sequence")
			step(200, "DELETE", "/services/web", nil)
			w.control.orchestrate(t)
			step(204, "DELETE", "/networks/back", nil)

			step(200, "GET", "/nodes/node2", nil)
			step(200, "POST", fmt.Sprintf("/nodes/node2/update?version=%d", index(cluster.KindNode, "node2")), swarm.NodeSpec{Role: "worker", Availability: "pause"})
			w.refused("POST", v+"/nodes/node2/update?version=1", swarm.NodeSpec{Role: "worker", Availability: "pause"}, 500, "rpc error: code = Unknown desc = update out of sequence")
			step(200, "DELETE", "/nodes/node2?force=1", nil)
			sw := must[swarm.Swarm](w, 200, "GET", v+"/swarm", nil)
			step(200, "POST", fmt.Sprintf("/swarm/update?version=%d&rotateWorkerToken=true", sw.Version.Index), sw.Spec)
			step(200, "GET", "/swarm/unlockkey", nil)
			step(409, "POST", "/swarm/unlock", swarm.UnlockRequest{UnlockKey: "x"})
			step(200, "GET", "/info", nil)
			step(200, "GET", "/version", nil)
		})
	}
}

// checkAddresses: clients parse addresses as CIDR and give up on everything if one is not.
func checkAddresses(t *testing.T, svc swarm.Service, tasks []swarm.Task) {
	t.Helper()
	var all []string
	for _, vip := range svc.Endpoint.VirtualIPs {
		all = append(all, vip.Addr)
	}
	if len(all) != 2 || len(svc.Endpoint.Ports) != 1 || svc.Endpoint.Ports[0].PublishedPort == 0 || svc.Endpoint.Spec.Mode != swarm.ResolutionModeVIP {
		t.Errorf("endpoint %+v", svc.Endpoint)
	}
	for _, task := range tasks {
		if len(task.NetworksAttachments) != 2 {
			t.Errorf("task %s is on %d networks, want the ingress network and its own", task.ID, len(task.NetworksAttachments))
		}
		for _, a := range task.NetworksAttachments {
			all = append(all, a.Addresses...)
		}
	}
	for _, addr := range all {
		if p, err := netip.ParsePrefix(addr); err != nil || p.Bits() >= 32 {
			t.Errorf("address %q is not CIDR: %v", addr, err)
		}
	}
}

// TestFiltersThatMakeNoSense asks every list for what it does not know.
func TestFiltersThatMakeNoSense(t *testing.T) {
	w := newWorld(t)
	w.control.put(t, aCluster()...)
	for _, list := range []string{"/services", "/tasks", "/nodes", "/secrets", "/configs", "/networks"} {
		w.refused("GET", list+"?"+filtersOf("colour", "red"), nil, 400, "invalid filter 'colour'")
		for _, raw := range []string{"nonsense", "[]", `{"name":7}`, `{"name":"web"}`, `{"name":["a"]`} {
			if a := w.do("GET", list+"?filters="+url.QueryEscape(raw), nil); a.status != 400 || a.message() == "" {
				t.Errorf("GET %s with filters %s: %d %s", list, raw, a.status, a.body)
			}
		}
		for _, raw := range []string{"", "{}", `{"name":[]}`, `{"name":{}}`, "null"} {
			if a := w.do("GET", list+"?filters="+url.QueryEscape(raw), nil); a.status != 200 {
				t.Errorf("GET %s with filters %s: %d %s", list, raw, a.status, a.body)
			}
		}
	}
	for _, raw := range []string{"nonsense", "[]"} {
		if a := w.do("GET", "/events?until=1&filters="+url.QueryEscape(raw), nil); a.status != 400 {
			t.Errorf("events with filters %s: %d %s", raw, a.status, a.body)
		}
	}
}

// TestThousandsOfObjects: lists are whole and quick however long they are.
func TestThousandsOfObjects(t *testing.T) {
	const services, perService = 500, 20
	w := newWorld(t)
	objects := append(aCluster(), aNode("node1", "vm1"))
	for i := range services {
		svc := aService(fmt.Sprintf("svc%04d", i), fmt.Sprintf("web%d", i), perService)
		svc.Spec.Labels["tens"] = fmt.Sprint(i / 10)
		secret, config := &cluster.Secret{}, &cluster.Config{}
		secret.ID, secret.Spec.Name = "secret"+svc.ID, "secret"+svc.ID
		config.ID, config.Spec.Name, config.Spec.Data = "config"+svc.ID, "config"+svc.ID, make([]byte, 1000)
		objects = append(objects, svc, secret, config)
		for slot := range perService {
			objects = append(objects, aTask(fmt.Sprintf("%s%02d", svc.ID, slot), svc, slot+1, "node1", swarm.TaskStateRunning))
		}
	}
	w.control.put(t, objects...)
	began := time.Now()
	for _, c := range []struct {
		path string
		want int
	}{
		{"/services?status=true", services}, {"/tasks", services * perService}, {"/secrets", services}, {"/configs", services}, {"/nodes", 1},
		{"/services?" + filtersOf("label", "tens=7"), 10}, {"/tasks?" + filtersOf("service", "web77"), perService}, {"/tasks?" + filtersOf("node", "vm1", "desired-state", "running"), services * perService},
	} {
		// Not through do: holding ten thousand tasks against the document takes longer than all the rest.
		resp, err := w.http.Get("http://docker" + c.path)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		if _, err := copyAll(&b, resp); err != nil {
			t.Fatal(err)
		}
		if got := strings.Count(b.String(), `"UpdatedAt":`); resp.StatusCode != http.StatusOK || got != c.want {
			t.Errorf("GET %s: %d with %d objects, want %d", c.path, resp.StatusCode, got, c.want)
		}
	}
	t.Logf("all lists in %s", time.Since(began))
}
