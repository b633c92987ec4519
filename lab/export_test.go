package lab

import "net/netip"

// Leftovers names what the lab in dir has on the machine: network namespace, link, control group.
func Leftovers(dir string) (space, uplink, groups string) {
	f := newFabric(dir, netip.Prefix{})
	return f.space, f.uplink, labGroup(dir)
}
