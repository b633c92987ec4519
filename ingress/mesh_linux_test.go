package ingress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miniswarm/miniswarm/ingress/plan"
	"github.com/miniswarm/miniswarm/ingress/ports"
)

// publish replaces the service's backends.
func (c *cluster) publish(backends ...plan.Backend) {
	c.t.Helper()
	c.ports = []plan.PublishedPort{
		{ServiceID: "web", Name: "web", Protocol: plan.TCP, Published: 80, Target: 8000, Backends: backends},
		{ServiceID: "web", Name: "web", Protocol: plan.UDP, Published: 80, Target: 8000, Backends: backends},
	}
	c.apply()
}

// replicas publishes port 80 for a service with one container on each of the
// given hosts.
func (c *cluster) replicas(via string, hosts ...int) []*container {
	c.t.Helper()
	c.apply() // bridges first
	var all []*container
	var backends []plan.Backend
	for _, n := range hosts {
		ct := c.container(n, via)
		all = append(all, ct)
		backends = append(backends, ct.task)
	}
	c.publish(backends...)
	return all
}

func (h *host) at(port int) string { return fmt.Sprintf("%s:%d", h.underlay, port) }

// even fails unless each container answered n times.
func even(t *testing.T, got map[string]int, all []*container, n int) {
	t.Helper()
	for _, ct := range all {
		if got[ct.name] != n {
			t.Errorf("answers %v, want %d of each", got, n)
			return
		}
	}
}

// eachWay runs a test with bridged frames passing the firewall and without.
func eachWay(t *testing.T, f func(t *testing.T, c *cluster)) {
	for _, filter := range []bool{true, false} {
		t.Run(fmt.Sprintf("bridge-nf-call-iptables %v", filter), func(t *testing.T) {
			f(t, newCluster(t, options{hosts: 3, bridgeFilter: filter}))
		})
	}
}

func TestEveryNodeAnswersAndKeepsTheClientsAddress(t *testing.T) {
	for _, via := range []string{ingressID, backID} {
		t.Run("default route by "+via, func(t *testing.T) {
			eachWay(t, func(t *testing.T, c *cluster) {
				client := c.plug("client", addr("192.0.2.100"))
				all := c.replicas(via, 1, 2)
				for _, h := range c.hosts {
					even(t, client.survey("tcp", h.at(80), "192.0.2.100", 4), all, 2)
					// A UDP server that answers from whatever address the route suggests
					// needs its default route by the ingress network.
					if via == ingressID {
						even(t, client.survey("udp", h.at(80), "192.0.2.100", 4), all, 2)
					}
				}
			})
		})
	}
}

func TestANodeReachesItsOwnPorts(t *testing.T) {
	for _, via := range []string{ingressID, backID} {
		t.Run("default route by "+via, func(t *testing.T) {
			eachWay(t, func(t *testing.T, c *cluster) {
				all := c.replicas(via, 1, 2)
				for _, h := range c.hosts {
					// 127.0.0.1 means nothing beyond the node; the node's address stands for it.
					for _, to := range []string{h.at(80), "127.0.0.1:80"} {
						even(t, h.survey("tcp", to, h.underlay.String(), 4), all, 2)
						if via == ingressID {
							even(t, h.survey("udp", to, h.underlay.String(), 4), all, 2)
						}
					}
				}
			})
		})
	}
}

func TestANodeReachesPortsOfOtherNodesAlsoWhenItServesThemItself(t *testing.T) {
	eachWay(t, func(t *testing.T, c *cluster) {
		all := c.replicas(ingressID, 1, 2)
		entry, self := c.hosts[0], c.hosts[1]
		seen := map[string]string{}
		for range 4 {
			server, client, err := self.get("tcp", entry.at(80))
			if err != nil {
				t.Fatal(err)
			}
			seen[server] = client
		}
		want := map[string]string{
			all[0].name: self.underlay.String(),  // kept
			all[1].name: entry.underlay.String(), // it would not believe its own address
		}
		for name, client := range want {
			if seen[name] != client {
				t.Errorf("%s saw %s, want %s", name, seen[name], client)
			}
		}
	})
}

