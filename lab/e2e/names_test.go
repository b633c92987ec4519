package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// inside runs the witness as a client in a replica's container.
func (c *testCluster) inside(ctx context.Context, r replica, args ...string) (string, error) {
	return c.Output(ctx, r.host, append([]string{"docker", "-H", "unix:///run/miniswarm.sock", "exec", r.id, "/witness"}, args...)...)
}

// lookup gives the addresses of a name in a replica's container, none if it has none.
func (c *testCluster) lookup(ctx context.Context, r replica, name string) []string {
	out, err := c.inside(ctx, r, "lookup", name)
	if err != nil {
		return nil
	}
	found := strings.Fields(out)
	slices.Sort(found)
	return found
}

// addresses gives the addresses of a service's replicas on a network, as the cluster knows them, and its virtual one.
func (c *testCluster) addresses(t *testing.T, service, networkName string) (tasks []string, vip string) {
	t.Helper()
	list, err := c.tasks(t.Context(), service)
	if err != nil {
		t.Fatal(err)
	}
	id := ""
	for _, task := range list {
		for _, a := range task.NetworksAttachments {
			if a.Network.Spec.Name == networkName {
				id = a.Network.ID
				host, _, _ := strings.Cut(a.Addresses[0], "/")
				tasks = append(tasks, host)
			}
		}
	}
	slices.Sort(tasks)
	var ep struct {
		VirtualIPs []struct{ NetworkID, Addr string }
	}
	if err := json.Unmarshal([]byte(c.docker(t, "vm1", "service", "inspect", "--format", "{{json .Endpoint}}", service)), &ep); err != nil {
		t.Fatal(err)
	}
	for _, v := range ep.VirtualIPs {
		if v.NetworkID == id {
			vip, _, _ = strings.Cut(v.Addr, "/")
		}
	}
	return tasks, vip
}

