package scheduler

import (
	"maps"
	"slices"

	"github.com/docker/docker/api/types/swarm"
)

// genericAccount is one kind of a node's generic resources. A node has a kind either as a number of alike pieces or as
// a set of names; requests are always numbers. What was taken is kept beside what there is and never netted, so that a
// node may report other resources at any time.
type genericAccount struct {
	named bool
	names []string // what there is, in the order the node reported
	count int64    // what there is, if not named

	takenNames map[string]int64
	taken      int64
}

// left is how much can still be claimed.
func (g *genericAccount) left() int64 {
	if g == nil {
		return 0
	}
	if !g.named {
		return max(0, g.count-g.taken)
	}
	n := int64(0)
	for _, name := range g.names {
		if g.takenNames[name] <= 0 {
			n++
		}
	}
	return n
}

func (g *genericAccount) total() int64 {
	switch {
	case g == nil:
		return 0
	case g.named:
		return int64(len(g.names))
	}
	return g.count
}

func (g *genericAccount) empty() bool {
	return len(g.names) == 0 && g.count == 0 && len(g.takenNames) == 0 && g.taken == 0
}

func (nd *node) genericOf(kind string) *genericAccount {
	g := nd.generic[kind]
	if g == nil {
		if nd.generic == nil {
			nd.generic = make(map[string]*genericAccount)
		}
		g = &genericAccount{}
		nd.generic[kind] = g
	}
	return g
}

// setGenericCapacity replaces what there is. Should a node report a kind both ways, the first entry decides.
func (nd *node) setGenericCapacity(resources []swarm.GenericResource) {
	for _, g := range nd.generic {
		g.named, g.names, g.count = false, nil, 0
	}
	seen := make(map[string]bool, len(resources))
	for _, r := range resources {
		switch {
		case r.NamedResourceSpec != nil:
			g := nd.genericOf(r.NamedResourceSpec.Kind)
			if seen[r.NamedResourceSpec.Kind] && !g.named || slices.Contains(g.names, r.NamedResourceSpec.Value) {
				continue
			}
			seen[r.NamedResourceSpec.Kind] = true
			g.named, g.names = true, append(g.names, r.NamedResourceSpec.Value)
		case r.DiscreteResourceSpec != nil:
			g := nd.genericOf(r.DiscreteResourceSpec.Kind)
			if seen[r.DiscreteResourceSpec.Kind] && g.named {
				continue
			}
			seen[r.DiscreteResourceSpec.Kind] = true
			g.count += r.DiscreteResourceSpec.Value
		}
	}
	maps.DeleteFunc(nd.generic, func(_ string, g *genericAccount) bool { return g.empty() })
}

// claim takes (sign 1) or gives back (sign -1) what a task was given.
func (nd *node) claim(claims []swarm.GenericResource, sign int64) {
	for _, r := range claims {
		var kind string
		switch {
		case r.NamedResourceSpec != nil:
			kind = r.NamedResourceSpec.Kind
			g := nd.genericOf(kind)
			if g.takenNames == nil {
				g.takenNames = make(map[string]int64)
			}
			g.takenNames[r.NamedResourceSpec.Value] += sign
			if g.takenNames[r.NamedResourceSpec.Value] == 0 {
				delete(g.takenNames, r.NamedResourceSpec.Value)
			}
		case r.DiscreteResourceSpec != nil:
			kind = r.DiscreteResourceSpec.Kind
			nd.genericOf(kind).taken += sign * r.DiscreteResourceSpec.Value
		default:
			continue
		}
		if nd.generic[kind].empty() {
			delete(nd.generic, kind)
		}
	}
}

// genericRequest is how much of one kind a task asks for.
type genericRequest struct {
	kind string
	n    int64
}

// genericRequests adds up what a task asks for. bad is true where the list holds a name, which no node can satisfy.
func genericRequests(resources []swarm.GenericResource) (reqs []genericRequest, bad bool) {
	for _, r := range resources {
		d := r.DiscreteResourceSpec
		if d == nil {
			return nil, true
		}
		if i := slices.IndexFunc(reqs, func(q genericRequest) bool { return q.kind == d.Kind }); i >= 0 {
			reqs[i].n += d.Value
			continue
		}
		reqs = append(reqs, genericRequest{d.Kind, d.Value})
	}
	return reqs, false
}

// choose picks what satisfies the requests on this node: the first free names, or a number. The node must have enough.
func (nd *node) choose(reqs []genericRequest) []swarm.GenericResource {
	var out []swarm.GenericResource
	for _, q := range reqs {
		g := nd.generic[q.kind]
		if g == nil || q.n <= 0 {
			continue
		}
		if !g.named {
			out = append(out, swarm.GenericResource{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: q.kind, Value: q.n}})
			continue
		}
		need := q.n
		for _, name := range g.names {
			if need == 0 {
				break
			}
			if g.takenNames[name] <= 0 {
				out = append(out, swarm.GenericResource{NamedResourceSpec: &swarm.NamedGenericResource{Kind: q.kind, Value: name}})
				need--
			}
		}
	}
	return out
}
