package sim

import (
	"fmt"

	"github.com/anishathalye/porcupine"
)

// The histories of clients are held against this model: configs by name, each with an id, a version and a label. It is what
// Docker's API promises of an object: an update is carried out only by who saw the version that it replaces.

type verb string

const (
	create verb = "create"
	read   verb = "read"
	update verb = "update"
	remove verb = "remove"
)

// call is what a client asked.
type call struct {
	verb    verb
	name    string
	id      string // of update and remove
	version uint64 // of update
	label   string // that create and update set
}

// outcome is what it was told.
type outcome struct {
	kind    string // "ok", "absent", "exists", "stale", or "" for no answer
	id      string
	version uint64
	label   string
}

// object is the state of one name. A version of 0 is not known yet, but above after.
type object struct {
	exists         bool
	id             string // "" is not known yet
	version, after uint64
	label          string
}

func (o object) is(id string) bool { return o.exists && (o.id == "" || o.id == id) }

func (o object) at(version uint64) bool {
	return o.version == version || o.version == 0 && version > o.after
}

func step(o object, c call, out outcome) (bool, object) {
	switch {
	case c.verb == create && out.kind == "ok":
		return !o.exists, object{exists: true, id: out.id, label: c.label, after: max(o.after, o.version)}
	case c.verb == create && out.kind == "exists":
		return o.exists, o
	case c.verb == create: // no answer
		if !o.exists {
			o = object{exists: true, label: c.label, after: max(o.after, o.version)}
		}
		return true, o
	case c.verb == read && out.kind == "absent":
		return !o.exists, o
	case c.verb == read:
		ok := o.is(out.id) && o.at(out.version) && o.label == out.label
		o.id, o.version = out.id, out.version
		return ok, o
	case c.verb == update && out.kind == "ok":
		return o.is(c.id) && o.at(c.version), object{exists: true, id: c.id, label: c.label, after: c.version}
	case c.verb == update && out.kind == "stale":
		return o.is(c.id) && o.version != c.version, o
	case c.verb == update && out.kind == "absent", c.verb == remove && out.kind == "absent":
		return !o.exists || o.id != c.id, o
	case c.verb == update:
		if o.is(c.id) && o.at(c.version) {
			o = object{exists: true, id: c.id, label: c.label, after: c.version}
		}
		return true, o
	case c.verb == remove && out.kind == "ok":
		return o.is(c.id), object{after: max(o.after, o.version)}
	case c.verb == remove:
		if o.is(c.id) {
			o = object{after: max(o.after, o.version)}
		}
		return true, o
	}
	return false, o
}

var registers = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byName := map[string][]porcupine.Operation{}
		for _, op := range history {
			n := op.Input.(call).name
			byName[n] = append(byName[n], op)
		}
		var parts [][]porcupine.Operation
		for _, ops := range byName {
			parts = append(parts, ops)
		}
		return parts
	},
	Init: func() any { return object{} },
	Step: func(state, input, output any) (bool, any) {
		return step(state.(object), input.(call), output.(outcome))
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v -> %+v", input, output) },
	DescribeState:     func(state any) string { return fmt.Sprintf("%+v", state) },
}
