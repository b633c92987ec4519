package dispatcher

import (
	"maps"
	"slices"
	"strings"
	"sync"

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
	peers    map[string]meshPeer
	removed  map[string]uint64 // service id -> seq of its removal
	gone     map[string]uint64 // node id -> seq of its removal
	suspects map[string]bool   // node ids
	leaving  map[string]bool   // ids of tasks that are to stop; those that still run finish what they have begun
	port     uint16            // the overlay's UDP port
	key      []byte            // the secret of probes
	// messages are those made of the present table, by the number they continue from: nearly all sessions need the same.
	messages   map[uint64]*meshMessage
	messagesOf uint64 // the table they are made of
}

type meshService struct {
	protocol.MeshService
	seq uint64
}

type meshPeer struct {
	protocol.Peer
	seq uint64
}

// meshMessage is a message for any number of sessions; the first that sends it encodes it.
type meshMessage struct {
	seq    uint64
	encode func() ([]byte, error)
}

func newMeshTable(snap *cluster.Snapshot) *meshTable {
	m := &meshTable{services: map[string]*meshService{}, peers: map[string]meshPeer{}, removed: map[string]uint64{}, gone: map[string]uint64{},
		suspects: map[string]bool{}, leaving: map[string]bool{}, seq: 1}
	if c := snap.Cluster(); c != nil {
		m.port, m.key = uint16(c.DataPathPort), c.MeshKey
	}
	for s := range snap.Services() {
		m.setService(snap, s)
	}
	for t := range snap.TasksOfService("") {
		m.setAttachment(t.ID, snap)
	}
	for n := range snap.Nodes() {
		m.setPeer(n)
	}
	return m
}

// observe takes in that an object was changed. What it has become is read from snap, which is the state after the
// change or later: a replica that was withdrawn meanwhile must not come back for the length of a batch.
func (m *meshTable) observe(ev cluster.Event, snap *cluster.Snapshot) {
	switch ev.Kind {
	case cluster.KindTask:
		o := ev.New
		if o == nil {
			o = ev.Old
		}
		if t := o.(*cluster.Task); t.Attachment() {
			m.setAttachment(t.ID, snap)
		} else {
			m.look(t.ServiceID, t.ID, snap)
		}
	case cluster.KindService:
		if svc := snap.Service(ev.ID()); svc != nil {
			m.setService(snap, svc)
		} else {
			m.removeService(ev.ID())
		}
	case cluster.KindNode:
		if n := snap.Node(ev.ID()); n != nil {
			if m.setPeer(n) {
				m.refreshNode(n.ID, snap)
			}
		} else {
			m.removePeer(ev.ID())
		}
	}
}

func (m *meshTable) removeService(id string) {
	if _, ok := m.services[id]; ok {
		delete(m.services, id)
		m.seq++
		m.removed[id] = m.seq
	}
}

