package node

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// flags are the addresses that the daemon was started with, as they were given.
type flags struct {
	Listen, Advertise, Data string `json:",omitempty"`
}

func (c *Config) flags() flags { return flags{c.ListenAddr, c.AdvertiseAddr, c.DataPathAddr} }

// readdress brings the addresses of a membership up to date with the machine that the daemon finds itself on, and says whether
// any has changed. A node is its id, not its address: the others learn the new one from it.
//
// A flag of the daemon counts when it is another than at the last start: init and join may have named other addresses, and those
// stay. Without such a flag, an address that the machine does not have any more gives way to the one that the same interface
// has now. If that has none, it may still be coming up, and nothing is guessed. One to listen on that is lost by itself gives way to
// the one at which others look for this machine.
func (n *Node) readdress(st *state) (changed bool, err error) {
	before, now := *st, n.cfg.flags()
	if now != st.Flags {
		if err := st.follow(now); err != nil {
			return false, fmt.Errorf("take up the daemon's addresses: %w", err)
		}
		st.Flags = now
	}
	if lost := st.host(); st.Interface != "" && lost.IsValid() && interfaceOf(lost) == "" {
		if now, _, err := n.successor(st.Interface, lost); err == nil {
			st.move(lost, now)
		} else {
			n.cfg.Logger.Warn("this machine does not have the address any more at which others look for it; give the daemon --advertise-addr if it has another",
				"addr", st.AdvertiseAddr, "interface", st.Interface, "err", err)
		}
	}
	if all, err := present(); err == nil {
		if lost := st.strayed(all); lost.IsValid() {
			st.move(lost, st.host())
		}
	}
	if name := interfaceOf(st.host()); name != "" {
		st.Interface = name
	}
	changed = before.ListenAddr != st.ListenAddr || before.AdvertiseAddr != st.AdvertiseAddr || before.DataAddr != st.DataAddr
	if changed {
		n.cfg.Logger.Info("this machine's addresses have changed", "addr", st.AdvertiseAddr, "former", before.AdvertiseAddr, "listen", st.ListenAddr, "data", st.DataAddr)
	}
	return changed || before.Flags != st.Flags || before.Interface != st.Interface, nil
}

// follow takes up the flags that differ from those of the last start. An address that was derived from another follows it.
func (st *state) follow(now flags) error {
	formerHost := st.host()
	derived := st.AdvertiseAddr == st.ListenAddr
	if now.Listen != st.Flags.Listen && now.Listen != "" {
		l, err := resolveListen(now.Listen, defaultListen)
		if err != nil {
			return err
		}
		st.ListenAddr = l
	}
	switch {
	case now.Advertise != st.Flags.Advertise && now.Advertise != "":
		a, err := resolveAdvertise(now.Advertise, st.ListenAddr)
		if err != nil {
			return err
		}
		st.AdvertiseAddr = a
	case derived:
		if a, err := netip.ParseAddrPort(st.ListenAddr); err == nil && !a.Addr().IsUnspecified() {
			st.AdvertiseAddr = st.ListenAddr
		}
	}
	if now.Data != st.Flags.Data && now.Data != "" {
		d, err := resolveData(now.Data, st.AdvertiseAddr)
		if err != nil {
			return err
		}
		st.DataAddr = d
	} else if formerHost.IsValid() && st.DataAddr == formerHost.String() {
		st.DataAddr = st.host().String()
	}
	if st.host() != formerHost {
		st.Interface = interfaceOf(st.host())
	}
	return nil
}

// strayed is the address to listen on where a machine with these addresses does not have it but has the one at which others look for
// it, invalid otherwise.
func (st *state) strayed(all []netip.Addr) netip.Addr {
	a, err := netip.ParseAddrPort(st.ListenAddr)
	host, lost := st.host(), a.Addr()
	if err != nil || lost == host || lost.IsUnspecified() || lost.IsLoopback() || lost.Is4() != host.Is4() || slices.Contains(all, lost.WithZone("")) || !slices.Contains(all, host) {
		return netip.Addr{}
	}
	return lost
}

// move replaces an address of the machine wherever it is used.
func (st *state) move(from, to netip.Addr) {
	for _, a := range []*string{&st.ListenAddr, &st.AdvertiseAddr} {
		if host, port, err := net.SplitHostPort(*a); err == nil && host == from.String() {
			*a = net.JoinHostPort(to.String(), port)
		}
	}
	if st.DataAddr == from.String() {
		st.DataAddr = to.String()
	}
}

// host is the address at which others reach this machine, invalid if there is none.
func (st *state) host() netip.Addr {
	a, err := netip.ParseAddrPort(st.AdvertiseAddr)
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr()
}

// interfaceOf is the name of the interface that has an address, empty if none has.
func interfaceOf(ip netip.Addr) string {
	all, err := net.Interfaces()
	if err != nil {
		return ""
	}
	for i := range all {
		addrs, err := all[i].Addrs()
		if err != nil {
			continue
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr() == ip {
				return all[i].Name
			}
		}
	}
	return ""
}
