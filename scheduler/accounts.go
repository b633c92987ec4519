package scheduler

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"github.com/miniswarm/miniswarm/cluster"
)

const (
	// failureWindow is how long a failure counts against a node.
	failureWindow = 5 * time.Minute
	// failureLimit is the number of failures within the window from which on they decide the ranking.
	failureLimit = 5
)

// Accounts are the incrementally kept indexes over nodes and placed tasks: who has what, who has taken what. They have
// one owner and must not be used concurrently.
//
// A task counts against its node's resources, generic resources and host ports while it is placed and may still hold
// them: its node is known and ASSIGNED <= state <= RUNNING, so also while it is stopping. It counts as an active task,
// which ranking and the limit of replicas per node look at, if besides its desired state is not past COMPLETE. A
// global task that has its node from birth counts from ASSIGNED on like any other.
type Accounts struct {
	// index is the log index the accounts have seen, for the record in decisions.
	index uint64

	byID  map[string]*node
	slots []*node // by node.slot; nil where free
	free  []int32 // free slots
	// order holds the nodes that have an object, by id; only valid while orderStale is false.
	order      []*node
	orderStale bool

	services map[string]*service
	failures map[versionedService]map[int32][]time.Time
	// swept is when failures were last cleared of old entries.
	swept time.Time

	// overlays has the ids of the networks that data planes carry.
	overlays map[string]struct{}

	views []*view // by use, the latest first

	journal journal
	runs    []*run // not in use

	// pending remembers groups that fit nowhere; changes is a ring of the slots of nodes that changed since anything
	// is remembered, changed their number.
	pending map[pendingKey]*pending
	changes []int32
	changed uint64

	lastConstraints []string
	lastParsed      []Constraint
}

// node is the account of one machine. It exists while the machine's object or any task placed on it exists, so that
// the order in which the two are observed does not matter.
type node struct {
	id   string
	slot int32
	obj  *cluster.Node // nil: only its tasks are known
	// ready is the first filter's answer: state READY and availability active.
	ready bool
	// capacity is what the machine reported.
	cpu, mem int64
	// usedCPU and usedMem are the reservations of the tasks on it, usedGeneric their claims.
	usedCPU, usedMem int64
	generic          map[string]*genericAccount
	ports            map[hostPort][]portHolder
	// tasks counts the tasks that hold resources, active those among them that are wanted.
	tasks, active int32
}

// versionedService is what failures are counted by: a changed service starts with a clean record.
type versionedService struct {
	service string
	version uint64
}

func versionOf(t *cluster.Task) versionedService {
	return versionedService{t.ServiceID, t.SpecVersion.Index}
}

// hostPort is a port published on the node itself. The address is not part of it, as in Swarm.
type hostPort struct {
	protocol swarm.PortConfigProtocol
	port     uint32
}

// portHolder names the task that holds a host port. Two can hold the same one for a while, when a task was placed by
// somebody else's books; the port is free when both are gone.
type portHolder struct{ service, task string }

// New gives accounts of a cluster without nodes and tasks.
func New() *Accounts {
	return &Accounts{
		byID:     make(map[string]*node),
		services: make(map[string]*service),
		failures: make(map[versionedService]map[int32][]time.Time),
		pending:  make(map[pendingKey]*pending),
		overlays: make(map[string]struct{}),
	}
}

// SetIndex records the log index up to which changes have been observed; decisions carry it.
func (a *Accounts) SetIndex(index uint64) { a.index = index }

// Nodes is the number of nodes known.
func (a *Accounts) Nodes() int { return len(a.sorted()) }

// account gives the account of the node with that id, opening it if needed.
func (a *Accounts) account(id string) *node {
	if nd := a.byID[id]; nd != nil {
		return nd
	}
	nd := &node{id: id}
	if k := len(a.free); k > 0 {
		nd.slot, a.free = a.free[k-1], a.free[:k-1]
		a.slots[nd.slot] = nd
	} else {
		nd.slot = int32(len(a.slots))
		a.slots = append(a.slots, nd)
	}
	a.byID[id] = nd
	return nd
}

// release closes an account that nothing is left to say in.
func (a *Accounts) release(nd *node) {
	if nd.obj != nil || nd.tasks != 0 || nd.active != 0 || a.byID[nd.id] != nd {
		return
	}
	delete(a.byID, nd.id)
	a.slots[nd.slot] = nil
	a.free = append(a.free, nd.slot)
}

// sorted gives the nodes that have an object in the order of their ids.
func (a *Accounts) sorted() []*node {
	if a.orderStale {
		a.order = a.order[:0]
		for _, nd := range a.slots {
			if nd != nil && nd.obj != nil {
				a.order = append(a.order, nd)
			}
		}
		slices.SortFunc(a.order, func(x, y *node) int { return cmp.Compare(x.id, y.id) })
		a.orderStale = false
	}
	return a.order
}

