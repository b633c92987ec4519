package orchestrator

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/scheduler"
)

// attach has a node's part in networks looked at in this pass: it takes part in ingress always, and in every other
// network while a task on it has an address there (swarm-semantics.md, 5.5). Its address in a network is that of the
// bridge which its containers use as their gateway.
func (x *pass) attach(n *node) map[string]string {
	have, ok := x.attached[n]
	if !ok {
		if n.obj == nil {
			return nil
		}
		have = maps.Clone(n.obj.Attachments)
		if have == nil {
			have = make(map[string]string)
		}
		x.attached[n] = have
		if ingress := x.networks[x.ingress]; ingress != nil && !ingress.local && !x.attachTo(n, ingress) {
			x.starved(n, ingress)
		}
	}
	return have
}

// attachTo makes the node take part in a network, unless that has no address left for it.
func (x *pass) attachTo(n *node, net *network) bool {
	have := x.attach(n)
	if addr := have[net.obj.ID]; addr != "" {
		if _, _, ours := net.find(addr); ours {
			return true
		}
	}
	addr := x.bookAddress(net)
	if addr == "" {
		return false
	}
	have[net.obj.ID] = addr
	return true
}

// starved notes that a node has no address on ingress, which is tried again when one comes free.
func (x *pass) starved(n *node, net *network) {
	if _, known := x.hungry[n]; known {
		return
	}
	x.hungry[n] = struct{}{}
	x.decide(Decision{Kind: Allocation, Reason: fmt.Sprintf("node %s: %s on network %s", hostname(n), errNoAddress, net.obj.Spec.Name)})
}

// attachNodes writes the attachments that have changed, and drops those that nothing needs any more.
func (x *pass) attachNodes() {
	if len(x.attached) == 0 {
		return
	}
	nodes := slices.SortedFunc(maps.Keys(x.attached), func(a, b *node) int { return cmp.Compare(a.id, b.id) })
	needed := x.neededAttachments()
	for _, n := range nodes {
		have, hoped := x.attached[n], false
		maps.DeleteFunc(have, func(id, _ string) bool {
			used := id == x.ingress || n.uses[id] > 0
			planned := !used && needed[use{n.id, id}]
			hoped = hoped || planned
			return x.networks[id] == nil || !used && !planned
		})
		if have[x.ingress] != "" {
			delete(x.hungry, n)
		}
		changed := !maps.Equal(have, n.obj.Attachments)
		if changed {
			x.nodeChanges = append(x.nodeChanges, cluster.PatchNode(n.id, cluster.NodePatch{Attachments: have}))
		}
		if changed || hoped {
			x.changedNodes[n.id] |= nodeAttachments // until the store has it, and what it is there for
		}
	}
}

// use is one network that one node has to take part in.
type use struct{ node, network string }

// neededAttachments has the uses that this pass adds.
func (x *pass) neededAttachments() map[use]bool {
	needed := make(map[use]bool)
	add := func(t *cluster.Task) {
		for _, a := range t.NetworksAttachments {
			if len(a.Addresses) > 0 {
				needed[use{t.NodeID, a.Network.ID}] = true
			}
		}
	}
	for _, t := range x.created {
		if t.Status.State == swarm.TaskStateAssigned {
			add(t)
		}
	}
	for _, p := range x.patched {
		if p.diff.NetworksAttachments != nil {
			add(p.task)
		}
	}
	return needed
}

// placeAttachments gives addresses to the tasks that stand for containers which a person attached to a network; they
// have their node from the start (swarm-semantics.md, 5.6).
func (x *pass) placeAttachments() {
	x.retried = x.retried || len(x.attachments) > 0
	for _, id := range slices.Sorted(maps.Keys(x.attachments)) {
		t := x.task(id)
		n := x.nodes[t.NodeID]
		if forgotten(t) || n == nil || n.obj == nil { // the node may have been removed while the task was made
			x.remove(t)
			continue
		}
		err := ""
		var nets []*network
		for _, a := range t.Spec.Networks {
			if net := x.networkOf(a.Target); net != nil {
				nets = append(nets, net)
			} else {
				err = "network " + a.Target + " not found"
			}
		}
		if err == "" {
			err = x.assign(t, scheduler.Placement{NodeID: n.id}, nets, messagePreassigned)
		}
		if err != "" {
			if t.Status.Err != err {
				x.report(t, t.Status.State, t.Status.Message, err)
				x.decide(Decision{Kind: Wait, Tasks: []string{id}, Reason: err})
			}
			continue
		}
		x.decide(Decision{Kind: Place, Tasks: []string{id}, Reason: fmt.Sprintf("attached to a network on node %s", hostname(n))})
	}
}

// wishOf is the address that a person named for a container on the i-th network of its attachment, "" for any.
func wishOf(t *cluster.Task, i int) string {
	if !t.Attachment() {
		return ""
	}
	return t.Spec.Networks[i].DriverOpts[cluster.OptionAddress]
}

// bookWish takes the address that the person named for a container on the network; "" if somebody else has it, or it is
// none of the network's.
func (x *pass) bookWish(net *network, addr string) string {
	p, at, ok := net.find(addr)
	if !ok || at == 0 || at > p.last || p.used.has(int(at)) {
		return ""
	}
	p.used.put(int(at), true)
	x.booked = append(x.booked, booking{p, at})
	return p.cidr(at)
}
