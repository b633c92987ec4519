package engineapi

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

func networkNamed(name string, labels map[string]string) network.Inspect {
	if labels == nil {
		labels = map[string]string{} // engines show no null here
	}
	return network.Inspect{Name: name, ID: "eng" + name, Driver: "bridge", Scope: "local", Labels: labels}
}

// standIn is the engine's part of a swarm network.
func standIn(id, name string) network.Inspect {
	n := networkNamed(name, map[string]string{labelNetworkID: id, labelNetworkName: name, "miniswarm.node.id": "node1"})
	n.Containers = map[string]network.EndpointResource{"c1": {Name: "web.1.x", IPv4Address: "10.0.1.3/24"}}
	return n
}

func listed(w *world, query string) string {
	var names []string
	for _, n := range must[[]network.Inspect](w, 200, "GET", "/networks?"+query, nil) {
		names = append(names, n.Name+"/"+n.Driver+"/"+n.Scope)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

const engineNetworks = "bridge/bridge/local host/host/local"

func TestNetworksAreMerged(t *testing.T) {
	w := newWorld(t)
	back := &cluster.Network{}
	back.ID, back.Spec.Name, back.Spec.Labels = "backnet", "back", map[string]string{"k": "v"}
	back.Spec.DriverConfiguration, back.Spec.Scope = &swarm.Driver{Name: "overlay"}, "swarm"
	pre := predefinedNetwork("host")
	pre.ID = "prehost"
	user := aService("user1", "user", 1)
	user.Spec.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "backnet"}}
	w.control.put(t, append(aCluster(), back, pre, user)...)
	w.engine.add(standIn("backnet", "back"))
	w.engine.add(networkNamed("mine", map[string]string{"k": "v"}))

	for _, c := range []struct{ query, want string }{
		{"", "back/overlay/swarm bridge/bridge/local host/host/local ingress/overlay/swarm mine/bridge/local none/none/local"},
		{filtersOf("scope", "swarm"), "back/overlay/swarm ingress/overlay/swarm"},
		{filtersOf("driver", "overlay"), "back/overlay/swarm ingress/overlay/swarm"},
		{filtersOf("driver", "bridge"), "bridge/bridge/local mine/bridge/local"},
		{filtersOf("name", "ac"), "back/overlay/swarm"},
		{filtersOf("id", "backn", "scope", "swarm"), "back/overlay/swarm"},
		{filtersOf("label", "k=v"), "back/overlay/swarm mine/bridge/local"},
		{filtersOf("type", "custom", "scope", "swarm"), "back/overlay/swarm ingress/overlay/swarm"},
		{filtersOf("type", "builtin", "scope", "swarm"), ""},
		{filtersOf("dangling", "true", "scope", "swarm"), ""},
		{filtersOf("dangling", "0", "scope", "swarm"), "back/overlay/swarm ingress/overlay/swarm"},
	} {
		if got := listed(w, c.query); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.query, got, c.want)
		}
	}
	w.refused("GET", "/networks?"+filtersOf("colour", "red"), nil, 400, "invalid filter 'colour'")
	w.refused("GET", "/networks?"+filtersOf("type", "odd"), nil, 500, "invalid filter: 'type'='odd'")
	w.refused("GET", "/networks?"+filtersOf("dangling", "odd"), nil, 400, `invalid value for filter 'dangling', must be "true" (or "1"), or "false" (or "0")`)

	t.Run("one", func(t *testing.T) {
		n := must[network.Inspect](w, 200, "GET", "/networks/ingress?verbose=true", nil)
		if n.ID != "ingressnet" || !n.Ingress || n.IPAM.Driver != "default" || n.IPAM.Config[0].Subnet != "10.0.0.0/24" || n.IPAM.Config[0].Gateway != "10.0.0.1" || n.Labels == nil || n.Containers == nil ||
			n.Options["com.docker.network.driver.overlay.vxlanid_list"] != "4096" {
			t.Errorf("ingress: %+v", n)
		}
		for _, ref := range []string{"back", "backnet", "back?scope=swarm", "backn"} {
			n := must[network.Inspect](w, 200, "GET", "/networks/"+ref, nil)
			if n.ID != "backnet" || n.Scope != "swarm" || n.Driver != "overlay" || n.Containers["c1"].Name != "web.1.x" || n.Labels["k"] != "v" {
				t.Errorf("%s: %+v", ref, n)
			}
		}
		if n := must[network.Inspect](w, 200, "GET", "/networks/back?scope=local", nil); n.Driver != "bridge" {
			t.Errorf("the engine's part: %+v", n)
		}
		if n := must[network.Inspect](w, 200, "GET", "/networks/host", nil); n.ID != "enghost" {
			t.Errorf("the engine's host network: %+v", n)
		}
		if n := must[network.Inspect](w, 200, "GET", "/networks/host?scope=swarm", nil); n.ID != "host" || n.Scope != "swarm" {
			t.Errorf("the swarm's host network: %+v", n)
		}
		w.refused("GET", "/networks/nothing", nil, 404, "network nothing not found")
		w.refused("GET", "/networks/mine?scope=swarm", nil, 404, "network mine not found")
		w.refused("GET", "/networks/back?verbose=x", nil, 400, `invalid value for verbose: x: strconv.ParseBool: parsing "x": invalid syntax`)
	})
	t.Run("on a worker", func(t *testing.T) {
		w.local.set(swarm.Info{LocalNodeState: swarm.LocalNodeStateActive}, nil, errWorker)
		defer w.local.set(swarm.Info{LocalNodeState: swarm.LocalNodeStateActive}, w.control, nil)
		if got, want := listed(w, ""), "back/overlay/swarm bridge/bridge/local host/host/local mine/bridge/local none/none/local"; got != want {
			t.Errorf("list:\n got %s\nwant %s", got, want)
		}
		if n := must[network.Inspect](w, 200, "GET", "/networks/back", nil); n.ID != "backnet" || n.Scope != "swarm" || n.Containers["c1"].Name != "web.1.x" || len(n.Labels) != 0 {
			t.Errorf("back: %+v", n)
		}
		w.refused("DELETE", "/networks/back", nil, 503, errWorker.Error())
	})
}

