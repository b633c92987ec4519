package scheduler

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"github.com/miniswarm/miniswarm/cluster"
)

// twin is the scheduler as the contract describes it, without any thought for speed: it keeps lists of nodes and tasks
// and looks at all of them for everything. The real one must give the same answers, task by task.
type twin struct {
	nodes map[string]*cluster.Node
	tasks map[string]*cluster.Task
	on    map[string]map[string]*cluster.Task // by node, so that tests do not take all day
	fails []twinFailure
	// booked are the provisional tasks of the pass.
	booked []*cluster.Task
}

type twinFailure struct {
	node, service string
	version       uint64
	at            time.Time
}

func newTwin() *twin {
	return &twin{nodes: map[string]*cluster.Node{}, tasks: map[string]*cluster.Task{},
		on: map[string]map[string]*cluster.Task{}}
}

func (w *twin) setNode(n *cluster.Node) { w.nodes[n.ID] = n }

func (w *twin) removeNode(id string) {
	delete(w.nodes, id)
	w.fails = slices.DeleteFunc(w.fails, func(f twinFailure) bool { return f.node == id })
}

func (w *twin) setTask(old, new *cluster.Task) {
	if old != nil {
		delete(w.tasks, old.ID)
		delete(w.on[old.NodeID], old.ID)
	}
	if new == nil {
		return
	}
	w.tasks[new.ID] = new
	if w.on[new.NodeID] == nil {
		w.on[new.NodeID] = map[string]*cluster.Task{}
	}
	w.on[new.NodeID][new.ID] = new
	bad := new.Status.State == swarm.TaskStateFailed || new.Status.State == swarm.TaskStateRejected
	if bad && (old == nil || old.Status.State != swarm.TaskStateFailed && old.Status.State != swarm.TaskStateRejected) &&
		new.Slot != 0 && w.nodes[new.NodeID] != nil {
		w.fails = append(w.fails, twinFailure{new.NodeID, new.ServiceID, new.SpecVersion.Index, new.Status.Timestamp})
	}
}

// twinNode is one node with everything counted up.
type twinNode struct {
	*cluster.Node
	cpu, mem       int64
	discrete       map[string]int64
	named          map[string][]string
	ports          map[string]bool
	service, total int
	failures       int
}

func (w *twin) node(n *cluster.Node, t *cluster.Task, now time.Time) *twinNode {
	x := &twinNode{Node: n, cpu: n.Description.Resources.NanoCPUs, mem: n.Description.Resources.MemoryBytes,
		discrete: map[string]int64{}, named: map[string][]string{}, ports: map[string]bool{}}
	for _, g := range n.Description.Resources.GenericResources {
		if g.NamedResourceSpec != nil {
			x.named[g.NamedResourceSpec.Kind] = append(x.named[g.NamedResourceSpec.Kind], g.NamedResourceSpec.Value)
		} else {
			x.discrete[g.DiscreteResourceSpec.Kind] = g.DiscreteResourceSpec.Value
		}
	}
	take := func(o *cluster.Task) {
		state := cluster.Rank(o.Status.State)
		if o.NodeID != n.ID || state < cluster.Rank(swarm.TaskStateAssigned) || state > cluster.Rank(swarm.TaskStateRunning) {
			return
		}
		x.take(o, t.ServiceID)
	}
	for _, o := range w.on[n.ID] {
		take(o)
	}
	for _, o := range w.booked {
		take(o)
	}
	for _, f := range w.fails {
		if f.node == n.ID && f.service == t.ServiceID && f.version == t.SpecVersion.Index && now.Sub(f.at) <= 5*time.Minute {
			x.failures++
		}
	}
	return x
}

