package orchestrator

import (
	"cmp"
	"net/netip"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/scheduler"
)

const (
	defaultHistory     = 5
	defaultStopTimeout = time.Minute
)

var noTime time.Time

// Options tune what the cluster's own spec has no field for. The zero value is Swarm's behaviour.
type Options struct {
	// StopTimeout bounds how long a replacement waits for the task it replaces to stop before it starts all the same,
	// counted from the replacement's creation. 0 means one minute, as in Swarm.
	StopTimeout time.Duration
}

// Planner computes plans. It keeps indexes over the cluster between passes, so that a pass costs what changed. It has
// one owner and must not be used concurrently.
type Planner struct {
	stopTimeout time.Duration

	accounts *scheduler.Accounts
	services map[string]*service
	networks map[string]*network
	nodes    map[string]*node
	// byNumber and freeNumbers are the numbering of nodes that serves as slots of global services; 0 is never given.
	byNumber    []*node
	freeNumbers []int
	timers      timers

	// What the cluster object says.
	historyLimit int
	addressPools []netip.Prefix
	subnetBits   int

	// What is taken: subnets and VXLAN ids by network, published ports by service.
	subnets map[netip.Prefix]string
	vnis    map[uint32]string
	lastVNI uint32
	// lastCut is the subnet cut from the pools last: that of the network with the highest VXLAN id among those that asked for
	// none. The search for another begins behind it, so that a freed subnet rests: nodes may not be done yet with the network
	// that had it.
	lastCut    netip.Prefix
	lastCutVNI uint32
	ports      map[port]string
	ingress    string // id of the ingress network, "" if there is none

	// fresh is set from Reset to the end of the next pass, which looks at everything.
	fresh bool
	// ahead has the stored times that lay in the future when this planner first met them, and when that was; see past.
	ahead map[int64]time.Time
	// What has to be looked at in the next pass.
	dirty           map[*service]struct{}
	changedNodes    map[string]nodeEvent
	changedNetworks bool
	// roomier is set when tasks that could not be placed may find a place now, freed when ports or addresses came free.
	roomier, freed bool
	// waiting has the services with tasks that have no place, unserved those without all their ports and addresses.
	waiting  map[*service]struct{}
	unserved map[*service]struct{}
	// hungry has the nodes that could not be given an address on ingress.
	hungry map[*node]struct{}
	// attachments has the tasks without a service, which stand for containers that a person attached to a network, as
	// long as they have no addresses yet or are to be forgotten.
	attachments map[string]struct{}
}

// New gives a planner that knows of no cluster yet: Reset comes first.
func New(opts Options) *Planner {
	p := &Planner{stopTimeout: cmp.Or(opts.StopTimeout, defaultStopTimeout)}
	p.clear()
	return p
}

func (p *Planner) clear() {
	*p = Planner{
		stopTimeout:  p.stopTimeout,
		accounts:     scheduler.New(),
		services:     make(map[string]*service),
		networks:     make(map[string]*network),
		nodes:        make(map[string]*node),
		byNumber:     []*node{nil},
		timers:       newTimers(),
		subnets:      make(map[netip.Prefix]string),
		vnis:         make(map[uint32]string),
		ports:        make(map[port]string),
		dirty:        make(map[*service]struct{}),
		changedNodes: make(map[string]nodeEvent),
		waiting:      make(map[*service]struct{}),
		unserved:     make(map[*service]struct{}),
		hungry:       make(map[*node]struct{}),
		attachments:  make(map[string]struct{}),
	}
}

// Reset makes the planner know exactly what is in snap, as a new leader does, and marks all of it to be looked at.
// Events with an index up to snap.Index must not be observed afterwards.
func (p *Planner) Reset(snap *cluster.Snapshot) {
	p.clear()
	p.fresh = true
	p.observeCluster(snap.Cluster())
	p.accounts.SetIndex(snap.Index())
	for n := range snap.Nodes() {
		p.observeNode(nil, n)
	}
	for n := range snap.Networks() {
		p.observeNetwork(nil, n)
	}
	// Node attachments were seen before their networks.
	for n := range snap.Nodes() {
		p.holdAttachments(n, true)
	}
	for s := range snap.Services() {
		p.observeService(nil, s) // which marks all its slots
	}
	latest := make(map[*pool]resume)
	for t := range snap.Tasks() {
		p.observeTask(nil, t)
		p.noteLatest(latest, t)
	}
	for pool, r := range latest {
		pool.resumeAfter(r.at)
	}
	for _, s := range p.services {
		s.all = true
		p.dirty[s] = struct{}{}
	}
	p.changedNetworks, p.roomier, p.freed = true, true, true
}

