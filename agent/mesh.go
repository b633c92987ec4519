package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/agent/docker"
	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/ingress"
	"github.com/miniswarm/miniswarm/ingress/names"
	"github.com/miniswarm/miniswarm/ingress/plan"
)

// Mesh is the node's data plane; *ingress.Mesh is one. Verify may be called beside the others, which come one at a time.
// Whoever gives it to the agent has it read itself back now and then.
type Mesh interface {
	// Apply makes the node's network what in says; it is complete.
	Apply(ctx context.Context, in plan.Input) error
	// Installed says whether the machine routes already, by what a former process put in place.
	Installed(ctx context.Context) (bool, error)
	// Verify reads back what is there and repairs what differs from the last Apply.
	Verify(ctx context.Context) (repaired bool, err error)
}

const (
	minMeshRetry = 200 * time.Millisecond
	maxMeshRetry = 5 * time.Second
	// quietTries is how often the data plane is tried before trouble with it is logged.
	quietTries = 4
	// kernelFirst is how long after the agent's start the table that a former process left in the kernel is preferred to
	// the one on disk, which may lack that process's last moments (a tenth of a second or so, if it was killed). A leader's
	// table comes sooner, if there is a leader. If there is none, a node that follows neither would go on sending traffic to
	// machines that it cannot reach.
	kernelFirst = 5 * time.Second
)

// meshKeeper merges what the leader says about routing into one table and applies it. Applying has a goroutine of its own and
// waits for nothing but the kernel; what arrives meanwhile is applied together.
type meshKeeper struct {
	nodeID   string
	dataAddr string // of the configuration; may be empty
	mesh     Mesh   // nil: this node has no data plane
	names    Names  // nil: its containers know no names
	place    func() (*cluster.Node, []*cluster.Network)
	clients  func() map[netip.Addr]names.Client
	recorder *recorder
	log      *slog.Logger
	wake     chan struct{} // capacity 1
	rename   chan struct{} // capacity 1: the containers of this node are others
	suspect  chan struct{} // capacity 1: the engine was away, and may have changed rules and devices when it came back

	mu       sync.Mutex
	services map[string]protocol.MeshService // guarded by mu, like all below
	peers    map[string]protocol.Peer
	port     uint16 // the overlay's UDP port
	key      []byte // the secret of probes
	known    bool   // there is a table, from a leader or from disk
	// alone says that no leader tells how the peers are. Each of them is suspect then, so that a machine that is cut off
	// finds out whom it cannot reach any more, and serves its own clients with what it has itself.
	alone bool
	// old is set while the table is the one from disk. What the kernel holds is newer, if it holds anything.
	old bool
	// seq is the number of the newest message, ack answers it; ack is nil if no answer is due. failed says that the
	// answer so far was an error.
	seq    uint64
	ack    func(protocol.MeshAck)
	failed bool
	// begun is when the present attempt to apply the table began, zero between attempts; applied says that the kernel has had
	// the table of a leader, or of disk, since this process began, and err why the last attempt failed.
	begun   time.Time
	applied bool
	err     error

	unnamed string // the trouble with names that was logged last; only run uses it
}

func (k *meshKeeper) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// askers has those who ask for names on this node looked at again.
func (k *meshKeeper) askers() {
	select {
	case k.rename <- struct{}{}:
	default:
	}
}

// doubt has the data plane read back soon.
func (k *meshKeeper) doubt() {
	select {
	case k.suspect <- struct{}{}:
	default:
	}
}

// resume takes up the table of the agent's former life. It is not recorded again, for that would delay the first newer one.
func (k *meshKeeper) resume(m *protocol.Mesh) {
	if m == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.merge(m, nil)
	k.old, k.alone = true, true
	k.poke()
}

// lose notes that the session with the leader has ended.
func (k *meshKeeper) lose() {
	k.mu.Lock()
	k.alone = true
	k.mu.Unlock()
	k.poke()
}

// take merges a message. ack is called once it, or a later one, is applied.
func (k *meshKeeper) take(m *protocol.Mesh, ack func(protocol.MeshAck)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.merge(m, ack)
	k.old, k.alone = false, false
	k.recorder.putMesh(&protocol.Mesh{Seq: m.Seq, Complete: true, Services: inOrder(k.services), Peers: inOrder(k.peers), DataPathPort: k.port, Key: k.key})
	k.poke()
}

