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

// AddDevices makes the devices of networks. What hung on a device that had to be
// replaced is gone, so read again what there is before going on.
func (k *Kernel) AddDevices(ctx context.Context, overlays []plan.Overlay) error {
	var errs []error
	each(ctx, &errs, overlays, k.addOverlay)
	return errors.Join(errs...)
}

// Add makes everything else that d adds, and changes what it changes. It does as
// much as it can and joins the errors.
func (k *Kernel) Add(ctx context.Context, d plan.Diff) error {
	var errs []error
	each(ctx, &errs, d.Sysctls.Add, k.settings.set)
	// A changed entry is both removed and added, under the same name.
	each(ctx, &errs, d.Forwards.Del, k.deleteForward)
	each(ctx, &errs, d.Forwards.Add, k.addForward)
	each(ctx, &errs, d.Neighbors.Add, k.addNeighbor)
	each(ctx, &errs, d.Routes.Add, k.addRoute)
	each(ctx, &errs, d.Rules.Add, k.addRule)
	each(ctx, &errs, d.Addresses.Add, k.addAddress)
	return errors.Join(errs...)
}

// Delete removes everything d removes. It is to be called when nothing leads
// there any more.
func (k *Kernel) Delete(ctx context.Context, d plan.Diff) error {
	var errs []error
	each(ctx, &errs, d.Addresses.Del, k.deleteAddress)
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

// Has says whether there is a device of that name.
func (k *Kernel) Has(device string) bool {
	_, err := k.index(device)
	return err == nil
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

func (k *Kernel) forward(f plan.Forward, act func(*netlink.Neigh) error) error {
	i, err := k.index(f.Device)
	if err != nil {
		return err
	}
	return act(&netlink.Neigh{
		LinkIndex: i, Family: unix.AF_BRIDGE, State: unix.NUD_PERMANENT, Flags: unix.NTF_SELF,
		HardwareAddr: f.MAC[:], IP: f.Peer.AsSlice(),
	})
}

func (k *Kernel) addForward(f plan.Forward) error {
	add := k.nl.NeighSet
	if f.MAC == (plan.MAC{}) {
		add = k.nl.NeighAppend // one for each peer
	}
	err := k.forward(f, add)
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("forward %v on %s to %v: %w", f.MAC, f.Device, f.Peer, err)
	}
	return nil
}

func (k *Kernel) deleteForward(f plan.Forward) error {
	err := ignoreMissing(k.forward(f, k.nl.NeighDel))
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

// actionNothing is a rule that is only there to be gone to (linux/fib_rules.h,
// FR_ACT_NOP).
const actionNothing = 3

func rule(r plan.Rule) *netlink.Rule {
	n := netlink.NewRule()
	n.Family, n.Priority, n.Protocol = unix.AF_INET, int(r.Priority), routeProtocol
	if r.Mask != 0 {
		n.Mark, n.Mask = r.Mark, &r.Mask
	}
	if r.FromHere {
		n.IifName = "lo" // the kernel's word for it
	}
	switch {
	case r.Table != 0:
		n.Table = int(r.Table)
	case r.Goto != 0:
		n.Goto = int(r.Goto)
	default:
		n.Type = actionNothing
	}
	return n
}

func (k *Kernel) addRule(r plan.Rule) error {
	if err := k.nl.RuleAdd(rule(r)); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("rule %d for mark %#x: %w", r.Priority, r.Mark, err)
	}
	return nil
}

func (k *Kernel) deleteRule(r plan.Rule) error {
	if err := ignoreMissing(k.nl.RuleDel(rule(r))); err != nil {
		return fmt.Errorf("remove rule %d for mark %#x: %w", r.Priority, r.Mark, err)
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