// resume is the latest address given from a pool, by what the tasks in the store tell.
type resume struct {
	when time.Time
	at   uint32
}

// noteLatest keeps the serial order of addresses over a change of leaders: finished tasks count too, for they had the
// latest addresses as well.
func (p *Planner) noteLatest(latest map[*pool]resume, t *cluster.Task) {
	for _, a := range t.NetworksAttachments {
		n := p.networks[a.Network.ID]
		if n == nil {
			continue
		}
		for _, cidr := range a.Addresses {
			pool, at, ok := n.find(cidr)
			if !ok {
				continue
			}
			was, seen := latest[pool]
			if !seen || cmp.Or(t.CreatedAt.Compare(was.when), cmp.Compare(at, was.at)) > 0 {
				latest[pool] = resume{when: t.CreatedAt, at: at}
			}
		}
	}
}

// Observe takes in one committed change. Every change must be observed, once and in order.
func (p *Planner) Observe(ev cluster.Event) {
	p.accounts.SetIndex(ev.Index)
	switch ev.Kind {
	case cluster.KindCluster:
		c, _ := ev.New.(*cluster.Cluster)
		p.observeCluster(c)
	case cluster.KindNode:
		p.observeNode(cast[*cluster.Node](ev.Old), cast[*cluster.Node](ev.New))
	case cluster.KindNetwork:
		p.observeNetwork(cast[*cluster.Network](ev.Old), cast[*cluster.Network](ev.New))
	case cluster.KindService:
		p.observeService(cast[*cluster.Service](ev.Old), cast[*cluster.Service](ev.New))
	case cluster.KindTask:
		p.observeTask(cast[*cluster.Task](ev.Old), cast[*cluster.Task](ev.New))
	}
}

// cast gives the object as its type, nil for none.
func cast[T cluster.Object](o cluster.Object) T {
	t, _ := o.(T)
	return t
}

// service gives the entry of a service id, made if needed.
func (p *Planner) service(id string) *service {
	s := p.services[id]
	if s == nil {
		s = newService(id)
		p.services[id] = s
	}
	return s
}

// reconsider has a service's ports and addresses looked at again.
func (p *Planner) reconsider(s *service) {
	s.reallocate = true
	p.dirty[s] = struct{}{}
}

func (p *Planner) observeService(old, new *cluster.Service) {
	p.holdEndpoint(old, new)
	if new == nil {
		s := p.service(old.ID)
		s.obj = nil
		p.dirty[s] = struct{}{}
		delete(p.unserved, s)
		return
	}
	s := p.service(new.ID)
	if s.setObject(new) {
		s.all = true
	}
	if old == nil || old.SpecVersion != new.SpecVersion {
		s.reallocate = true
		if len(s.pending) > 0 {
			p.roomier = true // other needs may be easier to meet
		}
	}
	p.dirty[s] = struct{}{}
}

// slotOf is the number of the slot that a task of the service belongs to.
func (p *Planner) slotOf(s *service, t *cluster.Task) int {
	if s.mode.perNode() {
		return p.node(t.NodeID).num
	}
	return t.Slot
}

// holdsAddresses says whether the task's addresses are its own: until it has ended.
func holdsAddresses(t *cluster.Task) bool {
	return t != nil && len(t.NetworksAttachments) > 0 && !cluster.Terminal(t.Status.State)
}

// unplaced says whether the task still has to be given a place.
func unplaced(t *cluster.Task) bool {
	return t != nil && t.Wanted() && cluster.Before(t.Status.State, swarm.TaskStateAssigned)
}

