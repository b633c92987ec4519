package overlay

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// namespace gives the rest of the test a network namespace of its own. The thread
// is never unlocked, so that it ends with the test.
func namespace(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("changing kernel settings needs root")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("network namespace: %v", err)
	}
}

func write(t *testing.T, key, value string) {
	t.Helper()
	if err := os.WriteFile(path(key), []byte(value), 0o644); err != nil {
		t.Fatal(err)
	}
}

const all, device = "net/ipv4/conf/all/rp_filter", "net/ipv4/conf/lo/rp_filter"

// The kernel filters by the higher of both values, and 1 is the one that drops
// packets of clients that are routed elsewhere.
func TestReversePathFilterIsNeverStrict(t *testing.T) {
	namespace(t)
	for _, c := range []struct{ all, before, want, after string }{
		{"0", "1", "0", "0"},
		{"1", "1", "0", "2"},
		{"1", "0", "0", "2"},
		{"2", "1", "0", "2"},
		{"0", "0", "2", "0"}, // somebody turned it off: not ours to turn on
		{"0", "1", "2", "2"},
		{"0", "2", "2", "2"},
		{"1", "0", "2", "2"},
		{"2", "0", "2", "0"},
	} {
		t.Run(fmt.Sprintf("all %s, device %s, wanted %s", c.all, c.before, c.want), func(t *testing.T) {
			namespace(t)
			write(t, all, c.all)
			write(t, device, c.before)
			s := newSettings("")
			want := plan.Sysctl{Key: device, Value: c.want}
			if err := s.set(want); err != nil {
				t.Fatal(err)
			}
			if got, _ := current(device); got != c.after {
				t.Errorf("set to %s, want %s", got, c.after)
			}
			if !s.fits(want) {
				t.Error("does not fit after it was set")
			}
		})
	}
}

func TestFormerValuesAreRestoredByAnotherProcess(t *testing.T) {
	namespace(t)
	dir := t.TempDir()
	write(t, device, "1")
	if err := newSettings(dir).set(plan.Sysctl{Key: device, Value: "0"}); err != nil {
		t.Fatal(err)
	}
	later := newSettings(dir)
	if err := later.set(plan.Sysctl{Key: device, Value: "2"}); err != nil {
		t.Fatal(err)
	}
	if err := later.restoreAll(); err != nil {
		t.Fatal(err)
	}
	if got, _ := current(device); got != "1" {
		t.Errorf("restored to %s, want 1", got)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := newSettings(dir).set(plan.Sysctl{Key: "net/ipv4/conf/nosuch/rp_filter", Value: "0"}); err == nil {
		t.Error("a setting of a device that does not exist was set")
	}
}