// SetNode observes a node that was added or changed in any way.
func (a *Accounts) SetNode(n *cluster.Node) {
	nd := a.account(n.ID)
	old := nd.obj
	nd.obj = n
	nd.ready = n.Status.State == swarm.NodeStateReady && availability(n) == swarm.NodeAvailabilityActive
	nd.cpu, nd.mem = n.Description.Resources.NanoCPUs, n.Description.Resources.MemoryBytes
	nd.setGenericCapacity(n.Description.Resources.GenericResources)
	a.touch(nd)
	if old == nil {
		a.orderStale = true
		for _, v := range a.views {
			v.stale = true
		}
		return
	}
	for _, v := range a.views {
		v.changed(nd)
	}
}

// availability is the node's availability for tasks: active unless it says otherwise.
func availability(n *cluster.Node) swarm.NodeAvailability {
	return cmp.Or(n.Spec.Availability, swarm.NodeAvailabilityActive)
}

// RemoveNode observes that a node is gone. Its tasks go on counting until they are observed to be gone too, which
// nothing but a node of the same id would notice.
func (a *Accounts) RemoveNode(id string) {
	nd := a.byID[id]
	if nd == nil || nd.obj == nil {
		return
	}
	nd.obj, nd.ready, nd.cpu, nd.mem = nil, false, 0, 0
	nd.setGenericCapacity(nil)
	a.touch(nd)
	a.orderStale = true
	for _, v := range a.views {
		v.stale = true
	}
	for key, byNode := range a.failures {
		if delete(byNode, nd.slot); len(byNode) == 0 {
			delete(a.failures, key)
		}
	}
	a.release(nd)
}

// SetNetwork observes a network that was added or changed in any way. What was decided before it was known is not looked at
// again.
func (a *Accounts) SetNetwork(n *cluster.Network) {
	if n.Local() {
		delete(a.overlays, n.ID)
	} else {
		a.overlays[n.ID] = struct{}{}
	}
}

// RemoveNetwork observes that a network is gone.
func (a *Accounts) RemoveNetwork(id string) { delete(a.overlays, id) }

// NeedsDataPlane says whether tasks with these networks and this endpoint (nil: none) are reached by the mesh, and so need a
// node that runs a data plane.
func (a *Accounts) NeedsDataPlane(networks []swarm.NetworkAttachmentConfig, e *swarm.Endpoint) bool {
	if e != nil {
		for i := range e.Ports {
			if e.Ports[i].PublishMode != swarm.PortConfigPublishModeHost {
				return true
			}
		}
	}
	for i := range networks {
		if _, is := a.overlays[networks[i].Target]; is {
			return true
		}
	}
	return false
}

// placed says whether the task holds resources of its node: it was given to it and has not been seen to end.
func placed(t *cluster.Task) bool {
	if t == nil || t.NodeID == "" {
		return false
	}
	// cluster.Rank would say the same; this is asked for every change of every task.
	switch t.Status.State {
	case swarm.TaskStateAssigned, swarm.TaskStateAccepted, swarm.TaskStatePreparing, swarm.TaskStateReady,
		swarm.TaskStateStarting, swarm.TaskStateRunning:
		return true
	}
	return false
}

// wanted says whether the task counts as active where it is placed, as cluster.Task.Wanted.
func wanted(t *cluster.Task) bool {
	switch t.DesiredState {
	case swarm.TaskStateShutdown, swarm.TaskStateFailed, swarm.TaskStateRejected, swarm.TaskStateRemove,
		swarm.TaskStateOrphaned:
		return false
	}
	return true
}

// SetTask observes a change of a task: old is nil for one that was created (or is seen for the first time), new for
// one that was removed. Every change must be observed once and in order. A change that the accounts have no interest
// in costs next to nothing.
//
// A task that comes to be FAILED or REJECTED counts against its node for five minutes, by the leader's clock if the
// report carries it and by the node's otherwise. Global tasks are left out: no decision would ask.
func (a *Accounts) SetTask(old, new *cluster.Task) {
	was, is := placed(old), placed(new)
	switch {
	case was && is && sameClaims(old, new):
		if o, n := wanted(old), wanted(new); o != n {
			delta := int32(1)
			if o {
				delta = -1
			}
			a.addActive(a.account(new.NodeID), new.ServiceID, delta)
		}
	default:
		if was {
			a.addTask(old, -1)
		}
		if is {
			a.addTask(new, 1)
		}
	}
	if new != nil && failed(new) && (old == nil || !failed(old)) {
		a.recordFailure(new)
	}
}

// sameClaims says whether both versions of a placed task hold the same things. Tasks are not edited, so comparing
// where the parts lie in memory is enough; unequal parts only cost a little more work.
func sameClaims(old, new *cluster.Task) bool {
	return old.NodeID == new.NodeID && old.ServiceID == new.ServiceID && old.Endpoint == new.Endpoint &&
		old.Spec.Resources == new.Spec.Resources && len(old.GenericResources) == len(new.GenericResources) &&
		(len(old.GenericResources) == 0 || &old.GenericResources[0] == &new.GenericResources[0])
}

