package agent

import (
	"net/netip"
	"testing"

	"github.com/docker/docker/api/types/swarm"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/ingress/names"
	"github.com/miniswarm/miniswarm/ingress/plan"
)

var addresses = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func overlayNetwork(id, name string, vni uint32, change func(*swarm.NetworkSpec)) *cluster.Network {
	n := &cluster.Network{VNI: vni, Network: swarm.Network{ID: id}}
	n.Spec.Name = name
	if change != nil {
		change(&n.Spec)
	}
	return n
}

// A node answers for the networks it takes part in: with services in both modes, without replicas that drain, and without
// ingress.
func TestNameTable(t *testing.T) {
	node := &cluster.Node{Node: swarm.Node{ID: "n1"}, DataAddr: "192.0.2.1", Attachments: map[string]string{"i": "10.0.0.2/24", "f": "10.0.1.3/24", "b": "10.0.2.3/24"}}
	networks := []*cluster.Network{
		overlayNetwork("b", "back", 4098, func(s *swarm.NetworkSpec) { s.Internal = true }), overlayNetwork("f", "front", 4097, nil),
		overlayNetwork("i", "ingress", 4096, func(s *swarm.NetworkSpec) { s.Ingress = true }), overlayNetwork("x", "elsewhere", 4099, nil),
	}
	services := []protocol.MeshService{
		{ServiceID: "s1", Name: "web", Networks: []protocol.MeshNetwork{{NetworkID: "f", VIP: "10.0.1.2", Aliases: []string{"www"}}, {NetworkID: "b", VIP: "10.0.2.2"}}, Backends: []protocol.Backend{
			{TaskID: "t1", NodeID: "n1", Names: []string{"web.1.t1"}, Networks: []protocol.BackendAddr{{NetworkID: "f", Addr: "10.0.1.11"}, {NetworkID: "b", Addr: "10.0.2.11"}}},
			{TaskID: "t2", NodeID: "n2", Names: []string{"web.2.t2"}, Draining: true, Networks: []protocol.BackendAddr{{NetworkID: "f", Addr: "10.0.1.12"}}},
		}},
		{ServiceID: "s2", Name: "db", Networks: []protocol.MeshNetwork{{NetworkID: "b"}, {NetworkID: "x", VIP: "10.0.9.2"}}, Backends: []protocol.Backend{
			{TaskID: "t3", NodeID: "n2", Names: []string{"db.1.t3"}, Networks: []protocol.BackendAddr{{NetworkID: "b", Addr: "10.0.2.13"}}},
		}},
	}
	addr := netip.MustParseAddr
	want := names.Table{Networks: []names.Network{
		{ID: "b", Name: "back", Subnet: netip.MustParsePrefix("10.0.2.0/24"), Listen: addr("10.0.2.3"), Internal: true, Services: []names.Service{
			{Name: "web", VIP: addr("10.0.2.2"), Tasks: []names.Task{{Names: []string{"web.1.t1"}, Addr: addr("10.0.2.11")}}},
			{Name: "db", Tasks: []names.Task{{Names: []string{"db.1.t3"}, Addr: addr("10.0.2.13")}}},
		}},
		{ID: "f", Name: "front", Subnet: netip.MustParsePrefix("10.0.1.0/24"), Listen: addr("10.0.1.3"), Services: []names.Service{
			{Name: "web", Aliases: []string{"www"}, VIP: addr("10.0.1.2"), Tasks: []names.Task{{Names: []string{"web.1.t1"}, Addr: addr("10.0.1.11")}}},
		}},
	}}
	if d := cmp.Diff(want, nameTable(node, networks, services, nil), addresses); d != "" {
		t.Errorf("names (-want +got):\n%s", d)
	}

	in, err := meshInput("n1", "", node, networks, services, nil)
	if err != nil {
		t.Fatal(err)
	}
	virtuals := []plan.Virtual{
		{ServiceID: "s1", Name: "web", NetworkID: "f", Addr: addr("10.0.1.2"), Backends: []plan.Backend{
			{TaskID: "t1", NodeID: "n1", Addr: addr("10.0.1.11")}, {TaskID: "t2", NodeID: "n2", Addr: addr("10.0.1.12"), Draining: true}}},
		{ServiceID: "s1", Name: "web", NetworkID: "b", Addr: addr("10.0.2.2"), Backends: []plan.Backend{{TaskID: "t1", NodeID: "n1", Addr: addr("10.0.2.11")}}},
		{ServiceID: "s2", Name: "db", NetworkID: "x", Addr: addr("10.0.9.2")},
	}
	if d := cmp.Diff(virtuals, in.Virtuals, addresses); d != "" {
		t.Errorf("virtual addresses (-want +got):\n%s", d)
	}
}

func TestClients(t *testing.T) {
	attached := func(id, addr string, internal, ingress bool) swarm.NetworkAttachment {
		n := swarm.Network{ID: id}
		n.Spec.Internal, n.Spec.Ingress = internal, ingress
		return swarm.NetworkAttachment{Network: n, Addresses: []string{addr}}
	}
	task := func(dns string, nets ...swarm.NetworkAttachment) *cluster.Task {
		k := &cluster.Task{}
		k.NetworksAttachments, k.Spec.ContainerSpec = nets, &swarm.ContainerSpec{}
		if dns != "" {
			k.Spec.ContainerSpec.DNSConfig = &swarm.DNSConfig{Nameservers: []string{dns}}
		}
		return k
	}
	addr := netip.MustParseAddr
	got := map[netip.Addr]names.Client{}
	for _, k := range []*cluster.Task{
		task("192.0.2.53", attached("i", "10.0.0.11/24", false, true), attached("f", "10.0.1.11/24", false, false), attached("b", "10.0.2.11/24", true, false)),
		task("", attached("b", "10.0.2.12/24", true, false)),
		task("", attached("i", "10.0.0.13/24", false, true), attached("b", "10.0.2.13/24", true, false)),
		task("", attached("i", "10.0.0.14/24", false, true)),
	} {
		addClient(got, k)
	}
	both := names.Client{Networks: []string{"f", "b"}, Upstreams: []netip.Addr{addr("192.0.2.53")}}
	want := map[netip.Addr]names.Client{
		addr("10.0.1.11"): both, addr("10.0.2.11"): both,
		addr("10.0.2.12"): {Networks: []string{"b"}, Confined: true},
		addr("10.0.2.13"): {Networks: []string{"b"}},
	}
	if d := cmp.Diff(want, got, addresses); d != "" {
		t.Errorf("clients (-want +got):\n%s", d)
	}
}
