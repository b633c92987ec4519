// Package protocol holds the messages that machines of one cluster exchange, and the paths they travel on. It is
// plain data with JSON tags, so that manager and agent agree without importing each other.
//
// All of it runs over one TLS port (2377/tcp by default) that speaks HTTP/1.1 with client certificates. Streams are
// opened by an HTTP Upgrade to [UpgradeStream]; afterwards both sides send a sequence of JSON documents, one message
// each, until either closes. There is no other framing: a JSON decoder is the parser.
//
// The session between an agent and the leader:
//
//	agent                         leader
//	  GET /session (Upgrade)  ->    certificate says which node this is
//	  Hello                   ->    node becomes READY once the store has it
//	                          <-  Welcome (session id, heartbeat period, managers), again when the period changes
//	                          <-  Mesh, Complete (published ports, peers, networks)
//	                          <-  Assignments, Complete (everything for this node)
//	  Heartbeat every period  ->    missed for 3 periods: node DOWN
//	  Status (batched)        ->    stored, then acknowledged:
//	                          <-  StatusAck
//	                          <-  Assignments, Mesh: differences, numbered
//	  MeshAck                 ->    the kernel of this node has applied mesh number n
//
// When somebody wants to reach a container of the node, the leader asks for a stream of its own, which the agent opens
// (nodes need not be reachable for managers), and on which it then answers HTTP: see [StreamRequest].
//
//	agent                           leader
//	                            <-    StreamRequest (id)
//	  GET /streams/{id} (Upgrade) ->
//	                            <-    GET /tasks/{task}/containers/c/json and the like
//
// A follower answers the upgrade with 421 Misdirected Request and the leader's address in [HeaderLeader]; an agent
// then goes there. When a leader steps down it closes its sessions, and agents look for the next one.
package protocol

