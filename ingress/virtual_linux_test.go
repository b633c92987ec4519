package ingress

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

var virtual = addr("10.0.1.50")

// virtual gives the service its virtual address on network back, over the containers.
func (c *cluster) virtual(over ...*container) {
	c.t.Helper()
	v := plan.Virtual{ServiceID: "s", Name: "web", NetworkID: backID, Addr: virtual}
	for _, ct := range over {
		b := ct.task
		b.Addr = ct.back
		v.Backends = append(v.Backends, b)
	}
	c.virtuals = []plan.Virtual{v}
	c.apply()
}

func at(a netip.Addr, port int) string { return fmt.Sprintf("%v:%d", a, port) }

// A virtual address is reached from containers on every node, those of the service
// itself included, by TCP and UDP, and leads to the replicas in turn, wherever they run.
func TestVirtualAddress(t *testing.T) {
	for _, filter := range []bool{true, false} {
		t.Run(fmt.Sprintf("bridge filter %v", filter), func(t *testing.T) {
			c := newCluster(t, options{hosts: 3, bridgeFilter: filter})
			c.apply()
			one, two, client, far := c.container(1, backID), c.container(2, ingressID), c.container(1, backID), c.container(3, backID)
			c.virtual(one, two)
			for _, from := range []*container{client, far, one, two} {
				for _, network := range []string{"tcp", "udp"} {
					n := 8
					// Whoever answers sees the address of the client's node.
					got := from.survey(network, at(virtual, 8000), from.host.gateway(backSubnet).String(), n)
					if got[one.name] == 0 || got[two.name] == 0 || got[one.name]+got[two.name] != n {
						t.Errorf("%s from %s on %s: answered %v", network, from.name, from.host.name, got)
					}
				}
			}
			// The node itself may ask as well.
			c.hosts[2].survey("tcp", at(virtual, 8000), c.hosts[2].gateway(backSubnet).String(), 2)
			// A published port of the same number belongs to another service.
			c.ports = []plan.PublishedPort{{ServiceID: "other", Name: "other", Protocol: plan.TCP, Published: 8000, Target: 8000, Backends: []plan.Backend{far.task}}}
			c.apply()
			if got := client.survey("tcp", at(virtual, 8000), client.host.gateway(backSubnet).String(), 4); got[far.name] != 0 {
				t.Errorf("a published port of another service answered: %v", got)
			}
			// An engine that restarts takes the first address of the bridge for its own.
			if out := strings.Fields(c.hosts[0].run("ip", "-br", "addr", "show", "dev", plan.BridgeName(backID))); out[2] != "10.0.1.1/24" {
				t.Errorf("addresses of the bridge: %v", out)
			}
			if out := client.run("ip", "neigh", "show", virtual.String()); !strings.Contains(out, macOf(t, c.hosts[0], plan.BridgeName(backID))) {
				t.Errorf("%s is found elsewhere than on the own node: %s", virtual, out)
			}
		})
	}
}

// macOf is the address of a device of a host.
func macOf(t *testing.T, h *host, device string) string {
	t.Helper()
	out := strings.Fields(h.run("ip", "-br", "link", "show", "dev", device))
	if len(out) < 3 {
		t.Fatalf("%s: %v", device, out)
	}
	return out[2]
}

// A virtual address is for its own network alone: not for containers of others, nor for
// machines that send packets for it to a node.
func TestVirtualAddressIsOfItsNetwork(t *testing.T) {
	c := newCluster(t, options{hosts: 1, bridgeFilter: true})
	c.apply()
	h := c.hosts[0]
	one, stranger := c.container(1, backID), c.container(1, ingressID)
	stranger.run("ip", "link", "set", "eth1", "down")
	outside := c.plug("outside", addr("192.0.2.200"))
	outside.run("ip", "route", "add", backSubnet.String(), "via", h.underlay.String())
	c.virtual(one)
	for _, s := range []*space{stranger.space, outside} {
		if who, _, err := s.get("tcp", at(virtual, 8000)); err == nil {
			t.Errorf("%s reached %s", s.name, who)
		}
	}
}

