package cluster

import (
	"fmt"
	"strconv"
	"time"

	"github.com/docker/docker/api/types/swarm"
)

// Kind names one table. The zero Kind is none.
type Kind uint8

// The kinds of objects, one table each.
const (
	KindCluster Kind = iota + 1
	KindNode
	KindService
	KindTask
	KindNetwork
	KindSecret
	KindConfig

	kindEnd
)

var kindNames = [...]string{KindCluster: "cluster", KindNode: "node", KindService: "service", KindTask: "task",
	KindNetwork: "network", KindSecret: "secret", KindConfig: "config"}

func (k Kind) String() string {
	if k > 0 && k < kindEnd {
		return kindNames[k]
	}
	return "kind(" + strconv.Itoa(int(k)) + ")"
}

// Kinds lists every kind in the order in which objects depend on each other, for those who walk all tables.
func Kinds() []Kind {
	return []Kind{KindCluster, KindNode, KindNetwork, KindSecret, KindConfig, KindService, KindTask}
}

// Object is one record of a table. Its dynamic type is one of *Cluster, *Node, *Service, *Task, *Network, *Secret and
// *Config. Objects in tables are immutable.
type Object interface {
	// Kind is the table the object belongs to.
	Kind() Kind
	// ObjectID is the object's unique id in its table.
	ObjectID() string
	// ObjectName is the name that is unique within the kind, "" where the kind has no unique names (nodes, tasks).
	ObjectName() string
	// ObjectMeta gives the version and the times of the object.
	ObjectMeta() swarm.Meta
	// copied gives a shallow copy.
	copied() Object
	// stamp has the object carry m. It is for objects that are in no table yet.
	stamp(m swarm.Meta)
}

// NewObject gives an empty object of the kind, for decoders.
func NewObject(k Kind) (Object, error) {
	switch k {
	case KindCluster:
		return new(Cluster), nil
	case KindNode:
		return new(Node), nil
	case KindService:
		return new(Service), nil
	case KindTask:
		return new(Task), nil
	case KindNetwork:
		return new(Network), nil
	case KindSecret:
		return new(Secret), nil
	case KindConfig:
		return new(Config), nil
	}
	return nil, fmt.Errorf("unknown kind of object %d", k)
}

// ClusterName is the only name a cluster object may have, as in Docker Swarm.
const ClusterName = "default"

// Cluster is the one object that describes the swarm itself.
type Cluster struct {
	swarm.ClusterInfo
	// JoinTokens are the current tokens, in Swarm's text form.
	JoinTokens swarm.JoinTokens
	// RootCA is the trust root in PEM; RootCAKey is its private key in PEM, empty where an external CA has it. The key
	// leaves the managers never and is sealed on disk with everything else in the log.
	RootCA, RootCAKey []byte
	// Rotation is the root that is about to take RootCA's place, nil while there is none.
	Rotation *RootRotation
	// LastForcedRotation is the value of Spec.CAConfig.ForceRotate that was acted upon.
	LastForcedRotation uint64
	// MeshKey is a secret of the cluster's nodes, by which their data planes know each other's probes. It never changes.
	MeshKey []byte
	// Removed maps the id of each node removed from the cluster to when its certificate is surely expired, until
	// which its connections must be refused.
	Removed map[string]time.Time
	// UnlockKeys is the key that opens locked managers; empty while autolock is off.
	UnlockKeys []byte
	// Epoch orders the lives of a cluster that was recovered: see [NextEpoch]. It is 0 in the first life.
	Epoch uint64
}

// RootRotation is a new root CA while the cluster changes over to it: certificates are issued by it already, but RootCA is
// still what newcomers recognise the cluster by. It is immutable.
type RootRotation struct {
	// RootCA and RootCAKey are as in [Cluster].
	RootCA, RootCAKey []byte
	// CrossSigned certifies the new root's key with the old root's, in PEM. Behind a certificate of the new root it lets
	// those verify that certificate who know the old root only.
	CrossSigned []byte
}