// take counts a task in.
func (x *twinNode) take(o *cluster.Task, service string) {
	if r := o.Spec.Resources; r != nil && r.Reservations != nil {
		x.cpu -= r.Reservations.NanoCPUs
		x.mem -= r.Reservations.MemoryBytes
	}
	for _, g := range o.GenericResources {
		if s := g.NamedResourceSpec; s != nil {
			x.named[s.Kind] = slices.DeleteFunc(slices.Clone(x.named[s.Kind]), func(v string) bool { return v == s.Value })
		} else {
			x.discrete[g.DiscreteResourceSpec.Kind] -= g.DiscreteResourceSpec.Value
		}
	}
	if o.Endpoint != nil {
		for _, p := range o.Endpoint.Ports {
			if p.PublishMode == swarm.PortConfigPublishModeHost && p.PublishedPort != 0 {
				x.ports[fmt.Sprint(p.PublishedPort, p.Protocol)] = true
			}
		}
	}
	if cluster.Rank(o.DesiredState) <= cluster.Rank(swarm.TaskStateComplete) {
		x.total++
		if o.ServiceID == service {
			x.service++
		}
	}
}

// first gives the first filter that fails, 0 for none.
func (x *twinNode) first(t *cluster.Task) Filter {
	if x.Status.State != swarm.NodeStateReady || x.Spec.Availability != swarm.NodeAvailabilityActive {
		return FilterReady
	}
	if t.Spec.Resources != nil && t.Spec.Resources.Reservations != nil {
		r := t.Spec.Resources.Reservations
		if r.NanoCPUs != 0 || r.MemoryBytes != 0 || len(r.GenericResources) > 0 {
			if r.NanoCPUs > x.cpu || r.MemoryBytes > x.mem {
				return FilterResource
			}
			for _, g := range r.GenericResources {
				d := g.DiscreteResourceSpec
				if have := max(x.discrete[d.Kind], int64(len(x.named[d.Kind]))); have <= 0 || d.Value > have {
					return FilterResource
				}
			}
		}
	}
	if d := t.Spec.LogDriver; d != nil && d.Name != "" && d.Name != "none" {
		logs, found := false, false
		for _, p := range x.Description.Engine.Plugins {
			if p.Type == "Log" {
				logs = true
				found = found || p.Name == d.Name
			}
		}
		if logs && !found {
			return FilterPlugin
		}
	}
	p := t.Spec.Placement
	if p == nil {
		p = &swarm.Placement{}
	}
	for _, c := range p.Constraints {
		key, value, eq := strings.Cut(c, "==")
		if !eq {
			key, value, _ = strings.Cut(c, "!=")
		}
		if (x.value(key) == value) != eq {
			return FilterConstraint
		}
	}
	if len(p.Platforms) > 0 {
		ok := false
		for _, q := range p.Platforms {
			have := x.Description.Platform
			ok = ok || have.OS != "" && q.OS == have.OS && strings.Replace(have.Architecture, "x86_64", "amd64", 1) == q.Architecture
		}
		if !ok {
			return FilterPlatform
		}
	}
	mesh := t.Endpoint != nil && t.Endpoint.Ports[0].PublishMode == swarm.PortConfigPublishModeIngress ||
		len(t.Spec.Networks) > 0 && t.Spec.Networks[0].Target == "overlay"
	if mesh && x.NoDataPlane {
		return FilterDataPlane
	}
	if c := t.Spec.ContainerSpec; c != nil {
		allowed := "," + x.Spec.Labels[cluster.LabelAllow] + ","
		if c.Labels[cluster.LabelPrivileged] == "true" && !strings.Contains(allowed, ",privileged,") {
			return FilterPrivileged
		}
		if c.Labels[cluster.LabelDevices] != "" && !strings.Contains(allowed, ",devices,") {
			return FilterDevices
		}
		if c.Labels[cluster.LabelGPUs] != "" && !strings.Contains(allowed, ",gpus,") {
			return FilterGPUs
		}
	}
	if t.Endpoint != nil {
		for _, q := range t.Endpoint.Ports {
			if q.PublishMode == swarm.PortConfigPublishModeHost && q.PublishedPort != 0 &&
				x.ports[fmt.Sprint(q.PublishedPort, q.Protocol)] {
				return FilterHostPort
			}
		}
	}
	if p.MaxReplicas > 0 && x.service >= int(p.MaxReplicas) {
		return FilterMaxReplicas
	}
	return 0
}

