package orchestrator

import (
	"maps"
	"slices"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/scheduler"
)

const (
	messageAssigned    = "scheduler assigned task to node"
	messagePreassigned = "scheduler confirmed task can run on preassigned node"
	messagePending     = "pending task scheduling"
)

// placing is the tasks of one service that a pass has to find a place for.
type placing struct {
	// tasks are those created in this pass.
	tasks []*cluster.Task
	// retry is set when those that waited are tried again too.
	retry bool
}

// group gives the service's entry among what has to be placed.
func (x *pass) group(s *service) *placing {
	g := x.placing[s]
	if g == nil {
		g = &placing{}
		x.placing[s] = g
	}
	return g
}

// tryPlacing has the waiting tasks of a service tried again in this pass.
func (x *pass) tryPlacing(s *service) { x.group(s).retry = true }

// place gives nodes and addresses to the tasks that have none: those created in this pass, and those that waited if
// something has changed for them.
func (x *pass) place() {
	if x.roomier || x.freed {
		for s := range x.waiting {
			x.tryPlacing(s)
			x.retried = true
		}
		x.placeAttachments()
	}
	x.roomier, x.freed = false, false
	for _, s := range slices.SortedFunc(maps.Keys(x.placing), byAge) {
		if g := x.placing[s]; s.obj != nil && (len(g.tasks) > 0 || g.retry) {
			x.placeService(s, g)
		}
	}
}

func (x *pass) placeService(s *service, g *placing) {
	tasks := g.tasks
	if len(s.pending) > 0 {
		var waited []*cluster.Task
		for id := range s.pending {
			if t := x.task(id); unplaced(t) {
				waited = append(waited, t)
			}
		}
		sortTasks(waited)
		tasks = append(waited, tasks...)
	}
	for len(tasks) > 0 {
		n := 1
		for n < len(tasks) && tasks[n].SpecVersion == tasks[0].SpecVersion {
			n++
		}
		switch {
		case s.unallocated != "" && tasks[0].SpecVersion == s.obj.SpecVersion:
			for _, t := range tasks[:n] {
				x.hold(s, t, swarm.TaskStateNew, "created", s.unallocated)
			}
		case s.mode.perNode():
			x.confirmGroup(s, tasks[:n])
		default:
			x.placeGroup(s, tasks[:n])
		}
		tasks = tasks[n:]
	}
}

// placeGroup finds nodes for interchangeable tasks.
func (x *pass) placeGroup(s *service, tasks []*cluster.Task) {
	x.complete(s, tasks)
	res := x.accounts.Place(scheduler.Group{Task: tasks[0], N: len(tasks)}, x.now)
	nets := x.networksOf(s, tasks[0])
	short := "" // why a task with a node could not be given addresses
	var placed, waiting []string
	var lost []scheduler.Placement // nodes that could not be made use of
	for i, t := range tasks {
		if i >= len(res.Placements) {
			x.hold(s, t, swarm.TaskStatePending, messagePending, res.Explanation)
			waiting = append(waiting, t.ID)
			continue
		}
		if err := x.assign(t, res.Placements[i], nets, messageAssigned); err != "" {
			short, lost = err, append(lost, res.Placements[i])
			x.hold(s, t, swarm.TaskStateNew, "created", err)
			continue
		}
		if placed == nil {
			placed = make([]string, 0, len(res.Placements))
		}
		placed = append(placed, t.ID)
	}
	x.accounts.Unbook(lost)
	if len(placed) > 0 && len(waiting) > 0 {
		x.retried = true // the words are about the nodes that were left; next time they are about all
	}
	x.recordPlacing(s, placed, waiting, short, res.Explanation, &res.Decision)
}

// recordPlacing notes what became of a group.
func (x *pass) recordPlacing(s *service, placed, waiting []string, short, explanation string, d *scheduler.Decision) {
	if len(placed) > 0 {
		x.decide(Decision{Kind: Place, ServiceID: s.id, Tasks: placed, Reason: messageAssigned, Placement: d})
	}
	if len(waiting) > 0 {
		x.decide(Decision{Kind: Wait, ServiceID: s.id, Tasks: waiting, Reason: explanation, Placement: d})
	}
	if short != "" {
		x.decide(Decision{Kind: Wait, ServiceID: s.id, Reason: short})
	}
}

