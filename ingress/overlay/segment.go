package overlay

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// Segment is a link that we share with another node.
type Segment struct {
	Device string
	Index  int
	// MAC is the node's address there; zero while the kernel does not know it.
	MAC plan.MAC
}

// Segments finds which of addrs are on a segment of ours: those whose route has
// no gateway.
func (k *Kernel) Segments(addrs []netip.Addr) (map[netip.Addr]Segment, error) {
	names, err := k.deviceNames()
	if err != nil {
		return nil, fmt.Errorf("find neighbours: %w", err)
	}
	entries, err := k.listNeighbors(unix.AF_INET)
	if interrupted(err) != nil {
		return nil, fmt.Errorf("find neighbours: %w", err)
	}
	const valid = unix.NUD_PERMANENT | unix.NUD_NOARP | unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE
	type where struct {
		index int
		addr  netip.Addr
	}
	macs := map[where]plan.MAC{}
	for _, e := range entries {
		if addr, ok := netip.AddrFromSlice(e.IP); ok && e.State&valid != 0 && len(e.HardwareAddr) == 6 {
			macs[where{e.LinkIndex, addr.Unmap()}] = plan.MAC(e.HardwareAddr)
		}
	}
	found := map[netip.Addr]Segment{}
	for _, a := range addrs {
		routes, err := k.nl.RouteGet(a.AsSlice())
		if err != nil || len(routes) != 1 {
			continue // a node without a route is not a neighbour
		}
		r := routes[0]
		if r.Gw != nil || r.Via != nil || r.Type != unix.RTN_UNICAST {
			continue
		}
		found[a] = Segment{Device: names[r.LinkIndex], Index: r.LinkIndex, MAC: macs[where{r.LinkIndex, a}]}
	}
	return found, nil
}
