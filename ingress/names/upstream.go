package names

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxUpstreams is how many name servers are asked, one after the other, as in Swarm.
	maxUpstreams = 3
	// oneAnswer is how long one of them may take, allAnswers all together: the engine's resolver gives up after four
	// seconds, and a client should rather be told than have to wait for its own limit.
	oneAnswer  = 1500 * time.Millisecond
	allAnswers = 3500 * time.Millisecond
	// maxForwards is how many questions may be with others at a time. More are refused, not queued.
	maxForwards = 1024
)

// upstreams asks other name servers.
type upstreams struct {
	log    *slog.Logger
	file   string
	port   uint16
	places chan struct{}

	mu      sync.Mutex
	read    time.Time    // guarded by mu; the file's time when it was read
	servers []netip.Addr // guarded by mu
}

// ask passes a question on, to servers or else to the node's own, and gives the first answer that is one. Those for which own holds
// are left out: a node may have itself as name server.
func (u *upstreams) ask(ctx context.Context, q *dns.Msg, servers []netip.Addr, own func(netip.Addr) bool, overTCP bool) *dns.Msg {
	select {
	case u.places <- struct{}{}:
		defer func() { <-u.places }()
	default:
		return new(dns.Msg).SetRcode(q, dns.RcodeRefused)
	}
	if len(servers) == 0 {
		servers = u.nodes()
	}
	ctx, cancel := context.WithTimeout(ctx, allAnswers)
	defer cancel()
	client := dns.Client{Net: "udp", Timeout: oneAnswer}
	if overTCP {
		client.Net = "tcp"
	}
	failed := new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
	asked := 0
	for _, server := range servers {
		if own(server) {
			continue
		}
		if asked++; asked > maxUpstreams || ctx.Err() != nil {
			break
		}
		reply, err := exchange(ctx, &client, q, netip.AddrPortFrom(server, u.port))
		if err != nil {
			u.log.Debug("a name server does not answer", "server", server, "name", q.Question[0].Name, "err", err)
			continue
		}
		if reply.Rcode == dns.RcodeServerFailure || reply.Rcode == dns.RcodeRefused {
			failed = reply
			continue
		}
		return reply
	}
	return failed
}

// exchange asks one server. The client itself heeds only the deadline of ctx.
func exchange(ctx context.Context, client *dns.Client, q *dns.Msg, server netip.AddrPort) (*dns.Msg, error) {
	conn, err := client.DialContext(ctx, server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	reply, _, err := client.ExchangeWithConnContext(ctx, q, conn)
	return reply, err
}

// nodes are the node's own name servers, as its file says now.
func (u *upstreams) nodes() []netip.Addr {
	u.mu.Lock()
	defer u.mu.Unlock()
	info, err := os.Stat(u.file)
	if err != nil {
		return u.servers
	}
	if info.ModTime().Equal(u.read) {
		return u.servers
	}
	c, err := dns.ClientConfigFromFile(u.file)
	if err != nil {
		u.log.Warn("the node's name servers cannot be read", "file", u.file, "err", err)
		return u.servers
	}
	u.read, u.servers = info.ModTime(), nil
	for _, text := range c.Servers {
		if a, err := netip.ParseAddr(text); err == nil {
			u.servers = append(u.servers, a)
		}
	}
	u.servers = slices.Clip(u.servers)
	return u.servers
}
