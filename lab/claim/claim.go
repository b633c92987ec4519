// Package claim gives tests addresses of loopback that are theirs until they end, also while nobody listens there: a node
// that is stopped and started again has to find its port as it left it, whatever other tests run beside, in this process or
// in others.
//
// A port is claimed by holding the UDP port of its number, which TCP does not mind. The kernel gives it to one process only, and
// lets go of it when the process ends, however it does.
package claim

import (
	"math/rand/v2"
	"net"
	"net/netip"
)

// The ports that are claimed lie below those that the kernel gives to outgoing connections (from 32768 on unless it was told
// otherwise).
const (
	first = 10000
	last  = 31999
)

// TB is what is asked of a *testing.T, *testing.B or *testing.F.
type TB interface {
	Helper()
	Cleanup(func())
	Fatalf(format string, args ...any)
}

// Addr gives an address of loopback with a TCP port on which nobody listens, and which no other call gives while the test runs.
func Addr(t TB) netip.AddrPort {
	t.Helper()
	var err error
	for range 1000 {
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(first+rand.IntN(last-first+1)))
		var held *net.UDPConn
		if held, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(addr)); err != nil {
			continue // claimed, or somebody's
		}
		if err = free(addr); err != nil {
			held.Close()
			continue
		}
		t.Cleanup(func() { held.Close() })
		return addr
	}
	t.Fatalf("no free port of loopback between %d and %d: %v", first, last, err)
	return netip.AddrPort{}
}

// free says whether the port can be listened on, on all addresses as well.
func free(addr netip.AddrPort) error {
	for _, a := range []netip.AddrPort{addr, netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port())} {
		l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(a))
		if err != nil {
			return err
		}
		l.Close()
	}
	return nil
}