// setService adopts the service's published ports and its part in networks, and collects its replicas anew.
func (m *meshTable) setService(snap *cluster.Snapshot, s *cluster.Service) {
	ports, networks := ingressPorts(s.Endpoint.Ports), meshNetworks(snap, s)
	cur := m.services[s.ID]
	if len(ports)+len(networks) == 0 {
		m.removeService(s.ID)
		return
	}
	if cur != nil && slices.Equal(cur.Ports, ports) && slices.EqualFunc(cur.Networks, networks, protocol.MeshNetwork.Equal) {
		return
	}
	next := &meshService{MeshService: protocol.MeshService{ServiceID: s.ID, Name: s.Spec.Name, Ports: ports, Networks: networks}}
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

// look adopts what has become of a task.
func (m *meshTable) look(serviceID, taskID string, snap *cluster.Snapshot) {
	if t := snap.Task(taskID); t != nil {
		m.setTask(t, snap)
	} else {
		m.withdraw(serviceID, taskID)
	}
}

// setTask adds, changes or withdraws one replica.
func (m *meshTable) setTask(t *cluster.Task, snap *cluster.Snapshot) {
	svc := m.services[t.ServiceID]
	if svc == nil {
		delete(m.leaving, t.ID)
		return
	}
	b, ok := m.backend(t, snap)
	if !ok {
		m.withdraw(t.ServiceID, t.ID)
		return
	}
	i := slices.IndexFunc(svc.Backends, func(x protocol.Backend) bool { return x.TaskID == t.ID })
	if i >= 0 && svc.Backends[i].Equal(b) {
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

// withdraw takes a replica out, which cuts the connections it has.
func (m *meshTable) withdraw(serviceID, taskID string) {
	delete(m.leaving, taskID)
	if svc := m.services[serviceID]; svc != nil {
		if i := slices.IndexFunc(svc.Backends, func(x protocol.Backend) bool { return x.TaskID == taskID }); i >= 0 {
			m.setBackends(svc, slices.Delete(slices.Clone(svc.Backends), i, i+1))
		}
	}
}

// has says whether the replica is in the table, be it to finish what it has begun.
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
	if n := snap.Node(nodeID); n != nil {
		m.setPeer(n)
		m.refreshNode(nodeID, snap)
	}
}

func (m *meshTable) refreshNode(nodeID string, snap *cluster.Snapshot) {
	for t := range snap.TasksOfNode(nodeID) {
		m.setTask(t, snap)
	}
}

// backend gives the replica as the mesh sees it; ok is false where it must not receive traffic. One that is to stop is
// given no new connection, but those it has go on until it has ended: what was begun is finished.
func (m *meshTable) backend(t *cluster.Task, snap *cluster.Snapshot) (b protocol.Backend, ok bool) {
	if t.Status.State != swarm.TaskStateRunning {
		return b, false
	}
	n := snap.Node(t.NodeID)
	if n == nil || n.Status.State == swarm.NodeStateDown || n.NoDataPlane {
		return b, false
	}
	b = protocol.Backend{TaskID: t.ID, NodeID: t.NodeID, Names: taskNames(t)}
	b.Addr, b.Networks = taskAddrs(t)
	if b.Addr == "" && len(b.Networks) == 0 {
		return b, false
	}
	if !t.Wanted() {
		m.leaving[t.ID] = true
	}
	b.Draining = m.leaving[t.ID] || m.suspects[t.NodeID]
	return b, true
}

// setPeer adopts a node and says whether the data planes see it differently now. One without a data plane is nobody's peer: it may
// have the address of another on the same machine, whose connections are not to be taken for its own.
func (m *meshTable) setPeer(n *cluster.Node) bool {
	if n.NoDataPlane {
		_, was := m.peers[n.ID]
		m.removePeer(n.ID)
		return was
	}
	p := protocol.Peer{NodeID: n.ID, Addr: n.DataAddr, Attachments: n.Attachments, Down: n.Status.State == swarm.NodeStateDown, Suspect: m.suspects[n.ID]}
	if old, ok := m.peers[n.ID]; ok && old.Addr == p.Addr && old.Down == p.Down && old.Suspect == p.Suspect && maps.Equal(old.Attachments, p.Attachments) {
		return false
	}
	m.seq++
	m.peers[n.ID] = meshPeer{p, m.seq}
	delete(m.gone, n.ID)
	return true
}

func (m *meshTable) removePeer(id string) {
	delete(m.suspects, id)
	if _, ok := m.peers[id]; ok {
		delete(m.peers, id)
		m.seq++
		m.gone[id] = m.seq
	}
}

// since gives what changed after number sent, nil if nothing did. With sent 0 it is the complete table.
func (m *meshTable) since(sent uint64) *meshMessage {
	if sent == m.seq {
		return nil
	}
	if m.messagesOf != m.seq {
		m.messages, m.messagesOf = map[uint64]*meshMessage{}, m.seq
	}
	msg := m.messages[sent]
	if msg == nil {
		content := m.difference(sent)
		msg = &meshMessage{m.seq, sync.OnceValues(func() ([]byte, error) { return encode(protocol.ToAgent{Mesh: content}) })}
		m.messages[sent] = msg
	}
	return msg
}

func (m *meshTable) difference(sent uint64) *protocol.Mesh {
	msg := &protocol.Mesh{Seq: m.seq, Complete: sent == 0}
	for _, s := range m.services {
		if s.seq > sent {
			msg.Services = append(msg.Services, m.lastResort(s.MeshService))
		}
	}
	for _, p := range m.peers {
		if p.seq > sent {
			msg.Peers = append(msg.Peers, p.Peer)
		}
	}
	slices.SortFunc(msg.Services, func(a, b protocol.MeshService) int { return strings.Compare(a.ServiceID, b.ServiceID) })
	slices.SortFunc(msg.Peers, func(a, b protocol.Peer) int { return strings.Compare(a.NodeID, b.NodeID) })
	if msg.Complete {
		msg.DataPathPort, msg.Key = m.port, m.key
		return msg
	}
	msg.RemoveServices, msg.RemovePeers = after(m.removed, sent), after(m.gone, sent)
	return msg
}

// after gives the ids that were removed after number sent.
func after(removed map[string]uint64, sent uint64) (ids []string) {
	for id, seq := range removed {
		if seq > sent {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// lastResort lets new connections go to suspect nodes where there is no other replica: a silent daemon's containers
// may well serve, and nobody else can. Replicas that are to stop stay without.
func (m *meshTable) lastResort(s protocol.MeshService) protocol.MeshService {
	if slices.ContainsFunc(s.Backends, func(b protocol.Backend) bool { return !b.Draining }) {
		return s
	}
	s.Backends = slices.Clone(s.Backends)
	for i, b := range s.Backends {
		s.Backends[i].Draining = m.leaving[b.TaskID]
	}
	return s
}

// forget drops the memory of removals that every session has sent.
func (m *meshTable) forget(sent uint64) {
	for _, removed := range [2]map[string]uint64{m.removed, m.gone} {
		maps.DeleteFunc(removed, func(_ string, seq uint64) bool { return seq <= sent })
	}
}
