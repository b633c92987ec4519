package docker

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

func onNetworks(kinds ...string) (attached []swarm.NetworkAttachment) {
	for _, k := range kinds {
		n := swarm.Network{ID: k}
		n.Spec.Name, n.Spec.Ingress, n.Spec.Internal = k, k == "ingress", k == "inner"
		attached = append(attached, swarm.NetworkAttachment{Network: n})
	}
	return attached
}

// A container asks where its questions can be passed on, if it has such a network.
func TestResolver(t *testing.T) {
	gateways := map[string]netip.Addr{}
	for i, k := range []string{"ingress", "inner", "front", "back"} {
		gateways[k] = netip.AddrFrom4([4]byte{10, 0, byte(i), 1})
	}
	for _, c := range []struct {
		networks []string
		want     string
	}{
		{nil, ""}, {[]string{"ingress"}, ""}, {[]string{"elsewhere"}, ""},
		{[]string{"ingress", "front"}, "front"}, {[]string{"inner", "back", "front"}, "back"}, {[]string{"ingress", "inner"}, "inner"},
	} {
		if got := resolver(onNetworks(c.networks...), gateways); got != gateways[c.want] {
			t.Errorf("on %v: %v, want that of %q", c.networks, got, c.want)
		}
	}
}

// Where the node has a name server, the engine is told neither other servers nor the names of services.
func TestContainersAskTheNode(t *testing.T) {
	task := &cluster.Task{}
	task.ID, task.Spec.ContainerSpec = "t1", &swarm.ContainerSpec{Image: "app", DNSConfig: &swarm.DNSConfig{Nameservers: []string{"192.0.2.53"}, Search: []string{"example.org"}}}
	task.Spec.Networks = []swarm.NetworkAttachmentConfig{{Target: "front", Aliases: []string{"www"}}}
	task.NetworksAttachments = onNetworks("front")
	names := map[string]string{"front": "front"}
	with, err := Translate(task, Node{Names: true, Resolver: netip.MustParseAddr("10.0.2.1")}, names)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(with.Host.DNS, []string{"10.0.2.1"}) || !slices.Equal(with.Host.DNSSearch, []string{"example.org"}) || len(with.Networks[0].Endpoint.Aliases) != 0 {
		t.Errorf("with a name server: asks %v, searches %v, is called %v", with.Host.DNS, with.Host.DNSSearch, with.Networks[0].Endpoint.Aliases)
	}
	without, err := Translate(task, Node{}, names)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(without.Host.DNS, []string{"192.0.2.53"}) || !slices.Equal(without.Networks[0].Endpoint.Aliases, []string{"www"}) {
		t.Errorf("without: asks %v, is called %v", without.Host.DNS, without.Networks[0].Endpoint.Aliases)
	}
}
