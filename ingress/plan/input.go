package plan

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// Input is the desired state of one node as the cluster knows it. It is complete:
// what is not in it shall not exist on the node.
type Input struct {
	// Self is the node that the plan is for.
	Self Node
	// Peers are all other nodes of the cluster, in any order. Dead ones belong here
	// too, with Alive false, until they leave the cluster.
	Peers []Node
	// Networks are the overlay networks this node takes part in. At most one of
	// them is the ingress network, without which no port can be published.
	Networks []Network
	// Ports are the ports published through the routing mesh. Each is answered on
	// this node whether a replica runs here or not.
	Ports []PublishedPort
	// Virtuals are the virtual addresses of services. Those on networks that this node
	// takes no part in are passed over.
	Virtuals []Virtual
	// ProbeKey authenticates probes between nodes; all nodes of a cluster have the same. Without one no way is probed, and all
	// traffic between nodes goes by VXLAN. The plan itself does not depend on it.
	ProbeKey []byte
	// VXLANPort is the UDP port of the data path; zero means 4789, Swarm's default.
	VXLANPort uint16
}

// Node is one machine of the cluster.
type Node struct {
	// ID is the node's cluster-wide id.
	ID string
	// Underlay is the address other nodes send VXLAN packets to (Swarm's data path
	// address).
	Underlay netip.Addr
	// Gateways holds the node's own address in each network it takes part in, by
	// network id. The manager gives each node one address per network; it is the
	// default gateway of that network's containers on that node.
	Gateways map[string]netip.Addr
	// Alive is false for a node that must receive no new connection. It says
	// nothing about what that node may still send to us.
	Alive bool
	// Suspect is set for a peer whose daemon has fallen silent, which is no proof that the machine is dead: the mesh
	// asks the machine's kernel, and turns Alive off if that does not answer either.
	Suspect bool
	// Direct, when set, says that the node is a neighbour on a segment we share. The
	// cluster does not know; the Mesh finds out and fills it in.
	Direct *Direct
}

// Direct is what is known of a neighbour that may be reachable without VXLAN.
type Direct struct {
	// Device is our device on the shared segment.
	Device string
	// MAC is the source address of the neighbour's frames there; zero if not known
	// yet.
	MAC MAC
	// Proven says that a probe travelled both ways, so connections may be sent to
	// the neighbour without VXLAN. Those it sends us are recognised regardless.
	Proven bool
}

// Network is an overlay network.
type Network struct {
	// ID is the network's cluster-wide id, from which device names are made.
	ID string
	// Name is the network's name as users know it.
	Name string
	// VNI is the VXLAN network identifier, 1 to 1<<24-1.
	VNI uint32
	// Subnet is the same on every node.
	Subnet netip.Prefix
	// MTU is that of the containers; zero means 1450, Swarm's default over a
	// 1500 byte underlay.
	MTU int
	// Internal networks have no way out to the world.
	Internal bool
	// Ingress marks the network that published ports are reached over.
	Ingress bool
}

// PublishedPort is one port of one service in ingress mode.
type PublishedPort struct {
	// ServiceID and Name say whose port it is, for errors.
	ServiceID, Name string
	Protocol        Protocol
	// Published is the port on every node, Target the one in the containers.
	Published, Target uint16
	// Backends are the replicas that have an address, in any order.
	Backends []Backend
}

// Virtual is the virtual address of one service on one overlay network: whatever port
// of it a container connects to, one of the service's replicas answers at the same port.
type Virtual struct {
	// ServiceID and Name say whose address it is, for errors.
	ServiceID, Name string
	NetworkID       string
	Addr            netip.Addr
	// Backends are the replicas with their addresses on that network, in any order.
	Backends []Backend
}

// Backend is one replica of a service.
type Backend struct {
	TaskID, NodeID string
	// Addr is the replica's address on the network it is reached over: ingress for a
	// published port.
	Addr netip.Addr
	// Draining replicas are given no new connection; those they have continue.
	Draining bool
}

// Protocol is a transport protocol by its IP protocol number.
type Protocol uint8

// The protocols a port can be published with.
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

// ParseProtocol reads the word the Engine API uses. The empty string is tcp.
func ParseProtocol(s string) (Protocol, error) {
	switch strings.ToLower(s) {
	case "tcp", "":
		return TCP, nil
	case "udp":
		return UDP, nil
	}
	return 0, fmt.Errorf("protocol %q cannot be published through the routing mesh: use tcp or udp", s)
}

// String is the word the Engine API uses.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// MAC is an Ethernet address that can be compared.
type MAC [6]byte

// String is the usual notation with colons.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// GatewayMAC is the address that the bridge of a network has on the node whose
// gateway address is addr. Deriving it lets all nodes know each other's without
// asking, and recognise the entry node of a connection by it. The first byte
// says "locally administered, unicast".
func GatewayMAC(addr netip.Addr) MAC {
	b := addr.As4()
	return MAC{0x0e, 0x6d, b[0], b[1], b[2], b[3]}
}

// Defaults of the data path.
const (
	// DefaultVXLANPort is Swarm's data path port.
	DefaultVXLANPort = 4789
	// ProbePort is the UDP port neighbours probe each other at. Swarm's documentation
	// asks for it to be open between nodes, for a gossip that miniswarm does without.
	ProbePort = 7946
	// DefaultMTU leaves room for the 50 bytes of VXLAN in an Ethernet frame.
	DefaultMTU = 1450
)

// BridgeName is the name of a network's bridge. Ids are random, so that their
// first ten characters tell networks apart; a device name has 15.
func BridgeName(networkID string) string { return "msb-" + short(networkID) }

// VXLANName is the name of a network's VXLAN device.
func VXLANName(networkID string) string { return "msv-" + short(networkID) }

func short(id string) string { return id[:min(len(id), 10)] }