// Node is one machine. Spec is the user's wish; the other fields are what was observed or allocated.
type Node struct {
	swarm.Node
	// Role is the role that the node's certificate carries; Spec.Role is the wish.
	Role swarm.NodeRole
	// RaftID is the node's member id in the managers' raft group, 0 for a worker.
	RaftID uint64
	// ManagerAddr is the host:port by which managers and agents reach this manager, empty for a worker.
	ManagerAddr string
	// DownSince is when the node was found DOWN, zero while it is not.
	DownSince time.Time
	// DataAddr is the underlay IP address that carries the node's overlay and mesh traffic.
	DataAddr string
	// NoDataPlane says that the node's daemon runs without a data plane, so that nothing on the node is reached by the mesh.
	// What is known of a node that has not said so yet is that it has one.
	NoDataPlane bool
	// Instance is the run of the daemon that had the node's session last: it tells the node from a copy of it.
	Instance string
	// Attachments maps a network id to the node's own address in it, in CIDR form: the address of the bridge that
	// containers of this node use as their gateway.
	Attachments map[string]string
}

// Service is a service as the user declared it and what was allocated for it.
type Service struct {
	swarm.Service
	// SpecVersion changes with each change of Spec and is copied to the tasks made from it; only compared for equality.
	SpecVersion swarm.Version
	// PreviousSpecVersion belongs to PreviousSpec, so that tasks made from it are clean again after a rollback.
	PreviousSpecVersion swarm.Version
	// RegistryAuth is the X-Registry-Auth header value that nodes use to pull the image; never returned by the API.
	RegistryAuth string
	// PreviousRegistryAuth belongs to PreviousSpec.
	PreviousRegistryAuth string
}

// Task is one attempt to run a replica. Spec, ServiceAnnotations, Endpoint and RegistryAuth are equal for all tasks of
// one service and spec version and are shared between them in memory and in the log.
type Task struct {
	swarm.Task
	// SpecVersion is the service's spec version this task was made from.
	SpecVersion swarm.Version
	// ServiceAnnotations is a copy of the service's name and labels at creation.
	ServiceAnnotations swarm.Annotations
	// Endpoint holds the ports and virtual IPs that were allocated for the service at creation, nil where none.
	Endpoint *swarm.Endpoint
	// RegistryAuth is the service's X-Registry-Auth value.
	RegistryAuth string
	// StartAfter holds back a task whose desired state is READY: it may be released to run from then on. Zero: at once.
	StartAfter time.Time
	// Numbered says that Slot is the slot's number even if that is 0: the slots of a replicated job begin there.
	Numbered bool
	// Replaces is the id of the task this one takes over from, "" for a first task; a stop-first replacement is not
	// released while that task may still run.
	Replaces string
	// AppliedAt is the leader's clock when the latest status report was stored.
	AppliedAt time.Time
	// Attempts counts the restarts that led to this task since AttemptsSince, where the restart policy allows more than the
	// slot's history is kept for; 0 elsewhere.
	Attempts      int
	AttemptsSince time.Time
}

// OptionAddress is the driver option of a network attachment that names the IP address wanted there, for which Docker's
// API has no field. It counts in tasks that stand for a container which a person attached ([Task.Attachment]).
const OptionAddress = "miniswarm.address"

// Attachment says whether the task stands for a container that a person put on a network (swarm-semantics.md, 5.6). Such
// a task has no service; its node makes the network and watches that the container is there, and runs nothing.
func (t *Task) Attachment() bool { return t.Spec.NetworkAttachmentSpec != nil }

// FullName is the task's name as Docker shows it on nodes: service.slot.id, with the node's id for the slot of a
// task that has none (global services and jobs).
func (t *Task) FullName() string {
	return t.ServiceAnnotations.Name + "." + t.SlotName() + "." + t.ID
}

// SlotName is the slot as text, or the node's id for a task without slot. Docker takes the first slot of a replicated
// job for none.
func (t *Task) SlotName() string {
	if t.Slot != 0 || t.Numbered {
		return strconv.Itoa(t.Slot)
	}
	return t.NodeID
}

// Network is a swarm-scoped network.
type Network struct {
	swarm.Network
	// VNI is the network's VXLAN id.
	VNI uint32
	// PendingDelete is set while nodes still hold the network.
	PendingDelete bool
}