func TestContainersReachPublishedPortsAlsoTheirOwn(t *testing.T) {
	for _, via := range []string{ingressID, backID} {
		t.Run("default route by "+via, func(t *testing.T) {
			eachWay(t, func(t *testing.T, c *cluster) {
				all := c.replicas(via, 1, 2)
				for _, ct := range all {
					for _, h := range c.hosts {
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
			})
		})
	}
}

func TestContainersOfANetworkReachEachOtherByAddress(t *testing.T) {
	eachWay(t, func(t *testing.T, c *cluster) {
		all := c.replicas(ingressID, 1, 2, 3, 1)
		for _, from := range all {
			for _, to := range all {
				server, client, err := from.get("tcp", to.back.String()+":8000")
				if err != nil || server != to.name || client != from.back.String() {
					t.Errorf("from %s to %s: %s saw %s, %v", from.name, to.name, server, client, err)
				}
			}
		}
	})
}

func TestNoBackendRefusesAtOnce(t *testing.T) {
	c := newCluster(t, options{hosts: 1})
	client := c.plug("client", addr("192.0.2.100"))
	c.replicas(ingressID)
	for from, to := range map[*space]string{client: c.hosts[0].at(80), c.hosts[0].space: "127.0.0.1:80"} {
		start := time.Now()
		for _, network := range []string{"tcp", "udp"} {
			if _, _, err := from.get(network, to); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("from %s over %s: %v, want connection refused", from.name, network, err)
			}
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("from %s: refused after %v", from.name, d)
		}
	}
	// A UDP client that kept asking before there was a backend is served after.
	conn, err := client.dial("udp", c.hosts[0].at(80))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, _, err := ask(conn); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("before there is a backend: %v", err)
	}
	ct := c.container(1, ingressID)
	c.publish(ct.task)
	if server, _, err := ask(conn); err != nil || server != ct.name {
		t.Errorf("after there is one: %q, %v", server, err)
	}
}

func TestDrainingKeepsConnectionsAndTakesNoNew(t *testing.T) {
	c := newCluster(t, options{hosts: 2, bridgeFilter: true})
	client := c.plug("client", addr("192.0.2.100"))
	all := c.replicas(ingressID, 1, 2)
	conns := map[string]net.Conn{}
	for range 2 {
		conn, err := client.dial("tcp", c.hosts[0].at(80))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		server, _, err := ask(conn)
		if err != nil {
			t.Fatal(err)
		}
		conns[server] = conn
	}
	leaving := all[1].task
	leaving.Draining = true
	c.publish(all[0].task, leaving)
	even(t, client.survey("tcp", c.hosts[0].at(80), "192.0.2.100", 3), all[:1], 3)
	if server, _, err := ask(conns[all[1].name]); err != nil || server != all[1].name {
		t.Errorf("the draining replica's connection: %q, %v", server, err)
	}
	c.publish(all[0].task)
	if _, _, err := ask(conns[all[1].name]); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("connection to a replica that is gone: %v, want a reset", err)
	}
	if server, _, err := ask(conns[all[0].name]); err != nil || server != all[0].name {
		t.Errorf("the other replica's connection: %q, %v", server, err)
	}
}

func TestConnectionsThatCouldNotBeForgottenAreTheNextTime(t *testing.T) {
	c := newCluster(t, options{hosts: 1, bridgeFilter: true})
	client := c.plug("client", addr("192.0.2.100"))
	all := c.replicas(ingressID, 1)
	conn, err := client.dial("tcp", c.hosts[0].at(80))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, _, err := ask(conn); err != nil {
		t.Fatal(err)
	}
	m := c.hosts[0].mesh
	c.hosts[0].must(func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		without := m.want
		without.Backends = nil
		if err := m.forget(ctx, without); err == nil {
			return errors.New("connections were forgotten in no time")
		}
		m.want = without // as after an Apply of which all else has worked
		return nil
	})
	if server, _, err := ask(conn); err != nil || server != all[0].name {
		t.Fatalf("before: %q, %v", server, err)
	}
	c.publish()
	if _, _, err := ask(conn); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("connection to a replica that is gone: %v, want a reset", err)
	}
}

