package names

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// Two networks: web, in both, and db, which is in back alone and has no virtual address. Networks listen on loopback, whose
// addresses need no interface, and clients are told apart by theirs.
func example() Table {
	web := func(vip, one, two string) Service {
		return Service{Name: "web", Aliases: []string{"www", "Shared"}, VIP: addr(vip), Tasks: []Task{
			{Names: []string{"web.1.aaa", "0123456789ab", "Hosty"}, Addr: addr(one)}, {Names: []string{"web.2.bbb"}, Addr: addr(two)},
		}}
	}
	return Table{
		Networks: []Network{
			{ID: "f", Name: "Front", Subnet: netip.MustParsePrefix("10.0.1.0/24"), Listen: addr("127.0.50.1"), Services: []Service{
				web("10.0.1.2", "10.0.1.11", "10.0.1.12"), {Name: "idle", VIP: addr("10.0.1.3")},
			}},
			{ID: "b", Name: "back", Subnet: netip.MustParsePrefix("10.0.2.0/24"), Listen: addr("127.0.50.2"), Internal: true, Services: []Service{
				web("10.0.2.2", "10.0.2.11", "10.0.2.12"),
				{Name: "db", Aliases: []string{"shared"}, Tasks: []Task{{Names: []string{"db.1.ccc"}, Addr: addr("10.0.2.21")}, {Names: []string{"db.2.ddd"}, Addr: addr("10.0.2.22")}}},
				{Name: "none"},
			}},
		},
		Clients: map[netip.Addr]Client{
			addr("127.0.60.1"): {Networks: []string{"f", "b"}},
			addr("127.0.60.2"): {Networks: []string{"b"}, Confined: true},
			addr("127.0.60.3"): {Networks: []string{"f"}, Upstreams: []netip.Addr{addr("127.0.70.3")}},
		},
	}
}

