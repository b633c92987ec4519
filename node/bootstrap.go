package node

import (
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/manager/identity"
)

// Defaults of a new cluster. What users can see are Swarm's; the heartbeat and the ticks are quicker (DESIGN, Defaults).
const (
	defaultTaskHistory      = 5
	defaultSnapshotInterval = 10000
	defaultSlowFollowers    = 500
	defaultHeartbeatTick    = 1
	defaultElectionTick     = 10
	defaultHeartbeat        = time.Second
	defaultCertExpiry       = 90 * 24 * time.Hour
	defaultSubnetSize       = 24
	defaultDataPathPort     = 4789
	defaultPool             = "10.0.0.0/8"
	meshKeySize             = 32
)

// founding is what init decides once for a cluster.
type founding struct {
	clusterID, nodeID string
	ca                *identity.CA
	unlock            identity.UnlockKey // nil: managers do not lock themselves
	req               swarm.InitRequest
	dataAddr          string
	ids               cluster.IDs
	random            io.Reader
	now               time.Time
}

// objects gives the transaction that creates a cluster: the cluster object, this node and the ingress network. configure has the last word about
// the cluster's CA.
func (f *founding) objects(configure func(*cluster.Cluster) (*cluster.Cluster, error)) (*cluster.Txn, error) {
	keyPEM, err := f.ca.KeyPEM()
	if err != nil {
		return nil, fmt.Errorf("found the cluster: %w", err)
	}
	root := f.ca.Root()
	tokens, err := identity.NewJoinTokens(root.PEM(), f.random)
	if err != nil {
		return nil, fmt.Errorf("found the cluster: %w", err)
	}
	c := &cluster.Cluster{RootCA: root.PEM(), RootCAKey: keyPEM, JoinTokens: tokens, MeshKey: make([]byte, meshKeySize), UnlockKeys: f.unlock}
	if _, err := io.ReadFull(f.random, c.MeshKey); err != nil {
		return nil, fmt.Errorf("found the cluster: make the key of the mesh: %w", err)
	}
	c.ID = f.clusterID
	c.Spec = withDefaults(f.req.Spec)
	c.Spec.EncryptionConfig.AutoLockManagers = f.req.AutoLockManagers
	c.TLSInfo, c.LastForcedRotation = root.TLSInfo(), c.Spec.CAConfig.ForceRotate
	c.DefaultAddrPool, c.SubnetSize, c.DataPathPort = f.req.DefaultAddrPool, f.req.SubnetSize, f.req.DataPathPort
	if len(c.DefaultAddrPool) == 0 {
		c.DefaultAddrPool = []string{defaultPool}
	}
	if c.SubnetSize == 0 {
		c.SubnetSize = defaultSubnetSize
	}
	if c.DataPathPort == 0 {
		c.DataPathPort = defaultDataPathPort
	}
	if c, err = configure(c); err != nil {
		return nil, fmt.Errorf("found the cluster: %w", err)
	}

	n := &cluster.Node{Role: swarm.NodeRoleManager, DataAddr: f.dataAddr}
	n.ID = f.nodeID
	n.Spec.Role, n.Spec.Availability, n.Spec.Labels = swarm.NodeRoleManager, f.req.Availability, map[string]string{}
	if n.Spec.Availability == "" {
		n.Spec.Availability = swarm.NodeAvailabilityActive
	}
	n.Status = swarm.NodeStatus{State: swarm.NodeStateUnknown, Addr: f.dataAddr}

	ingress := &cluster.Network{}
	ingress.ID = f.ids.Next()
	ingress.Spec.Name, ingress.Spec.Ingress, ingress.Spec.Labels = "ingress", true, map[string]string{}
	ingress.Spec.DriverConfiguration = &swarm.Driver{Name: "overlay"}
	ingress.Spec.Scope = "swarm"

	return &cluster.Txn{Time: f.now, Changes: []cluster.Change{cluster.CreateOf(c), cluster.CreateOf(n), cluster.CreateOf(ingress)}}, nil
}

// withDefaults fills what the caller of init left zero.
func withDefaults(s swarm.Spec) swarm.Spec {
	s.Name = cluster.ClusterName
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	if s.Orchestration.TaskHistoryRetentionLimit == nil {
		limit := int64(defaultTaskHistory)
		s.Orchestration.TaskHistoryRetentionLimit = &limit
	}
	if s.Raft.SnapshotInterval == 0 {
		s.Raft.SnapshotInterval = defaultSnapshotInterval
	}
	if s.Raft.KeepOldSnapshots == nil {
		s.Raft.KeepOldSnapshots = new(uint64)
	}
	if s.Raft.LogEntriesForSlowFollowers == 0 {
		s.Raft.LogEntriesForSlowFollowers = defaultSlowFollowers
	}
	if s.Raft.HeartbeatTick == 0 {
		s.Raft.HeartbeatTick = defaultHeartbeatTick
	}
	if s.Raft.ElectionTick == 0 {
		s.Raft.ElectionTick = defaultElectionTick
	}
	if s.Dispatcher.HeartbeatPeriod == 0 {
		s.Dispatcher.HeartbeatPeriod = defaultHeartbeat
	}
	if s.CAConfig.NodeCertExpiry == 0 {
		s.CAConfig.NodeCertExpiry = defaultCertExpiry
	}
	return s
}

// checkPools refuses address pools that cannot be cut into subnets, in Swarm's words.
func checkPools(pools []string, size uint32) error {
	if size == 0 {
		size = defaultSubnetSize
	}
	if size > 29 {
		return badRequest("subnet size is out of range: %d", size)
	}
	for _, p := range pools {
		prefix, err := netip.ParsePrefix(p)
		if err != nil || prefix.Addr() != prefix.Masked().Addr() {
			return badRequest("invalid base pool %q: not a network in CIDR form", p)
		}
		if uint32(prefix.Bits()) > size {
			return badRequest("invalid CIDR: %q. Subnet size is too small for pool: %d", p, size)
		}
	}
	return nil
}
