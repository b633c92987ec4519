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

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// What the mesh costs against a direct connection, on one machine: every path is
// bound by the CPU, so the ratios are costs per request. Needs wrk.
//
//	go test -run xxx -bench Paths -benchtime 5x ./ingress
//
// Each iteration measures every path once, so that what else the machine does hits
// all alike; the figures are medians.
func BenchmarkPaths(b *testing.B) {
	if _, err := exec.LookPath("wrk"); err != nil {
		b.Skip("wrk is not installed (apt-get install wrk)")
	}
	c := newCluster(b, options{hosts: 2, bridgeFilter: true})
	client := c.plug("client", addr("192.0.2.100"))
	all := c.replicas(ingressID, 1, 2)
	for _, ct := range all {
		ct.serveHTTP(8080)
	}
	publish := func(port uint16, backends ...plan.Backend) {
		c.ports = append(c.ports, plan.PublishedPort{ServiceID: fmt.Sprint(port), Name: fmt.Sprint(port), Protocol: plan.TCP, Published: port, Target: 8080, Backends: backends})
	}
	publish(8001, all[0].task)
	publish(8002, all[1].task)
	c.apply()

	// The paths without a mesh, in a cluster of their own: the same machines,
	// bridges, containers and routed VXLAN, without rules or connection tracking.
	bare := newCluster(b, options{hosts: 2})
	bareClient := bare.plug("client", addr("192.0.2.100"))
	bareAll := bare.replicas(ingressID, 1, 2)
	for _, ct := range bareAll {
		ct.serveHTTP(8080)
	}
	for _, h := range bare.hosts {
		h.must(h.mesh.Close)
		h.mesh = nil
		h.run("nft", "flush", "ruleset")
	}
	first, second := bare.hosts[0], bare.hosts[1]
	bareClient.run("ip", "route", "add", ingressSubnet.String(), "via", first.underlay.String())
	// Replies of the remote one go back through the first host, as with the mesh.
	second.run("ip", "rule", "add", "from", bareAll[1].addr.String(), "table", "100")
	second.run("ip", "route", "add", "default", "via", first.gateway(ingressSubnet).String(), "dev", plan.VXLANName(ingressID), "onlink", "table", "100")

	paths := []struct {
		name string
		from *space
		to   string
	}{
		{"direct", bareClient, netip.AddrPortFrom(bareAll[0].addr, 8080).String()},
		{"mesh-local", client, c.hosts[0].at(8001)},
		{"bare-vxlan", bareClient, netip.AddrPortFrom(bareAll[1].addr, 8080).String()},
		{"mesh-vxlan", client, c.hosts[0].at(8002)},
	}
	for _, mode := range []struct {
		name string
		args []string
	}{
		{"keep-alive", nil},
		{"connect", []string{"-H", "Connection: close"}},
	} {
		b.Run(mode.name, func(b *testing.B) {
			rates := map[string][]float64{}
			for b.Loop() {
				for _, p := range paths {
					rates[p.name] = append(rates[p.name], wrk(b, p.from, p.to, mode.args...))
				}
			}
			for _, p := range paths {
				slices.Sort(rates[p.name])
				m := rates[p.name][len(rates[p.name])/2]
				b.ReportMetric(m, p.name+"-req/s")
			}
		})
	}
}

var wrkRate = regexp.MustCompile(`Requests/sec:\s+([0-9.]+)`)

func wrk(b *testing.B, from *space, to string, args ...string) float64 {
	b.Helper()
	out := from.run("wrk", append(append([]string{"-t2", "-c64", "-d2s"}, args...), "http://"+to+"/")...)
	m := wrkRate.FindStringSubmatch(out)
	if m == nil || strings.Contains(out, "Socket errors") || strings.Contains(out, "Non-2xx") {
		b.Fatalf("%s: %s", to, out)
	}
	rate, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		b.Fatal(err)
	}
	return rate
}

// serveHTTP answers every request with a hundred bytes.
func (ct *container) serveHTTP(port int) {
	ct.t.Helper()
	var l net.Listener
	ct.must(func() (err error) {
		l, err = net.Listen("tcp4", fmt.Sprintf(":%d", port))
		return err
	})
	body := strings.Repeat("x", 100)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) })}
	go server.Serve(l)
	ct.t.Cleanup(func() { server.Close() })
}
