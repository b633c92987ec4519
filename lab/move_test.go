package lab_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miniswarm/miniswarm/lab"
)

// A host gets another address, a copy, and a clock that is wrong, and the others keep theirs.
func TestMoveCopyClock(t *testing.T) {
	echo := program(t, "echo")
	l := lab.ForTest(t, lab.Options{Nodes: 2, MiniswarmBinary: program(t, "fakeswarm")})
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	host := func(name string) lab.Host {
		t.Helper()
		h, err := l.Host(name)
		must(err)
		return h
	}
	reaches := func(from, to string) bool {
		_, err := l.Output(ctx, from, echo, "dial", to+":9000")
		return err == nil
	}
	listen := func(name string) {
		go func() { _ = l.Exec(ctx, name, []string{echo, "listen", ":9000"}, lab.Stdio{}) }()
	}
	hardware := func(name string) string { return output(t, l, name, "cat", "/sys/class/net/eth0/address") }
	for _, h := range []string{"vm1", "vm2"} {
		listen(h)
	}
	eventually(t, func() bool { return reaches("vm1", "vm2") && reaches("vm2", "vm1") })

	t.Run("move", func(t *testing.T) {
		before, mac := host("vm2").Addr, hardware("vm2")
		now, err := l.Move(ctx, "vm2", netip.Addr{})
		must(err)
		if now == before || host("vm2").Addr != now {
			t.Errorf("moved from %s to %s, and is at %s", before, now, host("vm2").Addr)
		}
		eventually(t, func() bool { return reaches("vm1", "vm2") && reaches("vm1", now.String()) && reaches("vm2", "vm1") })
		if reaches("vm1", before.String()) {
			t.Error("the former address answers")
		}
		// Somebody else has the former address next, and nobody keeps to whom it was.
		_, err = l.Move(ctx, "vm1", before)
		must(err)
		eventually(t, func() bool { return reaches("vm2", before.String()) && reaches("vm2", "vm1") })
		_, err = l.Move(ctx, "vm1", netip.Addr{})
		must(err)

		must(l.Fail(ctx, "vm2"))
		if now, err = l.Move(ctx, "vm2", before); now != before {
			t.Errorf("moved to %s, not %s: %v", now, before, err)
		}
		must(l.Start(ctx, "vm2"))
		listen("vm2")
		eventually(t, func() bool { return reaches("vm1", before.String()) && reaches("vm1", "vm2") })
		if got := hardware("vm2"); got != mac {
			t.Errorf("the hardware address was %s and is %s", mac, got)
		}
		for _, taken := range []string{host("vm1").Addr.String(), l.MachineAddr().String(), "192.0.2.1"} {
			if _, err := l.Move(ctx, "vm2", netip.MustParseAddr(taken)); err == nil || !strings.Contains(err.Error(), taken) {
				t.Errorf("moved to %s: %v", taken, err)
			}
		}
	})

	t.Run("clock", func(t *testing.T) {
		ahead := func(name string) time.Duration {
			t.Helper()
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", host(name).DaemonSocket)
			}}}
			res, err := client.Get("http://lab/_ping")
			must(err)
			defer res.Body.Close()
			date, err := http.ParseTime(res.Header.Get("Date"))
			must(err)
			return time.Until(date)
		}
		is := func(name string, want time.Duration) {
			t.Helper()
			if got := ahead(name); (got - want).Abs() > 5*time.Second {
				t.Errorf("the daemon's clock of %s is %s ahead, not %s", name, got, want)
			}
		}
		day := 24 * time.Hour
		must(l.SetClock(ctx, "vm1", 400*day))
		is("vm1", 400*day)
		is("vm2", 0)
		if got := host("vm1").Faults; !slices.Equal(got, []string{"clock +9600h0m0s"}) {
			t.Errorf("faults: %v", got)
		}
		must(l.SetClock(ctx, "vm1", -30*day)) // again, and behind
		is("vm1", -30*day)
		must(l.KillDaemon(ctx, "vm1"))
		must(l.StartDaemon(ctx, "vm1"))
		is("vm1", -30*day)
		for range 20 { // a process that is busy with its clock
			must(l.SetClock(ctx, "vm1", -day))
			is("vm1", -day)
			must(l.SetClock(ctx, "vm1", day))
			is("vm1", day)
		}
		must(l.Resume(ctx, "vm1"))
		is("vm1", 0)
		must(l.Fail(ctx, "vm1"))
		must(l.SetClock(ctx, "vm1", day))
		must(l.Start(ctx, "vm1"))
		is("vm1", day)
		must(l.SetClock(ctx, "vm1", 0))
		if got := host("vm1").Faults; len(got) != 0 {
			t.Errorf("faults: %v", got)
		}
	})

	t.Run("copy", func(t *testing.T) {
		must(os.WriteFile(filepath.Join(l.Dir(), "vm2", "miniswarm", "x"), []byte("x"), 0o600))
		output(t, l, "vm2", "docker", "volume", "create", "kept")
		name, err := l.Copy(ctx, "vm2")
		must(err)
		h := host(name)
		if name != "vm3" || !h.On || !h.Engine || !h.Daemon || h.Addr == host("vm2").Addr || h.Manager {
			t.Errorf("the copy: %+v", h)
		}
		listen(name)
		eventually(t, func() bool { return reaches("vm1", name) && reaches("vm2", name) && reaches(name, "vm2") })
		output(t, l, name, "test", "-s", filepath.Join(l.Dir(), name, "miniswarm", "x"))
		for what, argv := range map[string][]string{
			"machine id": {"cat", "/etc/machine-id"},
			"engine id":  {"docker", "info", "--format", "{{.ID}}"},
			"volumes":    {"docker", "volume", "ls", "-q"},
		} {
			if a, b := output(t, l, "vm2", argv...), output(t, l, name, argv...); a != b || a == "" {
				t.Errorf("%s: %q, of the copy %q", what, a, b)
			}
		}
		if hardware(name) == hardware("vm2") {
			t.Error("two network ports have one hardware address")
		}
		if at := output(t, l, name, "docker", "volume", "inspect", "kept", "--format", "{{.Mountpoint}}"); !strings.Contains(at, fmt.Sprintf("/%s/", name)) {
			t.Errorf("the copy's volume is in %s", at)
		}
		if _, err := l.Copy(ctx, "vm9"); err == nil || !strings.Contains(err.Error(), "vm9") {
			t.Errorf("copy of a host that is not there: %v", err)
		}
	})

	must(l.Down(ctx))
	nothingLeft(t, l.Dir())
}