func TestDeadPeerIsLeftOutAndItsConnectionsAreReset(t *testing.T) {
	c := newCluster(t, options{hosts: 3, bridgeFilter: true})
	client := c.plug("client", addr("192.0.2.100"))
	all := c.replicas(ingressID, 1, 2, 3)
	var lost net.Conn
	for range all {
		conn, err := client.dial("tcp", c.hosts[0].at(80))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if server, _, err := ask(conn); err != nil {
			t.Fatal(err)
		} else if server == all[2].name {
			lost = conn
		}
	}
	c.hosts[2].run("ip", "link", "set", "eth0", "down") // the power cord
	c.dead[3] = true
	c.apply()
	even(t, client.survey("tcp", c.hosts[0].at(80), "192.0.2.100", 4), all[:2], 2)
	if _, _, err := ask(lost); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("connection to the dead node: %v, want a reset", err)
	}
	// It comes back.
	c.hosts[2].run("ip", "link", "set", "eth0", "up")
	c.dead[3] = false
	c.apply()
	even(t, client.survey("tcp", c.hosts[0].at(80), "192.0.2.100", 6), all, 2)
}

func TestWhatOthersBreakIsRepaired(t *testing.T) {
	c := newCluster(t, options{hosts: 2, bridgeFilter: true})
	client := c.plug("client", addr("192.0.2.100"))
	all := c.replicas(ingressID, 1, 2)
	h := c.hosts[0]
	verify := func() bool {
		t.Helper()
		var repaired bool
		h.must(func() (err error) {
			repaired, err = h.mesh.Verify(t.Context())
			return err
		})
		return repaired
	}
	if verify() {
		t.Error("repaired something that nobody broke")
	}
	device, back := plan.VXLANName(ingressID), plan.VXLANName(backID)
	for _, broken := range []struct {
		command string
		quiet   bool // not part of what Verify reports
	}{
		{command: "nft flush ruleset", quiet: false},
		{command: "nft delete element ip miniswarm tcp/80 { 0 }"},
		{command: "nft flush chain ip miniswarm classify"},
		{command: "nft flush chain ip miniswarm tcp/80"},
		{command: "nft flush set ip miniswarm inside"},
		{command: "ip link del " + device},
		{command: "ip link set " + back + " nomaster"},
		{command: "ip link set " + device + " address 02:00:00:00:00:07"},
		{command: "ip link set " + device + " down"},
		{command: "ip rule del pref 4201"},
		{command: "ip rule del pref 4200"},
		{command: "ip rule del pref 4202"},
		{command: "ip route flush proto 109 table all"},
		{command: "ip neigh flush nud permanent dev " + device},
		{command: "bridge fdb del 00:00:00:00:00:00 dev " + back + " dst 192.0.2.2"},
		{command: "sysctl -w net.ipv4.conf." + device + ".rp_filter=1"},
		{command: "iptables -F DOCKER-USER", quiet: true},
	} {
		t.Log(broken.command)
		h.run("sh", "-c", broken.command)
		if !verify() && !broken.quiet {
			t.Errorf("after %q: nothing was repaired", broken.command)
		}
		if strings.HasPrefix(broken.command, "nft flush ruleset") {
			// Docker's own rules are gone as well, which is Docker's to repair; with
			// them the policy that drops.
			h.engine.dockerFirewall(h.space, true)
			verify()
		}
		even(t, client.survey("tcp", h.at(80), "192.0.2.100", 4), all, 2)
		even(t, client.survey("tcp", c.hosts[1].at(80), "192.0.2.100", 4), all, 2)
		if t.Failed() {
			t.Fatalf("after %q", broken.command)
		}
		if verify() {
			t.Errorf("after %q: repaired twice", broken.command)
		}
	}
}

