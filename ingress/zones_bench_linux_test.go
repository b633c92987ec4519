package ingress

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// What it costs the node of a replica to keep the connections of n entry nodes apart, against the same rules without that one: how
// long it has a packet that comes to it by VXLAN, from each entry node in turn, and connections through one entry node. Needs wrk.
//
//	go test -run xxx -bench Zones -benchtime 10x ./ingress
//
// With the rule and without take turns. The figures are medians, those of packets what a tenth of the rounds stayed below: what else
// the machine does adds to them, and takes nothing away.
func BenchmarkZones(b *testing.B) {
	if _, err := exec.LookPath("wrk"); err != nil {
		b.Skip("wrk is not installed (apt-get install wrk)")
	}
	for _, entries := range []int{3, 10, 100} {
		b.Run(fmt.Sprintf("entries=%d", entries), func(b *testing.B) {
			c := newCluster(b, options{hosts: 2, bridgeFilter: true})
			c.next = 200 // the addresses below are the nodes'
			client := c.plug("client", addr("192.0.2.200"))
			ct := c.replicas(ingressID, 2)[0]
			ct.serveHTTP(8080)
			c.ports = append(c.ports, plan.PublishedPort{ServiceID: "http", Name: "http", Protocol: plan.TCP, Published: 8001, Target: 8080, Backends: []plan.Backend{ct.task}})
			c.apply()
			// The replica's node is the second. All entry nodes but the first are known to it, and no more.
			replica := c.hosts[1]
			in := c.input(replica)
			gateways := []netip.Addr{c.hosts[0].gateway(ingressSubnet)}
			for i := 3; len(gateways) < entries; i++ {
				gw := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
				gateways = append(gateways, gw)
				in.Peers = append(in.Peers, plan.Node{ID: fmt.Sprint("known", i), Underlay: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), Alive: true,
					Gateways: map[string]netip.Addr{ingressID: gw}})
			}
			replica.must(func() error { return replica.mesh.Apply(b.Context(), in) })
			sides := []struct {
				name string
				on   func()
			}{
				{"with", func() { replica.must(func() error { _, err := replica.mesh.Verify(b.Context()); return err }) }},
				{"without", func() { replica.run("nft", "delete", "chain", "ip", "miniswarm", "zones") }},
			}
			b.Run("packets", func(b *testing.B) {
				times := map[string][]float64{}
				send := ct.flood(client, replica, gateways)
				for b.Loop() {
					for range 20 {
						for i, side := range sides {
							side.on()
							send(i, 2*entries) // their connections begin
							for range 10 {     // short, so that most have a processor for themselves
								times[side.name] = append(times[side.name], send(i, 300))
							}
						}
					}
				}
				for _, side := range sides {
					slices.Sort(times[side.name])
					b.ReportMetric(times[side.name][len(times[side.name])/10], side.name+":ns/packet")
				}
			})
			b.Run("connections", func(b *testing.B) {
				rates, costs := map[string][]float64{}, map[string][]float64{}
				for b.Loop() {
					for _, side := range sides {
						side.on()
						rate, cost := wrk(b, client, c.hosts[0].at(8001)+"/", "-t2", "-c64", "-H", "Connection: close")
						rates[side.name], costs[side.name] = append(rates[side.name], rate), append(costs[side.name], cost)
					}
				}
				for _, side := range sides {
					b.ReportMetric(median(rates[side.name]), side.name+":conn/s")
					b.ReportMetric(median(costs[side.name]), side.name+":cpu-µs/conn")
				}
			})
		})
	}
}

// flood returns what sends n packets to a replica that never answers, as entry nodes would by VXLAN, and says how many ns each took until the
// replica's socket had it. The connections of different sides have different ports.
func (ct *container) flood(from *space, to *host, entries []netip.Addr) (send func(side, n int) float64) {
	ct.t.Helper()
	const port = 9000
	var out net.Conn
	var sink net.PacketConn
	ct.must(func() (err error) {
		sink, err = net.ListenPacket("udp4", fmt.Sprintf(":%d", port)) // its buffer is soon full, and stays so
		return err
	})
	from.must(func() (err error) {
		out, err = net.Dial("udp4", to.at(plan.DefaultVXLANPort))
		return err
	})
	ct.t.Cleanup(func() { out.Close(); sink.Close() })
	gateway := plan.GatewayMAC(to.gateway(ingressSubnet))
	frame := func(side, entry int) []byte {
		mac, src, dst := plan.GatewayMAC(entries[entry]), addr("192.0.2.200").As4(), ct.addr.As4()
		f := []byte{8, 0, 0, 0, 0, 4096 >> 8, 0, 0} // VXLAN
		f = append(append(append(f, gateway[:]...), mac[:]...), 8, 0)
		ip := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
		ip = append(append(ip, src[:]...), dst[:]...)
		sum := uint32(0)
		for i := 0; i < len(ip); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(ip[i:]))
		}
		binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
		f = binary.BigEndian.AppendUint16(append(f, ip...), uint16(40000+1000*side+entry))
		return append(binary.BigEndian.AppendUint16(f, port), 0, 8, 0, 0)
	}
	frames := [2][][]byte{}
	for side := range frames {
		for entry := range entries {
			frames[side] = append(frames[side], frame(side, entry))
		}
	}
	arrived := func() (n int) {
		ct.must(func() error {
			l, err := netlink.LinkByName("eth0")
			if err == nil {
				n = int(l.Attrs().Statistics.RxPackets)
			}
			return err
		})
		return n
	}
	return func(side, n int) float64 {
		before := arrived()
		began := time.Now()
		from.must(func() error {
			for i := range n {
				if _, err := out.Write(frames[side][i%len(entries)]); err != nil {
					return err
				}
			}
			return nil
		})
		took := time.Since(began)
		if got := arrived() - before; got < n {
			ct.t.Fatalf("%d of %d packets arrived", got, n)
		}
		return float64(took.Nanoseconds()) / float64(n)
	}
}
