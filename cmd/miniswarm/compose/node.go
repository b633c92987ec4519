package compose

import (
	"errors"
	"slices"

	"gopkg.in/yaml.v3"
)

// maxNodes bounds what anchors may unfold to.
const maxNodes = 200_000

var errTooLarge = errors.New("the anchors of the file unfold to more than a stack can need")

// expand gives a copy of the document in which aliases and merge keys are written out. Every part keeps the line where it
// is written.
func expand(n *yaml.Node) (*yaml.Node, error) {
	left := maxNodes
	return unfold(n, &left)
}

func unfold(n *yaml.Node, left *int) (*yaml.Node, error) {
	if *left--; *left < 0 {
		return nil, errTooLarge
	}
	if n.Kind == yaml.AliasNode {
		return unfold(n.Alias, left)
	}
	out := *n
	out.Content, out.Anchor, out.Alias = nil, "", nil
	if n.Kind != yaml.MappingNode {
		for _, c := range n.Content {
			c, err := unfold(c, left)
			if err != nil {
				return nil, err
			}
			out.Content = append(out.Content, c)
		}
		return &out, nil
	}
	var merged []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		v, err := unfold(n.Content[i+1], left)
		if err != nil {
			return nil, err
		}
		switch key := n.Content[i]; {
		case key.Tag != "!!merge":
			k, err := unfold(key, left)
			if err != nil {
				return nil, err
			}
			out.Content = append(out.Content, k, v)
		case v.Kind == yaml.SequenceNode:
			merged = append(merged, v.Content...)
		default:
			merged = append(merged, v)
		}
	}
	for _, m := range merged { // what is written here, and what is merged first, counts
		if m.Kind != yaml.MappingNode {
			return nil, errors.New("map merge requires map or sequence of maps as the value")
		}
		for i := 0; i+1 < len(m.Content); i += 2 {
			if get(&out, m.Content[i].Value) == nil {
				out.Content = append(out.Content, m.Content[i], m.Content[i+1])
			}
		}
	}
	return &out, nil
}

// clone copies a document that has no aliases.
func clone(n *yaml.Node) *yaml.Node {
	out := *n
	out.Content = make([]*yaml.Node, len(n.Content))
	for i, c := range n.Content {
		out.Content[i] = clone(c)
	}
	return &out
}

// find gives the index of a key in a mapping, or -1.
func find(m *yaml.Node, key string) int {
	if m != nil && m.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(m.Content); i += 2 {
			if m.Content[i].Value == key {
				return i
			}
		}
	}
	return -1
}

// get follows keys from mapping to mapping; nil where there is nothing.
func get(m *yaml.Node, keys ...string) *yaml.Node {
	for _, key := range keys {
		i := find(m, key)
		if i < 0 {
			return nil
		}
		m = m.Content[i+1]
	}
	return m
}

func remove(m *yaml.Node, key string) {
	if i := find(m, key); i >= 0 {
		m.Content = slices.Delete(m.Content, i, i+2)
	}
}

// put sets a key of a mapping. line is where the value comes from.
func put(m *yaml.Node, key string, v *yaml.Node, line int) {
	if i := find(m, key); i >= 0 {
		m.Content[i+1] = v
		return
	}
	m.Content = append(m.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: key, Line: line}, v)
}

// child gives the mapping under a path of keys, made where there is none yet; nil if something else is in its place.
func child(m *yaml.Node, line int, keys ...string) *yaml.Node {
	for _, key := range keys {
		next := get(m, key)
		if next == nil || next.Tag == "!!null" {
			next = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: line}
			put(m, key, next, line)
		}
		if next.Kind != yaml.MappingNode {
			return nil
		}
		m = next
	}
	return m
}

func str(value string, line int) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: value, Line: line, Style: yaml.DoubleQuotedStyle}
}

func list(line int, items ...*yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Line: line, Content: items}
}

// pairs yields the keys and values of a mapping as they were when the call was made, so that they may be changed meanwhile.
func pairs(m *yaml.Node) func(func(k, v *yaml.Node) bool) {
	return func(yield func(k, v *yaml.Node) bool) {
		if m == nil || m.Kind != yaml.MappingNode {
			return
		}
		all := slices.Clone(m.Content)
		for i := 0; i+1 < len(all); i += 2 {
			if !yield(all[i], all[i+1]) {
				return
			}
		}
	}
}
