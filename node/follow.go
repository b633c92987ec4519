package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

const (
	// addressPause is how often a node looks whether its machine still has the address at which others look for it.
	addressPause = 500 * time.Millisecond
	// addressPatience is how many times in a row it must not: what configures interfaces takes addresses away and gives them back.
	addressPatience = 2
	// besidePatience is how many times in a row where the interface has no address but what it had beside the lost one: that may be
	// another network's, or one that wanders between machines, and the lost one be back in a moment.
	besidePatience = 60
)

// errMoved ends the member of a machine that has another address, to make place for one there.
var errMoved = errors.New("this machine has another address")

// followAddress takes this node's part in the swarm up anew at its machine's new address when that has changed while the daemon
// runs, until ctx ends: see readdress. The others cannot reach it any more at the old one, so nothing is lost by it; containers
// and the kernel's tables go on.
func (n *Node) followAddress(ctx context.Context) {
	tick := time.NewTicker(addressPause)
	defer tick.Stop()
	missing := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		moved, patience := n.moved()
		if missing++; !moved {
			missing = 0
		}
		if missing >= max(patience, addressPatience) {
			missing = 0
			n.moveHere(ctx)
		}
	}
}

// moved says whether the address that others look for is gone from this machine, and its interface has another in its place, or the
// one that it listens on is gone (see strayed); and how many times in a row it must be so.
func (n *Node) moved() (moved bool, patience int) {
	m := n.current()
	if m == nil || m.locked { // which takes it up with the key
		return false, 0
	}
	m.mu.Lock()
	st := *m.state
	m.mu.Unlock()
	host := st.host()
	if !host.IsValid() {
		return false, 0
	}
	all, err := present()
	switch {
	case err != nil:
		return false, 0
	case slices.Contains(all, host):
		n.noteBeside(all)
		patience := besidePatience
		if st.Interface == "" { // the machine did not have it before
			patience = addressPatience
		}
		if st.strayed(all).IsValid() {
			return true, patience
		}
		if st.Interface == "" {
			m.noteInterface(host)
		}
		return false, 0
	case st.Interface == "":
		return false, 0
	}
	_, fresh, err := n.successor(st.Interface, host)
	if !fresh {
		return err == nil, besidePatience
	}
	return err == nil, addressPatience
}

// noteInterface remembers which interface has got the address that others look for: it had none until now, and is followed from here on.
func (m *member) noteInterface(host netip.Addr) {
	name := interfaceOf(host)
	if name == "" {
		return // it is gone again
	}
	if err := m.remember(func(st *state) { st.Interface = name }); err != nil {
		m.logger.Warn("which interface has this machine's address could not be saved", "err", err)
	}
}

// present are the addresses of this machine. It is one question to the kernel, however many interfaces there are.
func present() (ips []netip.Addr, err error) {
	all, err := net.InterfaceAddrs()
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			ips = append(ips, p.Addr())
		}
	}
	return ips, err
}

// noteBeside remembers what the machine has together with the address that others look for.
func (n *Node) noteBeside(all []netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.beside = all
}

// successor gives the address that an interface has in the place of one that is lost: of the same family, and rather one that the machine
// did not have beside the lost one; fresh says whether it is such a one.
func (n *Node) successor(name string, lost netip.Addr) (now netip.Addr, fresh bool, err error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return now, false, fmt.Errorf("interface %s: %w", name, err)
	}
	found, err := addressesOf(ifi)
	if err != nil {
		return now, false, fmt.Errorf("interface %s: %w", name, err)
	}
	n.mu.Lock()
	beside := n.beside
	n.mu.Unlock()
	return inPlaceOf(lost, found, beside)
}

func inPlaceOf(lost netip.Addr, found, beside []netip.Addr) (now netip.Addr, fresh bool, err error) {
	found = slices.DeleteFunc(slices.Clone(found), func(ip netip.Addr) bool { return ip.Is4() != lost.Is4() })
	if len(found) == 0 {
		return now, false, errors.New("the interface has no usable address of that family")
	}
	for _, ip := range found {
		if !slices.Contains(beside, ip) {
			return ip, true, nil
		}
	}
	return found[0], false, nil
}

// moveHere ends the member and resumes with the addresses that the machine has now.
func (n *Node) moveHere(ctx context.Context) {
	n.changing.Lock()
	defer n.changing.Unlock()
	m := n.current()
	if moved, _ := n.moved(); ctx.Err() != nil || !moved {
		return
	}
	m.stop(errMoved)
	<-m.done
	if err := m.closeParts(); err != nil {
		n.cfg.Logger.Warn("what this node held at its former address is not all free", "err", err)
	}
	n.mu.Lock()
	n.member = nil
	n.mu.Unlock()
	n.resumeLocked()
}
