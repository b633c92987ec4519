package nft

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// Table is the kernel's table of the network namespace it was opened in. It is
// not safe for concurrent use, and only one Table may write in a namespace at a
// time.
type Table struct {
	// conn is nil after it had to be given up and no other could be opened.
	conn *nftables.Conn
	// ask is for single questions. Closing a socket of this family waits for the
	// kernel's housekeeping, so it stays open as well.
	ask *netlink.Conn
	// keeps says whether the kernel has family bridge.
	keeps bool
	// zones says whether the kernel keeps the connections of entry nodes apart.
	zones bool

	// have is what the kernel holds, if known.
	have  plan.Table
	known bool
	// generation is the number of the ruleset's last change by anybody for which
	// have was seen to be true.
	generation uint32
}

// Open connects to the kernel. It leaves everything as it is.
func Open() (*Table, error) {
	t := &Table{}
	if err := t.askAnew(); err != nil {
		return nil, err
	}
	err := t.connect()
	if err == nil {
		t.keeps, err = t.hasBridge()
	}
	if err == nil {
		t.zones, err = t.hasZones()
	}
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// askAnew gives up the socket for questions, with what may still come by it, for another.
func (t *Table) askAnew() error {
	var closed error
	if t.ask != nil {
		closed = t.ask.Close()
	}
	ask, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return errors.Join(fmt.Errorf("open nftables over netlink: %w", err), closed)
	}
	t.ask = ask
	return closed
}

// hasBridge tries whether the kernel takes our chain of family bridge, in a table that is gone when it is there.
func (t *Table) hasBridge() (bool, error) {
	probe := &nftables.Table{Name: TableName + "-probe", Family: bridgeTable.Family}
	keep := keepChain().chain
	keep.Table = probe
	t.conn.AddTable(probe)
	t.conn.AddChain(keep)
	t.conn.DelTable(probe)
	err := t.conn.Flush()
	if err == nil || errors.Is(err, fs.ErrPermission) { // which Apply says, with what to do
		return true, nil
	}
	// The socket may hold more answers.
	if err := t.connect(); err != nil {
		return false, err
	}
	return !slices.ContainsFunc([]error{unix.EOPNOTSUPP, unix.EAFNOSUPPORT, unix.ENOENT}, func(e error) bool { return errors.Is(err, e) }), nil
}

// KeepsARP says whether ARP about virtual addresses stays on its node, for which the kernel needs nftables' family bridge.
// Everything else does without.
func (t *Table) KeepsARP() bool { return t.keeps }

// tables are ours, as far as the kernel can have them.
func (t *Table) tables() []*nftables.Table {
	if !t.keeps {
		return []*nftables.Table{table}
	}
	return []*nftables.Table{table, bridgeTable}
}

// sets and chains are what is in the tables from the beginning.
func (t *Table) sets() []*nftables.Set {
	return slices.DeleteFunc(sharedSets(), func(s *nftables.Set) bool { return !slices.Contains(t.tables(), s.Table) })
}

func (t *Table) chains(base plan.Base) []baseChain {
	return slices.DeleteFunc(baseChains(base), func(c baseChain) bool { return !slices.Contains(t.tables(), c.chain.Table) })
}

// A transaction is one message to the kernel, and is answered by one
// acknowledgement for each of its parts, all before the first is read. The sizes are limits
// for the largest of clusters, not allocations.
const socketBuffer = 64 << 20

// connect begins anew: what was gathered but not sent, and answers that were not
// read, are gone with the connection they belonged to.
func (t *Table) connect() error {
	if t.conn != nil {
		t.conn.CloseLasting()
		t.conn, t.known = nil, false
	}
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(
		func(c *netlink.Conn) error { return c.SetWriteBuffer(socketBuffer) },
		func(c *netlink.Conn) error { return c.SetReadBuffer(socketBuffer) },
	))
	if err != nil {
		return fmt.Errorf("open nftables over netlink: %w", err)
	}
	t.conn, t.known = conn, false
	return nil
}

// Close ends the connection and leaves the table as it is, at work.
func (t *Table) Close() error {
	err := t.ask.Close()
	if t.conn != nil {
		err = errors.Join(t.conn.CloseLasting(), err)
	}
	return err
}