func TestAPortInUseIsLeftToItsHolderAndNamed(t *testing.T) {
	c := newCluster(t, options{hosts: 1})
	client := c.plug("client", addr("192.0.2.100"))
	h := c.hosts[0]
	var l net.Listener
	h.must(func() (err error) {
		l, err = net.Listen("tcp4", ":80")
		return err
	})
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, "mine")
			conn.Close()
		}
	}()
	defer l.Close()
	c.apply()
	ct := c.container(1, ingressID)
	c.ports = []plan.PublishedPort{{ServiceID: "web", Name: "web", Protocol: plan.TCP, Published: 80, Target: 8000, Backends: []plan.Backend{ct.task}}}
	err := h.do(func() error { return h.mesh.Apply(t.Context(), c.input(h)) })
	var inUse *ports.InUseError
	if !errors.As(err, &inUse) || inUse.PID != os.Getpid() || !strings.Contains(err.Error(), "service web") {
		t.Fatalf("error %v, want one that names service web and process %d", err, os.Getpid())
	}
	conn, err := client.dial("tcp", h.at(80))
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(conn); string(b) != "mine" {
		t.Errorf("the holder's traffic was taken: %q", b)
	}
	// Once it is free the mesh takes it, and then nobody else can.
	l.Close()
	c.apply()
	even(t, client.survey("tcp", h.at(80), "192.0.2.100", 2), []*container{ct}, 2)
	if err := h.do(func() error { _, err := net.Listen("tcp4", ":80"); return err }); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("somebody else could listen on the published port: %v", err)
	}
}

func TestRestartDisturbsNoConnection(t *testing.T) {
	c := newCluster(t, options{hosts: 2, bridgeFilter: true})
	client := c.plug("client", addr("192.0.2.100"))
	c.replicas(ingressID, 1, 2)
	h := c.hosts[0]
	var conns []net.Conn
	for range 4 {
		conn, err := client.dial("tcp", h.at(80))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	h.close()
	for _, conn := range conns {
		if _, _, err := ask(conn); err != nil {
			t.Errorf("while no process has the data plane: %v", err)
		}
	}
	if _, _, err := client.get("tcp", h.at(80)); err != nil {
		t.Errorf("new connection while no process has the data plane: %v", err)
	}
	h.start()
	before := h.run("nft", "-a", "list", "table", "ip", "miniswarm")
	c.apply()
	if after := h.run("nft", "-a", "list", "table", "ip", "miniswarm"); after != before {
		t.Errorf("the table was written again:\n%s\n%s", before, after)
	}
	for _, conn := range conns {
		if _, _, err := ask(conn); err != nil {
			t.Errorf("after the restart: %v", err)
		}
	}
}

func TestAnEngineThatHangsHoldsUpNoRoute(t *testing.T) {
	c := newCluster(t, options{hosts: 2})
	client := c.plug("client", addr("192.0.2.100"))
	all := c.replicas(ingressID, 1, 2)
	h := c.hosts[0]
	h.close()
	asked := 0
	h.engine.hangs = func() {
		asked++
		even(t, client.survey("tcp", h.at(80), "192.0.2.100", 4), all[1:], 4)
	}
	h.start()
	change := func(backends ...plan.Backend) {
		t.Helper()
		c.ports[0].Backends = backends
		err := h.do(func() error { return h.mesh.Apply(t.Context(), c.input(h)) })
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want that of the engine", err)
		}
	}
	change(all[1].task)
	if asked != 1 {
		t.Fatalf("the engine was asked %d times, want once, after the change", asked)
	}
	change(all[0].task)
	even(t, client.survey("tcp", h.at(80), "192.0.2.100", 4), all[:1], 4)
	if asked != 1 {
		t.Errorf("an engine that hangs was asked again for a change that does not need it")
	}
	h.engine.hangs = nil
	h.must(func() error { _, err := h.mesh.Verify(t.Context()); return err })
	c.publish(all[0].task, all[1].task)
	even(t, client.survey("tcp", h.at(80), "192.0.2.100", 4), all, 2)
}

func TestOnlyOneHasTheDataPlane(t *testing.T) {
	c := newCluster(t, options{hosts: 1})
	h := c.hosts[0]
	if err := h.do(func() error { _, err := New(Config{Engine: h.engine}); return err }); !errors.Is(err, ErrTaken) {
		t.Errorf("a second one: %v, want ErrTaken", err)
	}
	h.close()
	h.start()
}

