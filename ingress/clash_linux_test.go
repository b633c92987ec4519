package ingress

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// dialFrom connects from one port, which other connections may have as well.
func (s *space) dialFrom(port uint16, to string) (conn net.Conn, err error) {
	d := net.Dialer{Timeout: patience, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.IPv4Unspecified(), port)),
		Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			if cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }); cerr != nil {
				return cerr
			}
			return err
		}}
	err = s.do(func() (err error) {
		conn, err = d.DialContext(s.t.Context(), "tcp4", to)
		return err
	})
	return conn, err
}

// A client, or a load balancer before the nodes, may use one port for connections through several nodes, which all lead to one
// replica. To the replica's node they look the same, and are several all the same, also when the rules are made anew meanwhile.
func TestOnePortThroughSeveralEntries(t *testing.T) {
	for _, plain := range []bool{false, true} {
		for _, filter := range []bool{true, false} {
			t.Run(fmt.Sprintf("plain ways %v, bridge-nf-call-iptables %v", plain, filter), func(t *testing.T) {
				c := newCluster(t, options{hosts: 3, bridgeFilter: filter, run: plain})
				client := c.plug("client", addr("192.0.2.100"))
				all := c.replicas(ingressID, 3)
				if plain {
					c.awaitPlain(all)
				}
				replicas := c.hosts[2] // the others have no connection in any zone
				for round := range 3 {
					var conns []net.Conn
					for _, h := range c.hosts {
						began := time.Now()
						conn, err := client.dialFrom(uint16(40000+round), h.at(80))
						if err != nil {
							t.Fatalf("round %d: through %s: %v", round, h.name, err)
						}
						defer conn.Close()
						if took := time.Since(began); took > patience/4 {
							t.Errorf("round %d: through %s: connected after %s, with a second try", round, h.name, took)
						}
						conns = append(conns, conn)
					}
					askAll := func(when string) {
						for _, conn := range conns {
							if _, seen, err := ask(conn); err != nil || seen != "192.0.2.100" {
								t.Errorf("round %d, %s: %s: saw %q, %v", round, when, conn.RemoteAddr(), seen, err)
							}
						}
					}
					askAll("all open")
					if round == 1 {
						replicas.run("nft", "delete", "table", "ip", "miniswarm")
						replicas.must(func() error { _, err := replicas.mesh.Verify(t.Context()); return err })
						askAll("after the rules were made anew")
					}
					for _, conn := range conns {
						conn.Close()
					}
				}
				if n := len(replicas.ours()); n < 2 {
					t.Errorf("%d connections, want those through other nodes at least", n)
				}
				replicas.must(func() error { return replicas.mesh.Remove(t.Context()) })
				if left := replicas.ours(); len(left) > 0 {
					t.Errorf("left behind: %v", left)
				}
			})
		}
	}
}
