package cluster

import (
	"strings"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"github.com/tidwall/btree"
)

// Event reports one change of one object, in the order in which changes were applied. Old is nil for a creation, New
// for a removal. A patch that changed something is reported as Update.
type Event struct {
	Action Action
	Kind   Kind
	Old    Object
	New    Object
	// Index is the log index of the transaction.
	Index uint64
}

// ID is the id of the object concerned.
func (e Event) ID() string {
	if e.New != nil {
		return e.New.ObjectID()
	}
	return e.Old.ObjectID()
}

// table is one kind's objects by id, and by folded name where names are unique.
type table struct {
	byID   *btree.Map[string, Object]
	byName *btree.Map[string, Object]
	// modified is the log index of the last change of the table.
	modified uint64
}

// degree is the branching of the trees: small enough that copying a node on write is cheap, large enough that a tree
// of a million objects is four levels deep.
const degree = 32

// tables are all tables and the secondary indices. Copying the struct with copyTables gives an isolated view.
type tables struct {
	kinds     [kindEnd]table
	byService *btree.BTreeG[*Task]
	byNode    *btree.BTreeG[*Task]
	index     uint64
}

// State is the mutable set of tables. It has one owner: Apply, Restore and Snapshot must not be called concurrently.
// The snapshots it gives may be read from anywhere.
type State struct {
	t tables
	// snap is the snapshot of the present state, nil once something changed.
	snap *Snapshot
}

// NewState gives empty tables at index 0.
func NewState() *State {
	s := &State{}
	for k := range s.t.kinds {
		s.t.kinds[k] = table{byID: btree.NewMap[string, Object](degree), byName: btree.NewMap[string, Object](degree)}
	}
	noLocks := btree.Options{NoLocks: true, Degree: degree}
	s.t.byService = btree.NewBTreeGOptions(lessByService, noLocks)
	s.t.byNode = btree.NewBTreeGOptions(lessByNode, noLocks)
	return s
}

func lessByService(a, b *Task) bool {
	if c := strings.Compare(a.ServiceID, b.ServiceID); c != 0 {
		return c < 0
	}
	if a.Slot != b.Slot {
		return a.Slot < b.Slot
	}
	return a.ID < b.ID
}

func lessByNode(a, b *Task) bool {
	if c := strings.Compare(a.NodeID, b.NodeID); c != 0 {
		return c < 0
	}
	return a.ID < b.ID
}

// Index is the log index of the last applied transaction.
func (s *State) Index() uint64 { return s.t.index }

// Snapshot gives an immutable view of the present state in O(1).
func (s *State) Snapshot() *Snapshot {
	if s.snap == nil {
		c := s.t
		for k := range c.kinds {
			c.kinds[k].byID = s.t.kinds[k].byID.Copy()
			c.kinds[k].byName = s.t.kinds[k].byName.Copy()
		}
		c.byService = s.t.byService.Copy()
		c.byNode = s.t.byNode.Copy()
		s.snap = &Snapshot{t: c}
	}
	return s.snap
}

// Apply applies txn at the log index, all of it or nothing, and returns what changed in order. An error is a
// *TxnError and leaves the tables as they were, except that Index moves on: a refused transaction is applied too, and
// every manager refuses it alike.
func (s *State) Apply(txn *Txn, index uint64) ([]Event, error) {
	s.t.index, s.snap = index, nil
	for _, g := range txn.Guards {
		if g.Kind > 0 && g.Kind < kindEnd && s.t.kinds[g.Kind].modified > g.Index {
			return nil, &TxnError{Kind: g.Kind, Err: ErrGuard}
		}
	}
	events := make([]Event, 0, len(txn.Changes))
	for i := range txn.Changes {
		ev, err := s.change(&txn.Changes[i], txn, index)
		if err != nil {
			for j := len(events) - 1; j >= 0; j-- {
				s.put(events[j].New, events[j].Old)
			}
			return nil, err
		}
		if ev.Action != 0 {
			events = append(events, ev)
		}
	}
	for i := range events {
		s.t.kinds[events[i].Kind].modified = index
	}
	return events, nil
}

