package ingress

import (
	"net/netip"
	"sync"
	"time"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// Stats is what the data plane holds, and how often others have changed it.
type Stats struct {
	// Ports are published, Backends the addresses that connections are led to, Networks the overlays of this node.
	Ports, Backends, Networks int
	// Peers are the other nodes, by how packets reach them: plainly, by VXLAN, or not at all.
	Peers map[string]int
	// Gateways are the addresses of the other nodes that live on the ingress network, by node id.
	Gateways map[string]netip.Addr
	// Repairs counts how often something differed from what was applied and was repaired, RepairedAt is when last.
	Repairs    uint64
	RepairedAt time.Time
}

// The ways to a peer.
const (
	WayPlain = "plain"
	WayVXLAN = "vxlan"
	WayNone  = "none"
)

// stats has a lock of its own, so that who looks never waits for the kernel.
type stats struct {
	mu  sync.Mutex
	now Stats // guarded by mu; its maps are replaced, never modified
}

// Stats tells what the data plane holds. It waits for nobody. The maps must not be changed.
func (m *Mesh) Stats() Stats {
	m.stats.mu.Lock()
	defer m.stats.mu.Unlock()
	return m.stats.now
}

func (s *stats) repaired() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now.Repairs++
	s.now.RepairedAt = time.Now()
}

func (s *stats) converged(want plan.State, in plan.Input) {
	ingress := ""
	for _, n := range in.Networks {
		if n.Ingress {
			ingress = n.ID
		}
	}
	peers, gateways := map[string]int{WayPlain: 0, WayVXLAN: 0, WayNone: 0}, map[string]netip.Addr{}
	for _, p := range in.Peers {
		switch {
		case !p.Alive:
			peers[WayNone]++
			continue
		case p.Direct != nil && p.Direct.Proven:
			peers[WayPlain]++
		default:
			peers[WayVXLAN]++
		}
		if gw := p.Gateways[ingress]; gw.IsValid() {
			gateways[p.ID] = gw
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now.Ports, s.now.Backends, s.now.Networks = len(want.Table.Ports), len(want.Backends), len(want.Overlays)
	s.now.Peers, s.now.Gateways = peers, gateways
}