// One virtual address on many nodes must never be told from one to another, even in the
// middle of a stream of answers.
func TestVirtualAddressStaysOnItsNode(t *testing.T) {
	c := newCluster(t, options{hosts: 2, bridgeFilter: true})
	c.apply()
	one, two := c.container(1, backID), c.container(2, backID)
	c.virtual() // no replica: the nodes themselves refuse, in the name of the address
	for _, ct := range []*container{one, two} {
		start := time.Now()
		if _, _, err := ct.get("tcp", at(virtual, 8000)); err == nil || !strings.Contains(err.Error(), "refused") || time.Since(start) > time.Second {
			t.Errorf("%s: without a replica: %v after %v", ct.name, err, time.Since(start))
		}
		for _, h := range c.hosts {
			// A node that must first ask where its client is asks in the client's sight.
			h.run("ip", "neigh", "flush", "dev", plan.BridgeName(backID))
		}
		if out := ct.run("ip", "neigh", "show", virtual.String()); !strings.Contains(out, macOf(t, ct.host, plan.BridgeName(backID))) {
			t.Errorf("%s finds the address elsewhere: %s", ct.name, out)
		}
	}
	// Where its own node does not answer, no other does.
	c.hosts[0].run("ip", "addr", "del", virtual.String()+"/32", "dev", plan.BridgeName(backID))
	one.run("ip", "neigh", "flush", "dev", "eth1")
	if conn, err := one.dial("tcp", at(virtual, 8000)); err == nil || strings.Contains(err.Error(), "refused") {
		t.Errorf("another node answered: %v, %v", conn, err)
	}
}

// A replica that drains keeps its connections, is given no new ones, and is cut off
// when it is gone.
func TestVirtualAddressFollowsItsReplicas(t *testing.T) {
	c := newCluster(t, options{hosts: 2, bridgeFilter: true})
	c.apply()
	one, two, client := c.container(1, backID), c.container(2, backID), c.container(1, backID)
	c.virtual(one, two)
	kept := map[string]net.Conn{}
	for len(kept) < 2 {
		conn, err := client.dial("tcp", at(virtual, 8000))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		who, _, err := ask(conn)
		if err != nil {
			t.Fatal(err)
		}
		kept[who] = conn
	}
	c.virtuals[0].Backends[1].Draining = true
	c.apply()
	seen := client.host.gateway(backSubnet).String()
	if got := client.survey("tcp", at(virtual, 8000), seen, 4); got[one.name] != 4 {
		t.Errorf("while one replica drains: %v", got)
	}
	if _, _, err := ask(kept[two.name]); err != nil {
		t.Errorf("connection to the draining replica: %v", err)
	}
	// The rules outlive the process that made them.
	for _, h := range c.hosts {
		h.close()
	}
	for _, conn := range kept {
		if _, _, err := ask(conn); err != nil {
			t.Errorf("while nobody is there: %v", err)
		}
	}
	client.survey("tcp", at(virtual, 8000), seen, 2)
	for _, h := range c.hosts {
		h.start()
	}
	c.apply()
	for _, conn := range kept {
		if _, _, err := ask(conn); err != nil {
			t.Errorf("after the restart: %v", err)
		}
	}
	c.virtual(one)
	if _, _, err := ask(kept[two.name]); err == nil {
		t.Error("the connection to a replica that is gone still answers")
	}
	if _, _, err := ask(kept[one.name]); err != nil {
		t.Errorf("the other connection: %v", err)
	}
	c.virtuals = nil
	c.apply()
	for _, h := range c.hosts {
		if out := h.run("ip", "addr", "show", "dev", plan.BridgeName(backID)); strings.Contains(out, virtual.String()) {
			t.Errorf("%s still has the address: %s", h.name, out)
		}
	}
}

// What somebody takes away comes back.
func TestVirtualAddressIsRepaired(t *testing.T) {
	c := newCluster(t, options{hosts: 1, bridgeFilter: true})
	c.apply()
	one, client := c.container(1, backID), c.container(1, backID)
	c.virtual(one)
	h := c.hosts[0]
	h.run("ip", "addr", "del", virtual.String()+"/32", "dev", plan.BridgeName(backID))
	h.run("nft", "delete", "table", "bridge", "miniswarm")
	h.must(func() error {
		repaired, err := h.mesh.Verify(t.Context())
		if err == nil && !repaired {
			return fmt.Errorf("nothing was repaired")
		}
		return err
	})
	client.survey("tcp", at(virtual, 8000), h.gateway(backSubnet).String(), 2)
	if out := h.run("nft", "list", "table", "bridge", "miniswarm"); !strings.Contains(out, virtual.String()) {
		t.Errorf("the bridge's table: %s", out)
	}
	h.must(func() error { return h.mesh.Remove(t.Context()) })
	if out := h.run("nft", "list", "tables"); strings.Contains(out, "miniswarm") {
		t.Errorf("left behind: %s", out)
	}
}
