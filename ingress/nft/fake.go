package nft

import (
	"context"
	"net/netip"
	"slices"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// Fake is a data plane in memory. It holds a table as the kernel would and lets
// imaginary packets through it, so that what a plan means can be tested without a
// kernel. The zero Fake is one without a table. It is not safe for concurrent use.
type Fake struct {
	table   *plan.Table
	counter map[plan.PortKey]int
}

// Apply makes the table say what want says.
func (f *Fake) Apply(ctx context.Context, want plan.Table) error {
	_, err := f.Verify(ctx, want)
	return err
}

// Verify does the same and says whether the table differed.
func (f *Fake) Verify(ctx context.Context, want plan.Table) (repaired bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if f.table == nil {
		f.table, f.counter = &plan.Table{Base: want.Base}, map[plan.PortKey]int{}
		repaired = true
	}
	d := plan.CompareTables(*f.table, want)
	if d.Empty() {
		return repaired, nil
	}
	if d.Rebuild {
		clear(f.counter)
	}
	for _, p := range slices.Concat(d.Ports, d.Virtuals) {
		if p.Before != p.After {
			delete(f.counter, p.PortKey) // a new rule counts from the first slot
		}
	}
	f.table = &want
	return true, nil
}

// Remove deletes the table.
func (f *Fake) Remove(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f.table = nil
	return nil
}

// Installed says whether there is a table.
func (f *Fake) Installed(ctx context.Context) (bool, error) { return f.table != nil, ctx.Err() }

// Disturbed is always false: nobody else has the table.
func (f *Fake) Disturbed() (bool, error) { return false, nil }

// Recall returns the peers of the table.
func (f *Fake) Recall(ctx context.Context) ([]plan.PeerMark, error) {
	if f.table == nil {
		return nil, ctx.Err()
	}
	return slices.Clone(f.table.Peers), ctx.Err()
}

// Close does nothing: the table stays.
func (f *Fake) Close() error { return nil }

// Packet is the first packet of a connection, as far as rules look at it.
type Packet struct {
	// Device and MAC say where it came in; no device means that the node itself
	// sends it.
	Device   string
	MAC      plan.MAC
	Protocol plan.Protocol
	Src      netip.Addr
	Dst      netip.AddrPort
	// ToSelf says that Dst is an address of this node.
	ToSelf bool
	// Established says that the packet is in the middle of a TCP connection nobody
	// here remembers.
	Established bool
}

// Verdict is what becomes of a packet.
type Verdict int

// Verdicts.
const (
	Pass    Verdict = iota // it goes on, translated or not
	Dropped                // it vanishes
	Refused                // its sender is told at once
)

// Fate is the way of a packet and its connection.
type Fate struct {
	Verdict Verdict
	// Dst is where it goes after translation.
	Dst netip.AddrPort
	// Masqueraded says that it goes on with the address of this node as source.
	Masqueraded bool
	// Mark is the connection's mark.
	Mark uint32
}

// Walk lets a packet through the rules, hook by hook.
func (f *Fake) Walk(p Packet) Fate {
	fate := Fate{Dst: p.Dst}
	if f.table == nil {
		return fate
	}
	t := f.table
	// prerouting, mangle: classify
	if p.Device != "" && t.Ingress.IsValid() && t.Ingress.Contains(p.Dst.Addr()) {
		for _, peer := range t.Peers {
			if peer.Device == p.Device && peer.MAC == p.MAC {
				fate.Mark = peer.Mark
			}
		}
	}
	if p.Dst.Addr().IsLoopback() && slices.Contains(t.Guarded, p.Device) {
		fate.Verdict = Dropped
		return fate
	}
	// prerouting or output, nat: enter
	if p.ToSelf {
		port, mark, found := frontend(t, p)
		if found && (len(port.Backends) == 0 || p.Established) {
			fate.Verdict = Refused // input: refuse
			return fate
		}
		if found {
			fate.Dst, fate.Mark = port.Backends[f.counter[port.PortKey]%len(port.Backends)], mark
			if mark == plan.MarkVirtual {
				fate.Dst = netip.AddrPortFrom(fate.Dst.Addr(), p.Dst.Port())
			}
			f.counter[port.PortKey]++
		}
	}
	// forward: protect
	if !p.ToSelf && p.Device != "" && p.Device != t.Bridge && t.Ingress.IsValid() && t.Ingress.Contains(p.Dst.Addr()) &&
		fate.Mark&plan.MarkMask != plan.MarkOurs {
		fate.Verdict = Dropped
		return fate
	}
	// postrouting, nat: source
	if fate.Mark&plan.MarkSideMask == plan.MarkEntry {
		inside := slices.ContainsFunc(t.Inside, func(in netip.Prefix) bool { return in.Contains(p.Src) })
		loop := slices.Contains(t.Loops, plan.Loop{Src: p.Src, Dst: fate.Dst.Addr()})
		fate.Masqueraded = inside || loop || fate.Mark == plan.MarkVirtual
	}
	return fate
}

// frontend finds what a packet to this node is translated from, and the mark it gets.
func frontend(t *plan.Table, p Packet) (port plan.Port, mark uint32, found bool) {
	if i, ok := slices.BinarySearchFunc(t.Virtuals, plan.Port{PortKey: plan.PortKey{Virtual: p.Dst.Addr()}}, plan.ComparePorts); ok {
		return t.Virtuals[i], plan.MarkVirtual, true
	}
	key := plan.PortKey{Protocol: p.Protocol, Port: p.Dst.Port()}
	if i, ok := slices.BinarySearchFunc(t.Ports, plan.Port{PortKey: key}, plan.ComparePorts); ok {
		return t.Ports[i], plan.MarkEntry, true
	}
	return plan.Port{}, 0, false
}

// ReplyMark is the mark that packets of the other direction carry to the routing
// decision, given their connection's mark.
func ReplyMark(connection uint32) uint32 {
	if connection&plan.MarkSideMask == plan.MarkServing {
		return connection
	}
	return 0
}
