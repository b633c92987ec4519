package lab_test

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miniswarm/miniswarm/lab"
)

// echo builds the test's only program; it is what containers run and what asks whether one host reaches another.
func echo(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "echo")
	build := exec.Command("go", "build", "-o", path, "./testdata/echo")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return path
}

// image puts the program into a scratch image on vm1 and has every host pull it.
func image(t *testing.T, l *lab.Lab, program string) string {
	t.Helper()
	dir := filepath.Dir(program)
	dockerfile := "FROM scratch\nCOPY echo /echo\nENTRYPOINT [\"/echo\"]\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		t.Fatal(err)
	}
	ref, err := l.BuildImage(t.Context(), "vm1", dir, "echo:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Preload(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	return ref
}

func output(t *testing.T, l *lab.Lab, host string, argv ...string) string {
	t.Helper()
	out, err := l.Output(t.Context(), host, argv...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func TestHosts(t *testing.T) {
	before := machine(t)
	l := lab.ForTest(t, lab.Options{Nodes: 2, NoDaemon: true})
	ctx := t.Context()
	program := echo(t)
	ref := image(t, l, program)
	reaches := func(from, to string) bool {
		_, err := l.Output(ctx, from, program, "dial", to+":9000")
		return err == nil
	}
	hosts, err := l.Hosts()
	if err != nil {
		t.Fatal(err)
	}
	vm1, vm2 := hosts[0], hosts[1]

	id := map[string]string{}
	for _, h := range hosts {
		id[h.Name] = output(t, l, h.Name, "docker", "run", "-d", "--name", "echo", "-p", "9000:9000", ref, "listen", ":9000")
		if got := output(t, l, h.Name, "hostname"); got != h.Name {
			t.Errorf("hostname of %s: %q", h.Name, got)
		}
		if got := output(t, l, h.Name, "docker", "info", "--format", "{{.Name}}"); got != h.Name {
			t.Errorf("engine of %s says it is on %q", h.Name, got)
		}
	}
	if a, b := output(t, l, "vm1", "docker", "info", "--format", "{{.ID}}"), output(t, l, "vm2", "docker", "info", "--format", "{{.ID}}"); a == b {
		t.Errorf("both engines have the id %s", a)
	}
	if got := output(t, l, "vm1", "ls", "/sys/class/net"); !strings.Contains(got, "docker0") {
		t.Errorf("/sys of vm1 is not its own: %s", got)
	}

	t.Run("names and addresses reach across", func(t *testing.T) {
		ln, err := net.Listen("tcp", l.MachineAddr().String()+":0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		go func() {
			for c, err := ln.Accept(); err == nil; c, err = ln.Accept() {
				_, _ = c.Write([]byte("!"))
				c.Close()
			}
		}()
		for _, h := range hosts {
			for _, peer := range hosts {
				if !reaches(h.Name, peer.Name) {
					t.Errorf("%s does not reach %s", h.Name, peer.Name)
				}
			}
			if out, err := exec.Command(program, "dial", h.Addr.String()+":9000").CombinedOutput(); err != nil {
				t.Errorf("the machine does not reach %s: %s", h.Name, out)
			}
			if _, err := l.Output(ctx, h.Name, program, "dial", ln.Addr().String()); err != nil {
				t.Errorf("%s does not reach the machine: %v", h.Name, err)
			}
		}
	})

	t.Run("a cut host runs and is not reached", func(t *testing.T) {
		if err := l.Cut(ctx, "vm2"); err != nil {
			t.Fatal(err)
		}
		if reaches("vm1", "vm2") || reaches("vm2", "vm1") {
			t.Error("vm2 still has a network")
		}
		if got := output(t, l, "vm2", "docker", "ps", "-q", "--no-trunc"); got != id["vm2"] {
			t.Errorf("containers on vm2: %q", got)
		}
		if err := l.Heal(ctx, "vm2"); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() bool { return reaches("vm1", "vm2") })
	})

	t.Run("a killed engine comes back and the host stays", func(t *testing.T) {
		if err := l.KillEngine(ctx, "vm1"); err != nil {
			t.Fatal(err)
		}
		if h, _ := l.Host("vm1"); !h.On || h.Engine || h.PID != vm1.PID {
			t.Errorf("vm1 after its engine was killed: %+v", h)
		}
		if ps := output(t, l, "vm1", "ps", "-e", "-o", "comm="); !strings.Contains(ps, "echo") {
			t.Errorf("container died with its engine:\n%s", ps)
		}
		if err := l.StartEngine(ctx, "vm1"); err != nil {
			t.Fatal(err)
		}
		output(t, l, "vm1", "docker", "start", "echo")
	})

	t.Run("power failure and boot", func(t *testing.T) {
		if err := l.Fail(ctx, "vm2"); err != nil {
			t.Fatal(err)
		}
		h, _ := l.Host("vm2")
		if h.On || h.Engine || h.PID != 0 {
			t.Errorf("vm2 after a power failure: %+v", h)
		}
		if _, err := os.Stat(filepath.Join("/proc", strconv.Itoa(vm2.PID))); err == nil {
			t.Error("first process of vm2 still runs")
		}
		if reaches("vm1", "vm2") {
			t.Error("vm2 still answers")
		}
		if _, err := l.Output(ctx, "vm2", "true"); err == nil || !strings.Contains(err.Error(), "is off") {
			t.Errorf("exec on a host that is off: %v", err)
		}
		if got := output(t, l, "vm1", "docker", "ps", "-q", "--no-trunc"); got != id["vm1"] {
			t.Errorf("containers on vm1: %q", got)
		}
		if err := l.Fail(ctx, "vm2"); err != nil {
			t.Errorf("failing a host twice: %v", err)
		}
		if err := l.Start(ctx, "vm2"); err != nil {
			t.Fatal(err)
		}
		again, _ := l.Host("vm2")
		if !again.On || !again.Engine || again.Addr != vm2.Addr {
			t.Errorf("vm2 after boot: %+v", again)
		}
		if got := output(t, l, "vm2", "docker", "ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.State}}"); got != id["vm2"]+" exited" {
			t.Errorf("containers on vm2's disk: %q", got)
		}
		output(t, l, "vm2", "docker", "start", "echo")
		if !reaches("vm1", "vm2") {
			t.Error("vm1 does not reach vm2 after boot")
		}
	})

	t.Run("another lab beside it", func(t *testing.T) {
		other := lab.ForTest(t, lab.Options{Nodes: 1, NoDaemon: true})
		if other.Subnet().Overlaps(l.Subnet()) {
			t.Errorf("both labs use %s", l.Subnet())
		}
		if got := output(t, other, "vm1", "docker", "ps", "-aq"); got != "" {
			t.Errorf("containers of another lab: %s", got)
		}
		if err := other.Down(ctx); err != nil {
			t.Fatal(err)
		}
		if !reaches("vm1", "vm2") {
			t.Error("removing one lab disturbed the other")
		}
	})

	if err := l.Down(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(l.Dir()); err == nil {
		t.Errorf("%s is still there", l.Dir())
	}
	before.compare(t, l)
	if err := l.Down(ctx); err != nil {
		t.Errorf("second down: %v", err)
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("not within 10 s")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// kernel is what a lab could leave behind on the machine.
type kernel struct{ spaces, links, mounts, groups string }

func machine(t *testing.T) kernel {
	t.Helper()
	if os.Getenv(lab.TestVariable) != "1" {
		return kernel{}
	}
	return kernel{
		spaces: tool(t, "ip", "netns", "list"),
		links:  tool(t, "ip", "-o", "link", "show", "type", "veth"),
		mounts: tool(t, "cut", "-d ", "-f5", "/proc/self/mountinfo"),
		groups: tool(t, "find", "/sys/fs/cgroup", "-path", "*miniswarm-lab*", "-type", "d"),
	}
}

// compare looks only for what carries the lab's name: others may run labs at the same time.
func (k kernel) compare(t *testing.T, l *lab.Lab) {
	t.Helper()
	after := machine(t)
	for what, now := range map[string]string{"network namespaces": after.spaces, "mounts": after.mounts} {
		if strings.Contains(now, l.Name()) {
			t.Errorf("%s left:\n%s", what, now)
		}
	}
	for _, dir := range []string{"/proc/[0-9]*/environ", "/proc/[0-9]*/cmdline"} {
		files, _ := filepath.Glob(dir)
		for _, f := range files {
			if data, err := os.ReadFile(f); err == nil && bytes.Contains(data, []byte(l.Dir())) {
				t.Errorf("process left: %s %s", f, data)
			}
		}
	}
	if subnet := tool(t, "ip", "-4", "route", "show", l.Subnet().String()); subnet != "" {
		t.Errorf("route left: %s", subnet)
	}
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return string(out)
}
