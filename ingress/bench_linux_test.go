package ingress

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// What the mesh costs against a direct connection, on one machine: every path is
// bound by the CPU, so the ratios are costs per request. Needs wrk.
//
//	go test -run xxx -bench Paths -benchtime 5x ./ingress
//
// Each iteration measures every path once, so that what else the machine does hits
// all alike; the figures are medians. "near" is a replica on the entry node, "plain"
// and "vxlan" are one hop away; "bare" is without any firewall, "tracked" with
// Docker's and connection tracking but without a mesh, "docker" a port published by
// the engine.
func BenchmarkPaths(b *testing.B) {
	if _, err := exec.LookPath("wrk"); err != nil {
		b.Skip("wrk is not installed (apt-get install wrk)")
	}
	// Two clusters with a mesh, one of which uses the plain way between its hosts.
	mesh := func(plain bool) (c *cluster, client *space) {
		c = newCluster(b, options{hosts: 2, bridgeFilter: true, run: plain})
		client = c.plug("client", addr("192.0.2.100"))
		all := c.replicas(ingressID, 1, 2)
		for i, ct := range all {
			ct.serveHTTP(8080)
			port := uint16(8001 + i)
			c.ports = append(c.ports, plan.PublishedPort{ServiceID: fmt.Sprint(port), Name: fmt.Sprint(port), Protocol: plan.TCP,
				Published: port, Target: 8080, Backends: []plan.Backend{ct.task}})
		}
		c.apply()
		if plain {
			c.awaitPlain(all)
		}
		return c, client
	}
	vxlan, vxlanClient := mesh(false)
	plain, plainClient := mesh(true)
	// What the engine itself would do for a container with a published port.
	docker := vxlan.hosts[0]
	docker.run("iptables", "-w", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "8003", "-j", "DNAT", "--to-destination", "10.0.0.101:8080")
	docker.run("iptables", "-w", "-A", "FORWARD", "-d", "10.0.0.101", "!", "-i", plan.BridgeName(ingressID), "-p", "tcp", "--dport", "8080", "-j", "ACCEPT")
	docker.run("nft", "delete", "chain", "ip", "miniswarm", "protect")

	// The same ways without a mesh: the same machines, bridges, containers and routed
	// VXLAN. Once bare, and once with connection tracking and Docker's firewall, which
	// a machine with an engine has anyway.
	without := func(bare bool) (client *space, near, plain, vxlan string) {
		c := newCluster(b, options{hosts: 2, bridgeFilter: !bare})
		client = c.plug("client", addr("192.0.2.100"))
		all := c.replicas(ingressID, 1, 2, 2)
		for _, ct := range all {
			ct.serveHTTP(8080)
		}
		for _, h := range c.hosts {
			h.close()
			if bare {
				h.run("nft", "flush", "ruleset")
			} else {
				h.run("nft", "delete", "table", "ip", "miniswarm")
				h.run("iptables", "-w", "-P", "FORWARD", "ACCEPT")
			}
		}
		first, second := c.hosts[0], c.hosts[1]
		client.run("ip", "route", "add", ingressSubnet.String(), "via", first.underlay.String())
		first.run("ip", "route", "replace", all[1].addr.String(), "via", second.underlay.String())
		// Replies go back through the first host, as with the mesh.
		for i, back := range []string{first.underlay.String(), first.gateway(ingressSubnet).String() + " onlink dev " + plan.VXLANName(ingressID)} {
			table := fmt.Sprint(100 + i)
			second.run("ip", "rule", "add", "from", all[1+i].addr.String(), "table", table)
			second.run("sh", "-c", "ip route add default table "+table+" via "+back)
		}
		at := func(ct *container) string { return netip.AddrPortFrom(ct.addr, 8080).String() }
		return client, at(all[0]), at(all[1]), at(all[2])
	}
	bareClient, bareNear, barePlain, bareVXLAN := without(true)
	trackedClient, trackedNear, trackedPlain, trackedVXLAN := without(false)

	paths := []struct {
		name string
		from *space
		to   string
	}{
		{"near/bare", bareClient, bareNear},
		{"near/tracked", trackedClient, trackedNear},
		{"near/docker", vxlanClient, vxlan.hosts[0].at(8003)},
		{"near/mesh", plainClient, plain.hosts[0].at(8001)},
		{"plain/bare", bareClient, barePlain},
		{"plain/tracked", trackedClient, trackedPlain},
		{"plain/mesh", plainClient, plain.hosts[0].at(8002)},
		{"vxlan/bare", bareClient, bareVXLAN},
		{"vxlan/tracked", trackedClient, trackedVXLAN},
		{"vxlan/mesh", vxlanClient, vxlan.hosts[0].at(8002)},
	}
	for _, mode := range []struct {
		name, path string
		args       []string
	}{
		{"keep-alive", "/", []string{"-t2", "-c64"}},
		{"connect", "/", []string{"-t2", "-c64", "-H", "Connection: close"}},
		// Answers of a MiB each: a request is a MiB.
		{"bytes-1-stream", "/bulk", []string{"-t1", "-c1"}},
		{"bytes-4-streams", "/bulk", []string{"-t2", "-c4"}},
	} {
		b.Run(mode.name, func(b *testing.B) {
			rates, costs := map[string][]float64{}, map[string][]float64{}
			for b.Loop() {
				for _, p := range paths {
					rate, cost := wrk(b, p.from, p.to+mode.path, mode.args...)
					rates[p.name], costs[p.name] = append(rates[p.name], rate), append(costs[p.name], cost)
				}
			}
			for _, p := range paths {
				b.ReportMetric(median(rates[p.name]), p.name+":req/s")
				b.ReportMetric(median(costs[p.name]), p.name+":cpu-µs/req")
			}
		})
	}
}

