package nft

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/google/nftables"
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
	// wire is the socket of conn, for transactions.
	wire socket
	// ask is for single questions, and nil as conn is. Closing a socket of this family waits for the
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
		t.ask = nil
	}
	ask, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return errors.Join(fmt.Errorf("open nftables over netlink: %w", err), closed)
	}
	t.ask = ask
	return closed
}

// question asks, on another socket if the last one had to be given up. After an error the rest of the answer may be on its way.
func (t *Table) question(m netlink.Message) ([]netlink.Message, error) {
	if t.ask == nil {
		if err := t.askAnew(); err != nil {
			return nil, err
		}
	}
	answer, err := t.ask.Execute(m)
	if err != nil {
		return nil, errors.Join(err, t.askAnew())
	}
	return answer, nil
}

// hasBridge tries whether the kernel takes our chain of family bridge, in a table that is gone when it is there.
func (t *Table) hasBridge() (bool, error) {
	probe := &nftables.Table{Name: TableName + "-probe", Family: bridgeTable.Family}
	keep := keepChain().chain
	keep.Table = probe
	messages, err := written(func(c *nftables.Conn) error {
		c.AddTable(probe)
		c.AddChain(keep)
		c.DelTable(probe)
		return nil
	})
	if err != nil {
		return false, err
	}
	err = t.transact(messages)
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

// connect begins anew: answers that were not read are gone with the connection they belonged to.
func (t *Table) connect() error {
	if t.conn != nil {
		t.conn.CloseLasting()
		t.conn, t.wire, t.known = nil, nil, false
	}
	var wire socket
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(
		func(c *netlink.Conn) error { return c.SetWriteBuffer(socketBuffer) },
		func(c *netlink.Conn) error { return c.SetReadBuffer(socketBuffer) },
		func(c *netlink.Conn) error { wire = c; return nil },
	))
	if err != nil {
		return fmt.Errorf("open nftables over netlink: %w", err)
	}
	t.conn, t.wire, t.known = conn, wire, false
	return nil
}

// Close ends the connection and leaves the table as it is, at work.
func (t *Table) Close() error {
	var err error
	if t.ask != nil {
		err = t.ask.Close()
	}
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
	return t.send("delete", func(c *nftables.Conn) error {
		for _, own := range t.tables() {
			c.AddTable(own)
			c.DelTable(own)
		}
		return nil
	})
}

// commit sends one transaction and remembers what the kernel then holds.
func (t *Table) commit(d plan.TableDiff, want plan.Table) error {
	// A difference is one from a generation that is known; a table made anew does not depend on any.
	before, write := t.generation, func(c *nftables.Conn) error { return t.change(c, d) }
	var zone []netlink.Message
	if d.Rebuild {
		var err error
		if before, err = t.currentGeneration(); err != nil {
			return err
		}
		write = func(c *nftables.Conn) error { return t.rebuild(c, want) }
		if t.zones {
			rule, err := zoneRule(zoneChain(), want.Base)
			if err != nil {
				return err
			}
			zone = append(zone, rule)
		}
	}
	if err := t.send("change", write, zone...); err != nil {
		return err
	}
	after, err := t.currentGeneration()
	if err != nil {
		return err
	}
	t.have, t.known = want, true
	if after == before+1 {
		t.generation = after // nobody else was there in between
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

// currentGeneration asks the kernel how often its ruleset, everybody's, was
// changed.
func (t *Table) currentGeneration() (uint32, error) {
	reply, err := t.question(netlink.Message{
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
