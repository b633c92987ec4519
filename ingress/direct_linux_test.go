package ingress

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// eventually polls, since it waits for what daemons of other hosts do.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not in time: %s", what)
}

// way is the device that packets to a replica leave a host by.
func (h *host) way(ct *container) string {
	out := h.run("ip", "-o", "route", "get", ct.addr.String())
	_, after, _ := strings.Cut(out, " dev ")
	dev, _, _ := strings.Cut(after, " ")
	return dev
}

// awaitPlain waits until all hosts reach all replicas elsewhere without VXLAN.
func (c *cluster) awaitPlain(all []*container) {
	c.t.Helper()
	for _, h := range c.hosts {
		for _, ct := range all {
			if ct.host != h {
				eventually(c.t, fmt.Sprintf("plain way from %s to %s", h.name, ct.name), func() bool { return h.way(ct) == "eth0" })
			}
		}
	}
}

func TestNeighboursAreReachedWithoutVXLAN(t *testing.T) {
	for _, filter := range []bool{true, false} {
		t.Run(fmt.Sprintf("bridge-nf-call-iptables %v", filter), func(t *testing.T) {
			c := newCluster(t, options{hosts: 3, bridgeFilter: filter, run: true})
			client := c.plug("client", addr("192.0.2.100"))
			all := c.replicas(ingressID, 1, 2)
			c.awaitPlain(all)
			before := carried(t, c)
			for _, h := range c.hosts {
				for _, network := range []string{"tcp", "udp"} {
					even(t, client.survey(network, h.at(80), "192.0.2.100", 4), all, 2)
					even(t, h.survey(network, h.at(80), h.underlay.String(), 4), all, 2)
					even(t, h.survey(network, "127.0.0.1:80", h.underlay.String(), 4), all, 2)
				}
				for _, ct := range all {
					got := map[string]int{}
					for range 4 {
						server, _, err := ct.get("tcp", h.at(80))
						if err != nil {
							t.Fatalf("from %s through %s: %v", ct.name, h.name, err)
						}
						got[server]++
					}
					even(t, got, all, 2)
				}
			}
			for range 4 { // a node through another one to itself
				if _, _, err := c.hosts[1].get("tcp", c.hosts[0].at(80)); err != nil {
					t.Error(err)
				}
			}
			if after := carried(t, c); after != before {
				t.Errorf("VXLAN carried packets: %s before, %s after", before, after)
			}
			for _, h := range c.hosts {
				for _, f := range h.ours() {
					if f.Forward.DstPort == plan.ProbePort {
						t.Errorf("%s: a probe is tracked: %v", h.name, f)
					}
				}
			}
		})
	}
}

// ours are the connections of a host that have a mark of ours.
func (h *host) ours() (ours []*netlink.ConntrackFlow) {
	h.must(func() error {
		all, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		ours = slices.DeleteFunc(all, func(f *netlink.ConntrackFlow) bool { return f.Mark&plan.MarkMask != plan.MarkOurs })
		return err
	})
	return ours
}

// carried is what the ingress network's VXLAN devices have sent so far.
func carried(t *testing.T, c *cluster) string {
	t.Helper()
	var all []string
	for _, h := range c.hosts {
		h.must(func() error {
			l, err := netlink.LinkByName(plan.VXLANName(ingressID))
			if err == nil {
				all = append(all, fmt.Sprint(l.Attrs().Statistics.TxPackets))
			}
			return err
		})
	}
	return strings.Join(all, " ")
}

func TestWithoutProofItIsVXLANAgain(t *testing.T) {
	c := newCluster(t, options{hosts: 2, bridgeFilter: true, run: true})
	client := c.plug("client", addr("192.0.2.100"))
	all := c.replicas(ingressID, 2)
	c.awaitPlain(all)
	conn, err := client.dial("tcp", c.hosts[0].at(80))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	check := func(when string) {
		t.Helper()
		if server, seen, err := ask(conn); err != nil || server != all[0].name || seen != "192.0.2.100" {
			t.Errorf("%s: connection: %s saw %s, %v", when, server, seen, err)
		}
		even(t, client.survey("tcp", c.hosts[0].at(80), "192.0.2.100", 2), all, 2)
	}
	check("plainly")
	// A segment that drops foreign addresses.
	c.lan.run("nft", "add table bridge lan; add chain bridge lan f { type filter hook forward priority 0; }; add rule bridge lan f ip daddr 10.0.0.0/24 drop; add rule bridge lan f ip saddr 10.0.0.0/24 drop")
	eventually(t, "VXLAN again", func() bool { return c.hosts[0].way(all[0]) == plan.VXLANName(ingressID) })
	check("by VXLAN")
	c.lan.run("nft", "delete table bridge lan")
	c.awaitPlain(all)
	check("plainly again")
}

