package names

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// TTL is how long an answer may be remembered. Swarm's is ten minutes, during which a client that heeds it goes on
// connecting to tasks that have moved.
const TTL = 5 * time.Second

// answer replies to one question, by the table or by asking others until ctx ends.
func (s *Server) answer(ctx context.Context, listen netip.Addr, w dns.ResponseWriter, q *dns.Msg) {
	table := s.table.Load()
	overTCP := w.RemoteAddr().Network() == "tcp"
	client := table.client(addrOf(w.RemoteAddr()), listen)
	reply := known(table, client, q)
	switch {
	case reply != nil:
	case client.Confined:
		reply = new(dns.Msg).SetRcode(q, dns.RcodeNameError)
	default:
		reply = s.up.ask(ctx, q, client.Upstreams, func(a netip.Addr) bool { _, own := table.listen[a]; return own }, overTCP)
	}
	reply.RecursionAvailable = true
	if !overTCP {
		size := dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = max(size, int(opt.UDPSize()))
		}
		reply.Truncate(size)
	}
	if err := w.WriteMsg(reply); err != nil {
		s.log.Debug("an answer about a name was not delivered", "client", w.RemoteAddr(), "err", err)
	}
}

// known replies by the table; nil if it is not about what the table knows.
func known(table *index, client Client, q *dns.Msg) *dns.Msg {
	if len(q.Question) != 1 || q.Opcode != dns.OpcodeQuery {
		return new(dns.Msg).SetRcode(q, dns.RcodeNotImplemented)
	}
	question := q.Question[0]
	if question.Qclass != dns.ClassINET {
		return nil
	}
	name := strings.ToLower(strings.TrimSuffix(question.Name, "."))
	reply := new(dns.Msg).SetReply(q)
	head := dns.RR_Header{Name: question.Name, Rrtype: question.Qtype, Class: dns.ClassINET, Ttl: uint32(TTL.Seconds())}
	if question.Qtype == dns.TypePTR {
		a, ok := reversed(name)
		if !ok {
			return nil
		}
		switch found, ours := table.name(client, a); {
		case !ours:
			return nil
		case found == "":
			reply.Rcode = dns.RcodeNameError
		default:
			reply.Answer = []dns.RR{&dns.PTR{Hdr: head, Ptr: dns.Fqdn(found)}}
		}
		return reply
	}
	addrs, ok := table.lookup(client, name)
	if !ok {
		return nil
	}
	if question.Qtype != dns.TypeA {
		return reply // the name exists, this kind of answer does not
	}
	addrs = slices.Clone(addrs)
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	for _, a := range addrs {
		reply.Answer = append(reply.Answer, &dns.A{Hdr: head, A: a.AsSlice()})
	}
	return reply
}

// reversed reads the name under which an address is looked up, 2.1.0.10.in-addr.arpa.
func reversed(name string) (netip.Addr, bool) {
	parts, ok := strings.CutSuffix(name, ".in-addr.arpa")
	if !ok {
		return netip.Addr{}, false
	}
	labels := strings.Split(parts, ".")
	slices.Reverse(labels)
	a, err := netip.ParseAddr(strings.Join(labels, "."))
	return a, err == nil
}

func addrOf(a net.Addr) netip.Addr {
	p, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return p.Addr().Unmap()
}
