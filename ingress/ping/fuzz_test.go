package ping

import (
	"testing"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
)

// FuzzPackets hands over what anybody may send to this machine as ICMP: every raw socket gets all of it.
func FuzzPackets(f *testing.F) {
	const id = 4711
	for _, m := range []icmp.Message{
		{Type: ipv4.ICMPTypeEchoReply, Body: &icmp.Echo{ID: id, Seq: 1, Data: []byte("miniswarm")}},
		{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: id}},
		{Type: ipv4.ICMPTypeDestinationUnreachable, Body: &icmp.DstUnreach{Data: make([]byte, 28)}},
		{Type: ipv4.ICMPTypeTimeExceeded, Body: &icmp.TimeExceeded{Data: make([]byte, 128), Extensions: []icmp.Extension{&icmp.MPLSLabelStack{Class: 1, Type: 1, Labels: []icmp.MPLSLabel{{Label: 1}}}}}},
	} {
		raw, err := m.Marshal(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, packet []byte) {
		if isAnswer(packet, id) && packet[0] != byte(ipv4.ICMPTypeEchoReply) {
			t.Errorf("%x counts as an answer", packet)
		}
	})
}
