package nft

import (
	"net/netip"
	"os"
	"os/exec"
	"runtime"
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
		Ingress: netip.MustParsePrefix("10.0.0.0/24"),
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
