// Package conntrack makes the kernel forget connections whose translation leads
// nowhere any more. A connection keeps the backend it was given for as long as the
// kernel remembers it; when the backend is gone its packets would vanish in
// silence. Forgotten, the next packet of a TCP connection is answered with a reset
// and the next one of a UDP flow goes to a living backend.
//
// A call costs one walk through the kernel's table of connections, however few of
// them are ours.
package conntrack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// Attributes and messages of linux/netfilter/nfnetlink_conntrack.h.
const (
	msgGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1
	msgDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2

	attrTupleOrig  = 1
	attrTupleReply = 2
	attrMark       = 8
	attrID         = 12
	attrMarkMask   = 21

	tupleIP    = 1
	tupleProto = 2
	ipv4Source = 1
	protoNum   = 1
	protoDst   = 3
)

// flow is what this package looks at in a connection.
type flow struct {
	orig, id []byte // as the kernel gave them, to name the connection by
	backend  netip.Addr
	protocol plan.Protocol
	port     uint16 // the original destination port
}

// Conn asks the kernel about connections of the network namespace it was opened in.
// It is not safe for concurrent use.
//
// It stays open, because closing a socket of this family waits until the kernel has
// freed what the last change of nftables rules left over, which takes longer than
// the change.
type Conn struct {
	// nl is nil after it had to be given up.
	nl *netlink.Conn
}

// Open connects to the kernel.
func Open() (*Conn, error) {
	c := &Conn{}
	return c, c.ready()
}

// ready opens another connection if the last one had to be given up.
func (c *Conn) ready() error {
	if c.nl != nil {
		return nil
	}
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("open conntrack over netlink: %w", err)
	}
	c.nl = nl
	return nil
}

// Close ends the connection.
func (c *Conn) Close() error {
	if c.nl == nil {
		return nil
	}
	err := c.nl.Close()
	c.nl = nil
	return err
}

// execute sends one request. After an error the rest of its answer may be on its way,
// which must not be taken for that to the next request; that there is no such
// connection is all of an answer.
func (c *Conn) execute(m netlink.Message) ([]netlink.Message, error) {
	answer, err := c.nl.Execute(m)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		err = errors.Join(err, c.Close())
	}
	return answer, err
}

// Retain drops the connections that this node translated to anything but
// backends. It returns their number.
func (c *Conn) Retain(ctx context.Context, backends []netip.Addr) (int, error) {
	keep := map[netip.Addr]bool{}
	for _, b := range backends {
		keep[b] = true
	}
	return c.forget(ctx, plan.MarkEntry, plan.MarkSideMask, func(f flow) bool { return !keep[f.backend] })
}

// ForgetUntranslated drops UDP flows to ports which were seen before the ports
// were published or had a backend. A client that keeps sending from one port
// would otherwise never be translated.
func (c *Conn) ForgetUntranslated(ctx context.Context, ports []uint16) (int, error) {
	fresh := map[uint16]bool{}
	for _, p := range ports {
		fresh[p] = true
	}
	return c.forget(ctx, 0, plan.MarkMask, func(f flow) bool { return f.protocol == plan.UDP && fresh[f.port] })
}

// ForgetOurs drops all connections that carry a mark of ours.
func (c *Conn) ForgetOurs(ctx context.Context) error {
	if err := errors.Join(ctx.Err(), c.ready()); err != nil {
		return err
	}
	if _, err := c.execute(request(msgDelete, netlink.Acknowledge, marked(plan.MarkOurs, plan.MarkMask))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget connections: %w", err)
	}
	return nil
}

func request(kind netlink.HeaderType, flags netlink.HeaderFlags, attrs []byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: kind, Flags: netlink.Request | flags},
		Data:   append([]byte{unix.AF_INET, unix.NFNETLINK_V0, 0, 0}, attrs...),
	}
}

func marked(mark, mask uint32) []byte {
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	ae.Uint32(attrMark, mark)
	ae.Uint32(attrMarkMask, mask)
	b, _ := ae.Encode() // two numbers always fit
	return b
}

func (c *Conn) forget(ctx context.Context, mark, mask uint32, match func(flow) bool) (int, error) {
	if err := errors.Join(ctx.Err(), c.ready()); err != nil {
		return 0, err
	}
	dump, err := c.execute(request(msgGet, netlink.Dump, marked(mark, mask)))
	if err != nil {
		return 0, fmt.Errorf("list connections: %w", err)
	}
	n := 0
	for _, m := range dump {
		f, err := parse(m.Data)
		if err != nil {
			return n, fmt.Errorf("list connections: %w", err)
		}
		if !match(f) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return n, err
		}
		named, err := netlink.MarshalAttributes([]netlink.Attribute{
			{Type: attrTupleOrig | netlink.Nested, Data: f.orig}, {Type: attrID, Data: f.id},
		})
		if err != nil {
			return n, fmt.Errorf("forget a connection: %w", err)
		}
		// One that has ended by itself meanwhile is fine.
		if _, err := c.execute(request(msgDelete, netlink.Acknowledge, named)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return n, fmt.Errorf("forget a connection: %w", err)
		}
		n++
	}
	return n, nil
}

// headLen is the length of struct nfgenmsg, with which each message begins.
const headLen = 4

func parse(b []byte) (flow, error) {
	var f flow
	if len(b) < headLen {
		return f, fmt.Errorf("a message of %d bytes is too short", len(b))
	}
	ad, err := netlink.NewAttributeDecoder(b[headLen:])
	if err != nil {
		return f, err
	}
	for ad.Next() {
		switch ad.Type() {
		case attrTupleOrig:
			f.orig = ad.Bytes()
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				return tuple(ad, func(netip.Addr) {}, func(p plan.Protocol, port uint16) { f.protocol, f.port = p, port })
			})
		case attrTupleReply:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				return tuple(ad, func(a netip.Addr) { f.backend = a }, func(plan.Protocol, uint16) {})
			})
		case attrID:
			f.id = ad.Bytes()
		}
	}
	return f, ad.Err()
}

// tuple reads the source address, and protocol and destination port.
func tuple(ad *netlink.AttributeDecoder, source func(netip.Addr), port func(plan.Protocol, uint16)) error {
	for ad.Next() {
		switch ad.Type() {
		case tupleIP:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					if a, ok := netip.AddrFromSlice(ad.Bytes()); ok && ad.Type() == ipv4Source {
						source(a)
					}
				}
				return ad.Err()
			})
		case tupleProto:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				var p plan.Protocol
				var dst uint16
				ad.ByteOrder = binary.BigEndian
				for ad.Next() {
					switch ad.Type() {
					case protoNum:
						p = plan.Protocol(ad.Uint8())
					case protoDst:
						dst = ad.Uint16()
					}
				}
				port(p, dst)
				return ad.Err()
			})
		}
	}
	return ad.Err()
}