// Somebody looks at the data plane, as doctor does, just when its daemon gives it to the next: nothing is reserved any more that the
// next one could not have.
func TestAClosedMeshReservesNothing(t *testing.T) {
	c := newCluster(t, options{hosts: 1})
	c.replicas(ingressID, 1)
	h := c.hosts[0]
	closed := h.mesh
	h.close()
	if err := h.do(func() error { _, err := closed.Verify(t.Context()); return err }); err != nil {
		t.Error(err)
	}
	h.start()
	c.apply() // fails where a port is in use
}

// snapshot is everything in a namespace that a Mesh could leave behind.
func (h *host) snapshot() string {
	var all strings.Builder
	for _, command := range []string{
		"nft list ruleset | sed 's/counter packets [0-9]* bytes [0-9]* //'", "ip -o link show", "ip -4 rule show", "ip -4 route show table all", "bridge fdb show",
		"ip -4 neigh show nud permanent", "sysctl net.ipv4.conf.all net.ipv4.conf.eth0", "ss -Htuna", "conntrack -L 2>/dev/null | grep mark=1 || true",
	} {
		fmt.Fprintf(&all, "%s\n%s\n", command, h.run("sh", "-c", command))
	}
	return all.String()
}

func TestRemoveLeavesNothing(t *testing.T) {
	c := newCluster(t, options{hosts: 2, bridgeFilter: true})
	client := c.plug("client", addr("192.0.2.100"))
	h := c.hosts[0]
	before := h.snapshot()
	all := c.replicas(ingressID, 1, 2)
	client.survey("tcp", h.at(80), "192.0.2.100", 2)
	for i := range 2 {
		h.run("ip", "link", "del", fmt.Sprintf("v%s-%d", all[0].name, i)) // containers stop first
	}
	// By another process than the one that made it all.
	h.close()
	h.start()
	h.must(func() error { return h.mesh.Remove(t.Context()) })
	after := h.snapshot()
	if before != after {
		b, a := strings.Split(before, "\n"), strings.Split(after, "\n")
		for i := range min(len(a), len(b)) {
			if a[i] != b[i] {
				t.Errorf("line %d: before %q, after %q", i, b[i], a[i])
			}
		}
		if len(a) != len(b) {
			t.Errorf("%d lines before, %d after:\n%s", len(b), len(a), after)
		}
	}
}

func TestAHundredServicesThatComeAndGoLeaveNothing(t *testing.T) {
	c := newCluster(t, options{hosts: 2, bridgeFilter: true})
	h := c.hosts[0]
	c.applyTo(h)
	count := func() string {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%d goroutines, %d descriptors\n%s", runtime.NumGoroutine(), len(fds), h.snapshot())
	}
	before := count()
	for i := range byte(100) {
		c.ports = []plan.PublishedPort{{ServiceID: "s", Name: "s", Protocol: plan.TCP, Published: 8000 + uint16(i), Target: 80, Backends: []plan.Backend{
			{TaskID: "near", NodeID: "h1", Addr: netip.AddrFrom4([4]byte{10, 0, 0, 50 + i})},
			{TaskID: "far", NodeID: "h2", Addr: netip.AddrFrom4([4]byte{10, 0, 0, 150 + i})},
		}}}
		c.applyTo(h)
		if i%10 == 0 { // a network comes and goes as well
			in := c.input(h)
			in.Networks = in.Networks[:1]
			h.must(func() error { return h.mesh.Apply(t.Context(), in) })
		}
	}
	c.ports = nil
	c.applyTo(h)
	after := count()
	if strip(before) != strip(after) {
		t.Errorf("before %s\nafter %s", before, after)
	}
}

// strip removes the numbers of devices, which are never given twice, and addresses
// the kernel chose by chance.
func strip(s string) string {
	s = regexp.MustCompile(`(?m)^\d+: `).ReplaceAllString(s, "")
	s = regexp.MustCompile(`([0-9a-f]{2}:){5}[0-9a-f]{2}`).ReplaceAllString(s, "MAC")
	lines := strings.Split(s, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