// change applies one change. An event with a zero action means that nothing changed.
func (s *State) change(c *Change, txn *Txn, index uint64) (Event, error) {
	if c.Kind == 0 || c.Kind >= kindEnd {
		return Event{}, &TxnError{Kind: c.Kind, ID: c.ID, Err: ErrNotExist}
	}
	tab := &s.t.kinds[c.Kind]
	old, exists := tab.byID.Get(c.ID)
	fail := func(err error) (Event, error) {
		e := &TxnError{Kind: c.Kind, ID: c.ID, Err: err}
		if c.Object != nil {
			e.Name = c.Object.ObjectName()
		} else if exists {
			e.Name = old.ObjectName()
		}
		return Event{}, e
	}
	var next Object
	switch c.Action {
	case Create:
		if exists {
			return fail(ErrExists)
		}
		next = txn.take(c.Object, nil)
		next.stamp(swarm.Meta{Version: swarm.Version{Index: index}, CreatedAt: txn.Time, UpdatedAt: txn.Time})
	case Update:
		if !exists {
			return fail(ErrNotExist)
		}
		if c.Version != 0 && old.ObjectMeta().Version.Index != c.Version {
			return fail(ErrOutOfSequence)
		}
		next = txn.take(c.Object, old)
		next.stamp(swarm.Meta{Version: swarm.Version{Index: index}, CreatedAt: old.ObjectMeta().CreatedAt, UpdatedAt: txn.Time})
	case Remove:
		if !exists {
			if c.Version == 0 {
				return Event{}, nil
			}
			return fail(ErrNotExist)
		}
		if c.Version != 0 && old.ObjectMeta().Version.Index != c.Version {
			return fail(ErrOutOfSequence)
		}
	case Patch:
		if !exists {
			return Event{}, nil
		}
		next = patched(old, c, txn.Time)
		if next == old {
			return Event{}, nil
		}
		next.stamp(swarm.Meta{Version: swarm.Version{Index: index}, CreatedAt: old.ObjectMeta().CreatedAt, UpdatedAt: txn.Time})
	}
	if next != nil {
		if name := next.ObjectName(); name != "" {
			if other, taken := tab.byName.Get(foldName(name)); taken && other.ObjectID() != c.ID {
				return fail(ErrNameConflict)
			}
		}
	}
	s.put(old, next)
	ev := Event{Action: c.Action, Kind: c.Kind, Old: old, New: next, Index: index}
	if c.Action == Patch {
		ev.Action = Update
	}
	return ev, nil
}

// take gives the object that goes into the tables in place of old: o itself where it is the transaction's own.
func (t *Txn) take(o, old Object) Object {
	if _, task := o.(*Task); task && t.OwnTasks && o != old {
		return o
	}
	return o.copied()
}

// patched gives a copy of old with c's patch merged in at the time now, old itself where that changes nothing.
func patched(old Object, c *Change, now time.Time) Object {
	switch o := old.(type) {
	case *Task:
		if c.Task != nil {
			if t := c.Task.apply(o); t != o {
				return t
			}
		}
	case *Node:
		if c.Node != nil {
			return c.Node.apply(o, now)
		}
	}
	return old
}

// put replaces old (nil: nothing) with next (nil: nothing) in the table and in every index.
func (s *State) put(old, next Object) {
	ref := next
	if ref == nil {
		ref = old
	}
	tab := &s.t.kinds[ref.Kind()]
	if old != nil {
		if name := old.ObjectName(); name != "" && (next == nil || foldName(name) != foldName(next.ObjectName())) {
			tab.byName.Delete(foldName(name))
		}
		if t, ok := old.(*Task); ok {
			s.unindex(t, next)
		}
	}
	if next == nil {
		tab.byID.Delete(old.ObjectID())
		return
	}
	tab.byID.Set(next.ObjectID(), next)
	if name := next.ObjectName(); name != "" {
		tab.byName.Set(foldName(name), next)
	}
	if t, ok := next.(*Task); ok {
		s.t.byService.Set(t)
		if t.NodeID != "" {
			s.t.byNode.Set(t)
		}
	}
}

// unindex takes a task out of the indices in which its successor does not simply overwrite it.
func (s *State) unindex(t *Task, next Object) {
	n, _ := next.(*Task)
	if n == nil || n.ServiceID != t.ServiceID || n.Slot != t.Slot {
		s.t.byService.Delete(t)
	}
	if t.NodeID != "" && (n == nil || n.NodeID != t.NodeID) {
		s.t.byNode.Delete(t)
	}
}

// Restore puts an object in place as it is, with its own version and times: for loading a snapshot into empty tables.
func (s *State) Restore(o Object) {
	s.snap = nil
	old, _ := s.t.kinds[o.Kind()].byID.Get(o.ObjectID())
	s.put(old, o)
}

// RestoreIndex ends a restore: the tables are those of the log index, and modified says at which index each kind last
// changed ([Snapshot.Modified]). Guards are judged by it, so a restored manager must have the same figures.
func (s *State) RestoreIndex(index uint64, modified map[Kind]uint64) {
	s.snap, s.t.index = nil, index
	for k := range s.t.kinds {
		s.t.kinds[k].modified = modified[Kind(k)]
	}
}

func foldName(name string) string { return strings.ToLower(name) }
