package names

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

// written is where an answer goes instead of to a client.
type written struct {
	dns.ResponseWriter
	from  net.Addr
	reply *dns.Msg
}

func (w *written) RemoteAddr() net.Addr          { return w.from }
func (w *written) WriteMsg(reply *dns.Msg) error { w.reply = reply; return nil }

// FuzzQuestions hands over what containers may send to the name server: it answers everything that is a question, in a packet that
// can be sent, and tells nobody of a network that it is not on.
func FuzzQuestions(f *testing.F) {
	add := func(m *dns.Msg) {
		raw, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	for _, name := range []string{"web.", "tasks.WEB.", "db.", "hosty.front.", "11.1.0.10.in-addr.arpa.", "x.in-addr.arpa.", "."} {
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypePTR, dns.TypeANY} {
			add(new(dns.Msg).SetQuestion(name, kind))
		}
	}
	add(new(dns.Msg).SetQuestion("db.", dns.TypeA).SetEdns0(65535, true))
	add(new(dns.Msg).SetUpdate("web."))
	add(new(dns.Msg))
	f.Add([]byte{})
	back := netip.MustParsePrefix("10.0.2.0/24")
	server := New(Config{})
	server.table.Store(newIndex(example()))
	f.Fuzz(func(t *testing.T, packet []byte) {
		q := new(dns.Msg)
		if q.Unpack(packet) != nil {
			return
		}
		w := &written{from: &net.UDPAddr{IP: net.ParseIP("127.0.60.2"), Port: 5353}} // confined, on back alone
		server.answer(context.Background(), addr("127.0.50.2"), w, q)
		raw, err := w.reply.Pack()
		if err != nil {
			t.Fatalf("the answer to %v cannot be sent: %v", q, err)
		}
		limit := dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			limit = max(limit, int(opt.UDPSize()))
		}
		if len(raw) > limit && len(raw) > len(packet)+16 {
			t.Errorf("the answer to %v has %d bytes, %d can be received", q, len(raw), limit)
		}
		for _, rr := range w.reply.Answer {
			if a, ok := rr.(*dns.A); ok {
				if got, _ := netip.AddrFromSlice(a.A.To4()); !back.Contains(got) {
					t.Errorf("%v is answered with %v, of another network", q, got)
				}
			}
		}
	})
}
