package lab_test

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miniswarm/miniswarm/lab"
)

// Each fault does what it says to the host it is for, and to no other, and ends; and a lab with all of them goes away whole.
func TestFaults(t *testing.T) {
	echo := program(t, "echo")
	l := lab.ForTest(t, lab.Options{Nodes: 3, MiniswarmBinary: program(t, "fakeswarm"), DiskMiB: 160})
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range []string{"vm1", "vm2", "vm3"} {
		go func() { _ = l.Exec(ctx, h, []string{echo, "listen", ":9000"}, lab.Stdio{}) }()
	}
	// A connection needs frames both ways, so a test of one direction counts what the switch lets through.
	reaches := func(from, to string) bool {
		_, err := l.Output(ctx, from, echo, "dial", to+":9000")
		return err == nil
	}
	arrives := func(from, to string) bool { // an ARP request is answered by the kernel, and noted by the one asked
		output(t, l, to, "ip", "neigh", "flush", "all")
		_, _ = l.Output(ctx, from, "sh", "-c", "ip neigh flush all; "+echo+" dial "+to+":9000")
		h, err := l.Host(from)
		must(err)
		return strings.Contains(output(t, l, to, "ip", "neigh", "show", h.Addr.String()), "lladdr")
	}
	faults := func(host string) []string {
		t.Helper()
		hosts, err := l.Hosts()
		must(err)
		return hosts[slices.IndexFunc(hosts, func(h lab.Host) bool { return h.Name == host })].Faults
	}
	for _, from := range []string{"vm1", "vm2", "vm3"} {
		for _, to := range []string{"vm1", "vm2", "vm3"} {
			eventually(t, func() bool { return reaches(from, to) })
		}
	}

	t.Run("one way", func(t *testing.T) {
		must(l.Lose(ctx, "vm1", "vm2", 100))
		if got := faults("vm2"); !slices.Equal(got, []string{"vm1->vm2 loses 100%"}) {
			t.Errorf("faults of vm2: %v", got)
		}
		if arrives("vm1", "vm2") || !arrives("vm2", "vm1") {
			t.Error("frames do not go one way, and only one")
		}
		if reaches("vm1", "vm2") || !reaches("vm1", "vm3") || !reaches("vm3", "vm2") {
			t.Error("others are concerned, or nobody")
		}
		must(l.Heal(ctx, "vm2"))
		eventually(t, func() bool { return reaches("vm1", "vm2") && reaches("vm2", "vm1") })
		if got := faults("vm1"); len(got) != 0 {
			t.Errorf("faults of vm1 after heal: %v", got)
		}
		must(l.Lose(ctx, "", "vm3", 100))
		if reaches("vm3", "vm1") || reaches("vm3", "registry") || !reaches("vm1", "vm2") {
			t.Error("what everybody sends to vm3 is not lost, or more is")
		}
		must(l.Lose(ctx, "", "vm3", 0))
		eventually(t, func() bool { return reaches("vm3", "vm1") })
		if err := l.Lose(ctx, "vm1", "vm9", 100); err == nil || !strings.Contains(err.Error(), "vm9") {
			t.Errorf("a host that is not there: %v", err)
		}
		if err := l.Lose(ctx, "vm1", "vm1", 10); err == nil {
			t.Error("a host loses what it sends to itself")
		}
	})

	// ticks are how much processor time the processes of a host that are named so have used.
	ticks := func(host, name string) int {
		t.Helper()
		total := 0
		h, err := l.Host(host)
		must(err)
		dirs, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(h.PID), "root/proc/[0-9]*/stat"))
		must(err)
		for _, d := range dirs {
			text, err := os.ReadFile(d)
			if err != nil || !strings.Contains(string(text), "("+name+")") {
				continue
			}
			f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+2:]))
			user, _ := strconv.Atoi(f[11])
			system, _ := strconv.Atoi(f[12])
			total += user + system
		}
		return total
	}
	spent := func(host, name string, during time.Duration) int {
		before := ticks(host, name)
		time.Sleep(during)
		return ticks(host, name) - before
	}

	t.Run("pause and starve", func(t *testing.T) {
		for _, h := range []string{"vm1", "vm2"} {
			go func() { _ = l.Exec(ctx, h, []string{"timeout", "60", "yes"}, lab.Stdio{}) }()
		}
		eventually(t, func() bool { return ticks("vm1", "yes") > 0 && ticks("vm2", "yes") > 0 })
		must(l.Pause(ctx, "vm1"))
		if n := spent("vm1", "yes", 300*time.Millisecond); n != 0 {
			t.Errorf("a paused host used %d ticks", n)
		}
		if n := spent("vm2", "yes", 300*time.Millisecond); n == 0 {
			t.Error("another host is paused as well")
		}
		must(l.Resume(ctx, "vm1"))
		eventually(t, func() bool { return spent("vm1", "yes", 100*time.Millisecond) > 0 })

		must(l.Starve(ctx, "vm1", 0.05))
		if n := spent("vm1", "yes", time.Second); n > 12 { // 100 ticks are a processor's second
			t.Errorf("a host with 0.05 of a processor used %d ticks in a second", n)
		}
		if got := faults("vm1"); !slices.Equal(got, []string{"0.05 cpus"}) {
			t.Errorf("faults: %v", got)
		}
		must(l.Resume(ctx, "vm1"))
		eventually(t, func() bool { return spent("vm1", "yes", 500*time.Millisecond) > 10 })
		if err := l.Starve(ctx, "vm1", 0); err == nil {
			t.Error("a host lives on no processor at all")
		}
	})

	t.Run("daemon and engine", func(t *testing.T) {
		state := func(p string) string {
			return output(t, l, "vm2", "sh", "-c", "ps -e -o state=,comm= | grep "+p+" | cut -c1")
		}
		must(l.PauseEngine(ctx, "vm2"))
		must(l.PauseDaemon(ctx, "vm2"))
		if e, d := state("dockerd"), state("fakeswarm"); e != "T" || d != "T" {
			t.Errorf("engine is %q, daemon %q", e, d)
		}
		must(l.Resume(ctx, "vm2"))
		if e, d := state("dockerd"), state("fakeswarm"); e == "T" || d == "T" {
			t.Errorf("after resume engine is %q, daemon %q", e, d)
		}
		must(l.PauseDaemon(ctx, "vm2")) // a fault of the process, and gone with it
		if got := faults("vm2"); !slices.Equal(got, []string{"daemon paused"}) {
			t.Errorf("faults: %v", got)
		}
		must(l.KillDaemon(ctx, "vm2"))
		must(l.StartDaemon(ctx, "vm2"))
		if got := faults("vm2"); len(got) != 0 {
			t.Errorf("faults of a daemon that was started anew: %v", got)
		}
	})

	t.Run("disk", func(t *testing.T) {
		dir := filepath.Join(l.Dir(), "vm3", "miniswarm")
		write := func() error {
			_, err := l.Output(ctx, "vm3", "sh", "-c", "dd if=/dev/zero of="+dir+"/x bs=64k count=1 conv=fsync 2>&1")
			return err
		}
		must(write())
		must(l.FillDisk(ctx, "vm3"))
		output(t, l, "vm3", "rm", dir+"/x")
		must(l.FillDisk(ctx, "vm3")) // what the file left
		if err := write(); err == nil {
			t.Error("a full disk takes a write")
		}
		must(l.FreeDisk(ctx, "vm3"))
		must(write())
		must(l.HangDisk(ctx, "vm3"))
		written := make(chan error, 1) // not even a kill ends the one who waits for the disk
		go func() { written <- write() }()
		select {
		case err := <-written:
			t.Errorf("a disk that hangs answered: %v", err)
		case <-time.After(300 * time.Millisecond):
		}
		must(l.Resume(ctx, "vm3"))
		must(<-written)
		if got := faults("vm3"); len(got) != 0 {
			t.Errorf("faults of vm3 at the end: %v", got)
		}
		must(l.Fail(ctx, "vm3"))
		must(l.Start(ctx, "vm3"))
		output(t, l, "vm3", "test", "-s", dir+"/x")
	})

	// As a lab is that somebody has had enough of.
	must(l.Pause(ctx, "vm1"))
	must(l.Starve(ctx, "vm2", 0.05))
	must(l.PauseEngine(ctx, "vm2"))
	must(l.HangDisk(ctx, "vm3"))
	must(l.Down(ctx))
	nothingLeft(t, l.Dir())
}

// A lab without a disk for the daemons' state has none to fill.
func TestTheMachinesDiskIsNotFilled(t *testing.T) {
	l := lab.ForTest(t, lab.Options{Nodes: 1, NoDaemon: true})
	if err := l.FillDisk(t.Context(), "vm1"); err == nil || !strings.Contains(err.Error(), "--disk") {
		t.Errorf("the machine's disk is filled: %v", err)
	}
}