func TestNetworksThatAreRefused(t *testing.T) {
	w := newWorld(t)
	w.control.put(t, aCluster()...)
	w.engine.add(networkNamed("mine", nil))
	yes := true
	ipam := func(subnet, ipRange, gateway string) *network.IPAM {
		return &network.IPAM{Config: []network.IPAMConfig{{Subnet: subnet, IPRange: ipRange, Gateway: gateway}}}
	}
	for _, c := range []struct {
		name   string
		req    network.CreateRequest
		status int
		text   string
	}{
		{"no name", network.CreateRequest{}, 400, invalid + "meta: name must be provided"},
		{"bad name", network.CreateRequest{Name: "a.b"}, 400, invalid + "name must be valid as a DNS name component"},
		{"predefined name", network.CreateRequest{Name: "host"}, 409, "network with name host already exists"},
		{"predefined name of engines only", network.CreateRequest{Name: "none"}, 403, "operation is not permitted on predefined none network"},
		{"overlay of one machine", network.CreateRequest{Name: "n", CreateOptions: network.CreateOptions{Scope: "local"}}, 403, "cannot downgrade network scope for overlay networks"},
		{"taken name", network.CreateRequest{Name: "ingress"}, 409, "network with name ingress already exists"},
		{"name that the engine has", network.CreateRequest{Name: "mine"}, 409, "network with name mine already exists"},
		{"second ingress", network.CreateRequest{Name: "in2", CreateOptions: network.CreateOptions{Ingress: true}}, 409, "rpc error: code = AlreadyExists desc = ingress network (ingressnet) is already present"},
		{"attachable ingress", network.CreateRequest{Name: "in2", CreateOptions: network.CreateOptions{Ingress: true, Attachable: true}}, 400, invalid + "ingress network cannot be attachable"},
		{"ingress of another driver", network.CreateRequest{Name: "in2", CreateOptions: network.CreateOptions{Ingress: true, Driver: "bridge"}}, 403, "Ingress network can only be global scope network"},
		{"another driver", network.CreateRequest{Name: "n", CreateOptions: network.CreateOptions{Scope: "swarm", Driver: "macvlan"}}, 501, `rpc error: code = Unimplemented desc = network n: driver "macvlan" is not supported for networks of the swarm; use overlay`},
		{"encryption", network.CreateRequest{Name: "n", CreateOptions: network.CreateOptions{Options: map[string]string{"encrypted": ""}}}, 501,
			"rpc error: code = Unimplemented desc = network n: encrypted overlay networks are not supported; leave the option out to create a network without encryption"},
		{"reserved label", network.CreateRequest{Name: "n", CreateOptions: network.CreateOptions{Labels: map[string]string{labelPredefined: "true"}}}, 403,
			"rpc error: code = PermissionDenied desc = label com.docker.swarm.predefined is for internally created predefined networks and cannot be applied by users"},
		{"no subnet", network.CreateRequest{Name: "n", CreateOptions: network.CreateOptions{IPAM: ipam("x", "", "")}}, 400, invalid + "ipam configuration: invalid subnet x"},
		{"bad range", network.CreateRequest{Name: "n", CreateOptions: network.CreateOptions{IPAM: ipam("10.9.0.0/24", "x", "")}}, 400, invalid + "ipam configuration: invalid range x"},
		{"range elsewhere", network.CreateRequest{Name: "n", CreateOptions: network.CreateOptions{IPAM: ipam("10.9.0.0/24", "10.8.0.0/25", "")}}, 400, invalid + "ipam configuration: subnet 10.9.0.0/24 does not contain range 10.8.0.0/25"},
		{"bad gateway", network.CreateRequest{Name: "n", CreateOptions: network.CreateOptions{IPAM: ipam("10.9.0.0/24", "", "x")}}, 400, invalid + "ipam configuration: invalid gateway x"},
		{"gateway elsewhere", network.CreateRequest{Name: "n", CreateOptions: network.CreateOptions{IPAM: ipam("10.9.0.0/24", "", "10.8.0.1")}}, 400, invalid + "ipam configuration: subnet 10.9.0.0/24 does not contain gateway 10.8.0.1"},
		{"taken subnet", network.CreateRequest{Name: "n", CreateOptions: network.CreateOptions{IPAM: ipam("10.0.0.128/25", "", "")}}, 400, invalid + "ipam configuration: subnet 10.0.0.128/25 overlaps with network ingress"},
		{"two subnets", network.CreateRequest{Name: "n", CreateOptions: network.CreateOptions{IPAM: &network.IPAM{Config: []network.IPAMConfig{{Subnet: "10.9.0.0/24"}, {Subnet: "10.8.0.0/24"}}}}}, 501,
			"rpc error: code = Unimplemented desc = ipam configuration: a network of several subnets is not supported; use one that is large enough"},
		{"IPv6 subnet", network.CreateRequest{Name: "n", CreateOptions: network.CreateOptions{IPAM: ipam("fd00::/64", "", "")}}, 501,
			"rpc error: code = Unimplemented desc = ipam configuration: subnet fd00::/64: only IPv4 is supported on overlay networks"},
		{"IPv6", network.CreateRequest{Name: "n", CreateOptions: network.CreateOptions{EnableIPv6: &yes}}, 501,
			"rpc error: code = Unimplemented desc = network n: IPv6 is not supported on overlay networks; leave --ipv6 out"},
		{"IPAM driver", network.CreateRequest{Name: "n", CreateOptions: network.CreateOptions{IPAM: &network.IPAM{Driver: "magic"}}}, 400, invalid + "error during lookup of plugin magic"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.req.Driver == "" {
				c.req.Driver = "overlay"
			}
			w.refused("POST", "/networks/create", c.req, c.status, c.text)
		})
	}
}

