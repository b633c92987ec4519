package nft

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// rebuild makes the table anew. In one transaction with the deletion no packet
// meets an empty table, and connections keep their translation.
func (t *Table) rebuild(conn *nftables.Conn, want plan.Table) error {
	for _, own := range t.tables() {
		conn.AddTable(own)
		conn.DelTable(own)
		conn.AddTable(own)
	}
	for _, s := range t.sets() {
		if err := conn.AddSet(s, nil); err != nil {
			return fmt.Errorf("nftables set %s: %w", s.Name, err)
		}
	}
	for _, c := range t.chains(want.Base) {
		conn.AddChain(c.chain)
		for _, r := range c.rules {
			addRule(conn, c.chain, r)
		}
	}
	if t.zones {
		conn.AddChain(zoneChain()) // whose rule the library cannot write
	}
	return t.change(conn, plan.CompareTables(plan.Table{Base: want.Base}, want))
}

func addRule(conn *nftables.Conn, c *nftables.Chain, r rule) {
	conn.AddRule(&nftables.Rule{Table: c.Table, Chain: c, Exprs: r.exprs,
		UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment)})
}

func (t *Table) change(conn *nftables.Conn, d plan.TableDiff) error {
	var b batch
	collect(&b, setGuarded, d.Guarded, one(guardedElement))
	collect(&b, setInside, d.Inside, prefixElements)
	collect(&b, setLoops, d.Loops, one(loopElement))
	collect(&b, setPeers, d.Peers, one(peerElement))
	for _, p := range slices.Concat(d.Ports, d.Virtuals) {
		if err := t.changePort(conn, &b, p); err != nil {
			return fmt.Errorf("port %s: %w", p.PortKey, err)
		}
	}
	return b.write(conn)
}

// changePort gathers the change of one published port or virtual address. One without
// backends has no chain; it is only in the set of those that are refused.
func (t *Table) changePort(conn *nftables.Conn, b *batch, p plan.PortChange) error {
	dispatch, all := setDispatch, []string{setPublished}
	if p.Virtual.IsValid() {
		dispatch, all = setVirtualDispatch, []string{setVirtuals}
		if t.keeps {
			all = append(all, setKept)
		}
	}
	for _, set := range all {
		switch {
		case p.New:
			b.add(set, keyElement(p.PortKey))
		case p.Gone:
			b.del(set, keyElement(p.PortKey))
		}
	}
	chain, slots := portChain(p.PortKey), portMap(p.PortKey)
	if p.Before > 0 && p.After == 0 {
		b.del(dispatch, dispatchElement(p.PortKey))
		b.last = append(b.last, func(c *nftables.Conn) {
			c.FlushChain(chain)
			c.DelChain(chain)
			c.DelSet(slots)
		})
		return nil
	}
	var add, del []nftables.SetElement
	for _, s := range p.Set {
		if s.From.IsValid() {
			del = append(del, slotElement(s.Index, s.From))
		}
		add = append(add, slotElement(s.Index, s.To))
	}
	for i, a := range p.Cut {
		del = append(del, slotElement(p.After+i, a))
	}
	if p.Before == 0 && p.After > 0 {
		conn.AddChain(chain)
		if err := conn.AddSet(slots, nil); err != nil {
			return err
		}
		b.add(dispatch, dispatchElement(p.PortKey))
	}
	if err := deleteElements(conn, slots, del); err != nil {
		return err
	}
	if err := addElements(conn, slots, add); err != nil {
		return err
	}
	if p.Before != p.After {
		conn.FlushChain(chain)
		for _, r := range portRules(p.PortKey, p.After) {
			addRule(conn, chain, r)
		}
	}
	return nil
}

// batch gathers the elements of the shared sets, which go in few messages.
type batch struct {
	names   []string
	adds    map[string][]nftables.SetElement
	deletes map[string][]nftables.SetElement
	last    []func(*nftables.Conn)
}

func (b *batch) note(set string) {
	if b.adds == nil {
		b.adds, b.deletes = map[string][]nftables.SetElement{}, map[string][]nftables.SetElement{}
	}
	if !slices.Contains(b.names, set) {
		b.names = append(b.names, set)
	}
}

func (b *batch) add(set string, e ...nftables.SetElement) {
	b.note(set)
	b.adds[set] = append(b.adds[set], e...)
}

func (b *batch) del(set string, e ...nftables.SetElement) {
	b.note(set)
	b.deletes[set] = append(b.deletes[set], e...)
}

func collect[T comparable](b *batch, set string, c plan.Change[T], elements func(T) []nftables.SetElement) {
	for _, v := range c.Del {
		b.del(set, elements(v)...)
	}
	for _, v := range c.Add {
		b.add(set, elements(v)...)
	}
}

func one[T any](element func(T) nftables.SetElement) func(T) []nftables.SetElement {
	return func(v T) []nftables.SetElement { return []nftables.SetElement{element(v)} }
}

// write puts deletions before additions, since a changed element is both, and
// deletes chains when nothing leads to them any more.
func (b *batch) write(c *nftables.Conn) error {
	for _, name := range b.names {
		if err := deleteElements(c, sharedSet(name), b.deletes[name]); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
		if err := addElements(c, sharedSet(name), b.adds[name]); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	for _, f := range b.last {
		f(c)
	}
	return nil
}

// elementsPerMessage keeps a list of elements below the 64 KiB an attribute can hold.
const elementsPerMessage = 500

func addElements(c *nftables.Conn, s *nftables.Set, all []nftables.SetElement) error {
	for part := range slices.Chunk(all, elementsPerMessage) {
		if err := c.SetAddElements(s, part); err != nil {
			return err
		}
	}
	return nil
}

func deleteElements(c *nftables.Conn, s *nftables.Set, all []nftables.SetElement) error {
	for part := range slices.Chunk(all, elementsPerMessage) {
		if err := c.SetDeleteElements(s, part); err != nil {
			return err
		}
	}
	return nil
}
