package orchestrator

import (
	"encoding/binary"
	"net/netip"

	"github.com/docker/docker/api/types/swarm"
)

// pool is the addresses of one IPv4 subnet: which are held, and where the next search begins. Addresses are offsets
// from the subnet's first.
type pool struct {
	prefix netip.Prefix
	base   uint32
	// first and last bound what is handed out: the range the user gave, or all hosts of the subnet.
	first, last uint32
	// used has the held addresses, and for good the gateway's.
	used bits
	// extra counts further holders of an address. Two can hold one for the length of a batch of events, and after a
	// fault; the address is free when all have left.
	extra map[uint32]int
	// cursor is where the next search begins: after the address given last (swarm-semantics.md, 5.3), so that a freed
	// address rests before it comes back.
	cursor uint32
}

// newPool makes the pool of an allocated subnet; ok is false for what is not an IPv4 subnet.
func newPool(c swarm.IPAMConfig) (p *pool, ok bool) {
	prefix, err := netip.ParsePrefix(c.Subnet)
	if err != nil || !prefix.Addr().Is4() {
		return nil, false
	}
	prefix = prefix.Masked()
	p = &pool{prefix: prefix, base: number(prefix.Addr())}
	p.last = uint32(1)<<(32-prefix.Bits()) - 1
	if prefix.Bits() < 31 { // the first address names the network, the last is for broadcasts
		p.first, p.last = 1, p.last-1
	}
	if r, err := netip.ParsePrefix(c.Range); err == nil && r.Bits() >= prefix.Bits() && prefix.Contains(r.Addr()) {
		from := number(r.Masked().Addr()) - p.base
		p.first = max(p.first, from)
		p.last = min(p.last, from+uint32(1)<<(32-r.Bits())-1)
	}
	if g, err := netip.ParseAddr(c.Gateway); err == nil && prefix.Contains(g) {
		p.used.put(int(number(g)-p.base), true)
	}
	p.cursor = p.first
	return p, true
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

// give hands out the next free address in CIDR form, as tasks, nodes and virtual IPs carry it.
func (p *pool) give() (cidr string, at uint32, ok bool) {
	at, ok = p.search(p.cursor, p.last)
	if !ok && p.cursor > p.first {
		at, ok = p.search(p.first, p.cursor-1)
	}
	if !ok {
		return "", 0, false
	}
	p.used.put(int(at), true)
	if p.cursor = at + 1; p.cursor > p.last {
		p.cursor = p.first
	}
	return p.cidr(at), at, true
}

func (p *pool) search(from, to uint32) (uint32, bool) {
	at := p.used.gap(int(from))
	return uint32(at), at <= int(to)
}

func (p *pool) cidr(at uint32) string {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], p.base+at)
	return netip.PrefixFrom(netip.AddrFrom4(b), p.prefix.Bits()).String()
}

// offset finds a in the pool; a may have a prefix length.
func (p *pool) offset(a string) (uint32, bool) {
	prefix, err := netip.ParsePrefix(a)
	addr := prefix.Addr()
	if err != nil {
		if addr, err = netip.ParseAddr(a); err != nil {
			return 0, false
		}
	}
	if !p.prefix.Contains(addr) {
		return 0, false
	}
	return number(addr) - p.base, true
}

// take notes a holder of the address, whether it is free or not.
func (p *pool) take(at uint32) {
	if !p.used.has(int(at)) {
		p.used.put(int(at), true)
		return
	}
	if p.extra == nil {
		p.extra = make(map[uint32]int)
	}
	p.extra[at]++
}

// release forgets one holder of the address and says whether it is free now.
func (p *pool) release(at uint32) bool {
	switch n := p.extra[at]; {
	case n == 0:
		p.used.put(int(at), false)
		return true
	case n == 1:
		delete(p.extra, at)
	default:
		p.extra[at] = n - 1
	}
	return false
}

// resumeAfter moves the cursor behind an address that was given earlier.
func (p *pool) resumeAfter(at uint32) {
	if p.cursor = at + 1; p.cursor > p.last || p.cursor < p.first {
		p.cursor = p.first
	}
}