// Local says whether the network (host, bridge, macvlan ...) is the nodes' own affair: nothing is allocated for it, and no data
// plane carries it.
func (n *Network) Local() bool {
	if d := n.Spec.DriverConfiguration; d != nil && d.Name != "" && d.Name != overlayDriver {
		return true
	}
	return n.Spec.Scope == "local" || n.Spec.Labels["com.docker.swarm.predefined"] == "true"
}

// overlayDriver is the driver of networks that span nodes, and what a network has that names none.
const overlayDriver = "overlay"

// Secret is a secret with its data; the API never returns the data.
type Secret struct{ swarm.Secret }

// Config is a config with its data.
type Config struct{ swarm.Config }

// Kind implements Object.
func (*Cluster) Kind() Kind { return KindCluster }

// Kind implements Object.
func (*Node) Kind() Kind { return KindNode }

// Kind implements Object.
func (*Service) Kind() Kind { return KindService }

// Kind implements Object.
func (*Task) Kind() Kind { return KindTask }

// Kind implements Object.
func (*Network) Kind() Kind { return KindNetwork }

// Kind implements Object.
func (*Secret) Kind() Kind { return KindSecret }

// Kind implements Object.
func (*Config) Kind() Kind { return KindConfig }

// ObjectID implements Object.
func (o *Cluster) ObjectID() string { return o.ID }

// ObjectID implements Object.
func (o *Node) ObjectID() string { return o.ID }

// ObjectID implements Object.
func (o *Service) ObjectID() string { return o.ID }

// ObjectID implements Object.
func (o *Task) ObjectID() string { return o.ID }

// ObjectID implements Object.
func (o *Network) ObjectID() string { return o.ID }

// ObjectID implements Object.
func (o *Secret) ObjectID() string { return o.ID }

// ObjectID implements Object.
func (o *Config) ObjectID() string { return o.ID }

// ObjectName implements Object.
func (o *Cluster) ObjectName() string { return o.Spec.Name }

// ObjectName implements Object; node names are not unique.
func (o *Node) ObjectName() string { return "" }

// ObjectName implements Object.
func (o *Service) ObjectName() string { return o.Spec.Name }

// ObjectName implements Object; tasks have no names of their own.
func (o *Task) ObjectName() string { return "" }

// ObjectName implements Object.
func (o *Network) ObjectName() string { return o.Spec.Name }

// ObjectName implements Object.
func (o *Secret) ObjectName() string { return o.Spec.Name }

// ObjectName implements Object.
func (o *Config) ObjectName() string { return o.Spec.Name }

// ObjectMeta implements Object.
func (o *Cluster) ObjectMeta() swarm.Meta { return o.Meta }

// ObjectMeta implements Object.
func (o *Node) ObjectMeta() swarm.Meta { return o.Meta }

// ObjectMeta implements Object.
func (o *Service) ObjectMeta() swarm.Meta { return o.Meta }

// ObjectMeta implements Object.
func (o *Task) ObjectMeta() swarm.Meta { return o.Meta }

// ObjectMeta implements Object.
func (o *Network) ObjectMeta() swarm.Meta { return o.Meta }

// ObjectMeta implements Object.
func (o *Secret) ObjectMeta() swarm.Meta { return o.Meta }

// ObjectMeta implements Object.
func (o *Config) ObjectMeta() swarm.Meta { return o.Meta }

func (o *Cluster) copied() Object { c := *o; return &c }
func (o *Node) copied() Object    { c := *o; return &c }
func (o *Service) copied() Object { c := *o; return &c }
func (o *Task) copied() Object    { c := *o; return &c }
func (o *Network) copied() Object { c := *o; return &c }
func (o *Secret) copied() Object  { c := *o; return &c }
func (o *Config) copied() Object  { c := *o; return &c }

func (o *Cluster) stamp(m swarm.Meta) { o.Meta = m }
func (o *Node) stamp(m swarm.Meta)    { o.Meta = m }
func (o *Service) stamp(m swarm.Meta) { o.Meta = m }
func (o *Task) stamp(m swarm.Meta)    { o.Meta = m }
func (o *Network) stamp(m swarm.Meta) { o.Meta = m }
func (o *Secret) stamp(m swarm.Meta)  { o.Meta = m }
func (o *Config) stamp(m swarm.Meta)  { o.Meta = m }
