package node

import (
	"context"
	"errors"
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
		if missing++; !n.moved() {
			missing = 0
		}
		if missing >= addressPatience {
			missing = 0
			n.moveHere(ctx)
		}
	}
}

// moved says whether the address that others look for is gone from this machine, and its interface has another in its place.
func (n *Node) moved() bool {
	m := n.current()
	if m == nil || m.locked { // which takes it up with the key
		return false
	}
	m.mu.Lock()
	st := *m.state
	m.mu.Unlock()
	host := st.host()
	if !host.IsValid() || st.Interface == "" || present(host) {
		return false
	}
	now, err := ipOf(st.Interface)
	return err == nil && now.Is4() == host.Is4()
}

// present says whether this machine has an address. It is one question to the kernel, however many interfaces there are.
func present(ip netip.Addr) bool {
	all, err := net.InterfaceAddrs()
	return err != nil || slices.ContainsFunc(all, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err == nil && p.Addr() == ip
	})
}

// moveHere ends the member and resumes with the addresses that the machine has now.
func (n *Node) moveHere(ctx context.Context) {
	n.changing.Lock()
	defer n.changing.Unlock()
	m := n.current()
	if ctx.Err() != nil || !n.moved() {
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
