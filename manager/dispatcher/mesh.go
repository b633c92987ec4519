package dispatcher

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// meshTable is the routing table of the whole cluster, kept up to date by events. Every change gets a number, and
// each part remembers the number of its last change, so that a session that has sent up to number n sends what is
// newer. The dispatcher's mutex guards it.
type meshTable struct {
	seq      uint64
	services map[string]*meshService
	removed  map[string]uint64 // service id -> seq of its removal
	peers    []protocol.Peer
	peersSeq uint64
	suspects map[string]bool // node ids
	port     uint16          // the overlay's UDP port
	key      []byte          // the secret of probes
}

type meshService struct {
	protocol.MeshService
	seq uint64
}

func newMeshTable(snap *cluster.Snapshot) *meshTable {
	m := &meshTable{services: map[string]*meshService{}, removed: map[string]uint64{}, suspects: map[string]bool{}, seq: 1}
	if c := snap.Cluster(); c != nil {
		m.port, m.key = uint16(c.DataPathPort), c.MeshKey
	}
	for s := range snap.Services() {
		m.setService(snap, s)
	}
	m.setPeers(snap)
	return m
}

// observe takes in one committed change. snap is the state after it or later.
func (m *meshTable) observe(ev cluster.Event, snap *cluster.Snapshot) {
	switch o := ev.New.(type) {
	case *cluster.Task:
		m.setTask(o, snap)
	case *cluster.Service:
		m.setService(snap, o)
	case *cluster.Node:
		if old, ok := ev.Old.(*cluster.Node); !ok || peerChanged(old, o) {
			m.setPeers(snap)
			m.refreshNode(o.ID, snap)
		}
	case nil:
		switch old := ev.Old.(type) {
		case *cluster.Task:
			m.withdraw(old.ServiceID, old.ID)
		case *cluster.Service:
			if _, ok := m.services[old.ID]; ok {
				delete(m.services, old.ID)
				m.seq++
				m.removed[old.ID] = m.seq
			}
		case *cluster.Node:
			m.setPeers(snap)
		}
	}
}

func peerChanged(a, b *cluster.Node) bool {
	if a.DataAddr != b.DataAddr || (a.Status.State == swarm.NodeStateDown) != (b.Status.State == swarm.NodeStateDown) || len(a.Attachments) != len(b.Attachments) {
		return true
	}
	for id, addr := range a.Attachments {
		if b.Attachments[id] != addr {
			return true
		}
	}
	return false
}

// setService adopts the service's published ports and collects its replicas anew.
func (m *meshTable) setService(snap *cluster.Snapshot, s *cluster.Service) {
	ports := ingressPorts(s.Endpoint.Ports)
	cur := m.services[s.ID]
	if len(ports) == 0 {
		if cur != nil {
			delete(m.services, s.ID)
			m.seq++
			m.removed[s.ID] = m.seq
		}
		return
	}
	if cur != nil && slices.Equal(cur.Ports, ports) {
		return
	}
	next := &meshService{MeshService: protocol.MeshService{ServiceID: s.ID, Name: s.Spec.Name, Ports: ports}}
	for t := range snap.TasksOfService(s.ID) {
		if b, ok := m.backend(t, snap); ok {
			next.Backends = append(next.Backends, b)
		}
	}
	m.seq++
	next.seq = m.seq
	m.services[s.ID] = next
	delete(m.removed, s.ID)
}

// setTask adds or withdraws one replica.
func (m *meshTable) setTask(t *cluster.Task, snap *cluster.Snapshot) {
	svc := m.services[t.ServiceID]
	if svc == nil {
		return
	}
	b, ok := m.backend(t, snap)
	if !ok {
		m.withdraw(t.ServiceID, t.ID)
		return
	}
	i := slices.IndexFunc(svc.Backends, func(x protocol.Backend) bool { return x.TaskID == t.ID })
	if i >= 0 && svc.Backends[i] == b {
		return
	}
	backends := slices.Clone(svc.Backends)
	if i >= 0 {
		backends[i] = b
	} else {
		backends = append(backends, b)
	}
	m.setBackends(svc, backends)
}

// withdraw takes a replica out and returns the number of the table without it; if it is out already, the present one.
func (m *meshTable) withdraw(serviceID, taskID string) uint64 {
	if svc := m.services[serviceID]; svc != nil {
		if i := slices.IndexFunc(svc.Backends, func(x protocol.Backend) bool { return x.TaskID == taskID }); i >= 0 {
			m.setBackends(svc, slices.Delete(slices.Clone(svc.Backends), i, i+1))
		}
	}
	return m.seq
}

