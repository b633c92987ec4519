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
	// protocolICMP is the IP protocol number that the parser wants to know.
	protocolICMP = 1
)

// Answering asks all addrs at once and gives those that answered, after 300 ms at most, or as soon as all have. It needs
// the right to open raw sockets. IPv6 addresses are not asked and count as answering.
func Answering(ctx context.Context, addrs []netip.Addr) (map[netip.Addr]bool, error) {
	alive := make(map[netip.Addr]bool, len(addrs))
	conn, err := icmp.ListenPacket("ip4:icmp", "0.0.0.0")
	if err != nil {
		return nil, fmt.Errorf("ask whether machines answer: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })
	defer stop()
	id := os.Getpid() & 0xffff
	for seq := range rounds {
		for _, a := range addrs {
			if !a.Is4() {
				alive[a] = true
			}
			if alive[a] {
				continue
			}
			m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: id, Seq: seq, Data: []byte("miniswarm")}}
			raw, err := m.Marshal(nil)
			if err != nil {
				return nil, fmt.Errorf("ask whether %s answers: %w", a, err)
			}
			// An address that cannot be sent to does not answer; that is all there is to say.
			_, _ = conn.WriteTo(raw, &net.IPAddr{IP: a.AsSlice()})
		}
		if err := collect(ctx, conn, id, alive, len(addrs)); err != nil {
			return nil, err
		}
		if len(alive) == len(addrs) {
			break
		}
	}
	return alive, nil
}

// collect notes answers for the length of a pause, or until want machines have answered.
func collect(ctx context.Context, conn *icmp.PacketConn, id int, alive map[netip.Addr]bool, want int) error {
	if err := conn.SetReadDeadline(time.Now().Add(pause)); err != nil {
		return fmt.Errorf("wait for answers: %w", err)
	}
	buf := make([]byte, 1500)
	for len(alive) < want {
		n, from, err := conn.ReadFrom(buf)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			return fmt.Errorf("wait for answers: %w", err)
		}
		m, err := icmp.ParseMessage(protocolICMP, buf[:n])
		if err != nil || m.Type != ipv4.ICMPTypeEchoReply {
			continue
		}
		if echo, ok := m.Body.(*icmp.Echo); !ok || echo.ID != id {
			continue
		}
		if ip, ok := from.(*net.IPAddr); ok {
			if a, ok := netip.AddrFromSlice(ip.IP); ok {
				alive[a.Unmap()] = true
			}
		}
	}
	return nil
}
