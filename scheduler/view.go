package scheduler

import (
	"slices"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/swarm"
	"github.com/miniswarm/miniswarm/cluster"
)

// maxViews bounds the views kept: each costs a few instructions with every change of a task and, for 10,000 nodes,
// some 100 KiB. A service whose view was dropped only waits for it to be built again.
const maxViews = 16

// view is what services with the same placement see of the cluster: the nodes that pass the filters which look at
// nothing but the node's own description, split into branches by the preferences, ordered by load.
type view struct {
	key   string
	rules rules
	root  branch
	// where says, by slot, where each node is.
	where []position
	// failing counts the nodes that are known but no members, by the first filter that says so.
	failing [filterCount]int
	// stale is set when nodes came, went or changed branch: the view is built anew when it is next used.
	stale bool
}

// position is a node's place in a view.
type position struct {
	leaf *leaf
	rank int32
	// static is the first of the filters from plugin to gpus that the node fails, none if it passes them.
	static Filter
	// fails is what keeps the node from being a member: ready before static.
	fails Filter
}

// member says whether the node is found by walking the leaf.
func (p *position) member() bool { return p.leaf != nil && p.fails == filterNone }

// position gives where the node of that slot is, nowhere for one that is not known.
func (v *view) position(slot int32) *position {
	if int(slot) >= len(v.where) {
		return &position{}
	}
	return &v.where[slot]
}

// branch is one value of a spread preference, or at the root all nodes.
type branch struct {
	value    string
	children []*branch // by value; none in a leaf
	leaf     *leaf     // nil above
	// tasks is scratch of the placement under way: this service's tasks in the branch.
	tasks int
}

// rules are the parts of a task that its view depends on.
type rules struct {
	constraints []Constraint
	platforms   []swarm.Platform
	plugins     []plugin
	dataPlane   bool // the task is reached by the mesh
	needs       cluster.Allowance
	spread      []string // the descriptors that are honoured, from the first preference to the last
}

// plugin is a driver that a task needs on its node.
type plugin struct{ kind, name string }

// The kinds of plugins, as engines report them.
const (
	pluginVolume  = "Volume"
	pluginNetwork = "Network"
	pluginLog     = "Log"
)

// viewKey writes what a view depends on as a string without parsing anything, for it is needed with every group.
func viewKey(t *cluster.Task, plugins []plugin, dataPlane bool) string {
	p, needs := t.Spec.Placement, cluster.Needs(t.Spec.ContainerSpec)
	if len(plugins) == 0 && !dataPlane && needs == (cluster.Allowance{}) && (p == nil || len(p.Constraints)+len(p.Preferences)+len(p.Platforms) == 0) {
		return ""
	}
	b := make([]byte, 0, 128)
	item := func(tag byte, parts ...string) {
		b = append(b, tag)
		for _, s := range parts {
			b = append(append(strconv.AppendInt(b, int64(len(s)), 10), ':'), s...)
		}
	}
	if dataPlane {
		item('d')
	}
	if needs != (cluster.Allowance{}) {
		item('a', needs.String())
	}
	for _, g := range plugins {
		item('g', g.kind, g.name)
	}
	if p != nil {
		for _, c := range p.Constraints {
			item('c', c)
		}
		for _, f := range p.Platforms {
			item('p', f.Architecture, f.OS)
		}
		for _, s := range p.Preferences {
			if s.Spread != nil {
				item('s', s.Spread.SpreadDescriptor)
			}
		}
	}
	return string(b)
}

// rulesOf parses the same parts. Constraints that do not parse hold nobody back, as in Swarm.
func rulesOf(t *cluster.Task, plugins []plugin, dataPlane bool) rules {
	r := rules{plugins: plugins, dataPlane: dataPlane, needs: cluster.Needs(t.Spec.ContainerSpec)}
	p := t.Spec.Placement
	if p == nil {
		return r
	}
	if cs, err := ParseConstraints(p.Constraints); err == nil {
		r.constraints = cs
	}
	r.platforms = p.Platforms
	for _, s := range p.Preferences {
		if s.Spread == nil {
			continue
		}
		if d := s.Spread.SpreadDescriptor; hasLabelPrefix(d, nodeLabelPrefix) || hasLabelPrefix(d, engineLabelPrefix) {
			r.spread = append(r.spread, d)
		}
	}
	return r
}