func TestNetworksInUseStay(t *testing.T) {
	w := newWorld(t)
	w.control.put(t, aCluster()...)
	id := must[network.CreateResponse](w, 201, "POST", "/networks/create", network.CreateRequest{Name: "back", CreateOptions: network.CreateOptions{Driver: "overlay"}}).ID
	spec := serviceSpec("web")
	spec.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "back"}}
	spec.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80}}}
	svc := must[swarm.ServiceCreateResponse](w, 201, "POST", "/services/create", spec).ID
	w.refused("DELETE", "/networks/back", nil, 400, fmt.Sprintf("rpc error: code = FailedPrecondition desc = network %s is in use by service %s", id, svc))
	w.refused("DELETE", "/networks/ingress", nil, 400, fmt.Sprintf("rpc error: code = FailedPrecondition desc = ingress network cannot be removed because service %s depends on it", svc))
	running := aTask("t1", w.control.snapshot().Service(svc), 1, "node1", swarm.TaskStateRunning)
	w.control.put(t, running)
	next := *w.control.snapshot().Service(svc)
	next.Spec.TaskTemplate.Networks = nil
	w.control.put(t, &next)
	w.refused("DELETE", "/networks/back", nil, 400, fmt.Sprintf("rpc error: code = FailedPrecondition desc = network %s is in use by task t1 (of service web on node node1)", id))
	w.do("DELETE", "/services/web", nil)
	if a := w.do("DELETE", "/networks/back", nil); a.status != http.StatusNoContent || w.control.snapshot().Network(id) != nil {
		t.Errorf("with its service gone: %d %s", a.status, a.body)
	}
	w.refused("DELETE", "/networks/back", nil, 404, "network back not found")
}

