package scheduler

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/swarm"
	"github.com/miniswarm/miniswarm/cluster"
)

// Filter names one reason for which a node may be ruled out. The order is that in which Swarm asks; it stops at the
// first that fails, and its explanations count that one.
type Filter uint8

// The filters, in Swarm's order.
const (
	filterNone Filter = iota
	// FilterReady wants the node's state READY and its availability active.
	FilterReady
	// FilterResource wants the reserved CPU, memory and generic resources to be free.
	FilterResource
	// FilterPlugin wants the drivers of volumes, networks and logs.
	FilterPlugin
	// FilterConstraint wants all placement constraints to match.
	FilterConstraint
	// FilterPlatform wants the node's platform to be one that the image has.
	FilterPlatform
	// FilterDataPlane wants the node to run a data plane if the task is reached by the mesh: through a port that every node
	// publishes, or on an overlay network. It is miniswarm's own.
	FilterDataPlane
	// FilterPrivileged, FilterDevices and FilterGPUs want the node to allow what the task asks for of these, which is
	// miniswarm's own (see [cluster.LabelAllow]).
	FilterPrivileged
	FilterDevices
	FilterGPUs
	// FilterHostPort wants the ports published in host mode to be free on the node.
	FilterHostPort
	// FilterMaxReplicas wants fewer tasks of the service on the node than the limit per node.
	FilterMaxReplicas

	filterCount
)

var filterNames = [filterCount]string{
	FilterReady: "ready", FilterResource: "resource", FilterPlugin: "plugin", FilterConstraint: "constraint",
	FilterPlatform: "platform", FilterDataPlane: "data-plane", FilterPrivileged: "privileged", FilterDevices: "devices", FilterGPUs: "gpus", FilterHostPort: "host-port", FilterMaxReplicas: "max-replicas",
}

func (f Filter) String() string {
	if f > filterNone && f < filterCount {
		return filterNames[f]
	}
	return "filter(" + strconv.Itoa(int(f)) + ")"
}

// MarshalText gives the filter's name, for JSON.
func (f Filter) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText accepts a filter's name.
func (f *Filter) UnmarshalText(text []byte) error {
	for i, name := range filterNames {
		if name != "" && name == string(text) {
			*f = Filter(i)
			return nil
		}
	}
	return fmt.Errorf("unknown scheduler filter %q", text)
}

// words says that n nodes failed the filter, as Swarm says it.
func (f Filter) words(n int) string {
	nodes := "1 node"
	if n != 1 {
		nodes = strconv.Itoa(n) + " nodes"
	}
	switch f {
	case FilterReady:
		return nodes + " not available for new tasks"
	case FilterResource:
		return "insufficient resources on " + nodes
	case FilterPlugin:
		return "missing plugin on " + nodes
	case FilterConstraint:
		return "scheduling constraints not satisfied on " + nodes
	case FilterPlatform:
		return "unsupported platform on " + nodes
	case FilterDataPlane:
		return "no data plane on " + nodes
	case FilterPrivileged:
		return "node does not allow privileged containers (" + nodes + ")"
	case FilterDevices:
		return "node does not allow devices (" + nodes + ")"
	case FilterGPUs:
		return "node does not allow GPUs (" + nodes + ")"
	case FilterHostPort:
		return "host-mode port already in use on " + nodes
	case FilterMaxReplicas:
		return "max replicas per node limit exceed"
	}
	return ""
}

// tally counts nodes by the first filter they failed.
type tally [filterCount]int

// String lists the failures in Swarm's words, most first.
func (c *tally) String() string {
	var fs []Filter
	for f, n := range c {
		if n > 0 {
			fs = append(fs, Filter(f))
		}
	}
	slices.SortStableFunc(fs, func(a, b Filter) int { return cmp.Compare(c[b], c[a]) })
	parts := make([]string, len(fs))
	for i, f := range fs {
		parts[i] = f.words(c[f])
	}
	return strings.Join(parts, "; ")
}

// demand is what a task asks of a node, worked out once for a group.
type demand struct {
	serviceID string
	service   *service // nil: no active task yet
	view      *view

	resources bool // anything is reserved
	cpu, mem  int64
	generic   []genericRequest
	bad       bool // the request for generic resources can be satisfied nowhere
	ports     []hostPort
	max       int64 // 0: no limit
	// holder is who host ports are booked for.
	holder portHolder
	// key is by what the group is remembered while it fits nowhere.
	key pendingKey
}

func (a *Accounts) demandOf(t *cluster.Task) *demand {
	d := &demand{
		serviceID: t.ServiceID, service: a.services[t.ServiceID], view: a.viewOf(t),
		holder: portHolder{service: t.ServiceAnnotations.Name},
	}
	d.key = pendingKey{versionOf(t), d.view.key}
	if r := reservations(t); r != nil && (r.NanoCPUs != 0 || r.MemoryBytes != 0 || len(r.GenericResources) > 0) {
		d.resources, d.cpu, d.mem = true, r.NanoCPUs, r.MemoryBytes
		d.generic, d.bad = genericRequests(r.GenericResources)
	}
	if t.Endpoint != nil {
		for _, p := range t.Endpoint.Ports {
			if hp, ok := publishedOnHost(p); ok {
				d.ports = append(d.ports, hp)
			}
		}
	}
	if p := t.Spec.Placement; p != nil && p.MaxReplicas > 0 {
		d.max = int64(min(p.MaxReplicas, math.MaxInt32))
	}
	return d
}