// forgotten says whether a task without a service has come to its end: nothing else would clear it away. There is nothing
// to restart and no history to keep: its container has gone, or was taken off the network.
func forgotten(t *cluster.Task) bool {
	return t != nil && (cluster.Terminal(t.Status.State) || t.DesiredState == swarm.TaskStateRemove && finished(t))
}

func (p *Planner) observeTask(old, new *cluster.Task) {
	p.accounts.SetTask(old, new)
	if was, is := holdsAddresses(old), holdsAddresses(new); was != is || was && &old.NetworksAttachments[0] != &new.NetworksAttachments[0] {
		if is {
			p.holdTask(new, true)
		}
		if was {
			p.holdTask(old, false)
		}
	}
	if old != nil && old.Live() && (new == nil || !new.Live() || old.Wanted() && !new.Wanted()) {
		p.roomier = true
	}
	p.countOnNode(old, new)
	t := new
	if t == nil {
		t = old
	}
	if t.ServiceID == "" {
		if unplaced(new) || forgotten(new) {
			p.attachments[t.ID] = struct{}{}
			p.roomier = true
		} else {
			delete(p.attachments, t.ID)
		}
		return
	}
	s := p.service(t.ServiceID)
	switch {
	case old == nil:
		s.addTask(new, 1)
	case new == nil:
		s.addTask(old, -1)
	}
	s.observeRunning(old, new)
	if unplaced(new) {
		s.pending[t.ID] = struct{}{}
		p.waiting[s] = struct{}{}
	} else if len(s.pending) > 0 {
		if delete(s.pending, t.ID); len(s.pending) == 0 {
			delete(p.waiting, s)
		}
	}
	if s.all {
		return
	}
	num := p.slotOf(s, t)
	if !p.uneventful(s, num, old, new) {
		s.dirty[num] = struct{}{}
		p.dirty[s] = struct{}{}
	}
}

// uneventful recognises the two changes that make up nearly all of a cluster's life and ask for nothing: a task was
// created complete in an empty slot, and a task on its own went on towards RUNNING.
func (p *Planner) uneventful(s *service, num int, old, new *cluster.Task) bool {
	if new == nil || s.obj == nil || new.DesiredState != s.mode.goal() || !new.Live() {
		return false
	}
	if old == nil {
		if s.known.has(num) || new.SpecVersion != s.obj.SpecVersion || !s.current(new) || !p.nodes[new.NodeID].valid() {
			return false
		}
		if _, dirty := s.dirty[num]; dirty {
			return false
		}
		s.known.put(num, true)
		s.occupied.put(num, true)
		s.plain.put(num, true)
		return true
	}
	return s.plain.has(num) && old.DesiredState == s.mode.goal() && old.Live()
}

// countOnNode keeps the number of tasks that name a node.
func (p *Planner) countOnNode(old, new *cluster.Task) {
	was, is := "", ""
	if old != nil {
		was = old.NodeID
	}
	if new != nil {
		is = new.NodeID
	}
	if was == is {
		return
	}
	if is != "" {
		n := p.node(is)
		if n.tasks++; n.tasks == 1 {
			p.awaitReturn(n)
		}
	}
	if was != "" {
		n := p.node(was)
		if n.tasks--; n.tasks == 0 {
			p.awaitReturn(n)
			if n.obj == nil {
				p.changedNodes[n.id] |= nodeAvailability
			}
		}
	}
}

// holdTask books a task's addresses in or out, and that its node takes part in their networks.
func (p *Planner) holdTask(t *cluster.Task, hold bool) {
	for i := range t.NetworksAttachments {
		a := &t.NetworksAttachments[i]
		for _, cidr := range a.Addresses {
			p.holdAddress(a.Network.ID, cidr, hold)
		}
		if t.NodeID == "" || len(a.Addresses) == 0 {
			continue
		}
		n := p.node(t.NodeID)
		if hold {
			n.uses[a.Network.ID]++
		} else if n.uses[a.Network.ID]--; n.uses[a.Network.ID] == 0 {
			delete(n.uses, a.Network.ID)
			p.changedNodes[n.id] |= nodeAttachments
		}
	}
}
