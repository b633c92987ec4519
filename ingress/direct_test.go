package ingress

import (
	"net/netip"
	"testing"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// A machine has the address now that a neighbour had: until it is known where that one is, there is no plain way to it. The kernel refuses
// a route by way of oneself, and with it the rest of that change.
func TestANeighbourAtThisMachinesAddressIsNone(t *testing.T) {
	own, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	m := &Mesh{input: plan.Input{Self: plan.Node{ID: "self", Underlay: own}}, direct: map[string]plan.Direct{"moved": {Device: "eth0"}, "stays": {Device: "eth0"}}}
	got := m.withDirect([]plan.Node{{ID: "moved", Underlay: own}, {ID: "stays", Underlay: other}})
	if got[0].Direct != nil || got[1].Direct == nil {
		t.Errorf("direct ways to %+v", got)
	}
}