// What a virtual address costs a container against the replica's own address, which it
// would reach by layer 2 alone:
//
//	go test -run xxx -bench VirtualAddress -benchtime 5x ./ingress
func BenchmarkVirtualAddress(b *testing.B) {
	if _, err := exec.LookPath("wrk"); err != nil {
		b.Skip("wrk is not installed (apt-get install wrk)")
	}
	c := newCluster(b, options{hosts: 2, bridgeFilter: true})
	c.apply()
	client, near, far := c.container(1, backID), c.container(1, backID), c.container(2, backID)
	paths := []struct{ name, to string }{}
	for i, ct := range []*container{near, far} {
		ct.serveHTTP(8080)
		task := ct.task
		task.Addr = ct.back
		vip := netip.AddrFrom4([4]byte{10, 0, 1, byte(50 + i)})
		c.virtuals = append(c.virtuals, plan.Virtual{ServiceID: ct.name, Name: ct.name, NetworkID: backID, Addr: vip, Backends: []plan.Backend{task}})
		name := []string{"near", "far"}[i]
		paths = append(paths, struct{ name, to string }{name + "/direct", at(ct.back, 8080)}, struct{ name, to string }{name + "/virtual", at(vip, 8080)})
	}
	c.apply()
	for mode, args := range map[string][]string{"keep-alive": {"-t2", "-c64"}, "connect": {"-t2", "-c64", "-H", "Connection: close"}} {
		b.Run(mode, func(b *testing.B) {
			rates := map[string][]float64{}
			for b.Loop() {
				for _, p := range paths {
					rate, _ := wrk(b, client.space, p.to+"/", args...)
					rates[p.name] = append(rates[p.name], rate)
				}
			}
			for _, p := range paths {
				b.ReportMetric(median(rates[p.name]), p.name+":req/s")
			}
		})
	}
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

var wrkRate = regexp.MustCompile(`(\d+) requests in`)

// wrk loads a server and returns requests per second, and the processor time that
// client, server and what the kernel did for them took per request, in µs.
func wrk(b *testing.B, from *space, to string, args ...string) (rate, cost float64) {
	b.Helper()
	const seconds = 1
	cmd := exec.Command("wrk", append(args, fmt.Sprintf("-d%ds", seconds), "http://"+to)...)
	before := processorTime()
	var out []byte
	from.must(func() (err error) {
		out, err = cmd.CombinedOutput()
		return err
	})
	used := processorTime() - before + cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	m := wrkRate.FindSubmatch(out)
	if m == nil || strings.Contains(string(out), "Socket errors") || strings.Contains(string(out), "Non-2xx") {
		b.Fatalf("%s: %s", to, out)
	}
	n, err := strconv.Atoi(string(m[1]))
	if err != nil {
		b.Fatal(err)
	}
	return float64(n) / seconds, float64(used.Microseconds()) / float64(n)
}

// processorTime is what this process has used.
func processorTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// serveHTTP answers every request with a hundred bytes, and /bulk with a MiB.
func (ct *container) serveHTTP(port int) {
	ct.t.Helper()
	var l net.Listener
	ct.must(func() (err error) {
		l, err = net.Listen("tcp4", fmt.Sprintf(":%d", port))
		return err
	})
	body, bulk := strings.Repeat("x", 100), make([]byte, 1<<20)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/bulk" {
			w.Header().Set("Content-Length", strconv.Itoa(len(bulk)))
			w.Write(bulk)
			return
		}
		io.WriteString(w, body)
	})}
	go server.Serve(l)
	ct.t.Cleanup(func() { server.Close() })
}
