// Package ping asks machines' kernels whether they live. A daemon that is silent may be starting anew on a machine that
// serves well; a kernel that does not answer an echo request, and did before, serves nobody.
package ping

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
)

const (
	// rounds of requests are sent, pause apart; the last answers may take pause too. One lost packet decides nothing.
	rounds = 3
	pause  = 100 * time.Millisecond
	// late is for reading what has arrived while this process had to wait for a processor.
	late = 10 * time.Millisecond
	// protocolICMP is the IP protocol number that the parser wants to know.
	protocolICMP = 1
)

// Answering asks all addrs at once and gives those that answered, after a third of a second at most, or as soon as all have. It needs
// the right to open raw sockets. IPv6 addresses are not asked and count as answering.
func Answering(ctx context.Context, addrs []netip.Addr) (map[netip.Addr]bool, error) {
	// Only those asked count: a late answer to an earlier question must not end the wait for the others.
	alive := make(map[netip.Addr]bool, len(addrs))
	waiting := make(map[netip.Addr]bool, len(addrs))
	for _, a := range addrs {
		if a.Is4() {
			waiting[a] = true
		} else {
			alive[a] = true
		}
	}
	conn, err := icmp.ListenPacket("ip4:icmp", "0.0.0.0")
	if err != nil {
		return nil, fmt.Errorf("ask whether machines answer: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })
	defer stop()
	id := os.Getpid() & 0xffff
	for seq := range rounds {
		for a := range waiting {
			m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: id, Seq: seq, Data: []byte("miniswarm")}}
			raw, err := m.Marshal(nil)
			if err != nil {
				return nil, fmt.Errorf("ask whether %s answers: %w", a, err)
			}
			// An address that cannot be sent to does not answer; that is all there is to say.
			_, _ = conn.WriteTo(raw, &net.IPAddr{IP: a.AsSlice()})
		}
		if err := collect(ctx, conn, id, time.Now().Add(pause), waiting, alive); err != nil {
			return nil, err
		}
		if len(waiting) == 0 {
			break
		}
	}
	return alive, nil
}

// collect moves those that answer from waiting to alive, until the given time or until nobody is waited for. What has
// arrived by then counts, however late it is read: on a busy machine that may be later than the time given, and a living
// machine would be taken for dead because this one is slow.
func collect(ctx context.Context, conn *icmp.PacketConn, id int, until time.Time, waiting, alive map[netip.Addr]bool) error {
	if err := conn.SetReadDeadline(until); err != nil {
		return fmt.Errorf("wait for answers: %w", err)
	}
	over := false
	buf := make([]byte, 1500)
	for len(waiting) > 0 {
		n, from, err := conn.ReadFrom(buf)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if over {
				return nil
			}
			over = true
			if err = conn.SetReadDeadline(time.Now().Add(late)); err == nil {
				continue
			}
		}
		if err != nil {
			return fmt.Errorf("wait for answers: %w", err)
		}
		if !isAnswer(buf[:n], id) {
			continue
		}
		if ip, ok := from.(*net.IPAddr); ok {
			if a, ok := netip.AddrFromSlice(ip.IP); ok && waiting[a.Unmap()] {
				delete(waiting, a.Unmap())
				alive[a.Unmap()] = true
			}
		}
	}
	return nil
}

// isAnswer says whether a packet answers a question with that id.
func isAnswer(packet []byte, id int) bool {
	m, err := icmp.ParseMessage(protocolICMP, packet)
	if err != nil || m.Type != ipv4.ICMPTypeEchoReply {
		return false
	}
	echo, ok := m.Body.(*icmp.Echo)
	return ok && echo.ID == id
}
