package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"

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

// zoneRule is the message that adds the rule to a chain of zones.
func zoneRule(c *nftables.Chain, base plan.Base) (netlink.Message, error) {
	var elements []netlink.Attribute
	for _, e := range fromPeers(base) {
		b, err := expr.Marshal(byte(table.Family), e)
		if err != nil {
			return netlink.Message{}, fmt.Errorf("write rule %q: %w", zoneComment, err)
		}
		elements = append(elements, netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_LIST_ELEM, Data: b})
	}
	zone, err := intoZone(original)
	if err != nil {
		return netlink.Message{}, fmt.Errorf("write rule %q: %w", zoneComment, err)
	}
	elements = append(elements, netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_LIST_ELEM, Data: zone})
	list, err := netlink.MarshalAttributes(elements)
	if err != nil {
		return netlink.Message{}, fmt.Errorf("write rule %q: %w", zoneComment, err)
	}
	whole, err := netlink.MarshalAttributes(append(ruleOf(c), netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_RULE_EXPRESSIONS, Data: list},
		netlink.Attribute{Type: unix.NFTA_RULE_USERDATA, Data: userdata.AppendString(nil, userdata.TypeComment, zoneComment)}))
	if err != nil {
		return netlink.Message{}, fmt.Errorf("write rule %q: %w", zoneComment, err)
	}
	return netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWRULE, Flags: netlink.Request | netlink.Acknowledge | netlink.Create | netlink.Append},
		Data:   append([]byte{byte(c.Table.Family), unix.NFNETLINK_V0, 0, 0}, whole...),
	}, nil
}

// hasZones tries whether the kernel can tell entry nodes apart, in a table that nobody sees. Where it cannot, two
// connections that look the same are one, as long as both are remembered.
func (t *Table) hasZones() (bool, error) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		return false, nil // the low half of a mark is not what a register begins with
	}
	probe := &nftables.Table{Name: TableName + "-probe", Family: table.Family}
	chain, peers := zoneChain(), *sharedSet(setPeers)
	chain.Table, peers.Table = probe, probe
	without, err := written(func(c *nftables.Conn) error {
		c.AddTable(probe)
		c.AddChain(chain)
		return c.AddSet(&peers, nil)
	})
	if err != nil {
		return false, err
	}
	rule, err := zoneRule(chain, plan.Base{})
	if err != nil {
		return false, err
	}
	gone, err := written(func(c *nftables.Conn) error { c.DelTable(probe); return nil })
	if err != nil {
		return false, err
	}
	err = t.transact(slices.Concat(without, []netlink.Message{rule}, gone))
	if err == nil {
		return true, nil
	}
	if err := t.connect(); err != nil { // the socket may hold more answers
		return false, err
	}
	if errors.Is(err, fs.ErrPermission) { // which Apply says, with what to do
		return true, nil
	}
	return false, t.transact(slices.Concat(without, gone)) // which fails if it is not for the rule
}

// KeepsEntriesApart says whether connections that look the same are told apart by the nodes that they came through, for which the
// kernel needs zones in its connection table.
func (t *Table) KeepsEntriesApart() bool { return t.zones }