// ready opens another connection if the last one had to be given up.
func (t *Table) ready(ctx context.Context) error {
	if err := ctx.Err(); err != nil || t.conn != nil {
		return err
	}
	return t.connect()
}

// Apply makes the table say what want says. What the kernel already holds is
// left alone, also when this is the first call in a process that follows
// another: connections are not disturbed. It fails as a whole. The Table keeps
// want, which must not be changed afterwards.
func (t *Table) Apply(ctx context.Context, want plan.Table) error {
	if err := t.ready(ctx); err != nil {
		return err
	}
	if !t.known {
		_, err := t.Verify(ctx, want)
		return err
	}
	d := plan.CompareTables(t.have, want)
	if d.Empty() {
		return nil
	}
	return t.commit(d, want)
}

// Verify reads the table back and repairs what differs from want. Repaired says
// that there was something, which somebody else must have done unless this is
// the first call. It is cheap while nobody changes any rule of the machine.
func (t *Table) Verify(ctx context.Context, want plan.Table) (repaired bool, err error) {
	if err := t.ready(ctx); err != nil {
		return false, err
	}
	before, err := t.currentGeneration()
	if err != nil {
		return false, err
	}
	if !t.known || t.generation != before {
		t.known = false
		have, intact, err := t.read(ctx, want.Base)
		if err != nil {
			// The rest of the answer must not be taken for that to the next question.
			return false, errors.Join(fmt.Errorf("read nftables table %s: %w", TableName, err), t.connect())
		}
		if !intact {
			return true, t.commit(plan.TableDiff{Rebuild: true}, want)
		}
		t.have, t.known = have, true
		// What happened during the reading is seen next time.
		t.generation = before
	}
	d := plan.CompareTables(t.have, want)
	if d.Empty() {
		return false, nil
	}
	return true, t.commit(d, want)
}

// Disturbed says whether anybody else changed any rule of the machine since the
// content of the table was last known for certain.
func (t *Table) Disturbed() (bool, error) {
	now, err := t.currentGeneration()
	return !t.known || t.generation != now, err
}

// Recall reads the peers that the kernel's table knows, whoever wrote it. Without
// a table there are none.
func (t *Table) Recall(ctx context.Context) ([]plan.PeerMark, error) {
	if err := t.ready(ctx); err != nil {
		return nil, err
	}
	exists, err := t.exists()
	if err != nil || !exists {
		return nil, err
	}
	sets, err := t.conn.GetSets(table)
	if err != nil || !slices.ContainsFunc(sets, func(s *nftables.Set) bool { return s.Name == setPeers }) {
		return nil, err
	}
	var peers []plan.PeerMark
	err = readSet(t.conn, setPeers, &peers, parsePeer)
	return peers, err
}

func (t *Table) exists() (bool, error) {
	return t.has(table)
}

func (t *Table) has(own *nftables.Table) (bool, error) {
	have, err := t.conn.ListTablesOfFamily(own.Family)
	return slices.ContainsFunc(have, func(x *nftables.Table) bool { return x.Name == own.Name }), err
}

// Installed says whether the kernel has our table, put there by this process or a former one.
func (t *Table) Installed(ctx context.Context) (bool, error) {
	if err := t.ready(ctx); err != nil {
		return false, err
	}
	return t.exists()
}

// Remove deletes the table. It is no error if there is none.
func (t *Table) Remove(ctx context.Context) error {
	if err := t.ready(ctx); err != nil {
		return err
	}
	t.known = false
	// Adding first makes deleting something that is not there no error.
	for _, own := range t.tables() {
		t.conn.AddTable(own)
		t.conn.DelTable(own)
	}
	return t.flush("delete")
}

// commit sends one transaction and remembers what the kernel then holds.
func (t *Table) commit(d plan.TableDiff, want plan.Table) error {
	// A difference is one from a generation that is known; a table made anew does not depend on any.
	before, err := t.generation, error(nil)
	if d.Rebuild {
		if before, err = t.currentGeneration(); err != nil {
			return err
		}
		err = t.rebuild(want)
	} else {
		err = t.change(d)
	}
	if err != nil {
		// What is gathered already must not go out with the next transaction.
		return errors.Join(fmt.Errorf("nftables table %s: %w", TableName, err), t.connect())
	}
	if err := t.flush("change"); err != nil {
		return err
	}
	own := uint32(1)
	if d.Rebuild && t.zones {
		if err := t.separate(zoneChain(), want.Base); err != nil {
			return errors.Join(fmt.Errorf("nftables table %s: %w", TableName, explain(err)), t.connect(), t.askAnew())
		}
		own++
	}
	after, err := t.currentGeneration()
	if err != nil {
		return err
	}
	t.have, t.known = want, true
	if after == before+own {
		t.generation = after // nobody else was there in between
	}
	return nil
}

