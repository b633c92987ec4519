package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// address is how a virtual address is put on a bridge: alone, without a subnet, by which
// it is told from the engine's. Its scope is that of all addresses, since the kernel lists
// those of narrower ones first, and an engine that restarts takes the first in its
// subnet for the bridge's own and gives the network up if it is not.
func address(a plan.Address) *netlink.Addr {
	return &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a.Addr, 32))}
}

func (k *Kernel) addAddress(a plan.Address) error {
	link, err := k.nl.LinkByName(a.Device)
	if err == nil {
		err = k.nl.AddrAdd(link, address(a))
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("virtual address %v on %s: %w", a.Addr, a.Device, err)
	}
	return nil
}

func (k *Kernel) deleteAddress(a plan.Address) error {
	link, err := k.nl.LinkByName(a.Device)
	if err == nil {
		err = k.nl.AddrDel(link, address(a))
	}
	if ignoreMissing(err) != nil {
		return fmt.Errorf("remove virtual address %v from %s: %w", a.Addr, a.Device, err)
	}
	return nil
}

func (k *Kernel) readAddresses(names map[int]string, have *plan.State) error {
	all, err := whole(func() ([]netlink.Addr, error) { return k.nl.AddrList(nil, unix.AF_INET) })
	if interrupted(err) != nil {
		return err
	}
	for _, a := range all {
		p := prefix(a.IPNet)
		if name := names[a.LinkIndex]; strings.HasPrefix(name, bridgePrefix) && p.Bits() == 32 {
			have.Addresses = append(have.Addresses, plan.Address{Device: name, Addr: p.Addr()})
		}
	}
	return nil
}