// pluginsOf lists the drivers the task needs, in the order in which Swarm looks at them: volumes, networks, logs.
func pluginsOf(t *cluster.Task) []plugin {
	var ps []plugin
	need := func(kind, name string) {
		if p := (plugin{kind, name}); name != "" && !slices.Contains(ps, p) {
			ps = append(ps, p)
		}
	}
	if c := t.Spec.ContainerSpec; c != nil {
		for i := range c.Mounts {
			m := &c.Mounts[i]
			if m.Type == "volume" && m.VolumeOptions != nil && m.VolumeOptions.DriverConfig != nil &&
				m.VolumeOptions.DriverConfig.Name != "local" {
				need(pluginVolume, m.VolumeOptions.DriverConfig.Name)
			}
		}
	}
	for i := range t.NetworksAttachments {
		// Overlay networks are the cluster's own work and present on every node.
		if name := t.NetworksAttachments[i].Network.DriverState.Name; name != "overlay" {
			need(pluginNetwork, name)
		}
	}
	if d := t.Spec.LogDriver; d != nil && d.Name != "none" {
		need(pluginLog, d.Name)
	}
	return ps
}

// viewOf gives the view of a task's service, up to date.
func (a *Accounts) viewOf(t *cluster.Task) *view {
	plugins, dataPlane := pluginsOf(t), a.NeedsDataPlane(t.Spec.Networks, t.Endpoint)
	key := viewKey(t, plugins, dataPlane)
	at := slices.IndexFunc(a.views, func(v *view) bool { return v.key == key })
	if at < 0 {
		if len(a.views) < maxViews {
			a.views = append(a.views, nil)
		}
		at = len(a.views) - 1
		a.views[at] = &view{key: key, rules: rulesOf(t, plugins, dataPlane), stale: true}
	}
	v := a.views[at]
	copy(a.views[1:], a.views[:at])
	a.views[0] = v
	if v.stale {
		v.build(a)
	}
	return v
}

// build fills the view from nothing.
func (v *view) build(a *Accounts) {
	v.root, v.failing, v.stale = branch{}, [filterCount]int{}, false
	v.where = make([]position, len(a.slots))
	nodes := a.sorted()
	for _, nd := range nodes {
		l := v.root.descend(v.rules.spread, nd.obj)
		v.where[nd.slot] = position{leaf: l, rank: int32(len(l.nodes))}
		l.nodes = append(l.nodes, nd)
	}
	if len(v.rules.spread) == 0 && v.root.leaf == nil {
		v.root.leaf = &leaf{}
	}
	for _, nd := range nodes {
		v.admit(nd)
	}
}

// descend gives the leaf for the node, growing the tree where needed. A node without the label belongs to the branch
// of the empty value.
func (b *branch) descend(spread []string, n *cluster.Node) *leaf {
	for _, d := range spread {
		value, _ := label(d, n)
		i, found := slices.BinarySearchFunc(b.children, value, func(c *branch, v string) int { return strings.Compare(c.value, v) })
		if !found {
			b.children = slices.Insert(b.children, i, &branch{value: value})
		}
		b = b.children[i]
	}
	if b.leaf == nil {
		b.leaf = &leaf{}
	}
	return b.leaf
}

// at gives the leaf where the node belongs, nil if there is none yet.
func (b *branch) at(spread []string, n *cluster.Node) *leaf {
	for _, d := range spread {
		value, _ := label(d, n)
		i, found := slices.BinarySearchFunc(b.children, value, func(c *branch, v string) int { return strings.Compare(c.value, v) })
		if !found {
			return nil
		}
		b = b.children[i]
	}
	return b.leaf
}

// admit decides whether the node is a member and counts it among the failing ones if not.
func (v *view) admit(nd *node) {
	p := &v.where[nd.slot]
	p.static = v.rules.failing(nd.obj)
	if p.fails = p.static; !nd.ready {
		p.fails = FilterReady
	}
	if p.fails == filterNone {
		p.leaf.add(p.rank, nd.active)
	} else {
		v.failing[p.fails]++
	}
}

// changed observes a node that was known before and still is.
func (v *view) changed(nd *node) {
	if v.stale {
		return
	}
	p := &v.where[nd.slot]
	if v.root.at(v.rules.spread, nd.obj) != p.leaf {
		v.stale = true
		return
	}
	if p.fails == filterNone {
		p.leaf.remove(p.rank, nd.active)
	} else {
		v.failing[p.fails]--
	}
	v.admit(nd)
}

// moved observes that the node's number of active tasks changed from what it was.
func (v *view) moved(nd *node, from int32) {
	if v.stale || int(nd.slot) >= len(v.where) {
		return
	}
	if p := &v.where[nd.slot]; p.member() {
		p.leaf.move(p.rank, from, nd.active)
	}
}