// confirmGroup places tasks of a global service, each on the node it was made for, if that can take it now.
func (x *pass) confirmGroup(s *service, tasks []*cluster.Task) {
	x.complete(s, tasks)
	nets := x.networksOf(s, tasks[0])
	var placed []string
	for _, t := range tasks {
		pl, explanation := x.accounts.Check(t, t.NodeID, x.now)
		if explanation != "" {
			x.hold(s, t, swarm.TaskStatePending, messagePending, explanation)
			continue
		}
		if err := x.assign(t, pl, nets, messagePreassigned); err != "" {
			x.accounts.Unbook([]scheduler.Placement{pl})
			x.hold(s, t, swarm.TaskStateNew, "created", err)
			continue
		}
		placed = append(placed, t.ID)
	}
	if len(placed) > 0 {
		x.decide(Decision{Kind: Place, ServiceID: s.id, Tasks: placed, Reason: messagePreassigned})
	}
}

// complete gives tasks that were created before the service had its ports and addresses what they lack.
func (x *pass) complete(s *service, tasks []*cluster.Task) {
	endpoint := x.endpoint(s)
	for i, t := range tasks {
		if t.Endpoint != nil || endpoint == nil || t.SpecVersion != s.obj.SpecVersion {
			continue
		}
		p := x.change(t)
		p.task.Endpoint, p.whole = endpoint, true
		tasks[i] = p.task
	}
}

// networksOf gives the networks that tasks of that version need addresses on, ingress first.
func (x *pass) networksOf(s *service, t *cluster.Task) []*network {
	var nets []*network
	if t.Endpoint != nil && usesMesh(t.Endpoint.Ports) {
		if n := x.networks[x.ingress]; n != nil {
			nets = append(nets, n)
		}
	}
	for _, a := range networks(&t.Spec, s.obj) {
		if n := x.networkOf(a.Target); n != nil && !slices.Contains(nets, n) {
			nets = append(nets, n)
		}
	}
	return nets
}

// assign writes a placement and the task's addresses into the task, or says which address cannot be had.
func (x *pass) assign(t *cluster.Task, pl scheduler.Placement, nets []*network, message string) string {
	var attachments []swarm.NetworkAttachment
	if len(nets) > 0 {
		n := x.nodes[pl.NodeID]
		attachments = make([]swarm.NetworkAttachment, len(nets))
		for i, net := range nets {
			attachments[i].Network = net.obj.Network
			if net.local {
				continue
			}
			if !x.attachTo(n, net) {
				return errNoAddress + " for node " + hostname(n) + " on network " + net.obj.Spec.Name
			}
			var addr string
			if wish := wishOf(t, i); wish != "" {
				if addr = x.bookWish(net, wish); addr == "" {
					return "address " + wish + " of network " + net.obj.Spec.Name + " is in use, or none of its own"
				}
			} else if addr = x.bookAddress(net); addr == "" {
				return errNoAddress + " on network " + net.obj.Spec.Name
			}
			attachments[i].Addresses = []string{addr}
		}
	}
	if t.CreatedAt.IsZero() {
		t.NodeID, t.NetworksAttachments, t.GenericResources = pl.NodeID, attachments, pl.GenericResources
		t.Status = swarm.TaskStatus{Timestamp: x.now, State: swarm.TaskStateAssigned, Message: message}
		return ""
	}
	status := swarm.TaskStatus{Timestamp: x.now, State: swarm.TaskStateAssigned, Message: message}
	p := x.change(t)
	c := p.task
	if c.NodeID == "" {
		c.NodeID, p.diff.NodeID = pl.NodeID, pl.NodeID
	}
	c.Status, p.diff.Status = status, &status
	c.NetworksAttachments, p.diff.NetworksAttachments = attachments, attachments
	c.GenericResources, p.diff.GenericResources = pl.GenericResources, pl.GenericResources
	return ""
}

// hold notes in a task why it has no place yet. A stored task is written only when that changes.
func (x *pass) hold(s *service, t *cluster.Task, state swarm.TaskState, message, err string) {
	if t.CreatedAt.IsZero() {
		t.Status = swarm.TaskStatus{Timestamp: x.now, State: state, Message: message, Err: err}
		return
	}
	if cluster.Before(state, t.Status.State) {
		state, message = t.Status.State, t.Status.Message
	}
	if t.Status.State == state && t.Status.Message == message && t.Status.Err == err {
		return
	}
	x.report(t, state, message, err)
	x.because(Wait, s, t.ID, err)
}
