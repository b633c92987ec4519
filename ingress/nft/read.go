package nft

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// read fetches what the kernel holds. intact is false when there is no table or
// its rules are not those we write.
func (t *Table) read(ctx context.Context, base plan.Base) (_ plan.Table, intact bool, err error) {
	have := plan.Table{Base: base}
	exists := map[string]bool{}
	for _, own := range t.tables() {
		if ok, err := t.has(own); err != nil || !ok {
			return have, false, err
		}
		sets, err := t.conn.GetSets(own)
		if err != nil {
			return have, false, err
		}
		for _, s := range sets {
			exists[s.Name] = true
		}
	}
	for _, s := range t.sets() {
		if !exists[s.Name] {
			return have, false, nil
		}
	}
	for _, c := range t.chains(base) {
		if ok, err := t.sameRules(c.chain, c.rules); err != nil || !ok {
			return have, false, err
		}
	}
	if t.zones {
		if ok, err := t.separated(); err != nil || !ok {
			return have, false, err
		}
	}
	if err := t.readShared(&have); err != nil {
		return have, false, err
	}
	intact, err = t.readPorts(ctx, &have, exists)
	have.Normalize()
	return have, intact, err
}

func (t *Table) sameRules(c *nftables.Chain, want []rule) (bool, error) {
	rules, err := t.conn.GetRules(c.Table, c)
	if err != nil || len(rules) != len(want) {
		return false, err
	}
	for i, r := range rules {
		comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
		if comment != want[i].comment || len(r.Exprs) != len(want[i].exprs) {
			return false, nil
		}
	}
	return true, nil
}

func (t *Table) readShared(have *plan.Table) error {
	return errors.Join(
		readSet(t.conn, setPeers, &have.Peers, parsePeer),
		readSet(t.conn, setLoops, &have.Loops, parseLoop),
		readSet(t.conn, setGuarded, &have.Guarded, func(e nftables.SetElement) (string, error) { return parseDevice(e.Key), nil }),
		func() error {
			elements, err := t.conn.GetSetElements(sharedSet(setInside))
			if err != nil {
				return err
			}
			have.Inside, err = parsePrefixes(elements)
			return err
		}(),
	)
}

func readSet[T any](c *nftables.Conn, set string, into *[]T, parse func(nftables.SetElement) (T, error)) error {
	elements, err := c.GetSetElements(sharedSet(set))
	if err != nil {
		return fmt.Errorf("set %s: %w", set, err)
	}
	for _, e := range elements {
		v, err := parse(e)
		if err != nil {
			return fmt.Errorf("set %s: %w", set, err)
		}
		*into = append(*into, v)
	}
	return nil
}

// readPorts reads each published port. A port whose parts contradict each other
// makes the table not intact.
func (t *Table) readPorts(ctx context.Context, have *plan.Table, exists map[string]bool) (intact bool, err error) {
	var published, virtuals, kept, dispatched []plan.PortKey
	if err := errors.Join(
		readSet(t.conn, setPublished, &published, parsePort), readSet(t.conn, setDispatch, &dispatched, parsePort),
		readSet(t.conn, setVirtuals, &virtuals, parseVirtual), readSet(t.conn, setVirtualDispatch, &dispatched, parseVirtual),
	); err != nil {
		return false, err
	}
	if !t.keeps {
		kept = slices.Clone(virtuals)
	} else if err := readSet(t.conn, setKept, &kept, parseVirtual); err != nil {
		return false, err
	}
	for _, keys := range [2][]plan.PortKey{virtuals, kept} {
		slices.SortFunc(keys, func(a, b plan.PortKey) int { return a.Virtual.Compare(b.Virtual) })
	}
	if !slices.Equal(virtuals, kept) {
		return false, nil
	}
	backends := map[plan.PortKey][]netip.AddrPort{}
	for _, k := range dispatched {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		if !exists[portName(k)] {
			return false, nil
		}
		slots, ok, err := t.readSlots(k)
		if err != nil || !ok {
			return false, err
		}
		backends[k] = slots
	}
	take := func(keys []plan.PortKey) (ports []plan.Port) {
		for _, k := range keys {
			ports = append(ports, plan.Port{PortKey: k, Backends: backends[k]})
			delete(backends, k)
		}
		return ports
	}
	have.Ports, have.Virtuals = take(published), take(virtuals)
	return len(backends) == 0 && len(exists) == len(t.sets())+len(dispatched), nil
}

func (t *Table) readSlots(k plan.PortKey) (slots []netip.AddrPort, ok bool, err error) {
	elements, err := t.conn.GetSetElements(portMap(k))
	if err != nil {
		return nil, false, fmt.Errorf("map of port %s: %w", k, err)
	}
	slots = make([]netip.AddrPort, len(elements))
	for _, e := range elements {
		i, a, err := parseSlot(e)
		if err != nil {
			return nil, false, fmt.Errorf("map of port %s: %w", k, err)
		}
		if i >= len(slots) {
			return nil, false, nil
		}
		slots[i] = a
	}
	same, err := t.sameRules(portChain(k), portRules(k, len(slots)))
	return slots, same && len(slots) > 0, err
}