func (t *Table) flush(verb string) error {
	if err := t.conn.Flush(); err != nil {
		// Answers to the rest of the transaction may still be on their way.
		return errors.Join(fmt.Errorf("%s nftables table %s: %w", verb, TableName, explain(err)), t.connect())
	}
	return nil
}

func explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w (the data plane needs CAP_NET_ADMIN)", err)
	case errors.Is(err, unix.EMSGSIZE), errors.Is(err, unix.ENOBUFS):
		return fmt.Errorf("%w (the change is larger than the netlink socket's buffers)", err)
	}
	return err
}

// rebuild makes the table anew. In one transaction with the deletion no packet
// meets an empty table, and connections keep their translation.
func (t *Table) rebuild(want plan.Table) error {
	for _, own := range t.tables() {
		t.conn.AddTable(own)
		t.conn.DelTable(own)
		t.conn.AddTable(own)
	}
	for _, s := range t.sets() {
		if err := t.conn.AddSet(s, nil); err != nil {
			return fmt.Errorf("nftables set %s: %w", s.Name, err)
		}
	}
	for _, c := range t.chains(want.Base) {
		t.conn.AddChain(c.chain)
		for _, r := range c.rules {
			t.addRule(c.chain, r)
		}
	}
	if t.zones {
		t.conn.AddChain(zoneChain())
		t.addRule(zoneChain(), unzoned(want.Base))
	}
	return t.change(plan.CompareTables(plan.Table{Base: want.Base}, want))
}

func (t *Table) addRule(c *nftables.Chain, r rule) {
	t.conn.AddRule(&nftables.Rule{Table: c.Table, Chain: c, Exprs: r.exprs,
		UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment)})
}

func (t *Table) change(d plan.TableDiff) error {
	var b batch
	collect(&b, setGuarded, d.Guarded, one(guardedElement))
	collect(&b, setInside, d.Inside, prefixElements)
	collect(&b, setLoops, d.Loops, one(loopElement))
	collect(&b, setPeers, d.Peers, one(peerElement))
	for _, p := range slices.Concat(d.Ports, d.Virtuals) {
		if err := t.changePort(&b, p); err != nil {
			return fmt.Errorf("port %s: %w", p.PortKey, err)
		}
	}
	return b.send(t.conn)
}

// changePort gathers the change of one published port or virtual address. One without
// backends has no chain; it is only in the set of those that are refused.
func (t *Table) changePort(b *batch, p plan.PortChange) error {
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
		t.conn.AddChain(chain)
		if err := t.conn.AddSet(slots, nil); err != nil {
			return err
		}
		b.add(dispatch, dispatchElement(p.PortKey))
	}
	if err := deleteElements(t.conn, slots, del); err != nil {
		return err
	}
	if err := addElements(t.conn, slots, add); err != nil {
		return err
	}
	if p.Before != p.After {
		t.conn.FlushChain(chain)
		for _, r := range portRules(p.PortKey, p.After) {
			t.addRule(chain, r)
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

// send puts deletions before additions, since a changed element is both, and
// deletes chains when nothing leads to them any more.
func (b *batch) send(c *nftables.Conn) error {
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

// currentGeneration asks the kernel how often its ruleset, everybody's, was
// changed.
func (t *Table) currentGeneration() (uint32, error) {
	reply, err := t.ask.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: netlink.Request},
		Data:   []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0},
	})
	if err != nil {
		return 0, fmt.Errorf("ask nftables for its generation: %w", err)
	}
	for _, m := range reply {
		ad, err := netlink.NewAttributeDecoder(m.Data[4:])
		if err != nil {
			return 0, fmt.Errorf("ask nftables for its generation: %w", err)
		}
		for ad.Next() {
			if ad.Type() == unix.NFTA_GEN_ID {
				b := ad.Bytes()
				return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3]), nil
			}
		}
	}
	return 0, errors.New("ask nftables for its generation: no number in the answer")
}