// Two services on two networks over three hosts: what a container can look up, what it finds there, and what it cannot.
func TestNames(t *testing.T) {
	c := onShared(t)
	ctx := t.Context()
	c.docker(t, "vm1", "network", "create", "-d", "overlay", "front")
	c.docker(t, "vm1", "network", "create", "-d", "overlay", "--internal", "back")
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "web", "--replicas", "6", "--network", "name=front,alias=www", "--network", "back", c.witness+":1")
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "db", "--endpoint-mode", "dnsrr", "--replicas", "3", "--network", "name=back,alias=data", c.witness+":1")
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "client", "--mode", "global", "--network", "front", c.witness+":1")
	web, db, clients := c.running(t, "web", 6), c.running(t, "db", 3), c.running(t, "client", 3)
	frontTasks, frontVIP := c.addresses(t, "web", "front")
	backTasks, backVIP := c.addresses(t, "web", "back")
	dbTasks, none := c.addresses(t, "db", "back")
	clientTasks, _ := c.addresses(t, "client", "front")
	if none != "" || frontVIP == "" || backVIP == "" {
		t.Fatalf("virtual addresses %q %q %q", frontVIP, backVIP, none)
	}
	byHost := func(all []replica, host string) replica {
		return all[slices.IndexFunc(all, func(r replica) bool { return r.host == host })]
	}
	finds := func(t *testing.T, r replica, name string, want ...string) {
		t.Helper()
		eventually(t, fmt.Sprintf("%s on %s finds %s", r.name, r.host, name), patience, func() error {
			if got := c.lookup(ctx, r, name); !slices.Equal(got, want) {
				return fmt.Errorf("%s is %v, want %v", name, got, want)
			}
			return nil
		})
	}

	for _, host := range []string{"vm1", "vm2", "vm3"} {
		t.Run("on "+host, func(t *testing.T) {
			front, both, back := byHost(clients, host), byHost(web, host), byHost(db, host)
			finds(t, front, "web", frontVIP)
			finds(t, front, "www", frontVIP)
			finds(t, front, "tasks.web", frontTasks...)
			finds(t, front, "tasks.client", clientTasks...)
			finds(t, front, byHost(web, "vm2").id[:12], taskAddr(t, c, byHost(web, "vm2"), "front"))
			finds(t, front, byHost(web, "vm3").name, taskAddr(t, c, byHost(web, "vm3"), "front"))
			finds(t, both, "web.back", backVIP)
			finds(t, both, "tasks.web.front", frontTasks...)
			finds(t, both, "db", dbTasks...)
			finds(t, both, "data", dbTasks...)
			finds(t, back, "web", backVIP)
			finds(t, back, "tasks.web", backTasks...)
			// Names of networks that a container is not on mean nothing to it.
			finds(t, front, "db")
			finds(t, back, "client")
			finds(t, back, "web.front")
			out, err := c.inside(ctx, front, "names", frontTasks[0])
			if err != nil || !strings.HasPrefix(out, "web.") || !strings.HasSuffix(strings.TrimSpace(out), ".front.") {
				t.Errorf("%s is called %q, %v", frontTasks[0], out, err)
			}
		})
	}
	t.Run("balance", func(t *testing.T) {
		// From elsewhere, and from the service's own replicas to itself.
		for _, from := range append(slices.Clone(clients), web...) {
			if err := everyone(byShortID(web), 6, func() (answer, error) { return parse(c.inside(ctx, from, "get", "http://web:8000/")) }, ""); err != nil {
				t.Errorf("from %s on %s: %v", from.name, from.host, err)
			}
		}
		for _, from := range clients {
			if err := everyone(byShortID(web), 6, func() (answer, error) { return parse(c.inside(ctx, from, "udp", "web:8002")) }, ""); err != nil {
				t.Errorf("by UDP from %s on %s: %v", from.name, from.host, err)
			}
		}
	})
	t.Run("isolation", func(t *testing.T) {
		for _, r := range clients {
			if out, err := c.inside(ctx, r, "get", "http://"+backTasks[0]+":8000/"); err == nil {
				t.Errorf("%s on %s reaches a replica on a network it is not on: %s", r.name, r.host, out)
			}
			if out, err := c.inside(ctx, r, "get", "http://"+backVIP+":8000/"); err == nil {
				t.Errorf("%s on %s reaches the virtual address of a network it is not on: %s", r.name, r.host, out)
			}
		}
	})
	t.Run("the world", func(t *testing.T) {
		server := c.nameServer(t, "203.0.113.7")
		c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "out", "--network", "front", "--hostname", "herald", "--dns", server, c.witness+":1")
		c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "in", "--network", "back", "--dns", server, c.witness+":1")
		out := c.running(t, "out", 1)[0]
		finds(t, out, "example.org", "203.0.113.7")
		for _, r := range clients {
			finds(t, r, "herald", taskAddr(t, c, out, "front"))
		}
		in := c.running(t, "in", 1)[0]
		finds(t, in, "db", dbTasks...)
		finds(t, in, "example.org") // nothing leaves an internal network, not even a question
		if said, err := c.inside(ctx, in, "get", "http://"+c.Registry()+"/v2/"); err == nil {
			t.Errorf("a container on an internal network reaches the world: %s", said)
		}
		if said, err := c.inside(ctx, out, "get", "http://"+c.Registry()+"/v2/"); err != nil {
			t.Errorf("a container on another network does not reach the world: %s %v", said, err)
		}
		finds(t, in, "out") // on another network
	})
	t.Run("the daemon restarts", func(t *testing.T) {
		from := byHost(clients, "vm2")
		if err := c.StopDaemon(ctx, "vm2"); err != nil {
			t.Fatal(err)
		}
		// Names have to wait; what is known goes on.
		if err := everyone(byShortID(web), 6, func() (answer, error) {
			out, err := c.Output(ctx, "vm2", "docker", "exec", from.id, "/witness", "get", "http://"+frontVIP+":8000/")
			return parse(out, err)
		}, ""); err != nil {
			t.Errorf("by the virtual address without the daemon: %v", err)
		}
		if err := c.StartDaemon(ctx, "vm2"); err != nil {
			t.Fatal(err)
		}
		finds(t, from, "web", frontVIP)
		finds(t, from, "tasks.web", frontTasks...)
	})
}

// taskAddr is the address of a replica on a network.
func taskAddr(t *testing.T, c *testCluster, r replica, networkName string) string {
	t.Helper()
	d, err := c.engine(r.host).ContainerInspect(t.Context(), r.id)
	if err != nil {
		t.Fatal(err)
	}
	return d.NetworkSettings.Networks[networkName].IPAddress
}