// merge needs mu.
func (k *meshKeeper) merge(m *protocol.Mesh, ack func(protocol.MeshAck)) {
	if m.Complete || k.services == nil {
		k.services, k.peers = map[string]protocol.MeshService{}, map[string]protocol.Peer{}
	}
	for _, s := range m.Services {
		k.services[s.ServiceID] = s
	}
	for _, id := range m.RemoveServices {
		delete(k.services, id)
	}
	for _, p := range m.Peers {
		k.peers[p.NodeID] = p
	}
	for _, id := range m.RemovePeers {
		delete(k.peers, id)
	}
	if m.Complete {
		k.port, k.key = m.DataPathPort, m.Key
	}
	k.known, k.seq, k.ack, k.failed = true, m.Seq, ack, false
}

// inOrder gives the values of a table in the order of their ids.
func inOrder[T any](table map[string]T) []T {
	out := make([]T, 0, len(table))
	for _, id := range slices.Sorted(maps.Keys(table)) {
		out = append(out, table[id])
	}
	return out
}

// run applies until ctx ends.
func (k *meshKeeper) run(ctx context.Context) error {
	// Beside it, since reading back asks the engine, which may be slow, and changes of routes must not wait for it.
	var doubts sync.WaitGroup
	defer doubts.Wait()
	doubts.Go(func() { k.verify(ctx) })
	var again <-chan time.Time
	alone := time.After(kernelFirst)
	pause := minMeshRetry
	var said string
	tries := 0
	for {
		var err error
		select {
		case <-k.rename:
			k.name()
			continue
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-alone:
			if !k.waited() {
				continue
			}
			err = k.apply(ctx)
		case <-k.wake:
			err = k.apply(ctx)
		case <-again:
			err = k.apply(ctx)
		}
		if err == nil {
			again, pause, said, tries = nil, minMeshRetry, "", 0
			continue
		}
		tries++
		// What goes on for a moment only is nobody's business, and a network may wait long for its last container to stop.
		if tries >= quietTries && !ingress.Waiting(err) && err.Error() != said && ctx.Err() == nil {
			said = err.Error()
			k.log.Warn("the data plane is not as it should be; tried again", "err", err)
		}
		again = time.After(pause)
		pause = min(2*pause, maxMeshRetry)
	}
}

// waited gives up waiting for a leader's table, and says whether there was still none.
func (k *meshKeeper) waited() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	was := k.old
	k.old = false
	return was
}

// verify reads the data plane back whenever there is doubt, until ctx ends. What cannot be repaired is applied again, which
// tells of it and goes on until it can.
func (k *meshKeeper) verify(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.suspect:
		}
		if k.mesh == nil {
			continue
		}
		if _, err := k.mesh.Verify(ctx); err != nil {
			k.poke()
		}
	}
}

func (k *meshKeeper) apply(ctx context.Context) (err error) {
	k.began()
	applied := false
	defer func() { k.ended(applied, ingress.Waiting(err), err) }()
	k.mu.Lock()
	known, old, seq, peers, services, port, key := k.known, k.old, k.seq, inOrder(k.peers), inOrder(k.services), k.port, k.key
	if k.alone {
		for i := range peers {
			peers[i].Suspect = true
		}
	}
	k.mu.Unlock()
	k.name()
	if old && k.mesh != nil {
		if there, err := k.mesh.Installed(ctx); there || err != nil {
			return err // a leader's table may come; until then the kernel's serves better than the record
		}
	}
	node, networks := k.place()
	// A table applied before this node knows its own place would take away what a former process left at work.
	if known && k.mesh != nil && node != nil {
		in, inErr := meshInput(k.nodeID, k.dataAddr, node, networks, services, peers)
		in.VXLANPort, in.ProbeKey = port, key
		if in.Self.Underlay.IsValid() {
			err = k.mesh.Apply(ctx, in)
			applied = true
		}
		err = errors.Join(inErr, err)
	}
	if ingress.Waiting(err) {
		k.answer(seq, nil) // no route depends on it, and replicas elsewhere are not to wait
	} else {
		k.answer(seq, err)
	}
	return err
}

// name has names answered as they are now. Trouble with it is no reason to keep replicas from stopping, so it is logged and
// not told the leader.
func (k *meshKeeper) name() {
	k.mu.Lock()
	known, services := k.known, inOrder(k.services)
	k.mu.Unlock()
	node, networks := k.place()
	if k.names == nil || !known || node == nil {
		return
	}
	err := k.names.Set(nameTable(node, networks, services, k.clients()))
	switch {
	case err == nil:
		k.unnamed = ""
	case err.Error() != k.unnamed:
		k.unnamed = err.Error()
		k.log.Warn("containers cannot look up names; tried again with the next change", "err", err)
	}
}

