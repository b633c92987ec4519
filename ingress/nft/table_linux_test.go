package nft

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// namespace gives the rest of the test a network namespace of its own. The
// thread is never unlocked, so that it ends with the test.
func namespace(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("changing nftables needs root")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("network namespace: %v", err)
	}
}

func open(t testing.TB) *Table {
	t.Helper()
	table, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })
	return table
}

func nftList(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft list ruleset: %v\n%s", err, out)
	}
	return string(out)
}

func backends(names ...string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, n := range names {
		out = append(out, netip.MustParseAddrPort(n))
	}
	return out
}

func sample() plan.Table {
	t := plan.Table{
		Base:    plan.Base{Ingress: netip.MustParsePrefix("10.0.0.0/24"), Bridge: "msb-ingress", Source: netip.MustParseAddr("192.0.2.1"), VXLANPort: 4789},
		Guarded: []string{"msb-ingress"},
		Inside:  []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("10.0.1.0/24"), netip.MustParsePrefix("127.0.0.0/8")},
		Loops:   []plan.Loop{{Src: netip.MustParseAddr("192.0.2.2"), Dst: netip.MustParseAddr("10.0.0.21")}},
		Peers: []plan.PeerMark{
			{Device: "msb-ingress", MAC: plan.GatewayMAC(netip.MustParseAddr("10.0.0.2")), Mark: plan.MarkServing | 2},
			{Device: "eth0", MAC: plan.MAC{2, 1, 2, 3, 4, 5}, Mark: plan.MarkServing | 3},
		},
		Ports: []plan.Port{
			{PortKey: plan.PortKey{Protocol: plan.TCP, Port: 80}, Backends: backends("10.0.0.11:8000", "10.0.0.21:8000")},
			{PortKey: plan.PortKey{Protocol: plan.TCP, Port: 81}},
			{PortKey: plan.PortKey{Protocol: plan.UDP, Port: 53}, Backends: backends("10.0.0.12:5353")},
		},
		Virtuals: []plan.Port{
			{PortKey: plan.PortKey{Virtual: netip.MustParseAddr("10.0.1.2")}, Backends: backends("10.0.1.11:0", "10.0.1.21:0")},
			{PortKey: plan.PortKey{Virtual: netip.MustParseAddr("10.0.1.3")}},
		},
	}
	t.Normalize()
	return t
}

func TestWhatIsWrittenIsReadBackAndRemoved(t *testing.T) {
	namespace(t)
	table := open(t)
	if err := table.Apply(t.Context(), sample()); err != nil {
		t.Fatal(err)
	}
	if repaired, err := open(t).Verify(t.Context(), sample()); err != nil || repaired {
		t.Errorf("another process finds something to repair (%v, %v):\n%s", repaired, err, nftList(t))
	}
	if err := table.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := strings.TrimSpace(nftList(t)); s != "" {
		t.Errorf("left behind:\n%s", s)
	}
}

// plane is what the kernel's table and the fake have in common.
type plane interface {
	Apply(ctx context.Context, want plan.Table) error
	Verify(ctx context.Context, want plan.Table) (bool, error)
	Remove(ctx context.Context) error
}

// Both data planes pass this.
func TestPlane(t *testing.T) {
	t.Run("kernel", func(t *testing.T) {
		namespace(t)
		testPlane(t, open(t), func() plane { return open(t) })
	})
	t.Run("kernel without family bridge", func(t *testing.T) {
		namespace(t)
		family := bridgeTable.Family
		bridgeTable.Family = unix.NFPROTO_DECNET // which no kernel has
		defer func() { bridgeTable.Family = family }()
		table := open(t)
		testPlane(t, table, func() plane { return open(t) })
		if err := table.Apply(t.Context(), sample()); err != nil || table.KeepsARP() {
			t.Fatal(err)
		}
		if s := nftList(t); strings.Contains(s, "table bridge") || !strings.Contains(s, "virtual/10.0.1.2") {
			t.Errorf("what the kernel is given:\n%s", s)
		}
	})
	t.Run("fake", func(t *testing.T) {
		f := &Fake{}
		testPlane(t, f, func() plane { return f })
	})
}

// testPlane goes from one random table to the next. witness opens the same data
// plane as another process would.
func testPlane(t *testing.T, p plane, witness func() plane) {
	r := rand.New(rand.NewPCG(3, 4))
	for step := range 60 {
		want := randomTable(r)
		if err := p.Apply(t.Context(), want); err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		if repaired, err := witness().Verify(t.Context(), want); err != nil || repaired {
			t.Fatalf("step %d: another finds it repaired: %v, %v", step, repaired, err)
		}
		if repaired, err := p.Verify(t.Context(), want); err != nil || repaired {
			t.Fatalf("step %d: repaired without reason: %v, %v", step, repaired, err)
		}
		if step%10 == 9 {
			if err := witness().Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
			if repaired, err := p.Verify(t.Context(), want); err != nil || !repaired {
				t.Fatalf("step %d: not repaired after it was removed: %v, %v", step, repaired, err)
			}
		}
	}
	if err := p.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Remove(t.Context()); err != nil {
		t.Errorf("removing what is not there: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Apply(ended, sample()); !errors.Is(err, context.Canceled) {
		t.Errorf("after the context ended: %v", err)
	}
}

func randomTable(r *rand.Rand) plan.Table {
	t := plan.Table{Base: plan.Base{Ingress: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(r.IntN(2)), 0, 0}), 16), Source: netip.MustParseAddr("192.0.2.1")}}
	for i := range 5 {
		if r.IntN(2) == 0 {
			t.Guarded = append(t.Guarded, fmt.Sprintf("dev%d", i))
			t.Inside = append(t.Inside, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(i), 0}), 24))
			t.Loops = append(t.Loops, plan.Loop{Src: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), Dst: netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})})
			t.Peers = append(t.Peers, plan.PeerMark{Device: "dev0", MAC: plan.MAC{2, byte(i)}, Mark: plan.MarkServing | uint32(r.IntN(3))})
		}
	}
	for port := range uint16(6) {
		if r.IntN(3) == 0 {
			continue
		}
		p := plan.Port{PortKey: plan.PortKey{Protocol: []plan.Protocol{plan.TCP, plan.UDP}[r.IntN(2)], Port: 80 + port}}
		for range r.IntN(4) {
			p.Backends = append(p.Backends, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(250))}), 8000))
		}
		t.Ports = append(t.Ports, p)
		v := plan.Port{PortKey: plan.PortKey{Virtual: netip.AddrFrom4([4]byte{10, 0, 1, byte(port)})}}
		for _, a := range p.Backends[:r.IntN(len(p.Backends)+1)] {
			v.Backends = append(v.Backends, netip.AddrPortFrom(a.Addr(), 0))
		}
		t.Virtuals = append(t.Virtuals, v)
	}
	t.Normalize()
	return t
}