func (x *twinNode) value(key string) string {
	switch key {
	case "node.hostname":
		return x.Description.Hostname
	case "node.role":
		return string(x.Role)
	}
	if l, ok := strings.CutPrefix(key, "node.labels."); ok {
		return x.Spec.Labels[l]
	}
	l, _ := strings.CutPrefix(key, "engine.labels.")
	return x.Description.Engine.Labels[l]
}

// less is Swarm's order, without the id.
func (x *twinNode) less(y *twinNode) bool {
	if (x.failures >= 5 || y.failures >= 5) && x.failures != y.failures {
		return x.failures < y.failures
	}
	if x.service != y.service {
		return x.service < y.service
	}
	return x.total < y.total
}

func (x *twinNode) lessID(y *twinNode) bool { return x.less(y) || !y.less(x) && x.ID < y.ID }

type twinTree struct {
	value   string
	tasks   int
	next    map[string]*twinTree
	nodes   []*twinNode // candidates
	visited bool
}

// twinPlacement places one group.
type twinPlacement struct {
	w          *twin
	t          *cluster.Task
	left       int
	counters   map[Filter]int
	placements []Placement
}

func (w *twin) place(t *cluster.Task, n int, now time.Time) ([]Placement, string) {
	p := &twinPlacement{w: w, t: t, left: n, counters: map[Filter]int{}}
	root := &twinTree{}
	passed := false
	var prefs []swarm.PlacementPreference
	if t.Spec.Placement != nil {
		prefs = t.Spec.Placement.Preferences
	}
	for _, id := range slices.Sorted(maps.Keys(w.nodes)) {
		x := w.node(w.nodes[id], t, now)
		tree := root
		for _, pref := range prefs {
			d := pref.Spread.SpreadDescriptor
			if !strings.HasPrefix(d, "node.labels.") && !strings.HasPrefix(d, "engine.labels.") {
				continue
			}
			tree.tasks += x.service
			v := x.value(d)
			if tree.next == nil {
				tree.next = map[string]*twinTree{}
			}
			if tree.next[v] == nil {
				tree.next[v] = &twinTree{value: v}
			}
			tree = tree.next[v]
		}
		tree.tasks += x.service
		if f := x.first(t); f != 0 {
			p.counters[f]++
			continue
		}
		passed = true
		tree.nodes = append(tree.nodes, x)
	}
	if passed {
		clear(p.counters)
	}
	if n > 0 {
		p.subtree(root, n)
	}
	if p.left == 0 {
		return p.placements, ""
	}
	return p.placements, p.explain()
}

func (p *twinPlacement) explain() string {
	fs := slices.Sorted(maps.Keys(p.counters))
	sort.SliceStable(fs, func(i, j int) bool { return p.counters[fs[i]] > p.counters[fs[j]] })
	var parts []string
	for _, f := range fs {
		parts = append(parts, f.words(p.counters[f]))
	}
	if len(parts) == 0 {
		return "no suitable node"
	}
	return "no suitable node (" + strings.Join(parts, "; ") + ")"
}