// nameServer runs a name server on the machine that answers every question with the address given.
func (c *testCluster) nameServer(t *testing.T, with string) string {
	t.Helper()
	addr := c.MachineAddr().String()
	p, err := net.ListenPacket("udp4", addr+":53")
	if err != nil {
		t.Fatal(err)
	}
	started, ended := make(chan struct{}), make(chan error)
	server := &dns.Server{PacketConn: p, NotifyStartedFunc: func() { close(started) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.ParseIP(with)}}
		}
		_ = w.WriteMsg(m)
	})}
	go func() { ended <- server.ActivateAndServe() }()
	<-started
	t.Cleanup(func() {
		if err := server.Shutdown(); err != nil {
			t.Error(err)
		}
		<-ended
	})
	return addr
}

// tally is what a witness tells that asks without pause.
type tally struct {
	Asked, Failed int
	First         string
	Replicas      map[string]int
}

// Clients on every host ask a service by its name while it is scaled, updated and moved, and none of them is refused or
// cut off (I7).
func TestVirtualAddressUnderLoad(t *testing.T) {
	c := onShared(t)
	ctx := t.Context()
	c.docker(t, "vm1", "network", "create", "-d", "overlay", "front")
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "web", "--replicas", "3", "--network", "front", c.witness+":h1")
	c.running(t, "web", 3)
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "client", "--mode", "global", "--network", "front", c.witness+":1", "load", "http://web:8000/")
	clients := c.running(t, "client", 3)
	tallies := func() (all []tally) {
		t.Helper()
		for _, r := range clients {
			var one tally
			out, err := c.inside(ctx, r, "get", "http://127.0.0.1:8000/")
			if err == nil {
				err = json.Unmarshal([]byte(out), &one)
			}
			if err != nil {
				t.Fatalf("%s on %s: %v", r.name, r.host, err)
			}
			all = append(all, one)
		}
		return all
	}
	runs := func(n int, version string) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d replicas run version %s", n, version), 2*patience, func() error {
			all, err := c.converged(ctx, "web", n)
			for _, r := range all {
				if ref, _, _ := strings.Cut(r.image, "@"); !strings.HasSuffix(ref, ":"+version) {
					return fmt.Errorf("%s on %s runs %s", r.name, r.host, r.image)
				}
			}
			return err
		})
	}
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"scale up", func() { c.miniswarm(t, "vm1", "service", "scale", "--detach", "web=6"); runs(6, "h1") }},
		{"rolling update", func() {
			c.miniswarm(t, "vm1", "service", "update", "--detach", "--update-parallelism", "2", "--image", c.witness+":h2", "web")
			runs(6, "h2")
		}},
		{"drain of a node", func() {
			c.miniswarm(t, "vm1", "node", "update", "--availability", "drain", "vm3")
			c.runningElsewhere(t, "web", 6, "vm3")
			c.miniswarm(t, "vm1", "node", "update", "--availability", "active", "vm3")
			clients = c.running(t, "client", 3)
		}},
		{"scale down", func() { c.miniswarm(t, "vm1", "service", "scale", "--detach", "web=2"); runs(2, "h2") }},
	} {
		t.Run(step.name, func(t *testing.T) {
			step.do()
			before := tallies()
			eventually(t, "every client goes on", patience, func() error {
				for i, now := range tallies() {
					if now.Asked < before[i].Asked+20 {
						return fmt.Errorf("client %d: %+v", i, now)
					}
				}
				return nil
			})
			for i, now := range tallies() {
				t.Logf("client on %s: %d asked, %d failed", clients[i].host, now.Asked, now.Failed)
				if now.Failed > 0 {
					t.Errorf("client on %s: %d of %d failed: %s", clients[i].host, now.Failed, now.Asked, now.First)
				}
			}
		})
	}
}

// An engine that restarts keeps its bridges, virtual addresses and all, and its containers find each other again.
func TestNamesAfterEngineRestart(t *testing.T) {
	c := onShared(t)
	ctx := t.Context()
	c.docker(t, "vm1", "network", "create", "-d", "overlay", "front")
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "web", "--replicas", "3", "--restart-delay", "100ms", "--network", "front", c.witness+":1")
	c.running(t, "web", 3)
	if err := c.StopEngine(ctx, "vm2"); err != nil {
		t.Fatal(err)
	}
	if err := c.StartEngine(ctx, "vm2"); err != nil {
		t.Fatal(err)
	}
	web := c.running(t, "web", 3)
	for _, from := range web {
		eventually(t, from.host+" reaches all", patience, func() error {
			return everyone(byShortID(web), 3, func() (answer, error) { return parse(c.inside(ctx, from, "get", "http://web:8000/")) }, "")
		})
	}
}
