package ping

import (
	"context"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
)

func TestAnswering(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("raw sockets need root")
	}
	here, nobody := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("240.0.0.1")
	got, err := Answering(t.Context(), []netip.Addr{here, nobody})
	if err != nil {
		t.Fatal(err)
	}
	if !got[here] || got[nobody] {
		t.Errorf("answering are %v, want %s alone", got, here)
	}
}

// An answer that nobody waits for must not pass for one that is waited for: a living machine would be taken for dead.
func TestAnswersOfOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("raw sockets need root")
	}
	here, there := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	conn, err := icmp.ListenPacket("ip4:icmp", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stray := icmp.Message{Type: ipv4.ICMPTypeEchoReply, Body: &icmp.Echo{ID: os.Getpid() & 0xffff, Data: []byte("late")}}
	raw, err := stray.Marshal(nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		for ctx.Err() == nil {
			_, _ = conn.WriteTo(raw, &net.IPAddr{IP: here.AsSlice()})
		}
	})
	for range 20 {
		got, err := Answering(t.Context(), []netip.Addr{there})
		if err != nil {
			t.Fatal(err)
		}
		if !got[there] || got[here] {
			t.Fatalf("answering are %v, want %s alone", got, there)
		}
	}
}

// On a busy machine answers are read long after they have come.
func TestAnswersReadLateCount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("raw sockets need root")
	}
	conn, err := icmp.ListenPacket("ip4:icmp", "0.0.0.0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const id = 4711
	waiting, alive := map[netip.Addr]bool{}, map[netip.Addr]bool{}
	for a := netip.MustParseAddr("127.0.0.2"); len(waiting) < 20; a = a.Next() {
		waiting[a] = true
		m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: id}}
		raw, err := m.Marshal(nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.WriteTo(raw, &net.IPAddr{IP: a.AsSlice()}); err != nil { // over loopback the answer is there at once
			t.Fatal(err)
		}
	}
	if err := collect(t.Context(), conn, id, time.Now().Add(-time.Second), waiting, alive); err != nil {
		t.Fatal(err)
	}
	if len(alive) != 20 {
		t.Errorf("%d of 20 machines count as answering", len(alive))
	}
}
