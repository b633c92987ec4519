package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// registryPort is where the lab's registry listens, on the switch's address.
const registryPort = 5000

// fabric is the lab's network: the names and addresses of its parts, all of which follow from directory and subnet.
type fabric struct {
	subnet netip.Prefix
	// space is the network namespace the switch is in; uplink is the machine's own port into it.
	space, uplink string
}

func (l *Lab) fabric() fabric { return newFabric(l.dir, l.subnet) }

func newFabric(dir string, subnet netip.Prefix) fabric {
	id := labID(dir)
	return fabric{subnet: subnet, space: "mslab-" + filepath.Base(dir) + "-" + id, uplink: "msl-" + id}
}

// The addresses in a lab's subnet.
func (f fabric) machine() netip.Addr            { return nth(f.subnet, 1) }
func (f fabric) switchIP() netip.Addr           { return nth(f.subnet, 2) }
func hostAddr(s netip.Prefix, n int) netip.Addr { return nth(s, 10+n) }

func (f fabric) registry() string {
	return netip.AddrPortFrom(f.switchIP(), registryPort).String()
}

// nth returns the n-th address of a /24.
func nth(p netip.Prefix, n int) netip.Addr {
	a := p.Masked().Addr().As4()
	a[3] = byte(n)
	return netip.AddrFrom4(a)
}

// mac gives an interface a fixed hardware address made from its own, so that a host that comes back is recognised.
// The second bit says "locally administered".
func mac(addr netip.Addr) string {
	a := addr.As4()
	return net.HardwareAddr{0x02, 0x6c, a[0], a[1], a[2], a[3]}.String()
}

func hostName(n int) string { return "vm" + strconv.Itoa(n) }

// create builds the switch and plugs the machine into it.
func (f fabric) create(ctx context.Context) error {
	if _, err := run(ctx, "", "ip", "netns", "add", f.space); err != nil {
		return fmt.Errorf("switch namespace: %w", err)
	}
	// STP is off, so a port forwards as soon as it is up.
	script := fmt.Sprintf(`link set lo up
link add br0 address %s type bridge stp_state 0 mcast_snooping 0
addr add %s/%d dev br0
link set br0 up
`, mac(f.switchIP()), f.switchIP(), f.subnet.Bits())
	if _, err := run(ctx, script, "ip", "-n", f.space, "-batch", "-"); err != nil {
		return fmt.Errorf("switch: %w", err)
	}
	if _, err := run(ctx, "", "ip", "link", "add", f.uplink, "address", mac(f.machine()), "type", "veth",
		"peer", "name", "machine", "netns", f.space); err != nil {
		return fmt.Errorf("uplink of the machine: %w", err)
	}
	if _, err := run(ctx, "", "ip", "-n", f.space, "link", "set", "machine", "master", "br0", "up"); err != nil {
		return fmt.Errorf("uplink of the machine: %w", err)
	}
	script = fmt.Sprintf("addr add %s/%d dev %s\nlink set %s up\n", f.machine(), f.subnet.Bits(), f.uplink, f.uplink)
	if _, err := run(ctx, script, "ip", "-batch", "-"); err != nil {
		return fmt.Errorf("uplink of the machine: %w", err)
	}
	return f.tune(ctx)
}

// tune sets what a new namespace gets wrong for a switch. Where br_netfilter is in the kernel, iptables would look
// into frames that cross it; the module is loaded first, because loading it later would switch that on again. And
// refusals ("nobody listens here") are to be sent each time, not once a second.
func (f fabric) tune(ctx context.Context) error {
	if _, err := os.Stat("/proc/sys/net/bridge"); err != nil {
		// Without the module there is nothing to switch off, and the engines say so if they miss it.
		_, _ = run(ctx, "", "modprobe", "-q", "br_netfilter")
	}
	_, err := run(ctx, "", "nsenter", "--net=/run/netns/"+f.space, "sh", "-c", `
		for f in /proc/sys/net/bridge/bridge-nf-call-*; do if [ -e "$f" ]; then echo 0 >"$f"; fi; done
		echo 0 >/proc/sys/net/ipv4/icmp_ratelimit`)
	if err != nil {
		return fmt.Errorf("switch: %w", err)
	}
	return nil
}

