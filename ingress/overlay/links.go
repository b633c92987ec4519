package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// addOverlay makes the bridge and the VXLAN device of a network as they should be.
// The bridge itself comes from the engine and must exist.
func (k *Kernel) addOverlay(o plan.Overlay) error {
	if err := k.setBridge(o); err != nil {
		return fmt.Errorf("network %s: bridge %s: %w", o.Name, o.Bridge, err)
	}
	if err := k.setVXLAN(o); err != nil {
		return fmt.Errorf("network %s: VXLAN device %s: %w", o.Name, o.Device, err)
	}
	return nil
}

func (k *Kernel) setBridge(o plan.Overlay) error {
	bridge, err := k.nl.LinkByName(o.Bridge)
	if err != nil {
		return fmt.Errorf("%w: the engine's network is missing", err)
	}
	if bridge.Type() != "bridge" {
		return fmt.Errorf("it is a %s: remove it", bridge.Type())
	}
	if bridge.Attrs().Flags&net.FlagUp == 0 {
		return k.nl.LinkSetUp(bridge)
	}
	return nil
}

// setVXLAN keeps a device that fits, replaces one that does not.
func (k *Kernel) setVXLAN(o plan.Overlay) error {
	bridge, err := k.nl.LinkByName(o.Bridge)
	if err != nil {
		return err
	}
	link, err := k.nl.LinkByName(o.Device)
	switch {
	case err == nil && !sameVXLAN(link, o):
		if err := k.nl.LinkDel(link); err != nil {
			return fmt.Errorf("replace: %w", err)
		}
		fallthrough
	case notFound(err):
		if link, err = k.createVXLAN(o); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	if !sameMAC(link, o) {
		if err := k.nl.LinkSetHardwareAddr(link, o.MAC[:]); err != nil {
			return fmt.Errorf("set address %v: %w", o.MAC, err)
		}
	}
	if master := masterOf(o, bridge); link.Attrs().MasterIndex != master {
		if err := k.nl.LinkSetMasterByIndex(link, master); err != nil {
			return fmt.Errorf("put into bridge %s: %w", o.Bridge, err)
		}
	}
	if link.Attrs().MTU != o.MTU {
		if err := k.nl.LinkSetMTU(link, o.MTU); err != nil {
			return fmt.Errorf("set MTU %d: %w", o.MTU, err)
		}
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		return k.nl.LinkSetUp(link)
	}
	return nil
}

func (k *Kernel) createVXLAN(o plan.Overlay) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = o.Device, o.MTU
	if o.MAC != (plan.MAC{}) {
		attrs.HardwareAddr = o.MAC[:]
	}
	link := &netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: int(o.VNI), SrcAddr: o.Local.AsSlice(), Port: int(o.Port), Learning: learns(o),
	}
	switch err := k.nl.LinkAdd(link); {
	case errors.Is(err, fs.ErrExist):
		return nil, fmt.Errorf("create: VNI %d at UDP port %d is used by another device (see: ip -d link show type vxlan): %w", o.VNI, o.Port, err)
	case err != nil:
		return nil, fmt.Errorf("create: %w", err)
	}
	made, err := k.nl.LinkByName(o.Device)
	if err != nil {
		return nil, err
	}
	// For people who wonder whose it is.
	if err := k.nl.LinkSetAlias(made, "miniswarm network "+o.Name); err != nil {
		return nil, fmt.Errorf("set alias: %w", err)
	}
	return made, nil
}

// learns: where containers are is learned from what they send. On the ingress
// network only nodes speak, whose places are known.
func learns(o plan.Overlay) bool { return !o.Ingress }

// masterOf is the index of the bridge the device belongs into; 0 is none.
func masterOf(o plan.Overlay, bridge netlink.Link) int {
	if o.Ingress {
		return 0
	}
	return bridge.Attrs().Index
}

// sameVXLAN compares what is given when a device is made.
func sameVXLAN(l netlink.Link, o plan.Overlay) bool {
	v, ok := l.(*netlink.Vxlan)
	return ok && v.VxlanId == int(o.VNI) && v.Port == int(o.Port) && v.SrcAddr.Equal(o.Local.AsSlice()) && v.Learning == learns(o)
}

func sameMAC(l netlink.Link, o plan.Overlay) bool {
	return o.MAC == plan.MAC{} || bytes.Equal(l.Attrs().HardwareAddr, o.MAC[:])
}

func (k *Kernel) deleteOverlay(o plan.Overlay) error {
	link, err := k.nl.LinkByName(o.Device)
	if err == nil {
		err = k.nl.LinkDel(link)
	}
	if ignoreMissing(err) != nil {
		return fmt.Errorf("network %s: remove VXLAN device %s: %w", o.Name, o.Device, err)
	}
	return nil
}

// Hairpin lets containers on a bridge reach themselves: where bridged frames
// pass the firewall (bridge-nf-call-iptables, which Docker turns on), a connection
// that the mesh translates back to its own container has to leave by the port it
// came in by.
func (k *Kernel) Hairpin(bridge string) error {
	b, err := k.nl.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("hairpin on %s: %w", bridge, err)
	}
	links, err := whole(k.nl.LinkList)
	if err != nil {
		return fmt.Errorf("hairpin on %s: %w", bridge, err)
	}
	var errs []error
	for _, l := range links {
		if l.Attrs().MasterIndex != b.Attrs().Index || l.Type() != "veth" {
			continue
		}
		if p := l.Attrs().Protinfo; p != nil && p.Hairpin {
			continue
		}
		if err := ignoreMissing(k.nl.LinkSetHairpin(l, true)); err != nil {
			errs = append(errs, fmt.Errorf("hairpin on port %s of %s: %w", l.Attrs().Name, bridge, err))
		}
	}
	return errors.Join(errs...)
}

// readOverlays finds which of the wanted networks are as they should be, and
// which devices of ours belong to no wanted network.
func (k *Kernel) readOverlays(want []plan.Overlay) ([]plan.Overlay, error) {
	links, err := whole(k.nl.LinkList)
	if err != nil {
		return nil, err
	}
	byName := map[string]netlink.Link{}
	for _, l := range links {
		byName[l.Attrs().Name] = l
	}
	var have []plan.Overlay
	wanted := map[string]bool{}
	for _, o := range want {
		wanted[o.Device] = true
		bridge, device := byName[o.Bridge], byName[o.Device]
		if bridge == nil || device == nil {
			continue
		}
		b, d := bridge.Attrs(), device.Attrs()
		if bridge.Type() == "bridge" && b.Flags&net.FlagUp != 0 &&
			sameVXLAN(device, o) && sameMAC(device, o) && d.MasterIndex == masterOf(o, bridge) && d.MTU == o.MTU && d.Flags&net.FlagUp != 0 {
			have = append(have, o)
		}
	}
	for name, l := range byName {
		if ours(name) && l.Type() == "vxlan" && !wanted[name] {
			id := strings.TrimPrefix(name, devicePrefix)
			have = append(have, plan.Overlay{ID: id, Name: id, Device: name, Bridge: bridgePrefix + id})
		}
	}
	return have, nil
}