func TestRestartKeepsConnectionsOnPlainWays(t *testing.T) {
	c := newCluster(t, options{hosts: 2, bridgeFilter: true, run: true})
	client := c.plug("client", addr("192.0.2.100"))
	all := c.replicas(ingressID, 1, 2)
	c.awaitPlain(all)
	var conns []net.Conn
	for range 4 {
		conn, err := client.dial("tcp", c.hosts[0].at(80))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	check := func(when string) {
		t.Helper()
		for _, conn := range conns {
			if _, _, err := ask(conn); err != nil {
				t.Errorf("%s: %v", when, err)
			}
		}
	}
	for _, h := range c.hosts {
		h.close()
		check(h.name + " closed")
		h.start()
		check(h.name + " started")
		c.applyTo(h)
		check(h.name + " applied")
	}
	c.awaitPlain(all)
	check("plainly again")
}

func TestRunRepairsRulesAtOnce(t *testing.T) {
	c := newCluster(t, options{hosts: 1, run: true})
	client := c.plug("client", addr("192.0.2.100"))
	all := c.replicas(ingressID, 1)
	h := c.hosts[0]
	for _, command := range []string{"nft flush ruleset", "nft delete table ip miniswarm", "iptables -F DOCKER-USER"} {
		h.run("sh", "-c", command)
		start := time.Now()
		eventually(t, "repair after "+command, func() bool {
			_, missing := h.output("iptables", "-w", "-C", "DOCKER-USER", "-m", "connmark", "--mark", "0x6d000000/0xff000000", "-m", "comment", "--comment", "miniswarm", "-j", "ACCEPT")
			_, _, err := client.get("tcp", h.at(80))
			return missing == nil && err == nil
		})
		if d := time.Since(start); d > verifyInterval/2 {
			t.Errorf("after %s: repaired after %v", command, d)
		}
		even(t, client.survey("tcp", h.at(80), "192.0.2.100", 1), all, 1)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	c := newCluster(t, options{hosts: 1, run: true})
	c.apply()
	c.hosts[0].stop()
	if err := c.hosts[0].do(func() error { _, err := New(Config{Engine: c.hosts[0].engine}); return err }); !errors.Is(err, ErrTaken) {
		t.Errorf("after Run the data plane is %v, want still taken", err)
	}
}

// A node that takes the address of a dead one on its segment keeps the connections that it has, and keeps them when the dead one is removed.
func TestAnAddressOfADeadNodeIsTaken(t *testing.T) {
	c := newCluster(t, options{hosts: 3, bridgeFilter: true, run: true})
	client := c.plug("client", addr("192.0.2.100"))
	all := c.replicas(ingressID, 3)
	c.awaitPlain(all)
	dead, entry, replica := c.hosts[0], c.hosts[1], c.hosts[2]
	conn, err := client.dial("tcp", entry.at(80))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	check := func(when string) {
		t.Helper()
		if _, seen, err := ask(conn); err != nil || seen != "192.0.2.100" {
			t.Errorf("%s: saw %s, %v", when, seen, err)
		}
	}
	check("at first")
	dead.close()
	dead.run("ip", "link", "set", "eth0", "down")
	c.dead[dead.number] = true
	c.apply()
	check("one has died")
	entry.run("ip", "addr", "add", dead.underlay.String()+"/24", "dev", "eth0")
	replica.run("ip", "neigh", "flush", "to", dead.underlay.String())
	eventually(t, "the dead node's address is the other's", func() bool {
		replica.mesh.mu.Lock()
		defer replica.mesh.mu.Unlock()
		return replica.mesh.direct[dead.name].MAC == replica.mesh.direct[entry.name].MAC
	})
	check("its address is taken")
	c.hosts = c.hosts[1:]
	c.apply()
	check("it is removed")
	even(t, client.survey("tcp", entry.at(80), "192.0.2.100", 2), all, 2)
}
