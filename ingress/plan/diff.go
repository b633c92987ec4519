package plan

import (
	"cmp"
	"net/netip"
	"slices"
)

// Diff is the way from one State to another. Additions are to be made before
// removals, so that a change never passes through "nothing installed".
type Diff struct {
	Overlays  Change[Overlay]
	Forwards  Change[Forward]
	Neighbors Change[Neighbor]
	Routes    Change[Route]
	Rules     Change[Rule]
	Sysctls   Change[Sysctl]
	Addresses Change[Address]
	Table     TableDiff
}

// Change lists what to add and what to remove, each sorted.
type Change[T comparable] struct {
	Add, Del []T
}

// Empty says that there is nothing to do.
func (c Change[T]) Empty() bool { return len(c.Add) == 0 && len(c.Del) == 0 }

// TableDiff is the way from one Table to another.
type TableDiff struct {
	// Rebuild says that the rules themselves differ and the table has to be made
	// anew; the rest is then of no use.
	Rebuild  bool
	Guarded  Change[string]
	Inside   Change[netip.Prefix]
	Loops    Change[Loop]
	Peers    Change[PeerMark]
	Ports    []PortChange
	Virtuals []PortChange
}

// PortChange changes one published port or virtual address.
type PortChange struct {
	PortKey
	// New says that the port was not there before, Gone that it shall not be.
	New, Gone bool
	// Before and After are the numbers of slots.
	Before, After int
	// Set fills slots, Old tells what was in them (invalid when empty). Slots from
	// After on are to be emptied; Cut lists what is in them, from After upwards.
	Set []Slot
	Cut []netip.AddrPort
}

// Slot is one place of a port's rotation.
type Slot struct {
	Index    int
	To, From netip.AddrPort
}

// Empty says that there is nothing to do.
func (d TableDiff) Empty() bool {
	return !d.Rebuild && d.Guarded.Empty() && d.Inside.Empty() && d.Loops.Empty() && d.Peers.Empty() && len(d.Ports) == 0 && len(d.Virtuals) == 0
}

// Empty says that there is nothing to do.
func (d Diff) Empty() bool {
	return d.Overlays.Empty() && d.Forwards.Empty() && d.Neighbors.Empty() && d.Routes.Empty() && d.Rules.Empty() &&
		d.Sysctls.Empty() && d.Addresses.Empty() && d.Table.Empty()
}

// Compare computes the way from one State to another. Both must be as Build
// makes them: sorted, without duplicates.
func Compare(from, to State) Diff {
	return Diff{
		Overlays:  change(from.Overlays, to.Overlays, compareOverlay),
		Forwards:  change(from.Forwards, to.Forwards, compareForward),
		Neighbors: change(from.Neighbors, to.Neighbors, compareNeighbor),
		Routes:    change(from.Routes, to.Routes, compareRoute),
		Rules:     change(from.Rules, to.Rules, compareRule),
		Sysctls:   change(from.Sysctls, to.Sysctls, compareSysctl),
		Addresses: change(from.Addresses, to.Addresses, compareAddress),
		Table:     CompareTables(from.Table, to.Table),
	}
}

// CompareTables is the part of Compare that concerns the nftables table.
func CompareTables(from, to Table) TableDiff {
	if from.Base != to.Base {
		return TableDiff{Rebuild: true}
	}
	return TableDiff{
		Guarded: change(from.Guarded, to.Guarded, cmp.Compare[string]),
		Inside:  change(from.Inside, to.Inside, comparePrefix),
		Loops:   change(from.Loops, to.Loops, compareLoop),
		Peers:   change(from.Peers, to.Peers, comparePeer),

		Ports:    changePorts(from.Ports, to.Ports),
		Virtuals: changePorts(from.Virtuals, to.Virtuals),
	}
}

func changePorts(from, to []Port) (changes []PortChange) {
	i, j := 0, 0
	for i < len(from) || j < len(to) {
		switch {
		case j == len(to) || i < len(from) && ComparePorts(from[i], to[j]) < 0:
			p := from[i]
			changes = append(changes, PortChange{PortKey: p.PortKey, Gone: true, Before: len(p.Backends), Cut: p.Backends})
			i++
		case i == len(from) || ComparePorts(from[i], to[j]) > 0:
			c := compareSlots(nil, to[j].Backends)
			c.PortKey, c.New = to[j].PortKey, true
			changes = append(changes, c)
			j++
		default:
			if c := compareSlots(from[i].Backends, to[j].Backends); len(c.Set) > 0 || c.Before != c.After {
				c.PortKey = to[j].PortKey
				changes = append(changes, c)
			}
			i, j = i+1, j+1
		}
	}
	return changes
}

