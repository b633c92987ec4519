package fake

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// Instance is a container as it is, whatever the engine would say about it.
type Instance struct {
	ID, Name, Image string
	Labels          map[string]string
	Running         bool
	// Started is when it was last started, zero if it does not run.
	Started time.Time
	// Addresses are those it was given, by network.
	Addresses map[string]string
}

// Instances lists all containers, by name. Unlike List it sees them also while the engine is away or hangs.
func (e *Engine) Instances() []Instance {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []Instance
	for _, c := range e.containers {
		i := Instance{ID: c.id, Name: c.want.Name, Image: c.want.Config.Image, Labels: maps.Clone(c.want.Config.Labels), Running: c.state.Running, Addresses: map[string]string{}}
		if c.state.Running {
			i.Started, _ = time.Parse(time.RFC3339Nano, c.state.StartedAt)
		}
		for _, n := range c.want.Networks {
			if n.Endpoint.IPAMConfig != nil {
				i.Addresses[n.Network] = n.Endpoint.IPAMConfig.IPv4Address
			}
		}
		out = append(out, i)
	}
	slices.SortFunc(out, func(a, b Instance) int { return cmp.Compare(a.Name, b.Name) })
	return out
}
