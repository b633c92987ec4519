package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// A client may use one port for two connections to one published port, through two entry nodes: to the client they are
// different. Both nodes keep the client's address and port, and may choose the same replica, whose node then sees two connections
// that look the same. So that they are not taken for one, each entry node has a zone of the connection table there, whose number
// is the low half of its mark. Replies are looked up without a zone, and so must be told apart by their port: the kernel gives the
// second connection another source port, as it does wherever translation leads to a clash.

// intoZone is the expression that puts the packet's connection into the zone in the register, as far as one direction of it is
// concerned. The library's has no direction.
func intoZone(d direction) ([]byte, error) {
	data, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_CT_KEY, Data: network32(unix.NFT_CT_ZONE)},
		{Type: unix.NFTA_CT_SREG, Data: network32(reg)},
		{Type: unix.NFTA_CT_DIRECTION, Data: []byte{byte(d)}},
	})
	if err != nil {
		return nil, err
	}
	return netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_EXPR_NAME, Data: []byte("ct\x00")},
		{Type: unix.NLA_F_NESTED | unix.NFTA_EXPR_DATA, Data: data},
	})
}

func network32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

const zoneComment = "a zone for each entry node"

func zoneChain() *nftables.Chain {
	return hooked(table, "zones", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -290) // connections are looked up at -200
}

// fromPeers leaves the mark of the peer that sent a packet for a replica here in the register. Probes are untracked, and a zone would
// make them connections all the same.
func fromPeers(base plan.Base) []expr.Any {
	return match(destinationIn(base.Ingress), tracked(), loadNeighbour(), []expr.Any{mapped(setPeers)})
}

// unzoned holds the packets of connections that have a zone back for the moment in which the chain has no rule for them yet: without
// their zone they would begin other connections. They are sent again.
func unzoned(base plan.Base) rule {
	return rule{"not before there are zones", append(fromPeers(base), &expr.Verdict{Kind: expr.VerdictDrop})}
}

// separated says whether the chain of zones has the rule that stays, and no other.
func (t *Table) separated() (bool, error) {
	data, err := netlink.MarshalAttributes(ruleOf(zoneChain()))
	if err != nil {
		return false, err
	}
	rules, err := t.question(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE, Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{byte(table.Family), unix.NFNETLINK_V0, 0, 0}, data...),
	})
	if err != nil {
		return false, fmt.Errorf("read rule %q: %w", zoneComment, err)
	}
	if len(rules) != 1 {
		return false, nil
	}
	ad, err := netlink.NewAttributeDecoder(rules[0].Data[4:])
	if err != nil {
		return false, fmt.Errorf("read rule %q: %w", zoneComment, err)
	}
	comment := ""
	for ad.Next() {
		if ad.Type() == unix.NFTA_RULE_USERDATA {
			comment, _ = userdata.GetString(ad.Bytes(), userdata.TypeComment)
		}
	}
	return comment == zoneComment, ad.Err()
}

// ruleOf are the attributes that name the chain of a rule.
func ruleOf(c *nftables.Chain) []netlink.Attribute {
	return []netlink.Attribute{{Type: unix.NFTA_RULE_TABLE, Data: []byte(c.Table.Name + "\x00")}, {Type: unix.NFTA_RULE_CHAIN, Data: []byte(c.Name + "\x00")}}
}

// separate replaces what is in a chain of zones by the rule that stays, in one transaction.
func (t *Table) separate(c *nftables.Chain, base plan.Base) error {
	var elements []netlink.Attribute
	for _, e := range fromPeers(base) {
		b, err := expr.Marshal(byte(table.Family), e)
		if err != nil {
			return fmt.Errorf("write rule %q: %w", zoneComment, err)
		}
		elements = append(elements, netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_LIST_ELEM, Data: b})
	}
	zone, err := intoZone(original)
	if err != nil {
		return fmt.Errorf("write rule %q: %w", zoneComment, err)
	}
	elements = append(elements, netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_LIST_ELEM, Data: zone})
	list, err := netlink.MarshalAttributes(elements)
	if err != nil {
		return fmt.Errorf("write rule %q: %w", zoneComment, err)
	}
	whole := append(ruleOf(c), netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_RULE_EXPRESSIONS, Data: list},
		netlink.Attribute{Type: unix.NFTA_RULE_USERDATA, Data: userdata.AppendString(nil, userdata.TypeComment, zoneComment)})
	var batch []netlink.Message
	add := func(kind uint16, family byte, resource uint16, flags netlink.HeaderFlags, attrs []netlink.Attribute) error {
		data, err := netlink.MarshalAttributes(attrs)
		head := binary.BigEndian.AppendUint16([]byte{family, unix.NFNETLINK_V0}, resource)
		batch = append(batch, netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | flags}, Data: append(head, data...)})
		return err
	}
	family := byte(c.Table.Family)
	if err := errors.Join(
		add(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.NFNL_SUBSYS_NFTABLES, 0, nil),
		add(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELRULE, family, 0, netlink.Acknowledge, ruleOf(c)),
		add(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWRULE, family, 0, netlink.Acknowledge|netlink.Create|netlink.Append, whole),
		add(unix.NFNL_MSG_BATCH_END, 0, unix.NFNL_SUBSYS_NFTABLES, 0, nil),
	); err != nil {
		return fmt.Errorf("write rule %q: %w", zoneComment, err)
	}
	if _, err := t.ask.SendMessages(batch); err != nil {
		return fmt.Errorf("add rule %q: %w", zoneComment, err)
	}
	// Each of the two is acknowledged.
	for acks := 0; acks < 2; {
		got, err := t.ask.Receive()
		if err != nil {
			return fmt.Errorf("add rule %q: %w", zoneComment, err)
		}
		acks += len(got)
	}
	return nil
}

// hasZones tries whether the kernel can tell entry nodes apart, in a table that is gone when it is there. Where it cannot, two
// connections that look the same are one, as long as both are remembered.
func (t *Table) hasZones() (bool, error) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		return false, nil // the low half of a mark is not what a register begins with
	}
	probe := &nftables.Table{Name: TableName + "-probe", Family: table.Family}
	c := zoneChain()
	c.Table = probe
	peers := *sharedSet(setPeers)
	peers.Table = probe
	t.conn.AddTable(probe)
	if err := t.conn.AddSet(&peers, nil); err != nil {
		return false, err
	}
	t.conn.AddChain(c)
	if err := t.conn.Flush(); err != nil {
		if errors.Is(err, fs.ErrPermission) { // which Apply says, with what to do
			return true, t.connect()
		}
		return false, errors.Join(err, t.connect())
	}
	tried := t.separate(c, plan.Base{})
	t.conn.DelTable(probe)
	if err := t.conn.Flush(); err != nil {
		return false, errors.Join(err, t.connect())
	}
	if tried == nil {
		return true, nil
	}
	return false, t.askAnew() // the socket may hold more answers
}

// KeepsEntriesApart says whether connections that look the same are told apart by the nodes that they came through, for which the
// kernel needs zones in its connection table.
func (t *Table) KeepsEntriesApart() bool { return t.zones }