// equal says whether both ask the same of a node.
func (d *demand) equal(o *demand) bool {
	return d.cpu == o.cpu && d.mem == o.mem && d.resources == o.resources && d.bad == o.bad && d.max == o.max &&
		slices.Equal(d.generic, o.generic) && slices.Equal(d.ports, o.ports)
}

// unlimited stands for any number of tasks.
const unlimited = math.MaxInt32

// room is how many tasks the node can take now as far as the filters can tell that depend on what it already runs,
// and which of them fails first after that many.
func (d *demand) room(nd *node, serviceTasks int32) (int32, Filter) {
	room, first := int64(unlimited), filterNone
	limit := func(f Filter, n int64) {
		if n = max(n, 0); n < room {
			room, first = n, f
		}
	}
	if d.resources {
		limit(FilterResource, pieces(nd.cpu-nd.usedCPU, d.cpu))
		limit(FilterResource, pieces(nd.mem-nd.usedMem, d.mem))
		for _, q := range d.generic {
			left := nd.generic[q.kind].left()
			if left == 0 {
				left = -1 // asking for none of what is used up fails too, as in Swarm
			}
			limit(FilterResource, pieces(left, q.n))
		}
		if d.bad {
			limit(FilterResource, 0)
		}
	}
	if len(d.ports) > 0 {
		limit(FilterHostPort, 1)
		for _, p := range d.ports {
			if len(nd.ports[p]) > 0 {
				limit(FilterHostPort, 0)
			}
		}
	}
	if d.max > 0 {
		limit(FilterMaxReplicas, d.max-int64(serviceTasks))
	}
	return int32(room), first
}

// pieces is how often need fits into free. Nothing fits where more was taken than there is, not even nothing: Swarm
// gives no reserving task to a node that is in debt.
func pieces(free, need int64) int64 {
	switch {
	case free < 0:
		return 0
	case need <= 0:
		return unlimited
	}
	return free / need
}

// failing is the first filter that the node fails, none if it passes all.
func (d *demand) failing(nd *node) Filter {
	if !nd.ready {
		return FilterReady
	}
	room, first := d.room(nd, d.service.count(nd.slot))
	if room > 0 {
		first = filterNone
	}
	// The filters that the view has answered stand between resource and host port.
	if static := d.view.where[nd.slot].static; static != filterNone && first != FilterResource {
		return static
	}
	return first
}

// failing is the first of the filters plugin, constraint, platform, data plane and what is to be allowed that the node fails.
func (r *rules) failing(n *cluster.Node) Filter {
	if len(r.plugins) > 0 {
		for _, p := range r.plugins {
			if !hasPlugin(p, n) {
				return FilterPlugin
			}
		}
	}
	if !meetsAll(r.constraints, n) {
		return FilterConstraint
	}
	if len(r.platforms) > 0 && !slices.ContainsFunc(r.platforms, func(p swarm.Platform) bool {
		return runs(p, n.Description.Platform)
	}) {
		return FilterPlatform
	}
	if r.dataPlane && n.NoDataPlane {
		return FilterDataPlane
	}
	return r.forbidden(n)
}

// forbidden is the first of the filters privileged, devices and gpus that the node fails.
func (r *rules) forbidden(n *cluster.Node) Filter {
	if r.needs == (cluster.Allowance{}) {
		return filterNone
	}
	switch allowed := cluster.Allowed(n); {
	case r.needs.Privileged && !allowed.Privileged:
		return FilterPrivileged
	case r.needs.Devices && !allowed.Devices:
		return FilterDevices
	case r.needs.GPUs && !allowed.GPUs:
		return FilterGPUs
	}
	return filterNone
}

// hasPlugin says whether the node's engine reports the plugin. A node that has not described its engine is not held to
// it, nor, for logs, one that reports no log plugin at all.
func hasPlugin(want plugin, n *cluster.Node) bool {
	e := &n.Description.Engine
	if e.EngineVersion == "" && len(e.Labels) == 0 && len(e.Plugins) == 0 {
		return true
	}
	reports := false
	for _, p := range e.Plugins {
		if p.Type != want.kind {
			continue
		}
		if reports = true; p.Name == want.name || p.Name == want.name+":latest" {
			return true
		}
	}
	return want.kind == pluginLog && !reports
}

// runs says whether a node of platform have can run an image for platform want, of which empty parts fit anything. A
// node that has not reported its platform can run none.
func runs(want, have swarm.Platform) bool {
	if have == (swarm.Platform{}) {
		return false
	}
	return (want.Architecture == "" || architecture(want.Architecture) == architecture(have.Architecture)) &&
		(want.OS == "" || want.OS == have.OS)
}

// architecture gives the name that image manifests use for what kernels call differently.
func architecture(name string) string {
	switch name {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	}
	return name
}