// answer tells the leader how table seq fared: an error once, success once.
func (k *meshKeeper) answer(seq uint64, err error) {
	k.mu.Lock()
	ack := k.ack
	a := protocol.MeshAck{Seq: seq}
	switch {
	case ack == nil, err != nil && k.failed:
		k.mu.Unlock()
		return
	case err != nil:
		a.Err, k.failed = err.Error(), true
	case seq == k.seq:
		k.ack = nil
	}
	k.mu.Unlock()
	ack(a)
}

// meshInput brings what the leader says into the data plane's words. What cannot be understood is left out and named in
// the error.
func meshInput(nodeID, dataAddr string, node *cluster.Node, networks []*cluster.Network, services []protocol.MeshService, peers []protocol.Peer) (plan.Input, error) {
	var errs []error
	in := plan.Input{Self: plan.Node{ID: nodeID, Alive: true, Gateways: map[string]netip.Addr{}}}
	in.Self.Underlay, _ = netip.ParseAddr(dataAddr)
	subnets := map[string]netip.Prefix{}
	if node != nil {
		if !in.Self.Underlay.IsValid() {
			in.Self.Underlay, _ = netip.ParseAddr(node.DataAddr)
		}
		for id, text := range node.Attachments {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				errs = append(errs, fmt.Errorf("this node's address in network %s: %w", id, err))
				continue
			}
			in.Self.Gateways[id], subnets[id] = p.Addr(), p.Masked()
		}
	}
	for _, n := range networks {
		if subnet, ok := subnets[n.ID]; ok {
			in.Networks = append(in.Networks, plan.Network{ID: n.ID, Name: n.Spec.Name, VNI: n.VNI, Subnet: subnet,
				MTU: docker.NetworkMTU(n.Network), Internal: n.Spec.Internal, Ingress: n.Spec.Ingress})
		}
	}
	for _, p := range peers {
		addr, err := netip.ParseAddr(p.Addr)
		if p.NodeID == nodeID {
			if !in.Self.Underlay.IsValid() {
				in.Self.Underlay = addr
			}
			continue
		}
		if err != nil {
			continue // a node that has never had a session has no address yet
		}
		peer := plan.Node{ID: p.NodeID, Underlay: addr, Alive: !p.Down, Suspect: p.Suspect, Gateways: map[string]netip.Addr{}}
		for id, text := range p.Attachments {
			if prefix, err := netip.ParsePrefix(text); err == nil {
				peer.Gateways[id] = prefix.Addr()
			}
		}
		in.Peers = append(in.Peers, peer)
	}
	for _, s := range services {
		in.Virtuals = append(in.Virtuals, virtuals(s)...)
		var backends []plan.Backend
		for _, b := range s.Backends {
			if b.Addr == "" {
				continue // on no published port
			}
			addr, err := netip.ParseAddr(b.Addr)
			if err != nil {
				errs = append(errs, fmt.Errorf("task %s of service %s: %w", b.TaskID, s.Name, err))
				continue
			}
			backends = append(backends, plan.Backend{TaskID: b.TaskID, NodeID: b.NodeID, Addr: addr, Draining: b.Draining})
		}
		for _, p := range s.Ports {
			if p.PublishMode == swarm.PortConfigPublishModeHost || p.PublishedPort == 0 {
				continue
			}
			proto, err := plan.ParseProtocol(string(p.Protocol))
			if err != nil {
				errs = append(errs, fmt.Errorf("service %s: %w", s.Name, err))
				continue
			}
			in.Ports = append(in.Ports, plan.PublishedPort{ServiceID: s.ServiceID, Name: s.Name, Protocol: proto,
				Published: uint16(p.PublishedPort), Target: uint16(p.TargetPort), Backends: backends})
		}
	}
	return in, errors.Join(errs...)
}

// virtuals are the service's virtual addresses, with its replicas on the network of each.
func virtuals(s protocol.MeshService) (out []plan.Virtual) {
	for _, part := range s.Networks {
		vip, err := netip.ParseAddr(part.VIP)
		if err != nil {
			continue // endpoint mode dnsrr
		}
		v := plan.Virtual{ServiceID: s.ServiceID, Name: s.Name, NetworkID: part.NetworkID, Addr: vip}
		for _, b := range s.Backends {
			if addr := addrOn(b, part.NetworkID); addr.IsValid() {
				v.Backends = append(v.Backends, plan.Backend{TaskID: b.TaskID, NodeID: b.NodeID, Addr: addr, Draining: b.Draining})
			}
		}
		out = append(out, v)
	}
	return out
}