func compareSlots(from, to []netip.AddrPort) PortChange {
	c := PortChange{Before: len(from), After: len(to)}
	for i, a := range to {
		var old netip.AddrPort
		if i < len(from) {
			old = from[i]
		}
		if old != a {
			c.Set = append(c.Set, Slot{Index: i, To: a, From: old})
		}
	}
	if len(from) > len(to) {
		c.Cut = from[len(to):]
	}
	return c
}

// change walks two sorted lists side by side.
func change[T comparable](from, to []T, compare func(T, T) int) Change[T] {
	var c Change[T]
	i, j := 0, 0
	for i < len(from) || j < len(to) {
		switch {
		case j == len(to):
			c.Del = append(c.Del, from[i:]...)
			i = len(from)
		case i == len(from):
			c.Add = append(c.Add, to[j:]...)
			j = len(to)
		default:
			switch n := compare(from[i], to[j]); {
			case n < 0:
				c.Del = append(c.Del, from[i])
				i++
			case n > 0:
				c.Add = append(c.Add, to[j])
				j++
			default:
				if from[i] != to[j] { // the same name with another content
					c.Del = append(c.Del, from[i])
					c.Add = append(c.Add, to[j])
				}
				i, j = i+1, j+1
			}
		}
	}
	return c
}

// Sort brings everything into the order Compare relies on and drops duplicates.
func (o *State) Sort() {
	o.Overlays = sorted(o.Overlays, compareOverlay)
	o.Forwards = sorted(o.Forwards, compareForward)
	o.Neighbors = sorted(o.Neighbors, compareNeighbor)
	o.Routes = sorted(o.Routes, compareRoute)
	o.Rules = sorted(o.Rules, compareRule)
	o.Sysctls = sorted(o.Sysctls, compareSysctl)
	o.Addresses = sorted(o.Addresses, compareAddress)
	o.Backends = sorted(o.Backends, compareAddr)
	o.Table.Normalize()
}

// Normalize sorts a table that was put together from elsewhere, such as one read
// back from the kernel. The slots of ports keep their order.
func (t *Table) Normalize() {
	t.Guarded = sorted(t.Guarded, cmp.Compare[string])
	t.Inside = sorted(t.Inside, comparePrefix)
	t.Loops = sorted(t.Loops, compareLoop)
	t.Peers = sorted(t.Peers, comparePeer)
	slices.SortFunc(t.Ports, ComparePorts)
	slices.SortFunc(t.Virtuals, ComparePorts)
}

func sorted[T comparable](s []T, compare func(T, T) int) []T {
	slices.SortFunc(s, compare)
	return slices.Compact(s)
}

func compareOverlay(a, b Overlay) int { return cmp.Compare(a.ID, b.ID) }

func compareForward(a, b Forward) int {
	return cmp.Or(cmp.Compare(a.Device, b.Device), slices.Compare(a.MAC[:], b.MAC[:]), a.Peer.Compare(b.Peer))
}

func compareNeighbor(a, b Neighbor) int {
	return cmp.Or(cmp.Compare(a.Device, b.Device), compareAddr(a.Addr, b.Addr))
}

func compareRoute(a, b Route) int {
	if n := cmp.Compare(a.Table, b.Table); n != 0 {
		return n
	}
	return comparePrefix(a.Dst, b.Dst)
}

func compareRule(a, b Rule) int {
	return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Mark, b.Mark), cmp.Compare(a.Mask, b.Mask))
}

func compareSysctl(a, b Sysctl) int { return cmp.Compare(a.Key, b.Key) }

func compareAddress(a, b Address) int {
	return cmp.Or(cmp.Compare(a.Device, b.Device), compareAddr(a.Addr, b.Addr))
}

func compareLoop(a, b Loop) int {
	if n := compareAddr(a.Dst, b.Dst); n != 0 {
		return n
	}
	return compareAddr(a.Src, b.Src)
}

// compareAddr orders IPv4 addresses, which are all there are here, as numbers.
func compareAddr(a, b netip.Addr) int {
	if !a.Is4() || !b.Is4() {
		return a.Compare(b)
	}
	x, y := a.As4(), b.As4()
	return cmp.Compare(number(x), number(y))
}

func number(b [4]byte) uint32 {
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func comparePeer(a, b PeerMark) int {
	return cmp.Or(cmp.Compare(a.Device, b.Device), slices.Compare(a.MAC[:], b.MAC[:]))
}

// ComparePorts orders the ports, or the virtual addresses, of a Table.
func ComparePorts(a, b Port) int {
	return cmp.Or(compareAddr(a.Virtual, b.Virtual), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
}

func comparePrefix(a, b netip.Prefix) int {
	if n := compareAddr(a.Addr(), b.Addr()); n != 0 {
		return n
	}
	return cmp.Compare(a.Bits(), b.Bits())
}