// world is a server with name servers around it that it can ask.
type world struct {
	t      *testing.T
	server *Server
	port   uint16
	conf   string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, port: 10000 + uint16(os.Getpid()%20000), conf: filepath.Join(t.TempDir(), "resolv.conf")}
	w.resolvers("127.0.70.1")
	w.server = New(Config{Port: w.port, UpstreamPort: w.port, ResolvConf: w.conf})
	t.Cleanup(func() {
		if err := w.server.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := w.server.Set(example()); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) resolvers(addrs ...string) {
	w.t.Helper()
	if err := os.WriteFile(w.conf, []byte("nameserver "+strings.Join(addrs, "\nnameserver ")+"\n"), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// upstream is another name server, which answers every question with the address given.
func (w *world) upstream(at, answer string) {
	w.t.Helper()
	l := &listener{cancel: func() {}}
	p, err := net.ListenPacket("udp4", fmt.Sprintf("%s:%d", at, w.port))
	if err != nil {
		w.t.Fatal(err)
	}
	started := make(chan struct{})
	server := &dns.Server{PacketConn: p, NotifyStartedFunc: func() { close(started) }, Handler: dns.HandlerFunc(func(rw dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if answer == "fails" {
			m.Rcode = dns.RcodeServerFailure
		} else {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.ParseIP(answer)}}
		}
		rw.WriteMsg(m)
	})}
	l.servers = []*dns.Server{server}
	l.done.Go(func() { server.ActivateAndServe() })
	<-started
	w.t.Cleanup(func() { l.close() })
}

// question asks by a protocol, from a client's address, at a network's.
func (w *world) question(network, from, at, name string, kind uint16) (*dns.Msg, error) {
	c := dns.Client{Net: network, Timeout: 5 * time.Second, Dialer: &net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}}
	if network == "tcp" {
		c.Dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	reply, _, err := c.ExchangeContext(context.Background(), new(dns.Msg).SetQuestion(dns.Fqdn(name), kind), fmt.Sprintf("%s:%d", at, w.port))
	return reply, err
}

func (w *world) ask(from, at, name string, kind uint16) string {
	w.t.Helper()
	reply, err := w.question("udp", from, at, name, kind)
	if err != nil {
		w.t.Fatalf("%s asks %s for %s: %v", from, at, name, err)
	}
	if reply.Rcode != dns.RcodeSuccess {
		return dns.RcodeToString[reply.Rcode]
	}
	var all []string
	for _, rr := range reply.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			all = append(all, rr.A.String())
		case *dns.PTR:
			all = append(all, rr.Ptr)
		}
		if rr.Header().Ttl > uint32(TTL.Seconds()) {
			w.t.Errorf("%s may be remembered for %d s", name, rr.Header().Ttl)
		}
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func TestAnswers(t *testing.T) {
	w := newWorld(t)
	w.upstream("127.0.70.1", "192.0.2.1")
	w.upstream("127.0.70.3", "192.0.2.3")
	const both, back, own, stranger = "127.0.60.1", "127.0.60.2", "127.0.60.3", "127.0.60.9"
	const front, inner = "127.0.50.1", "127.0.50.2"
	for _, c := range []struct{ from, at, name, want string }{
		{both, front, "web", "10.0.1.2"},
		{both, front, "WEB", "10.0.1.2"},
		{both, front, "web.front", "10.0.1.2"},
		{both, front, "web.back", "10.0.2.2"},
		{both, front, "www", "10.0.1.2"},
		{both, front, "tasks.web", "10.0.1.11 10.0.1.12"},
		{both, front, "tasks.www", "10.0.1.11 10.0.1.12"},
		{both, front, "db", "10.0.2.21 10.0.2.22"},
		{both, front, "tasks.db", "10.0.2.21 10.0.2.22"},
		{both, front, "web.1.aaa", "10.0.1.11"},
		{both, front, "0123456789ab", "10.0.1.11"},
		{both, front, "hosty", "10.0.1.11"},
		{both, front, "idle", "10.0.1.3"},
		{both, front, "tasks.idle", ""},
		{both, front, "none", ""},
		{both, front, "example.org", "192.0.2.1"},
		{back, inner, "web", "10.0.2.2"},
		{back, inner, "shared", "10.0.2.2 10.0.2.21 10.0.2.22"}, // of two services
		{back, inner, "idle", "NXDOMAIN"},                       // on a network that the client is not on
		{back, inner, "web.front", "NXDOMAIN"},
		{back, inner, "example.org", "NXDOMAIN"},
		{own, front, "db", "192.0.2.3"}, // not a name here, so its own name server is asked
		{own, front, "example.org", "192.0.2.3"},
		{stranger, front, "web", "NXDOMAIN"}, // from nowhere that is known
		{stranger, front, "example.org", "NXDOMAIN"},
	} {
		if got := w.ask(c.from, c.at, c.name, dns.TypeA); got != c.want {
			t.Errorf("%s asks %s for %s: %q, want %q", c.from, c.at, c.name, got, c.want)
		}
	}
	for _, c := range []struct{ from, at, of, want string }{
		{both, front, "10.0.1.11", "web.1.aaa.front."},
		{both, front, "10.0.1.2", "web.front."},
		{both, front, "10.0.2.21", "db.1.ccc.back."},
		{both, front, "10.0.1.200", "NXDOMAIN"},
		{back, inner, "10.0.1.11", "NXDOMAIN"},
	} {
		name, err := dns.ReverseAddr(c.of)
		if err != nil {
			t.Fatal(err)
		}
		if got := w.ask(c.from, c.at, name, dns.TypePTR); got != c.want {
			t.Errorf("%s asks %s for %s: %q, want %q", c.from, c.at, c.of, got, c.want)
		}
	}
	if got := w.ask(both, front, "web", dns.TypeAAAA); got != "" {
		t.Errorf("IPv6 address of a name that has none: %q", got)
	}
	if r, err := w.question("tcp", both, front, "tasks.web", dns.TypeA); err != nil || len(r.Answer) != 2 {
		t.Errorf("over TCP: %v, %v", r, err)
	}
}

// More addresses than a datagram holds are asked for again over TCP, and come in another order each time.
func TestManyTasks(t *testing.T) {
	w := newWorld(t)
	table := example()
	many := Service{Name: "many"}
	for i := range 200 {
		many.Tasks = append(many.Tasks, Task{Names: []string{fmt.Sprintf("many.%d", i)}, Addr: netip.AddrFrom4([4]byte{10, 0, 1, byte(i + 20)})})
	}
	table.Networks[0].Services = append(table.Networks[0].Services, many)
	if err := w.server.Set(table); err != nil {
		t.Fatal(err)
	}
	short, err := w.question("udp", "127.0.60.1", "127.0.50.1", "many", dns.TypeA)
	if err != nil || !short.Truncated {
		t.Fatalf("over UDP: truncated %v, %v", short != nil && short.Truncated, err)
	}
	firsts := map[string]bool{}
	for range 5 {
		whole, err := w.question("tcp", "127.0.60.1", "127.0.50.1", "many", dns.TypeA)
		if err != nil || len(whole.Answer) != 200 {
			t.Fatalf("over TCP: %v", err)
		}
		firsts[whole.Answer[0].String()] = true
	}
	if len(firsts) < 2 {
		t.Errorf("always in the same order: %v", firsts)
	}
}

// The node's own name servers are asked in turn, those of its file as it is now, and never this one.
func TestUpstreams(t *testing.T) {
	w := newWorld(t)
	w.upstream("127.0.70.1", "192.0.2.1")
	w.upstream("127.0.70.2", "fails")
	const from, at = "127.0.60.1", "127.0.50.1"
	for i, c := range []struct {
		servers []string
		want    string
	}{
		{[]string{"127.0.70.9", "127.0.70.1"}, "192.0.2.1"}, // nobody there
		{[]string{"127.0.70.2", "127.0.70.1"}, "192.0.2.1"},
		{[]string{"127.0.50.2", "127.0.70.1"}, "192.0.2.1"}, // itself
		{[]string{"127.0.70.2"}, "SERVFAIL"},
		{[]string{"127.0.50.2"}, "SERVFAIL"},
	} {
		w.resolvers(c.servers...)
		if err := os.Chtimes(w.conf, time.Time{}, time.Unix(int64(i+1), 0)); err != nil { // another than before
			t.Fatal(err)
		}
		if got := w.ask(from, at, "example.org", dns.TypeA); got != c.want {
			t.Errorf("%v: %q, want %q", c.servers, got, c.want)
		}
	}
}

// A table replaces the one before it, listeners and all.
func TestSetAgain(t *testing.T) {
	w := newWorld(t)
	table := example()
	table.Networks = table.Networks[1:]
	table.Networks[0].Services = nil
	if err := w.server.Set(table); err != nil {
		t.Fatal(err)
	}
	if got := w.ask("127.0.60.2", "127.0.50.2", "db", dns.TypeA); got != "NXDOMAIN" {
		t.Errorf("a name that is gone: %q", got)
	}
	if r, err := w.question("udp", "127.0.60.1", "127.0.50.1", "web", dns.TypeA); err == nil {
		t.Errorf("a network that is gone still answers: %v", r)
	}
	other := New(Config{Port: w.port})
	defer other.Close()
	if err := other.Set(table); err == nil || !strings.Contains(err.Error(), "another name server") {
		t.Errorf("an address that is taken: %v", err)
	}
	if err := w.server.Set(Table{}); err != nil {
		t.Fatal(err)
	}
	if err := other.Set(table); err != nil {
		t.Errorf("an address that is free again: %v", err)
	}
}

// Routes wait for the table of names, so that must not wait for a name server that says nothing.
func TestSetWaitsForNobody(t *testing.T) {
	w := newWorld(t)
	silent, err := net.ListenPacket("udp4", fmt.Sprintf("127.0.70.1:%d", w.port))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	answered := make(chan error, 1)
	go func() {
		_, err := w.question("udp", "127.0.60.1", "127.0.50.1", "example.org", dns.TypeA)
		answered <- err
	}()
	if _, _, err := silent.ReadFrom(make([]byte, 512)); err != nil { // it has been asked
		t.Fatal(err)
	}
	began := time.Now()
	if err := w.server.Set(Table{}); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > oneAnswer/2 {
		t.Errorf("it took %v", took)
	}
	<-answered // by then, or not at all
}

// Who is no container of this node's services, but on one of its networks, knows that network.
func TestStrangers(t *testing.T) {
	x := newIndex(example())
	for _, c := range []struct {
		from, listen string
		networks     []string
		confined     bool
	}{
		{"10.0.1.200", "127.0.50.1", []string{"f"}, false},
		{"10.0.2.200", "127.0.50.2", []string{"b"}, true},
		{"10.0.1.200", "127.0.50.2", nil, true}, // of another network
		{"192.0.2.1", "127.0.50.1", nil, true},
		{"10.0.1.200", "127.0.50.9", nil, true},
	} {
		got := x.client(addr(c.from), addr(c.listen))
		if !slices.Equal(got.Networks, c.networks) || got.Confined != c.confined {
			t.Errorf("%s at %s is %+v", c.from, c.listen, got)
		}
	}
}
