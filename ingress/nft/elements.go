package nft

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// Keys and values as the kernel holds them: parts of a concatenation are padded
// to 4 bytes, numbers made by the kernel are in host order, those of the wire in
// network order.

const deviceNameLen = 16

func portElement(k plan.PortKey) nftables.SetElement {
	b := []byte{byte(k.Protocol), 0, 0, 0}
	b = binary.BigEndian.AppendUint16(b, k.Port)
	return nftables.SetElement{Key: append(b, 0, 0)}
}

func parsePort(e nftables.SetElement) (plan.PortKey, error) {
	if len(e.Key) != 8 {
		return plan.PortKey{}, fmt.Errorf("a port of %d bytes", len(e.Key))
	}
	return plan.PortKey{Protocol: plan.Protocol(e.Key[0]), Port: binary.BigEndian.Uint16(e.Key[4:])}, nil
}

func addressElement(a netip.Addr) nftables.SetElement {
	b := a.As4()
	return nftables.SetElement{Key: b[:]}
}

func parseVirtual(e nftables.SetElement) (plan.PortKey, error) {
	a, ok := netip.AddrFromSlice(e.Key)
	if !ok || !a.Is4() {
		return plan.PortKey{}, fmt.Errorf("an address of %d bytes", len(e.Key))
	}
	return plan.PortKey{Virtual: a}, nil
}

// keyElement names a port or a virtual address in the sets of its kind.
func keyElement(k plan.PortKey) nftables.SetElement {
	if k.Virtual.IsValid() {
		return addressElement(k.Virtual)
	}
	return portElement(k)
}

func dispatchElement(k plan.PortKey) nftables.SetElement {
	e := keyElement(k)
	e.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: portName(k)}
	return e
}

// slotElement is what one slot leads to; that of a virtual address has no port.
func slotElement(index int, a netip.AddrPort) nftables.SetElement {
	addr := a.Addr().As4()
	if a.Port() == 0 {
		return nftables.SetElement{Key: host32(uint32(index)), Val: addr[:]}
	}
	val := binary.BigEndian.AppendUint16(addr[:], a.Port())
	return nftables.SetElement{Key: host32(uint32(index)), Val: append(val, 0, 0)}
}

func parseSlot(e nftables.SetElement) (int, netip.AddrPort, error) {
	if len(e.Key) == 4 && len(e.Val) == 4 {
		return int(binary.NativeEndian.Uint32(e.Key)), netip.AddrPortFrom(netip.AddrFrom4([4]byte(e.Val)), 0), nil
	}
	if len(e.Key) != 4 || len(e.Val) != 8 {
		return 0, netip.AddrPort{}, fmt.Errorf("a slot of %d and %d bytes", len(e.Key), len(e.Val))
	}
	addr := netip.AddrFrom4([4]byte(e.Val))
	return int(binary.NativeEndian.Uint32(e.Key)), netip.AddrPortFrom(addr, binary.BigEndian.Uint16(e.Val[4:])), nil
}

func deviceName(name string) []byte {
	b := make([]byte, deviceNameLen)
	copy(b, name)
	return b
}

func parseDevice(b []byte) string {
	name, _, _ := bytes.Cut(b, []byte{0})
	return string(name)
}

func guardedElement(device string) nftables.SetElement {
	return nftables.SetElement{Key: deviceName(device)}
}

func peerElement(p plan.PeerMark) nftables.SetElement {
	key := append(deviceName(p.Device), p.MAC[:]...)
	return nftables.SetElement{Key: append(key, 0, 0), Val: host32(p.Mark)}
}

func parsePeer(e nftables.SetElement) (plan.PeerMark, error) {
	if len(e.Key) != deviceNameLen+8 || len(e.Val) != 4 {
		return plan.PeerMark{}, fmt.Errorf("a peer of %d and %d bytes", len(e.Key), len(e.Val))
	}
	return plan.PeerMark{
		Device: parseDevice(e.Key[:deviceNameLen]),
		MAC:    plan.MAC(e.Key[deviceNameLen : deviceNameLen+6]),
		Mark:   binary.NativeEndian.Uint32(e.Val),
	}, nil
}

func loopElement(l plan.Loop) nftables.SetElement {
	src, dst := l.Src.As4(), l.Dst.As4()
	return nftables.SetElement{Key: append(src[:], dst[:]...)}
}

func parseLoop(e nftables.SetElement) (plan.Loop, error) {
	if len(e.Key) != 8 {
		return plan.Loop{}, fmt.Errorf("a loop of %d bytes", len(e.Key))
	}
	return plan.Loop{Src: netip.AddrFrom4([4]byte(e.Key)), Dst: netip.AddrFrom4([4]byte(e.Key[4:]))}, nil
}

// prefixElements are the two ends of an interval: the first address in it and the
// first one after it.
func prefixElements(p netip.Prefix) []nftables.SetElement {
	first := p.Masked().Addr().As4()
	elements := []nftables.SetElement{{Key: first[:]}}
	after := uint64(binary.BigEndian.Uint32(first[:])) + 1<<(32-p.Bits())
	if after <= 1<<32-1 {
		elements = append(elements, nftables.SetElement{Key: binary.BigEndian.AppendUint32(nil, uint32(after)), IntervalEnd: true})
	}
	return elements
}

// parsePrefixes reads the ends of disjoint intervals back into prefixes.
func parsePrefixes(elements []nftables.SetElement) ([]netip.Prefix, error) {
	starts, ends := map[uint64]bool{}, map[uint64]bool{}
	for _, e := range elements {
		if len(e.Key) != 4 {
			return nil, fmt.Errorf("an address of %d bytes", len(e.Key))
		}
		at := uint64(binary.BigEndian.Uint32(e.Key))
		if e.IntervalEnd {
			ends[at] = true
		} else {
			starts[at] = true
		}
	}
	var out []netip.Prefix
	for at := range starts {
		size := 0
		for size <= 32 && !ends[at+1<<size] && at+1<<size < 1<<32 {
			size++
		}
		b := binary.BigEndian.AppendUint32(nil, uint32(at))
		out = append(out, netip.PrefixFrom(netip.AddrFrom4([4]byte(b)), 32-size))
	}
	return out, nil
}
