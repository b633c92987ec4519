package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

const (
	// routeProtocol marks our routes and rules ("ip route show proto 109").
	routeProtocol = 109
	// rulePriority is where our rules stand: after "local", before everything that
	// decides by destination.
	rulePriority = 4200
	// devicePrefix starts the names of our VXLAN devices.
	devicePrefix = "msv-"
	bridgePrefix = "msb-"
)

// Kernel is the network namespace it was opened in. It is not safe for
// concurrent use.
type Kernel struct {
	nl       *netlink.Handle
	settings *settings
}

// Open connects to the kernel and changes nothing. stateDir is where the former
// values of settings are kept that outlive this process; empty means they are
// not restored.
func Open(stateDir string) (*Kernel, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open route netlink: %w", err)
	}
	return &Kernel{nl: nl, settings: newSettings(stateDir)}, nil
}

// Close ends the connection. What was made stays.
func (k *Kernel) Close() { k.nl.Close() }

// Add makes everything d adds, and changes what it changes. It does as much as
// it can and joins the errors.
func (k *Kernel) Add(ctx context.Context, d plan.Diff) error {
	var errs []error
	each(ctx, &errs, d.Overlays.Add, k.addOverlay)
	each(ctx, &errs, d.Sysctls.Add, k.settings.set)
	// A changed entry is both removed and added, under the same name.
	each(ctx, &errs, d.Forwards.Del, k.deleteForward)
	each(ctx, &errs, d.Forwards.Add, k.addForward)
	each(ctx, &errs, d.Neighbors.Add, k.addNeighbor)
	each(ctx, &errs, d.Routes.Add, k.addRoute)
	each(ctx, &errs, d.Rules.Add, k.addRule)
	return errors.Join(errs...)
}

// Delete removes everything d removes. It is to be called when nothing leads
// there any more.
func (k *Kernel) Delete(ctx context.Context, d plan.Diff) error {
	var errs []error
	each(ctx, &errs, d.Rules.Del, k.deleteRule)
	each(ctx, &errs, d.Routes.Del, k.deleteRoute)
	kept := map[string]bool{}
	for _, n := range d.Neighbors.Add {
		kept[n.Device+n.Addr.String()] = true
	}
	each(ctx, &errs, d.Neighbors.Del, func(n plan.Neighbor) error {
		if kept[n.Device+n.Addr.String()] {
			return nil
		}
		return k.deleteNeighbor(n)
	})
	wanted := map[string]bool{}
	for _, s := range d.Sysctls.Add {
		wanted[s.Key] = true
	}
	each(ctx, &errs, d.Sysctls.Del, func(s plan.Sysctl) error {
		if wanted[s.Key] {
			return nil
		}
		return k.settings.restore(s.Key)
	})
	again := map[string]bool{}
	for _, o := range d.Overlays.Add {
		again[o.ID] = true
	}
	each(ctx, &errs, d.Overlays.Del, func(o plan.Overlay) error {
		if again[o.ID] {
			return nil
		}
		return k.deleteOverlay(o)
	})
	return errors.Join(errs...)
}

// each calls f for each of all and gathers errors; it stops when ctx ends.
func each[T any](ctx context.Context, errs *[]error, all []T, f func(T) error) {
	for _, v := range all {
		if err := ctx.Err(); err != nil {
			*errs = append(*errs, err)
			return
		}
		if err := f(v); err != nil {
			*errs = append(*errs, err)
		}
	}
}

// index finds a device by name.
func (k *Kernel) index(name string) (int, error) {
	l, err := k.nl.LinkByName(name)
	if err != nil {
		return 0, err
	}
	return l.Attrs().Index, nil
}

func notFound(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) ||
		errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EADDRNOTAVAIL)
}

func ignoreMissing(err error) error {
	if notFound(err) {
		return nil
	}
	return err
}

func (k *Kernel) forward(f plan.Forward, act func(*netlink.Neigh) error, flags, state int, ip net.IP) error {
	i, err := k.index(f.Device)
	if err != nil {
		return err
	}
	return act(&netlink.Neigh{
		LinkIndex: i, Family: unix.AF_BRIDGE, State: state, Flags: flags, HardwareAddr: f.MAC[:], IP: ip,
	})
}

