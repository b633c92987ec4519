package conntrack

import (
	"testing"

	"github.com/mdlayher/netlink"
)

// FuzzDump reads what a kernel may list: the lists of newer kernels have attributes that nobody here has heard of.
func FuzzDump(f *testing.F) {
	nested := func(typ uint16, attrs ...netlink.Attribute) netlink.Attribute {
		b, err := netlink.MarshalAttributes(attrs)
		if err != nil {
			f.Fatal(err)
		}
		return netlink.Attribute{Type: typ | netlink.Nested, Data: b}
	}
	tuple := func(typ uint16, addr ...byte) netlink.Attribute {
		return nested(typ, nested(tupleIP, netlink.Attribute{Type: ipv4Source, Data: addr}),
			nested(tupleProto, netlink.Attribute{Type: protoNum, Data: []byte{6}}, netlink.Attribute{Type: protoDst, Data: []byte{31, 144}}))
	}
	whole := nested(0, tuple(attrTupleOrig, 10, 0, 0, 1), tuple(attrTupleReply, 10, 0, 0, 2), netlink.Attribute{Type: attrID, Data: []byte{0, 0, 0, 7}}).Data
	got, err := parse(append(make([]byte, headLen), whole...))
	if err != nil || got.backend.String() != "10.0.0.2" || got.port != 8080 || len(got.orig) == 0 || len(got.id) != 4 {
		f.Fatalf("a connection to port 8080 of 10.0.0.2 is read as %+v, %v", got, err)
	}
	f.Add(append(make([]byte, headLen), whole...))
	f.Add(append(make([]byte, headLen), nested(0, tuple(attrTupleOrig, 1), tuple(attrTupleReply)).Data...))
	f.Add([]byte{2, 0})
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = parse(b) })
}