import (
	"slices"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// Paths on the cluster port.
const (
	PathSession = "/session"      // upgrade; workers and managers
	PathStreams = "/streams"      // prefix; upgrade; workers and managers: a stream that the leader has asked for
	PathNode    = "/node"         // prefix, on a stream to an agent: the node itself
	PathAttach  = "/attachments"  // workers and managers: an address for a container that a person puts on a network
	PathEngine  = "/engine"       // prefix; managers only: the swarm part of the Engine API, forwarded by followers
	PathRaft    = "/raft"         // prefix; managers only: messages and snapshots of the raft group
	PathMembers = "/raft/members" // managers only: join and leave the raft group
	PathEpoch   = "/raft/epoch"   // managers only: which life of the cluster a manager is of
	PathCA      = "/ca"           // prefix; anyone: root certificate and certificate requests
)

const (
	// UpgradeStream is the protocol named in the Upgrade header of a stream.
	UpgradeStream = "miniswarm-stream/1"
	// HeaderLeader carries the host:port of the leader in a 421 answer, empty when there is none.
	HeaderLeader = "Miniswarm-Leader"
)

// FromAgent is one message of an agent; exactly one field is set.
type FromAgent struct {
	Hello     *Hello      `json:",omitempty"`
	Heartbeat *Heartbeat  `json:",omitempty"`
	Status    *Status     `json:",omitempty"`
	MeshAck   *MeshAck    `json:",omitempty"`
	LogChunk  *LogMessage `json:",omitempty"`
	LogEnd    *LogEnd     `json:",omitempty"`
}

// ToAgent is one message of the leader; exactly one field is set.
type ToAgent struct {
	Welcome     *Welcome       `json:",omitempty"`
	Assignments *Assignments   `json:",omitempty"`
	Mesh        *Mesh          `json:",omitempty"`
	StatusAck   *StatusAck     `json:",omitempty"`
	LogRequest  *LogRequest    `json:",omitempty"`
	LogCancel   *LogCancel     `json:",omitempty"`
	Stream      *StreamRequest `json:",omitempty"`
	Managers    []ManagerAddr  `json:",omitempty"`
	Leave       *LeaveRequired `json:",omitempty"`
	Trust       *Trust         `json:",omitempty"`
	// Refused ends a session before it began.
	Refused *Refused `json:",omitempty"`
	// Heartbeat answers a heartbeat at once. A leader that answers the first must answer all: an agent that then hears
	// nothing for several periods takes it for dead or frozen and looks for another, before it is itself called DOWN.
	Heartbeat *Heartbeat `json:",omitempty"`
}

// Hello opens a session. It is sent again in the same session when the description has changed.
type Hello struct {
	Description swarm.NodeDescription
	// DataAddr is the underlay address of this node for overlay traffic; empty: as seen by the manager.
	DataAddr string
	// DataPlane says whether this node runs the mesh; a node that could not (another daemon has it) says false and is
	// not waited for when a replica is withdrawn.
	DataPlane bool
	// Version is the agent's miniswarm version.
	Version string
	// Epoch is the greatest epoch of the cluster that this node has seen: see cluster.NextEpoch. A leader of a smaller one refuses.
	Epoch uint64 `json:",omitempty"`
	// Instance tells one run of a daemon from all others, so that a leader notices when two machines are the same node.
	Instance string `json:",omitempty"`
}

// Heartbeat says that the agent lives.
type Heartbeat struct {
	// Clock is what the sender's clock says, by which the leader notices clocks that are wrong; zero if it does not say.
	Clock time.Time `json:",omitzero"`
}

// Trust tells a node what to recognise its cluster by. The node trusts Root, and Next besides while there is one; if its own
// certificate is not of the last of them, it is to renew it.
type Trust struct {
	// Root is the cluster's root certificate in PEM, Next the one that is about to take its place; empty: none is.
	Root string
	Next string `json:",omitempty"`
}

// Status carries the latest status of tasks; an agent keeps each until it is acknowledged.
type Status struct {
	// Seq numbers the batches of one session from 1.
	Seq   uint64
	Tasks []TaskStatus
}

// TaskStatus is one task's status.
type TaskStatus struct {
	ID     string
	Status swarm.TaskStatus
}

// StatusAck says that the batch Seq is stored for good.
type StatusAck struct{ Seq uint64 }

// MeshAck says that this node routes by mesh number Seq or a later one.
type MeshAck struct {
	Seq uint64
	// Err is what went wrong instead, empty when applied.
	Err string `json:",omitempty"`
}

// EpochAnswer is the answer of a manager at PathEpoch: see cluster.NextEpoch.
type EpochAnswer struct{ Epoch uint64 }

// Welcome accepts a session.
type Welcome struct {
	SessionID string
	ClusterID string
	// Epoch is the cluster's. An agent that has seen a greater one goes on looking for its managers.
	Epoch           uint64 `json:",omitempty"`
	Node            *cluster.Node
	HeartbeatPeriod time.Duration
	Managers        []ManagerAddr
}

// ManagerAddr is one manager's address on the cluster port.
type ManagerAddr struct {
	NodeID string
	Addr   string
}

// Assignments is what this node has to run. With Complete set it is everything, and whatever is not in it goes;
// otherwise it is the difference to what was sent before.
type Assignments struct {
	Seq      uint64
	Complete bool
	// Node is this node's object, set when it changed.
	Node           *cluster.Node      `json:",omitempty"`
	Tasks          []*cluster.Task    `json:",omitempty"`
	RemoveTasks    []string           `json:",omitempty"`
	Secrets        []*cluster.Secret  `json:",omitempty"`
	RemoveSecrets  []string           `json:",omitempty"`
	Configs        []*cluster.Config  `json:",omitempty"`
	RemoveConfigs  []string           `json:",omitempty"`
	Networks       []*cluster.Network `json:",omitempty"`
	RemoveNetworks []string           `json:",omitempty"`
}

// Mesh is the table that routes published ports, and names, addresses and connects what is on overlay networks. With Complete set it is everything;
// otherwise services and peers in it replace their earlier versions and the others stay.
type Mesh struct {
	Seq            uint64
	Complete       bool
	Services       []MeshService `json:",omitempty"`
	RemoveServices []string      `json:",omitempty"`
	// Peers are nodes with the address of each in every overlay network it takes part in.
	Peers       []Peer   `json:",omitempty"`
	RemovePeers []string `json:",omitempty"`
	// DataPathPort is the UDP port of the overlay and Key the secret of probes between nodes; both are in complete
	// messages only and never change.
	DataPathPort uint16 `json:",omitempty"`
	Key          []byte `json:",omitempty"`
}

// MeshService is how one service is reached: by its published ports, by its name on overlay networks, and the
// replicas behind both.
type MeshService struct {
	ServiceID string
	Name      string
	Ports     []swarm.PortConfig `json:",omitempty"`
	// Networks are the overlay networks, without ingress, that the service is on, in the order of its spec.
	Networks []MeshNetwork `json:",omitempty"`
	Backends []Backend
}

// MeshNetwork is a service's part in one overlay network.
type MeshNetwork struct {
	NetworkID string
	// VIP is the service's virtual address there, without prefix length; empty in endpoint mode dnsrr.
	VIP string `json:",omitempty"`
	// Aliases are further names of the service on this network.
	Aliases []string `json:",omitempty"`
}

// Backend is one replica that may receive traffic.
type Backend struct {
	TaskID string
	NodeID string
	// Addr is the task's IP address on the ingress network, without prefix length; empty where it is not on that.
	Addr string `json:",omitempty"`
	// Networks has its addresses on other overlay networks.
	Networks []BackendAddr `json:",omitempty"`
	// Names are those of the task alone, on every network it is on: of its container, and its host name. The first is
	// the one that its addresses are shown with.
	Names []string `json:",omitempty"`
	// Draining: no new connections; those that exist go on.
	Draining bool `json:",omitempty"`
}

// BackendAddr is a replica's IP address on one network, without prefix length.
type BackendAddr struct{ NetworkID, Addr string }

// Equal compares all of two backends.
func (b Backend) Equal(o Backend) bool {
	return b.TaskID == o.TaskID && b.NodeID == o.NodeID && b.Addr == o.Addr && b.Draining == o.Draining &&
		slices.Equal(b.Networks, o.Networks) && slices.Equal(b.Names, o.Names)
}

// Equal compares all of two parts in a network.
func (n MeshNetwork) Equal(o MeshNetwork) bool {
	return n.NetworkID == o.NetworkID && n.VIP == o.VIP && slices.Equal(n.Aliases, o.Aliases)
}

// Peer is a node as the data plane sees it.
type Peer struct {
	NodeID string
	// Addr is the node's underlay address.
	Addr string
	// Attachments maps network id to the node's address in it, CIDR form.
	Attachments map[string]string
	// Down: do not send traffic there.
	Down bool `json:",omitempty"`
	// Suspect: nothing was heard of its daemon for some beats. Whether the machine itself is dead, the nodes that send
	// it traffic find out best: by asking its kernel.
	Suspect bool `json:",omitempty"`
}

// LogRequest asks an agent for the logs of one of its tasks.
type LogRequest struct {
	ID     string // names the request in LogMessage, LogEnd and LogCancel
	TaskID string
	Stdout bool
	Stderr bool
	Follow bool
	// Details asks for what the container's log options add to every line, LogMessage.Details.
	Details bool `json:",omitempty"`
	// Since is RFC 3339 or Unix seconds as Docker takes it, Tail "all" or a number.
	Since string
	Tail  string
}

// LogMessage is one line of a task's log. Data is without the timestamp and ends with the line's newline, unless the
// log ends or the line was cut for its length there.
type LogMessage struct {
	ID        string
	Timestamp time.Time
	Stream    string // "stdout" or "stderr"
	// Details are the labels and variables that the log options name, as the engine writes them: k=v,k=v with both
	// query-escaped. Only where they are asked for.
	Details string `json:",omitempty"`
	Data    []byte
}

// LogEnd closes a log request; Err is empty at the ordinary end.
type LogEnd struct {
	ID  string
	Err string `json:",omitempty"`
}

// LogCancel stops a log request.
type LogCancel struct{ ID string }

// AttachRequest asks the leader for a place on a network for a container of the caller's node that belongs to no service. The
// caller's id comes from its certificate.
type AttachRequest struct {
	// ID is the id that the attachment's task will have. The node chooses it, so that it may ask again after an answer was
	// lost.
	ID string
	// Network is the network's id or name.
	Network string
	// ContainerID is the container's id or name, empty while the engine has not made it.
	ContainerID string `json:",omitempty"`
	// Names are what others on the network find the container by.
	Names []string `json:",omitempty"`
	// Address is an IP address that the container is to have, empty for any.
	Address string `json:",omitempty"`
}

// StreamRequest asks an agent to open a stream to the leader under PathStreams, named by the ID. Once it stands the agent
// is the HTTP server on it: what it answers under /tasks/{id} is the part of its engine's API that concerns the container
// of that task, and under PathNode how the node itself is. It ends with the session through which it was asked for.
type StreamRequest struct{ ID string }

// LeaveRequired tells a node that the cluster no longer knows it.
type LeaveRequired struct{ Reason string }

// Refused tells a machine that another one has a session as the same node: one is a copy of the other.
type Refused struct{ Reason string }

// JoinRequest asks the leader to add the caller to the raft group, or to look for a member at another address. The
// caller's id comes from its certificate.
type JoinRequest struct {
	// Addr is the host:port where the member's cluster port is reached.
	Addr string
	// Fresh says that the caller has no log. A voter without one would break promises that it made: it gets another
	// member id.
	Fresh bool `json:",omitempty"`
	// Instance is that of the caller's daemon: see [Hello].
	Instance string `json:",omitempty"`
}

// JoinResponse tells the newcomer who it is and whom to reach.
type JoinResponse struct {
	RaftID  uint64
	Members []Member
	// UnlockKey is what managers lock their keys with by the cluster object of LockVersion, empty where they do not. It is told to those that
	// have no log yet, so that not even their first one is sealed with a key that lies open.
	UnlockKey   []byte `json:",omitempty"`
	LockVersion uint64 `json:",omitempty"`
}

// Member is one member of the raft group.
type Member struct {
	RaftID uint64
	NodeID string
	Addr   string
	// Learner members receive the log but do not vote yet.
	Learner bool
}