func TestPruneLeavesTheSwarmsPartsOnTheEngine(t *testing.T) {
	w := newWorld(t)
	back := &cluster.Network{}
	back.ID, back.Spec.Name, back.Spec.Labels = "backnet", "back", map[string]string{"keep": "yes"}
	w.control.put(t, append(aCluster(), back)...)
	idle := standIn("ingressnet", "ingress")
	idle.Containers = nil
	busy := networkNamed("busy", nil)
	busy.Containers = map[string]network.EndpointResource{"c": {}}
	w.engine.add(idle)
	w.engine.add(busy)
	w.engine.add(networkNamed("mine", nil))
	prune := func(query string) string {
		r := must[network.PruneReport](w, 200, "POST", "/networks/prune?"+query, nil)
		return strings.Join(r.NetworksDeleted, " ")
	}
	if got := prune("filters=" + url.QueryEscape(`{"label!":["keep"]}`)); got != "mine" {
		t.Errorf("pruned %q", got)
	}
	if got := prune("filters=" + url.QueryEscape(`{"until":["24h"]}`)); got != "back" { // the fake's clock is years behind
		t.Errorf("pruned %q", got)
	}
	if got := prune(""); got != "" {
		t.Errorf("pruned %q", got)
	}
	if got, want := listed(w, ""), engineNetworks+" ingress/overlay/swarm none/none/local"; got != strings.Replace(want, engineNetworks, "bridge/bridge/local busy/bridge/local host/host/local", 1) {
		t.Errorf("left: %s", got)
	}
	if !slices.ContainsFunc(w.engine.networks, func(n network.Inspect) bool { return n.Labels[labelNetworkID] == "ingressnet" }) {
		t.Error("the engine's part of the ingress network is gone")
	}
	w.refused("POST", "/networks/prune?"+filtersOf("colour", "red"), nil, 400, "invalid filter 'colour'")
}