func (k *Kernel) addForward(f plan.Forward) error {
	add := k.nl.NeighSet
	if f.MAC == (plan.MAC{}) {
		add = k.nl.NeighAppend // one for each peer
	}
	err := k.forward(f, add, unix.NTF_SELF, unix.NUD_PERMANENT, f.Peer.AsSlice())
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	if err == nil && f.MAC != (plan.MAC{}) {
		// The bridge too is told where the address is, so that it need not flood
		// the first packet to all containers.
		err = k.forward(f, k.nl.NeighSet, unix.NTF_MASTER, unix.NUD_NOARP, nil)
	}
	if err != nil {
		return fmt.Errorf("forward %v on %s to %v: %w", f.MAC, f.Device, f.Peer, err)
	}
	return nil
}

func (k *Kernel) deleteForward(f plan.Forward) error {
	err := ignoreMissing(k.forward(f, k.nl.NeighDel, unix.NTF_SELF, unix.NUD_PERMANENT, f.Peer.AsSlice()))
	if err == nil && f.MAC != (plan.MAC{}) {
		err = ignoreMissing(k.forward(f, k.nl.NeighDel, unix.NTF_MASTER, unix.NUD_NOARP, nil))
	}
	if err != nil {
		return fmt.Errorf("stop forwarding %v on %s to %v: %w", f.MAC, f.Device, f.Peer, err)
	}
	return nil
}

func (k *Kernel) addNeighbor(n plan.Neighbor) error {
	i, err := k.index(n.Device)
	if err == nil {
		err = k.nl.NeighSet(&netlink.Neigh{
			LinkIndex: i, Family: unix.AF_INET, State: unix.NUD_PERMANENT, IP: n.Addr.AsSlice(), HardwareAddr: n.MAC[:],
		})
	}
	if err != nil {
		return fmt.Errorf("neighbor %v on %s: %w", n.Addr, n.Device, err)
	}
	return nil
}

func (k *Kernel) deleteNeighbor(n plan.Neighbor) error {
	i, err := k.index(n.Device)
	if err == nil {
		err = k.nl.NeighDel(&netlink.Neigh{LinkIndex: i, Family: unix.AF_INET, IP: n.Addr.AsSlice()})
	}
	if ignoreMissing(err) != nil {
		return fmt.Errorf("remove neighbor %v on %s: %w", n.Addr, n.Device, err)
	}
	return nil
}

func (k *Kernel) route(r plan.Route) (*netlink.Route, error) {
	i, err := k.index(r.Device)
	if err != nil {
		return nil, err
	}
	return &netlink.Route{
		LinkIndex: i, Table: int(r.Table), Protocol: routeProtocol, Dst: ipNet(r.Dst), Gw: r.Via.AsSlice(),
		Flags: int(netlink.FLAG_ONLINK),
	}, nil
}

func (k *Kernel) addRoute(r plan.Route) error {
	route, err := k.route(r)
	if err == nil {
		err = k.nl.RouteReplace(route)
	}
	if err != nil {
		return fmt.Errorf("route %v via %v on %s: %w", r.Dst, r.Via, r.Device, err)
	}
	return nil
}

// deleteRoute names the way as well, so that it leaves a route alone that was
// replaced by another way.
func (k *Kernel) deleteRoute(r plan.Route) error {
	route, err := k.route(r)
	if err == nil {
		err = k.nl.RouteDel(route)
	}
	if ignoreMissing(err) != nil {
		return fmt.Errorf("remove route %v via %v on %s: %w", r.Dst, r.Via, r.Device, err)
	}
	return nil
}

func rule(r plan.Rule) *netlink.Rule {
	n := netlink.NewRule()
	n.Family, n.Priority, n.Mark, n.Table, n.Protocol = unix.AF_INET, rulePriority, r.Mark, int(r.Table), routeProtocol
	return n
}

func (k *Kernel) addRule(r plan.Rule) error {
	if err := k.nl.RuleAdd(rule(r)); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("rule for mark %#x: %w", r.Mark, err)
	}
	return nil
}

func (k *Kernel) deleteRule(r plan.Rule) error {
	if err := ignoreMissing(k.nl.RuleDel(rule(r))); err != nil {
		return fmt.Errorf("remove rule for mark %#x: %w", r.Mark, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}

func ours(name string) bool { return strings.HasPrefix(name, devicePrefix) }

// Remove deletes everything of ours, whoever made it, and restores the settings
// that were changed.
func (k *Kernel) Remove(ctx context.Context) error {
	have, err := k.Read(ctx, plan.State{})
	if err != nil {
		return err
	}
	// Devices take their forwarding entries along.
	return errors.Join(k.Delete(ctx, plan.Compare(have, plan.State{})), k.settings.restoreAll())
}