func failed(t *cluster.Task) bool {
	return t.Status.State == swarm.TaskStateFailed || t.Status.State == swarm.TaskStateRejected
}

// addTask books a task in (sign 1) or out (sign -1).
func (a *Accounts) addTask(t *cluster.Task, sign int32) {
	nd := a.account(t.NodeID)
	nd.tasks += sign
	a.touch(nd)
	if r := reservations(t); r != nil {
		nd.usedCPU += int64(sign) * r.NanoCPUs
		nd.usedMem += int64(sign) * r.MemoryBytes
	}
	nd.claim(t.GenericResources, int64(sign))
	if t.Endpoint != nil {
		for _, p := range t.Endpoint.Ports {
			if hp, ok := publishedOnHost(p); ok {
				nd.holdPort(hp, portHolder{service: t.ServiceAnnotations.Name, task: t.ID}, sign)
			}
		}
	}
	if wanted(t) {
		a.addActive(nd, t.ServiceID, sign)
	}
	if sign < 0 {
		a.release(nd)
	}
}

// addActive changes the number of the service's active tasks on the node.
func (a *Accounts) addActive(nd *node, serviceID string, delta int32) {
	s := a.open(serviceID)
	a.addActiveOf(s, nd, delta)
	a.close(serviceID, s)
}

// open gives the counts of a service.
func (a *Accounts) open(serviceID string) *service {
	s := a.services[serviceID]
	if s == nil {
		s = &service{}
		a.services[serviceID] = s
	}
	return s
}

// close forgets a service that has no active task.
func (a *Accounts) close(serviceID string, s *service) {
	if s.nodes == 0 {
		delete(a.services, serviceID)
	}
}

func (a *Accounts) addActiveOf(s *service, nd *node, delta int32) {
	s.add(nd.slot, delta, len(a.slots))
	a.touch(nd)
	from := nd.active
	nd.active += delta
	for _, v := range a.views {
		v.moved(nd, from)
	}
}

func reservations(t *cluster.Task) *swarm.Resources {
	if t.Spec.Resources == nil {
		return nil
	}
	return t.Spec.Resources.Reservations
}

// publishedOnHost gives the port that p takes on the node itself, if it does and the port is known.
func publishedOnHost(p swarm.PortConfig) (hostPort, bool) {
	if p.PublishMode != swarm.PortConfigPublishModeHost || p.PublishedPort == 0 {
		return hostPort{}, false
	}
	return hostPort{protocol: cmp.Or(p.Protocol, swarm.PortConfigProtocolTCP), port: p.PublishedPort}, true
}

// holdPort notes or forgets who holds a host port. Swarm keeps a plain set, in which the first of two holders to leave
// frees the port under the other; here it is free when all have left.
func (nd *node) holdPort(p hostPort, h portHolder, sign int32) {
	held := nd.ports[p]
	at, found := slices.BinarySearchFunc(held, h, func(x, y portHolder) int {
		return cmp.Or(cmp.Compare(x.task, y.task), cmp.Compare(x.service, y.service))
	})
	switch {
	case sign > 0:
		if nd.ports == nil {
			nd.ports = make(map[hostPort][]portHolder)
		}
		nd.ports[p] = slices.Insert(held, at, h)
	case !found:
	case len(held) == 1:
		delete(nd.ports, p)
	default:
		nd.ports[p] = slices.Delete(held, at, at+1)
	}
}

// recordFailure notes that the task failed on its node.
func (a *Accounts) recordFailure(t *cluster.Task) {
	if t.Slot == 0 && !t.Numbered {
		return // a task of a global service or job; a replicated job's slots begin at 0
	}
	nd := a.byID[t.NodeID]
	if nd == nil || nd.obj == nil {
		return
	}
	at := t.AppliedAt
	if at.IsZero() {
		at = t.Status.Timestamp
	}
	if at.Sub(a.swept) >= failureWindow {
		a.sweepFailures(at)
	}
	key := versionOf(t)
	byNode := a.failures[key]
	if byNode == nil {
		byNode = make(map[int32][]time.Time)
		a.failures[key] = byNode
	}
	recent := slices.DeleteFunc(byNode[nd.slot], func(f time.Time) bool { return at.Sub(f) > failureWindow })
	byNode[nd.slot] = append(recent, at)
}

// sweepFailures drops what no longer counts, so that the record of services long gone does not stay.
func (a *Accounts) sweepFailures(now time.Time) {
	maps.DeleteFunc(a.failures, func(_ versionedService, byNode map[int32][]time.Time) bool {
		maps.DeleteFunc(byNode, func(_ int32, at []time.Time) bool {
			return !slices.ContainsFunc(at, func(f time.Time) bool { return now.Sub(f) <= failureWindow })
		})
		return len(byNode) == 0
	})
	a.swept = now
}

// recentFailures is the number of failures of that service and version on the node that still count.
func recentFailures(at []time.Time, now time.Time) int32 {
	n := int32(0)
	for _, f := range at {
		if now.Sub(f) <= failureWindow {
			n++
		}
	}
	return n
}
