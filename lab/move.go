package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// firstFree is where addresses begin that a host is moved to when none is named: behind those that hosts are made with.
const firstFree = 10 + maxNodes + 1

// Move gives a host another address of the lab's network, as DHCP would: the old one goes, and whoever speaks through it hears
// nothing more; the new one comes, on the same interface. Nobody tells the daemon, and it is not told any address when it is
// started next. A host that is off has its new address when it boots. Invalid means any that is free; the address is returned.
func (l *Lab) Move(ctx context.Context, host string, to netip.Addr) (netip.Addr, error) {
	err := l.locked(ctx, host, func() error {
		h, from := hostRecord{}, netip.Addr{}
		if err := l.update(ctx, func(r *record) (err error) {
			if to, err = r.freeAddr(to); err != nil {
				return err
			}
			stored, err := r.host(host)
			if err != nil {
				return err
			}
			from, stored.Home, stored.Addr = stored.Addr, stored.home(), to
			h = *stored
			return nil
		}); err != nil {
			return err
		}
		if h.Init.alive() {
			if err := l.fabric().readdress(ctx, h, from); err != nil {
				return err
			}
		}
		return l.spread(ctx, to)
	})
	if err != nil {
		return netip.Addr{}, fmt.Errorf("move %s: %w", host, err)
	}
	return to, nil
}

// freeAddr gives an address that no host has: the given one, or any if that is invalid.
func (r *record) freeAddr(want netip.Addr) (netip.Addr, error) {
	taken := func(a netip.Addr) bool {
		return slices.ContainsFunc(r.Hosts, func(h hostRecord) bool { return h.Addr == a })
	}
	if want.IsValid() {
		f := newFabric("", r.Subnet)
		if !r.Subnet.Contains(want) || want == nth(r.Subnet, 0) || want == nth(r.Subnet, 255) || want == f.machine() || want == f.switchIP() || taken(want) {
			return want, fmt.Errorf("%s is no free address of the lab's network %s", want, r.Subnet)
		}
		return want, nil
	}
	for n := firstFree; n < 255; n++ {
		if a := nth(r.Subnet, n); !taken(a) {
			return a, nil
		}
	}
	for n := 11; n < firstFree; n++ {
		if a := nth(r.Subnet, n); !taken(a) {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("the lab's network %s has no free address", r.Subnet)
}

// readdress changes the address of a host's port. The routes go with the last address of the network, so they are made anew.
func (f fabric) readdress(ctx context.Context, h hostRecord, from netip.Addr) error {
	inside := fmt.Sprintf("addr del %s/%d dev eth0\naddr add %s/%d dev eth0\nroute replace default via %s\n",
		from, f.subnet.Bits(), h.Addr, f.subnet.Bits(), f.machine())
	_, err := run(ctx, inside, "nsenter", "-t", strconv.Itoa(h.Init.PID), "-n", "ip", "-batch", "-")
	return err
}

// spread makes a host known by its new address: its name leads there, and nobody believes that another host has it.
func (l *Lab) spread(ctx context.Context, addr netip.Addr) error {
	r, err := readRecord(l.dir)
	if err != nil {
		return err
	}
	names, err := l.names()
	if err != nil {
		return err
	}
	_, err = run(ctx, "", "ip", "neigh", "flush", "to", addr.String(), "dev", l.fabric().uplink)
	errs := []error{err}
	for _, h := range r.Hosts {
		path := filepath.Join("etc", "upper", "hosts")
		if !h.Init.alive() {
			if _, err := os.Lstat(l.path(h.Name, path)); err == nil { // else it has yet to boot for the first time
				errs = append(errs, os.WriteFile(l.path(h.Name, path), []byte(names), 0o644))
			}
			continue
		}
		errs = append(errs, os.WriteFile(innerPath(h, "/etc/hosts"), []byte(names), 0o644))
		_, err := run(ctx, "", "nsenter", "-t", strconv.Itoa(h.Init.PID), "-n", "ip", "neigh", "flush", "to", addr.String())
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// names is the hosts file of every host.
func (l *Lab) names() (string, error) {
	r, err := readRecord(l.dir)
	if err != nil {
		return "", err
	}
	var hosts strings.Builder
	fmt.Fprintf(&hosts, "127.0.0.1 localhost\n::1 localhost ip6-localhost\n%s machine\n%s registry\n", l.fabric().machine(), l.fabric().switchIP())
	for _, peer := range r.Hosts {
		fmt.Fprintf(&hosts, "%s %s\n", peer.Addr, peer.Name)
	}
	return hosts.String(), nil
}