func (p *twinPlacement) subtree(tree *twinTree, n int) int {
	if tree.next == nil {
		if tree.visited {
			var keep []*twinNode
			for _, x := range tree.nodes {
				if f := x.first(p.t); f != 0 {
					p.counters[f]++
				} else {
					keep = append(keep, x)
				}
			}
			if tree.nodes = keep; len(keep) > 0 {
				clear(p.counters)
			}
		}
		tree.visited = true
		sort.Slice(tree.nodes, func(i, j int) bool { return tree.nodes[i].lessID(tree.nodes[j]) })
		if len(tree.nodes) == 0 {
			return 0
		}
		return p.leaf(tree.nodes, n)
	}
	scheduled, inUsable := 0, tree.tasks
	noRoom := map[*twinTree]bool{}
	for converging := true; scheduled != n && len(noRoom) != len(tree.next) && converging; {
		desired := (inUsable + n - scheduled) / (len(tree.next) - len(noRoom))
		remainder := (inUsable + n - scheduled) % (len(tree.next) - len(noRoom))
		converging = false
		branches := slices.Collect(maps.Values(tree.next))
		best := map[*twinTree]*twinNode{}
		for _, b := range branches {
			best[b] = p.best(b)
		}
		slices.SortFunc(branches, func(a, b *twinTree) int {
			x, y := best[a], best[b]
			switch {
			case x != nil && (y == nil || x.less(y)):
				return -1
			case y != nil && (x == nil || y.less(x)):
				return 1
			}
			return cmp.Compare(a.value, b.value)
		})
		for _, b := range branches {
			if noRoom[b] || b.tasks > desired || b.tasks == desired && remainder == 0 {
				continue
			}
			converging = true
			part := desired - b.tasks
			if remainder > 0 {
				part++
			}
			res := p.subtree(b, part)
			if res < part {
				noRoom[b] = true
				inUsable -= b.tasks
			} else if remainder > 0 {
				remainder--
			}
			scheduled += res
		}
	}
	return scheduled
}

func (p *twinPlacement) best(tree *twinTree) *twinNode {
	var best *twinNode
	for _, b := range tree.next {
		if x := p.best(b); x != nil && (best == nil || x.lessID(best)) {
			best = x
		}
	}
	for _, x := range tree.nodes {
		if x.first(p.t) == 0 && (best == nil || x.lessID(best)) {
			best = x
		}
	}
	return best
}

func (p *twinPlacement) leaf(nodes []*twinNode, n int) int {
	scheduled := 0
	failed := map[int]bool{}
	iter := 0
	process := func(i int) bool {
		if f := nodes[i].first(p.t); f != 0 {
			p.counters[f]++
			return false
		}
		clear(p.counters)
		return true
	}
	for p.left > 0 {
		x := nodes[iter%len(nodes)]
		p.give(x)
		if scheduled++; scheduled == n {
			return scheduled
		}
		if iter+1 < len(nodes) {
			if nodes[iter+1].less(x) {
				iter++
			}
		} else {
			iter++
		}
		start := iter
		for failed[iter%len(nodes)] || !process(iter%len(nodes)) {
			failed[iter%len(nodes)] = true
			if iter++; iter-start == len(nodes) {
				return scheduled
			}
		}
	}
	return scheduled
}

func (p *twinPlacement) give(x *twinNode) {
	p.left--
	t := *p.t
	t.NodeID = x.ID
	t.Status.State = swarm.TaskStateAssigned
	t.GenericResources = x.claims(&t)
	x.take(&t, t.ServiceID)
	p.w.booked = append(p.w.booked, &t)
	p.placements = append(p.placements, Placement{x.ID, t.GenericResources})
}

// claims are the generic resources that the task is given.
func (x *twinNode) claims(t *cluster.Task) []swarm.GenericResource {
	var out []swarm.GenericResource
	if t.Spec.Resources == nil || t.Spec.Resources.Reservations == nil {
		return nil
	}
	for _, g := range t.Spec.Resources.Reservations.GenericResources {
		d := g.DiscreteResourceSpec
		if names := x.named[d.Kind]; len(names) > 0 {
			for _, v := range names[:d.Value] {
				out = append(out, swarm.GenericResource{NamedResourceSpec: &swarm.NamedGenericResource{Kind: d.Kind, Value: v}})
			}
		} else if d.Value > 0 {
			out = append(out, swarm.GenericResource{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: d.Kind, Value: d.Value}})
		}
	}
	return out
}

// check is the preassigned case.
func (w *twin) check(t *cluster.Task, nodeID string, now time.Time) (Placement, string) {
	n := w.nodes[nodeID]
	if n == nil {
		return Placement{}, FilterReady.words(1)
	}
	x := w.node(n, t, now)
	if f := x.first(t); f != 0 {
		return Placement{}, f.words(1)
	}
	p := &twinPlacement{w: w, t: t, left: 1}
	p.give(x)
	return p.placements[0], ""
}
