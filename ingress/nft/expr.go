package nft

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// Registers. Register 1 is 16 bytes wide and made of the 4 byte registers 8 to 11;
// concatenated keys are gathered in consecutive 4 byte registers.
const (
	reg    = 1
	reg32  = 8
	second = reg32 + 1 // after a first part of up to 4 bytes
	fifth  = reg32 + 4 // after a device name
)

// rule is a rule before it is in the kernel. The comment tells people what it is
// for, and tells Verify that it is the one we wrote.
type rule struct {
	comment string
	exprs   []expr.Any
}

// match joins the parts of a rule.
func match(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func host32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func equals(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data} }

// masked compares v, already in the register, under a mask.
func masked(mask, v []byte) []expr.Any {
	return []expr.Any{
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))},
		equals(v),
	}
}

func loadSource(to uint32) expr.Any {
	return &expr.Payload{DestRegister: to, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}
}

func loadDestination(to uint32) expr.Any {
	return &expr.Payload{DestRegister: to, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}
}

// loadPort loads "protocol . destination port".
func loadPort() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
		&expr.Payload{DestRegister: second, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	}
}

// loadNeighbour loads "input device . source MAC".
func loadNeighbour() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg},
		&expr.Payload{DestRegister: fifth, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6},
	}
}

// arpOut holds for ARP that leaves for other nodes by one of our VXLAN devices.
func arpOut() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: reg}, equals(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ARP)),
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg}, equals([]byte(plan.VXLANName(""))), // a prefix
	}
}

// arpSender and arpTarget load the address an ARP packet tells of, and the one it asks for.
func arpSender() []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 14, Len: 4}}
}

func arpTarget() []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 24, Len: 4}}
}

// inSet goes on if the key in the register is in a set.
func inSet(name string) expr.Any { return &expr.Lookup{SourceRegister: reg, SetName: name} }

// mapped replaces the key in the register by its value; without one the rule ends.
func mapped(name string) expr.Any {
	return &expr.Lookup{SourceRegister: reg, DestRegister: reg, IsDestRegSet: true, SetName: name}
}

// verdictOf continues in the chain the key stands for.
func verdictOf(name string) expr.Any {
	return &expr.Lookup{SourceRegister: reg, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: name}
}

func destinationIn(p netip.Prefix) []expr.Any {
	if !p.IsValid() {
		// There is no ingress network: 255.255.255.255 is never routed.
		p = netip.PrefixFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), 32)
	}
	addr := p.Masked().Addr().As4()
	mask := binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-p.Bits()))
	return append([]expr.Any{loadDestination(reg)}, masked(mask, addr[:])...)
}

func protocol(p byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, equals([]byte{p})}
}

// firstOfTCP holds for the packet that opens a TCP connection.
func firstOfTCP() []expr.Any {
	const fin, syn, rst, ack = 0x01, 0x02, 0x04, 0x10
	return append(
		[]expr.Any{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1}},
		masked([]byte{fin | syn | rst | ack}, []byte{syn})...)
}

type direction byte

const (
	original direction = 0
	reply    direction = 1
)

func connection(d direction) []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg}, equals([]byte{byte(d)})}
}

func newConnection() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: host32(expr.CtStateBitNEW), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, 4)},
	}
}

// tracked holds for packets that no rule before has left out of the connection table.
func tracked() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: host32(expr.CtStateBitUNTRACKED), Xor: make([]byte, 4)},
		equals(make([]byte, 4)),
	}
}

func connectionMark(mask, v uint32) []expr.Any {
	return append([]expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: reg}}, masked(host32(mask), host32(v))...)
}

func notConnectionMark(mask, v uint32) []expr.Any {
	e := connectionMark(mask, v)
	e[len(e)-1] = &expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: host32(v)}
	return e
}

// notFrom holds for packets that came in by another device.
func notFrom(device string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: deviceName(device)},
	}
}

// markConnection writes the register into the connection's mark.
func markConnection() expr.Any {
	return &expr.Ct{Key: expr.CtKeyMARK, Register: reg, SourceRegister: true}
}

// markPacket writes the register into the packet's mark.
func markPacket() expr.Any {
	return &expr.Meta{Key: expr.MetaKeyMARK, Register: reg, SourceRegister: true}
}

func value(v []byte) expr.Any { return &expr.Immediate{Register: reg, Data: v} }

// udpTo holds for UDP packets to a port.
func udpTo(port uint16) []expr.Any {
	return append(protocol(unix.IPPROTO_UDP),
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		equals(binary.BigEndian.AppendUint16(nil, port)))
}

// sourceIs gives the connection a as its source.
func sourceIs(a netip.Addr) []expr.Any {
	if !a.Is4() {
		a = netip.IPv4Unspecified() // nothing is published, so nothing comes here
	}
	b := a.As4()
	return []expr.Any{value(b[:]), &expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg}}
}

// onItsBridge holds for packets addressed to an address of the very device they came in
// by, which for a virtual address is the bridge of its network.
func onItsBridge() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg, ResultADDRTYPE: true, FlagDADDR: true, FlagIIF: true},
		equals(host32(unix.RTN_LOCAL)),
	}
}

// localDestination holds for packets addressed to this node itself.
func localDestination() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg, ResultADDRTYPE: true, FlagDADDR: true},
		equals(host32(unix.RTN_LOCAL)),
	}
}
