package overlay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// Read tells what of ours the kernel holds: the parts of want that are as they
// should be, and what is there beyond it. The nftables table is not read here.
func (k *Kernel) Read(ctx context.Context, want plan.State) (plan.State, error) {
	var have plan.State
	var err error
	if have.Overlays, err = k.readOverlays(want.Overlays); err != nil {
		return have, fmt.Errorf("read devices: %w", err)
	}
	names, err := k.deviceNames()
	if err != nil {
		return have, fmt.Errorf("read devices: %w", err)
	}
	for _, step := range []struct {
		what string
		read func() error
	}{
		{"forwarding entries", func() error { return k.readForwards(names, &have) }},
		{"neighbors", func() error { return k.readNeighbors(names, &have) }},
		{"routes", func() error { return k.readRoutes(names, &have) }},
		{"rules", func() error { return k.readRules(&have) }},
		{"addresses", func() error { return k.readAddresses(names, &have) }},
	} {
		if err := ctx.Err(); err != nil {
			return have, err
		}
		if err := step.read(); err != nil {
			return have, fmt.Errorf("read %s: %w", step.what, err)
		}
	}
	for _, s := range want.Sysctls {
		if k.settings.fits(s) {
			have.Sysctls = append(have.Sysctls, s)
		}
	}
	have.Sort()
	return have, nil
}

func (k *Kernel) deviceNames() (map[int]string, error) {
	links, err := whole(k.nl.LinkList)
	if err != nil {
		return nil, err
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	return names, nil
}

// whole lists again what others changed while the kernel listed it, which may have left something out. On a machine where
// containers come and go that is everyday; so often in a row that all is in vain it is not.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range 20 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// listNeighbors reads the kernel's table of a family.
func (k *Kernel) listNeighbors(family int) ([]netlink.Neigh, error) {
	return whole(func() ([]netlink.Neigh, error) { return k.nl.NeighList(0, family) })
}

// interrupted says what is wrong besides that a list is incomplete: what is missing would be made again, which does no harm.
func interrupted(err error) error {
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil
	}
	return err
}

func (k *Kernel) readForwards(names map[int]string, have *plan.State) error {
	entries, err := k.listNeighbors(unix.AF_BRIDGE)
	if interrupted(err) != nil {
		return err
	}
	for _, e := range entries {
		peer, ok := netip.AddrFromSlice(e.IP)
		if !ok || !ours(names[e.LinkIndex]) || len(e.HardwareAddr) != 6 || e.State&unix.NUD_PERMANENT == 0 {
			continue
		}
		have.Forwards = append(have.Forwards, plan.Forward{Device: names[e.LinkIndex], MAC: plan.MAC(e.HardwareAddr), Peer: peer.Unmap()})
	}
	return nil
}

func (k *Kernel) readNeighbors(names map[int]string, have *plan.State) error {
	entries, err := k.listNeighbors(unix.AF_INET)
	if interrupted(err) != nil {
		return err
	}
	for _, e := range entries {
		addr, ok := netip.AddrFromSlice(e.IP)
		name := names[e.LinkIndex]
		if ok && ours(name) && len(e.HardwareAddr) == 6 && e.State&unix.NUD_PERMANENT != 0 && !addr.IsMulticast() {
			have.Neighbors = append(have.Neighbors, plan.Neighbor{Device: name, Addr: addr.Unmap(), MAC: plan.MAC(e.HardwareAddr)})
		}
	}
	return nil
}

func (k *Kernel) readRoutes(names map[int]string, have *plan.State) error {
	routes, err := whole(func() ([]netlink.Route, error) {
		return k.nl.RouteListFiltered(unix.AF_INET, &netlink.Route{Protocol: routeProtocol, Table: unix.RT_TABLE_UNSPEC},
			netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	})
	if interrupted(err) != nil {
		return err
	}
	for _, r := range routes {
		via, ok := netip.AddrFromSlice(r.Gw)
		if !ok {
			continue
		}
		have.Routes = append(have.Routes, plan.Route{Table: uint32(r.Table), Dst: prefix(r.Dst), Via: via.Unmap(), Device: names[r.LinkIndex]})
	}
	return nil
}

func prefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	addr, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits)
}

func (k *Kernel) readRules(have *plan.State) error {
	rules, err := whole(func() ([]netlink.Rule, error) { return k.nl.RuleList(unix.AF_INET) })
	if interrupted(err) != nil {
		return err
	}
	for _, r := range rules {
		if r.Protocol != routeProtocol {
			continue
		}
		found := plan.Rule{Priority: uint32(r.Priority), Mark: r.Mark, FromHere: r.IifName == "lo", Table: uint32(r.Table)}
		if r.Mask != nil {
			found.Mask = *r.Mask
		}
		if r.Goto > 0 {
			found.Goto = uint32(r.Goto)
		}
		have.Rules = append(have.Rules, found)
	}
	return nil
}
