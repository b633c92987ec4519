package ingress

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// What it costs a node to follow one endpoint of one service that comes or goes while many services are published: all
// that Apply does (plan, conntrack, difference, the kernel's transaction), and of it the change of the table alone.
//
//	go test -run xxx -bench EndpointChange ./ingress
func BenchmarkEndpointChange(b *testing.B) {
	const endpoints = 10
	for _, services := range []int{1, 1000} {
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) {
			c := newCluster(b, options{hosts: 1})
			h := c.hosts[0]
			backend := func(service, i int) plan.Backend {
				return plan.Backend{TaskID: fmt.Sprintf("task%d-%d", service, i), NodeID: h.name, Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(100 + i)})}
			}
			for s := range services {
				p := plan.PublishedPort{ServiceID: fmt.Sprint(s), Name: fmt.Sprint(s), Protocol: plan.TCP, Published: uint16(10000 + s), Target: 80}
				for i := range endpoints {
					p.Backends = append(p.Backends, backend(s, i))
				}
				c.ports = append(c.ports, p)
			}
			c.apply()
			all := c.ports[0].Backends
			more := append(all[:len(all):len(all)], backend(0, endpoints))
			tables := make([]plan.Table, 2)
			apply := func(i int) {
				c.ports[0].Backends = [][]plan.Backend{more, all}[i%2]
				c.applyTo(h)
				tables[i%2] = h.mesh.want.Table
			}
			b.Run("all", func(b *testing.B) {
				for i := 0; b.Loop(); i++ {
					apply(i)
				}
			})
			apply(0)
			apply(1)
			b.Run("table", func(b *testing.B) {
				for i := 0; b.Loop(); i++ {
					h.must(func() error { return h.mesh.table.Apply(b.Context(), tables[i%2]) })
				}
			})
		})
	}
}