// has says whether the replica receives traffic.
func (m *meshTable) has(serviceID, taskID string) bool {
	svc := m.services[serviceID]
	return svc != nil && slices.ContainsFunc(svc.Backends, func(x protocol.Backend) bool { return x.TaskID == taskID })
}

// setBackends replaces a service's replicas by a fresh slice: the old one may be on its way to a node.
func (m *meshTable) setBackends(svc *meshService, backends []protocol.Backend) {
	m.seq++
	next := *svc
	next.Backends, next.seq = backends, m.seq
	m.services[svc.ServiceID] = &next
}

// suspect marks a node as silent or as heard of again; new connections avoid silent nodes.
func (m *meshTable) suspect(nodeID string, silent bool, snap *cluster.Snapshot) {
	if m.suspects[nodeID] == silent {
		return
	}
	if silent {
		m.suspects[nodeID] = true
	} else {
		delete(m.suspects, nodeID)
	}
	m.setPeers(snap)
	m.refreshNode(nodeID, snap)
}

func (m *meshTable) refreshNode(nodeID string, snap *cluster.Snapshot) {
	for t := range snap.TasksOfNode(nodeID) {
		m.setTask(t, snap)
	}
}

// backend gives the replica as the mesh sees it; ok is false where it must not receive traffic.
func (m *meshTable) backend(t *cluster.Task, snap *cluster.Snapshot) (b protocol.Backend, ok bool) {
	if t.Status.State != swarm.TaskStateRunning || cluster.Rank(t.DesiredState) > cluster.Rank(swarm.TaskStateRunning) {
		return b, false
	}
	n := snap.Node(t.NodeID)
	if n == nil || n.Status.State == swarm.NodeStateDown {
		return b, false
	}
	addr := ingressAddr(t)
	if addr == "" {
		return b, false
	}
	return protocol.Backend{TaskID: t.ID, NodeID: t.NodeID, Addr: addr, Draining: m.suspects[t.NodeID]}, true
}

func (m *meshTable) setPeers(snap *cluster.Snapshot) {
	m.peers = make([]protocol.Peer, 0, snap.Len(cluster.KindNode))
	for n := range snap.Nodes() {
		m.peers = append(m.peers, protocol.Peer{NodeID: n.ID, Addr: n.DataAddr, Attachments: n.Attachments,
			Down: n.Status.State == swarm.NodeStateDown, Suspect: m.suspects[n.ID]})
	}
	m.seq++
	m.peersSeq = m.seq
}

// since gives what changed after number sent; ok is false if nothing did. With sent 0 it is the complete table.
func (m *meshTable) since(sent uint64) (msg *protocol.Mesh, ok bool) {
	if sent == m.seq {
		return nil, false
	}
	msg = &protocol.Mesh{Seq: m.seq, Complete: sent == 0}
	for _, s := range m.services {
		if s.seq > sent {
			msg.Services = append(msg.Services, lastResort(s.MeshService))
		}
	}
	slices.SortFunc(msg.Services, func(a, b protocol.MeshService) int { return strings.Compare(a.ServiceID, b.ServiceID) })
	if msg.Complete {
		msg.DataPathPort, msg.Key = m.port, m.key
	} else {
		for id, seq := range m.removed {
			if seq > sent {
				msg.RemoveServices = append(msg.RemoveServices, id)
			}
		}
		slices.Sort(msg.RemoveServices)
	}
	if m.peersSeq > sent {
		msg.Peers = m.peers
	}
	return msg, true
}

// lastResort lets new connections go to suspect nodes where there is no other replica: a silent daemon's containers
// may well serve, and nobody else can.
func lastResort(s protocol.MeshService) protocol.MeshService {
	if slices.ContainsFunc(s.Backends, func(b protocol.Backend) bool { return !b.Draining }) {
		return s
	}
	s.Backends = slices.Clone(s.Backends)
	for i := range s.Backends {
		s.Backends[i].Draining = false
	}
	return s
}

// forget drops the memory of removals that every session has sent.
func (m *meshTable) forget(sent uint64) {
	for id, seq := range m.removed {
		if seq <= sent {
			delete(m.removed, id)
		}
	}
}

func ingressPorts(ports []swarm.PortConfig) []swarm.PortConfig {
	var out []swarm.PortConfig
	for _, p := range ports {
		if p.PublishMode != swarm.PortConfigPublishModeHost && p.PublishedPort != 0 {
			out = append(out, p)
		}
	}
	return out
}

// ingressAddr is the task's address on the ingress network, "" if it has none.
func ingressAddr(t *cluster.Task) string {
	for _, a := range t.NetworksAttachments {
		if a.Network.Spec.Ingress && len(a.Addresses) > 0 {
			if p, err := netip.ParsePrefix(a.Addresses[0]); err == nil {
				return p.Addr().String()
			}
		}
	}
	return ""
}