func many(services, backends int) plan.Table {
	t := plan.Table{Base: plan.Base{Ingress: netip.MustParsePrefix("10.0.0.0/8"), Source: netip.MustParseAddr("192.0.2.1")}}
	for s := range services {
		p := plan.Port{PortKey: plan.PortKey{Protocol: plan.TCP, Port: uint16(10000 + s)}}
		for b := range backends {
			p.Backends = append(p.Backends, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(s >> 8), byte(s), byte(b)}), 8000))
		}
		t.Ports = append(t.Ports, p)
	}
	t.Normalize()
	return t
}

// How long a change takes among 1000 services of 10 replicas each:
//
//	go test -run xxx -bench Change ./ingress/nft
func BenchmarkChange(b *testing.B) {
	namespace(b)
	table := open(b)
	base := many(1000, 10)
	if err := table.Apply(b.Context(), base); err != nil {
		b.Fatal(err)
	}
	changed := base
	change := func(backends []netip.AddrPort) {
		changed.Ports = slices.Clone(changed.Ports)
		changed.Ports[500].Backends = backends
	}
	extra := append(slices.Clone(base.Ports[500].Backends), netip.MustParseAddrPort("10.200.0.1:8000"))
	for _, c := range []struct {
		name     string
		backends [2][]netip.AddrPort
	}{
		{"endpoint=comes or goes", [2][]netip.AddrPort{extra, extra[:10]}},
		{"endpoint=is replaced", [2][]netip.AddrPort{extra[:10], append(slices.Clone(extra[:9]), extra[10])}},
	} {
		b.Run(c.name, func(b *testing.B) {
			n := 0
			for b.Loop() {
				n++
				change(c.backends[n%2])
				if err := table.Apply(b.Context(), changed); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("verify=nobody changed anything", func(b *testing.B) {
		for b.Loop() {
			if _, err := table.Verify(b.Context(), changed); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("verify=read all back", func(b *testing.B) {
		for b.Loop() {
			table.known = false
			if repaired, err := table.Verify(b.Context(), changed); err != nil || repaired {
				b.Fatal(repaired, err)
			}
		}
	})
	b.Run("all=anew", func(b *testing.B) {
		for b.Loop() {
			if err := table.Remove(b.Context()); err != nil {
				b.Fatal(err)
			}
			if err := table.Apply(b.Context(), base); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// The rule that gives each entry node a zone is there from the first, and is put back.
func TestEntryNodesAreKeptApart(t *testing.T) {
	namespace(t)
	table := open(t)
	if err := table.Apply(t.Context(), sample()); err != nil || !table.KeepsEntriesApart() {
		t.Fatalf("zones: %t, %v", table.KeepsEntriesApart(), err)
	}
	before := nftList(t)
	if !strings.Contains(before, "ct original zone set") {
		t.Errorf("no rule for zones:\n%s", before)
	}
	if again, err := open(t).Verify(t.Context(), sample()); again || err != nil {
		t.Errorf("another process repairs what is as it should be: %t, %v", again, err)
	}
	for _, change := range []string{"flush chain ip miniswarm zones", "insert rule ip miniswarm zones accept"} {
		if out, err := exec.Command("nft", change).CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		if repaired, err := table.Verify(t.Context(), sample()); !repaired || err != nil {
			t.Errorf("%s: repaired %t, %v", change, repaired, err)
		}
		if after := nftList(t); after != before {
			t.Errorf("after %s:\n%s\nbefore:\n%s", change, after, before)
		}
	}
}

// A connection that has failed is given up, and another opened as soon as there can be one, whichever of the two it is.
func TestAConnectionThatWasGivenUpIsReplaced(t *testing.T) {
	namespace(t)
	table := open(t)
	if err := table.Apply(t.Context(), sample()); err != nil {
		t.Fatal(err)
	}
	before := nftList(t)
	table.conn.CloseLasting()
	table.conn, table.known = nil, false // as when no other could be opened
	if err := table.Apply(t.Context(), sample()); err != nil {
		t.Error(err)
	}
	if after := nftList(t); after != before {
		t.Errorf("the rules have changed:\n%s\n%s", before, after)
	}
	table.ask.Close()
	if _, err := table.Disturbed(); err == nil {
		t.Error("an answer by a connection that is closed")
	}
	if disturbed, err := table.Disturbed(); disturbed || err != nil {
		t.Errorf("after that: disturbed %t, %v", disturbed, err)
	}
	table.ask.Close()
	table.ask = nil // as when no other could be opened
	if repaired, err := table.Verify(t.Context(), sample()); repaired || err != nil {
		t.Errorf("repaired %t, %v", repaired, err)
	}
}
