package raftstore

import (
	"encoding/binary"
	"fmt"
	"reflect"
	"sync"

	"github.com/miniswarm/miniswarm/cluster"
)

// An entry of the log that carries a transaction is
//
//	version (1 byte) | proposal id (16 bytes) | transaction
//
// and a transaction is
//
//	time | number of guards, (kind, index) each | number of changes, changes
//
// A change is action, kind, flags (1 byte each), id unless the object has it, version if not 0, then the object or patch
// as its [plan] writes it.
const (
	txnVersion    = 1
	entryOverhead = 1 + 16
)

const (
	changeHasObject byte = 1 << iota
	changeHasID
	changeHasVersion
	changeHasTaskPatch
	changeHasNodePatch
)

// proposalID names a proposal for ever: boot is drawn at random when a store is opened.
type proposalID struct{ boot, seq uint64 }

func (id proposalID) append(b []byte) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, id.boot), id.seq)
}

func parseProposalID(b []byte) proposalID {
	return proposalID{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
}

// encoders are reused because a transaction is encoded for every write.
var encoders = sync.Pool{New: func() any { return new(encoder) }}

// encodeEntry gives the data of the log entry for txn. It fails for a change that no reader would accept.
func encodeEntry(id proposalID, txn *cluster.Txn) ([]byte, error) {
	e := encoders.Get().(*encoder)
	defer func() {
		e.reset()
		encoders.Put(e)
	}()
	e.buf = make([]byte, 0, 256)
	e.buf = append(e.buf, txnVersion)
	e.buf = id.append(e.buf)
	e.time(txn.Time)
	e.uvarint(uint64(len(txn.Guards)))
	for _, g := range txn.Guards {
		e.buf = append(e.buf, byte(g.Kind))
		e.uvarint(g.Index)
	}
	e.uvarint(uint64(len(txn.Changes)))
	for i := range txn.Changes {
		if err := e.change(&txn.Changes[i]); err != nil {
			return nil, fmt.Errorf("encode change %d of %d: %w", i+1, len(txn.Changes), err)
		}
	}
	return e.buf, nil
}

func (e *encoder) change(c *cluster.Change) error {
	flags := byte(0)
	switch c.Action {
	case cluster.Create, cluster.Update:
		if c.Object == nil || reflect.ValueOf(c.Object).IsNil() {
			return fmt.Errorf("%s of %s %q without an object", c.Action, c.Kind, c.ID)
		}
		if c.Object.Kind() != c.Kind {
			return fmt.Errorf("%s of %s %q with a %s", c.Action, c.Kind, c.ID, c.Object.Kind())
		}
		flags |= changeHasObject
	case cluster.Remove:
	case cluster.Patch:
		if c.Task != nil {
			flags |= changeHasTaskPatch
		}
		if c.Node != nil {
			flags |= changeHasNodePatch
		}
	default:
		return fmt.Errorf("%s of %s %q is not known", c.Action, c.Kind, c.ID)
	}
	if flags&changeHasObject == 0 || c.ID != c.Object.ObjectID() {
		flags |= changeHasID
	}
	if c.Version != 0 {
		flags |= changeHasVersion
	}
	e.buf = append(e.buf, byte(c.Action), byte(c.Kind), flags)
	if flags&changeHasID != 0 {
		e.string(c.ID)
	}
	if c.Version != 0 {
		e.uvarint(c.Version)
	}
	if flags&changeHasObject != 0 {
		e.object(c.Object)
	}
	if flags&changeHasTaskPatch != 0 {
		taskPatchPlan().encode(e, reflect.ValueOf(c.Task).Elem())
	}
	if flags&changeHasNodePatch != 0 {
		nodePatchPlan().encode(e, reflect.ValueOf(c.Node).Elem())
	}
	return nil
}

func (e *encoder) object(o cluster.Object) {
	objectPlans()[o.Kind()].encode(e, elemOf(o))
}

var (
	taskPatchPlan = sync.OnceValue(func() plan { return planOf(reflect.TypeFor[cluster.TaskPatch]()) })
	nodePatchPlan = sync.OnceValue(func() plan { return planOf(reflect.TypeFor[cluster.NodePatch]()) })
	objectPlans   = sync.OnceValue(func() map[cluster.Kind]plan {
		m := map[cluster.Kind]plan{}
		for _, k := range cluster.Kinds() {
			o, err := cluster.NewObject(k)
			if err != nil {
				panic(err) // Kinds lists what NewObject knows
			}
			m[k] = planOf(reflect.TypeOf(o).Elem())
		}
		return m
	})
)

// decodeEntry reads an entry's data. pool may be nil.
func decodeEntry(data []byte, pool *internPool) (proposalID, *cluster.Txn, error) {
	if len(data) < entryOverhead {
		return proposalID{}, nil, fmt.Errorf("an entry of %d bytes is too short", len(data))
	}
	if data[0] != txnVersion {
		return proposalID{}, nil, fmt.Errorf("an entry has format %d, this miniswarm reads format %d: upgrade it", data[0], txnVersion)
	}
	id := parseProposalID(data[1:])
	d := &decoder{data: data[entryOverhead:], pool: pool}
	txn, err := d.txn()
	if err == nil && d.left() != 0 {
		err = fmt.Errorf("%d bytes follow the transaction", d.left())
	}
	if err != nil {
		return id, nil, fmt.Errorf("decode transaction at byte %d of %d: %w", entryOverhead+d.off, len(data), err)
	}
	return id, txn, nil
}

func (d *decoder) txn() (*cluster.Txn, error) {
	txn := &cluster.Txn{}
	var err error
	if txn.Time, err = d.time(); err != nil {
		return nil, err
	}
	n, err := d.length()
	if err != nil {
		return nil, err
	}
	for range n {
		k, err := d.byte()
		if err != nil {
			return nil, err
		}
		index, err := d.uvarint()
		if err != nil {
			return nil, err
		}
		txn.Guards = append(txn.Guards, cluster.Guard{Kind: cluster.Kind(k), Index: index})
	}
	if n, err = d.length(); err != nil {
		return nil, err
	}
	txn.Changes = make([]cluster.Change, 0, min(n, d.left()/4+1))
	for range n {
		c, err := d.change()
		if err != nil {
			return nil, err
		}
		txn.Changes = append(txn.Changes, c)
	}
	return txn, nil
}

func (d *decoder) change() (cluster.Change, error) {
	head, err := d.take(3)
	if err != nil {
		return cluster.Change{}, err
	}
	c := cluster.Change{Action: cluster.Action(head[0]), Kind: cluster.Kind(head[1])}
	flags := head[2]
	if c.Action < cluster.Create || c.Action > cluster.Patch || flags >= changeHasNodePatch<<1 {
		return c, fmt.Errorf("change (%s, %s, flags %#x) is unknown: written by a newer version of miniswarm", c.Action, c.Kind, flags)
	}
	if hasObject := c.Action == cluster.Create || c.Action == cluster.Update; hasObject != (flags&changeHasObject != 0) {
		return c, fmt.Errorf("%s of %s has the wrong parts (flags %#x)", c.Action, c.Kind, flags)
	}
	if flags&changeHasID != 0 {
		if c.ID, err = d.string(); err != nil {
			return c, err
		}
	}
	if flags&changeHasVersion != 0 {
		if c.Version, err = d.uvarint(); err != nil {
			return c, err
		}
	}
	if flags&changeHasObject != 0 {
		if c.Object, err = d.object(c.Kind); err != nil {
			return c, err
		}
		if flags&changeHasID == 0 {
			c.ID = c.Object.ObjectID()
		}
	}
	if flags&changeHasTaskPatch != 0 {
		c.Task = &cluster.TaskPatch{}
		if err := taskPatchPlan().decode(d, reflect.ValueOf(c.Task).Elem()); err != nil {
			return c, err
		}
	}
	if flags&changeHasNodePatch != 0 {
		c.Node = &cluster.NodePatch{}
		if err := nodePatchPlan().decode(d, reflect.ValueOf(c.Node).Elem()); err != nil {
			return c, err
		}
	}
	return c, nil
}

func (d *decoder) object(k cluster.Kind) (cluster.Object, error) {
	o, err := cluster.NewObject(k)
	if err != nil {
		return nil, fmt.Errorf("%w: written by a newer version of miniswarm", err)
	}
	if err := objectPlans()[k].decode(d, reflect.ValueOf(o).Elem()); err != nil {
		return nil, fmt.Errorf("%s: %w", k, err)
	}
	return o, nil
}

// elemOf gives the struct that an object points to.
func elemOf(o cluster.Object) reflect.Value { return reflect.ValueOf(o).Elem() }
