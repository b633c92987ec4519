package orchestrator

import (
	"maps"
	"reflect"
	"slices"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// node is what the planner keeps about one machine between passes.
type node struct {
	id string
	// num is the node's slot number in global services and jobs. It is used again only when nothing of the node is left.
	num int
	// obj is the node as stored, nil once it was removed and while only its tasks are known.
	obj *cluster.Node
	// tasks is the number of stored tasks that name the node.
	tasks int
	// uses counts the tasks that hold an address of each network on the node.
	uses map[string]int
}

// lost says that the node's tasks must run elsewhere and that nobody can be asked to stop them: it is down, or gone.
// A node that is unknown or disconnected keeps its tasks (swarm-semantics.md, 4.3).
func (n *node) lost() bool {
	return n == nil || n.obj == nil || n.obj.Status.State == swarm.NodeStateDown
}

// valid says that tasks may stay on the node.
func (n *node) valid() bool {
	return !n.lost() && n.obj.Spec.Availability != swarm.NodeAvailabilityDrain
}

func (n *node) paused() bool { return n.obj.Spec.Availability == swarm.NodeAvailabilityPause }

// nodeEvent says what of a node changed since the last pass.
type nodeEvent uint8

const (
	nodeAvailability nodeEvent = 1 << iota // its state or availability, or that it exists
	nodeNature                             // what constraints and resources are judged by
	nodeAttachments                        // the networks it takes part in, or should
	nodeRules                              // the constraints of a service that has tasks on it
)

// changeOf compares two versions of a node.
func changeOf(old, new *cluster.Node) nodeEvent {
	if old == nil || new == nil {
		return nodeAvailability | nodeNature | nodeAttachments
	}
	var ev nodeEvent
	if old.Status.State != new.Status.State || old.Spec.Availability != new.Spec.Availability {
		ev |= nodeAvailability
	}
	// The engine's description is read again and again; it is compared only where it was stored anew.
	if old.Role != new.Role || old.NoDataPlane != new.NoDataPlane || old.Status.Addr != new.Status.Addr || !maps.Equal(old.Spec.Labels, new.Spec.Labels) ||
		!reflect.DeepEqual(old.Description, new.Description) {
		ev |= nodeNature
	}
	if !maps.Equal(old.Attachments, new.Attachments) {
		ev |= nodeAttachments
	}
	return ev
}

// node gives the entry of a node id, made if needed.
func (p *Planner) node(id string) *node {
	n := p.nodes[id]
	if n == nil {
		n = &node{id: id, uses: make(map[string]int)}
		if k := len(p.freeNumbers); k > 0 {
			n.num, p.freeNumbers = p.freeNumbers[k-1], p.freeNumbers[:k-1]
			p.byNumber[n.num] = n
		} else {
			n.num = len(p.byNumber)
			p.byNumber = append(p.byNumber, n)
		}
		p.nodes[id] = n
	}
	return n
}

// dropNode forgets a node of which nothing is left in the store. An update or a job may have waited for its slot alone.
func (p *Planner) dropNode(n *node) {
	for _, s := range p.services {
		if s.mode.perNode() {
			s.forgetSlot(n.num)
			delete(s.dirty, n.num)
			p.timers.set(timerKey{s.id, n.num}, noTime)
			p.dirty[s] = struct{}{}
		}
	}
	delete(p.nodes, n.id)
	delete(p.hungry, n)
	p.timers.set(timerKey{slot: n.num}, noTime)
	p.byNumber[n.num] = nil
	p.freeNumbers = append(p.freeNumbers, n.num)
}

// observeNode takes in one change of a node.
func (p *Planner) observeNode(old, new *cluster.Node) {
	if new == nil {
		p.accounts.RemoveNode(old.ID)
		n := p.node(old.ID)
		n.obj = nil
		p.awaitReturn(n)
		p.changedNodes[old.ID] |= changeOf(old, nil)
		p.holdAttachments(old, false)
		return
	}
	p.accounts.SetNode(new)
	n := p.node(new.ID)
	n.obj = new
	p.awaitReturn(n)
	ev := changeOf(old, new)
	if ev&nodeAttachments != 0 {
		p.holdAttachments(new, true)
		if old != nil {
			p.holdAttachments(old, false)
		}
	}
	if ev != 0 {
		p.changedNodes[new.ID] |= ev
	}
	if ev&(nodeAvailability|nodeNature) != 0 {
		p.roomier = true
	}
}

func (p *Planner) holdAttachments(n *cluster.Node, hold bool) {
	for network, cidr := range n.Attachments {
		p.holdAddress(network, cidr, hold)
	}
}

// lookAtNodes carries what happened to nodes to the tasks on them and to the services that want a task on each.
func (x *pass) lookAtNodes() {
	if x.freed {
		for n := range x.hungry {
			x.changedNodes[n.id] |= nodeAttachments
		}
	}
	for s := range x.dirty {
		x.lookAtRules(s)
	}
	if len(x.changedNodes) == 0 {
		return
	}
	ids := make([]string, 0, len(x.changedNodes))
	for id := range x.changedNodes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	var globals []*service
	for _, s := range x.services {
		if s.mode.perNode() && s.obj != nil {
			globals = append(globals, s)
		}
	}
	for _, id := range ids {
		n, ev := x.nodes[id], x.changedNodes[id]
		delete(x.changedNodes, id)
		if n == nil {
			continue
		}
		if n.obj == nil && n.tasks == 0 {
			x.dropNode(n)
			continue
		}
		x.attach(n)
		if ev&^nodeAttachments == 0 {
			continue
		}
		if ev&(nodeAvailability|nodeNature) != 0 {
			for _, s := range globals {
				s.dirty[n.num] = struct{}{}
				x.dirty[s] = struct{}{}
			}
			if !x.fresh {
				x.lookAtTasksOn(n)
			}
		}
		if !n.lost() && n.obj.Spec.Availability == swarm.NodeAvailabilityActive {
			x.enforce(n)
		}
	}
}

// lookAtRules marks the nodes of a service whose constraints have changed: a task may have stayed where it was for them alone.
func (x *pass) lookAtRules(s *service) {
	if !s.reruled {
		return
	}
	s.reruled = false
	for t := range x.snap.TasksOfService(s.id) {
		if t.NodeID != "" && t.Live() {
			x.changedNodes[t.NodeID] |= nodeRules
		}
	}
}

// lookAtTasksOn marks the slots of all tasks on a node.
func (x *pass) lookAtTasksOn(n *node) {
	for t := range x.snap.TasksOfNode(n.id) {
		if s := x.services[t.ServiceID]; s != nil {
			s.dirty[x.slotOf(s, t)] = struct{}{}
			x.dirty[s] = struct{}{}
		}
		// A successor elsewhere may be waiting for a task of this node: it is in the same slot.
	}
}
