package scheduler

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/swarm"
	"github.com/miniswarm/miniswarm/cluster"
)

// The functions here repeat the filters of filter.go at leisure, with words. A test holds them to the same answers.

func (d *demand) resourceVerdict(nd *node) (Filter, bool, string) {
	passed := !d.bad
	var parts []string
	judge := func(free, need int64, format func(int64) string, what string) {
		ok := pieces(free, need) > 0
		passed = passed && ok
		if need != 0 || !ok {
			n, f := format(need), format(free)
			if !ok && n == f {
				n, f = strconv.FormatInt(need, 10), strconv.FormatInt(free, 10) // they differ by less than rounding shows
			}
			parts = append(parts, fmt.Sprintf("needs %s%s, %s free", n, what, f))
		}
	}
	judge(nd.cpu-nd.usedCPU, d.cpu, cpus, " CPU")
	judge(nd.mem-nd.usedMem, d.mem, size, "")
	for _, q := range d.generic {
		g := nd.generic[q.kind]
		left := g.left()
		passed = passed && left > 0 && q.n <= left
		parts = append(parts, fmt.Sprintf("needs %d %s, %d of %d free", q.n, q.kind, left, g.total()))
	}
	if d.bad {
		parts = append(parts, "generic resources can only be reserved by number")
	}
	return FilterResource, passed, strings.Join(parts, "; ")
}

// cpus writes billionths of a CPU as CPUs.
func cpus(nano int64) string { return strconv.FormatFloat(float64(nano)/1e9, 'g', 6, 64) }

// size writes bytes in the largest binary unit that leaves a number of at least 1.
func size(bytes int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	v, u := float64(bytes), 0
	for math.Abs(tenths(v)) >= 1024 && u < len(units)-1 {
		v, u = v/1024, u+1
	}
	return strconv.FormatFloat(tenths(v), 'f', -1, 64) + " " + units[u]
}

func tenths(v float64) float64 { return math.Round(v*10) / 10 }

func (r *rules) pluginVerdict(n *cluster.Node) (Filter, bool, string) {
	var missing, found []string
	for _, p := range r.plugins {
		text := strings.ToLower(p.kind) + " plugin " + p.name
		if hasPlugin(p, n) {
			found = append(found, text)
		} else {
			missing = append(missing, text)
		}
	}
	if len(missing) > 0 {
		return FilterPlugin, false, "lacks " + strings.Join(missing, ", ")
	}
	return FilterPlugin, true, "has " + strings.Join(found, ", ")
}

func (r *rules) constraintVerdict(n *cluster.Node) (Filter, bool, string) {
	var unmet, met []string
	for _, c := range r.constraints {
		if c.Matches(n) {
			met = append(met, c.String())
		} else {
			unmet = append(unmet, c.explain(n))
		}
	}
	if len(unmet) > 0 {
		return FilterConstraint, false, strings.Join(unmet, "; ")
	}
	return FilterConstraint, true, strings.Join(met, ", ")
}

func (r *rules) platformVerdict(n *cluster.Node) (Filter, bool, string) {
	have := n.Description.Platform
	names := make([]string, len(r.platforms))
	for i, p := range r.platforms {
		if runs(p, have) {
			return FilterPlatform, true, "is " + platformName(have)
		}
		names[i] = platformName(p)
	}
	return FilterPlatform, false, fmt.Sprintf("is %s, the image is for %s", platformName(have), strings.Join(names, ", "))
}

func platformName(p swarm.Platform) string {
	if p == (swarm.Platform{}) {
		return "of unknown platform"
	}
	return orAny(p.OS) + "/" + orAny(architecture(p.Architecture))
}

func orAny(s string) string {
	if s == "" {
		return "any"
	}
	return s
}

func dataPlaneVerdict(n *cluster.Node) (Filter, bool, string) {
	if n.NoDataPlane {
		return FilterDataPlane, false, "its daemon runs without a data plane, so that no published port and no overlay network reaches it"
	}
	return FilterDataPlane, true, "has a data plane"
}

// allowanceVerdicts are those of the filters privileged, devices and gpus that the task enables.
func (r *rules) allowanceVerdicts(n *cluster.Node) []Verdict {
	allowed, detail := cluster.Allowed(n), "the node allows nothing beyond the ordinary"
	if allowed != (cluster.Allowance{}) {
		detail = "the node allows " + allowed.String()
	}
	var vs []Verdict
	for _, q := range []struct {
		filter       Filter
		needed, have bool
	}{{FilterPrivileged, r.needs.Privileged, allowed.Privileged}, {FilterDevices, r.needs.Devices, allowed.Devices}, {FilterGPUs, r.needs.GPUs, allowed.GPUs}} {
		if q.needed {
			vs = append(vs, Verdict{q.filter, q.have, detail})
		}
	}
	return vs
}

func (d *demand) portVerdict(nd *node) (Filter, bool, string) {
	var held, free []string
	for _, p := range d.ports {
		text := fmt.Sprintf("host port %d/%s", p.port, p.protocol)
		if hs := nd.ports[p]; len(hs) > 0 {
			h := hs[0]
			switch {
			case h.task == "":
				text += " given to service " + h.service + " in this pass"
			case h.service == "":
				text += " held by task " + h.task
			default:
				text += " held by service " + h.service + " task " + h.task
			}
			held = append(held, text)
			continue
		}
		free = append(free, text)
	}
	if len(held) > 0 {
		return FilterHostPort, false, strings.Join(held, "; ")
	}
	return FilterHostPort, true, strings.Join(free, ", ") + " free"
}
