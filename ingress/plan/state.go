package plan

import (
	"fmt"
	"net/netip"
)

// Marks of connections (conntrack) and packets. See the package comment.
const (
	// MarkMask selects the byte that says whether a mark is ours.
	MarkMask uint32 = 0xff000000
	// MarkOurs is the value of that byte.
	MarkOurs uint32 = 0x6d000000
	// MarkSideMask also selects the bit that tells the entry node's marks from the
	// serving node's.
	MarkSideMask uint32 = 0xff800000
	// MarkEntry marks a connection whose destination was translated here.
	MarkEntry = MarkOurs
	// MarkVirtual marks one whose destination was a service's virtual address. It is one
	// of the entry node's marks as well.
	MarkVirtual = MarkEntry | 1
	// MarkServing marks a connection that another node translated and sent here; the
	// bits below say which.
	MarkServing = MarkOurs | 0x00800000

	markDirect   uint32 = 0x00400000
	markPeerMask uint32 = 0x003fffff
)

// State is what the kernel of one node should look like, everything sorted. Two
// States with the same content are equal under reflect.DeepEqual.
type State struct {
	Overlays  []Overlay
	Forwards  []Forward
	Neighbors []Neighbor
	Routes    []Route
	Rules     []Rule
	Sysctls   []Sysctl
	Addresses []Address
	Table     Table
	// Backends are the addresses connections may be on: those in use, and those
	// draining. A connection to any other is to be forgotten.
	Backends []netip.Addr
}

// Overlay is the VXLAN device of one network, and the bridge that its containers
// on this node are on. The bridge belongs to the engine's network of the same
// subnet.
type Overlay struct {
	ID, Name       string
	Bridge, Device string
	VNI            uint32
	Local          netip.Addr
	Port           uint16
	Subnet         netip.Prefix
	Gateway        netip.Addr
	// MAC is the address of the device of the ingress network, by which peers
	// recognise us. Those of other networks are the kernel's choice (zero here).
	MAC      MAC
	MTU      int
	Internal bool
	// Ingress says that the device is routed to: it is not put into the bridge,
	// since what it carries was routed before it and is routed after it.
	Ingress bool
}

// Forward is an entry of a VXLAN device: frames to MAC go to the node at Peer.
// The zero MAC is for all frames whose destination is not known.
type Forward struct {
	Device string
	MAC    MAC
	Peer   netip.Addr
}

// Neighbor is a permanent ARP entry: the address of a peer on the ingress network.
type Neighbor struct {
	Device string
	Addr   netip.Addr
	MAC    MAC
}

// Address is a virtual address that the bridge of its network answers for on this node,
// beside the gateway's own address.
type Address struct {
	Device string
	Addr   netip.Addr
}

// MainTable is the kernel's ordinary routing table.
const MainTable uint32 = 254

// Route sends Dst to Via over Device. Via need not be on the device's subnet.
type Route struct {
	Table  uint32
	Dst    netip.Prefix
	Via    netip.Addr
	Device string
}

// Rule is a routing policy rule. Each peer has one, which routes the packets with
// its mark by its table; the others keep all other packets away from those.
type Rule struct {
	// Priority orders rules; lower ones come first.
	Priority uint32
	// Mark is compared under Mask.
	Mark, Mask uint32
	// FromHere restricts the rule to packets made on this node.
	FromHere bool
	// Table is where matching packets are routed, or Goto the priority they go on
	// at. Neither: the rule is only there to be gone to.
	Table, Goto uint32
}

// Priorities of rules: after the kernel's for local addresses (0), before those
// that decide by destination (32766).
const (
	rulesBegin = 4200
	rulesPeers = 4201
	rulesEnd   = 4202
)

// Sysctl is one kernel setting. Of reverse path filtering (rp_filter) 0 asks for
// none and 2 for at most the loose kind.
type Sysctl struct {
	// Key is the path below /proc/sys.
	Key   string
	Value string
}

// Table is the content of our nftables tables. The rules are the same for all
// nodes; what varies are sets and maps.
type Table struct {
	Base
	// Guarded are the devices from which packets to loopback addresses are
	// dropped, because route_localnet is on there.
	Guarded []string
	// Inside are the sources that are masqueraded; disjoint.
	Inside []netip.Prefix
	// Loops are pairs of a node's address and a backend on that same node, which
	// are masqueraded as well.
	Loops []Loop
	// Peers recognises the entry node of a connection.
	Peers []PeerMark
	// Ports are the published ports, also those without a backend, which refuse.
	Ports []Port
	// Virtuals are the virtual addresses of services, with port 0 in keys and backends.
	Virtuals []Port
}

// Base is what the rules themselves depend on. It hardly ever changes.
type Base struct {
	// Ingress is the subnet of the ingress network; packets addressed straight to
	// it come from peers.
	Ingress netip.Prefix
	// Bridge is where the ingress network's containers on this node are.
	Bridge string
	// Source is this node's address, used as source where the client's cannot be
	// kept.
	Source netip.Addr
	// VXLANPort is the UDP port whose packets are not tracked as connections: what
	// is in them is.
	VXLANPort uint16
}

// Loop is a connection from a node through us to a backend on the same node.
type Loop struct {
	Src, Dst netip.Addr
}

// PeerMark gives connections that arrive from a peer the mark that leads their
// replies back.
type PeerMark struct {
	Device string
	MAC    MAC
	Mark   uint32
}

// PortKey names what connections are translated from: a published port on a node, or
// all ports of a virtual address.
type PortKey struct {
	Protocol Protocol
	Port     uint16
	// Virtual is set for a virtual address, and then alone.
	Virtual netip.Addr
}

// String is the notation of Docker, 80/tcp, or the virtual address.
func (k PortKey) String() string {
	if k.Virtual.IsValid() {
		return k.Virtual.String()
	}
	return fmt.Sprintf("%d/%s", k.Port, k.Protocol)
}

// Port is a published port or a virtual address, and where its connections go, one
// after the other.
type Port struct {
	PortKey
	// Backends is in slot order: new connections take the slots in turn. Empty
	// means that connections are refused.
	Backends []netip.AddrPort
}