// check reports whether the switch is there. It goes when the machine is switched off, and only then.
func (f fabric) check() error {
	if _, err := os.Stat(filepath.Join("/run/netns", f.space)); err != nil {
		return errors.New("the lab's network went down with the machine; `miniswarm lab down` and `miniswarm lab up` build it anew")
	}
	return nil
}

// plug connects a host, whose first process is init, with the switch and configures its end of the cable.
func (f fabric) plug(ctx context.Context, h hostRecord, init process) error {
	add := fmt.Sprintf(`link add %s type veth peer name eth0 address %s netns %d
link set %s master br0 up
`, h.Name, mac(h.home()), init.PID, h.Name)
	if _, err := run(ctx, add, "ip", "-n", f.space, "-batch", "-"); err != nil {
		return fmt.Errorf("plug %s into the switch: %w", h.Name, err)
	}
	inside := fmt.Sprintf(`link set lo up
link set eth0 up
addr add %s/%d dev eth0
route add default via %s
`, h.Addr, f.subnet.Bits(), f.machine())
	if _, err := run(ctx, inside, "nsenter", "-t", strconv.Itoa(init.PID), "-n", "ip", "-batch", "-"); err != nil {
		return fmt.Errorf("network of %s: %w", h.Name, err)
	}
	return nil
}

// unplug removes a host's cable, both ends at once. No cable is no error.
func (f fabric) unplug(ctx context.Context, host string) error {
	if f.missing(ctx, host) {
		return nil
	}
	if _, err := run(ctx, "", "ip", "-n", f.space, "link", "del", host); err != nil && !f.missing(ctx, host) {
		return fmt.Errorf("unplug %s from the switch: %w", host, err)
	}
	return nil
}

func (f fabric) missing(ctx context.Context, port string) bool {
	_, err := run(ctx, "", "ip", "-n", f.space, "link", "show", "dev", port)
	return err != nil && ctx.Err() == nil
}

// link switches a host's port on or off.
func (f fabric) link(ctx context.Context, host, state string) error {
	if _, err := run(ctx, "", "ip", "-n", f.space, "link", "set", host, state); err != nil {
		return fmt.Errorf("port of %s on the switch: %w", host, err)
	}
	return nil
}

// remove takes the switch away, and with it every cable. What is not there is no error.
func (f fabric) remove(ctx context.Context) error {
	var errs []error
	if _, err := net.InterfaceByName(f.uplink); err == nil {
		_, err := run(ctx, "", "ip", "link", "del", f.uplink)
		errs = append(errs, err)
	}
	if _, err := os.Lstat(filepath.Join("/run/netns", f.space)); err == nil {
		_, err := run(ctx, "", "ip", "netns", "del", f.space)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// freeSubnet finds a /24 that no interface, route or other lab on this machine uses. 10.213.0.0/16 is far from
// where Swarm's address pools start (10.0.0.0) and from Docker's own (172.17.0.0 and 192.168.0.0 up).
func freeSubnet(ctx context.Context, taken []netip.Prefix) (netip.Prefix, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("addresses of this machine: %w", err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			taken = append(taken, p)
		}
	}
	routes, err := run(ctx, "", "ip", "-4", "route", "show", "table", "all")
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("routes of this machine: %w", err)
	}
	for line := range strings.Lines(routes) {
		for _, word := range strings.Fields(line) {
			// A default route covers everything and takes nothing.
			if p, err := netip.ParsePrefix(word); err == nil && p.Bits() > 0 {
				taken = append(taken, p)
			}
		}
	}
	for k := range 256 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 213, byte(k), 0}), 24)
		if !overlapsAny(p, taken) {
			return p, nil
		}
	}
	return netip.Prefix{}, errors.New("no free network left in 10.213.0.0/16; `miniswarm lab ls` shows the labs, `ip route` the rest")
}

func overlapsAny(p netip.Prefix, others []netip.Prefix) bool {
	for _, o := range others {
		if p.Overlaps(o) {
			return true
		}
	}
	return false
}
