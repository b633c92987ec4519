package lab_test

import (
	"bufio"
	"bytes"
	"io"
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

// program builds one of the programs below testdata.
func program(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	build := exec.Command("go", "build", "-o", path, "./testdata/"+name)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return path
}

// image puts echo into a scratch image on vm1 and has every host pull it.
func image(t *testing.T, l *lab.Lab, echo string) string {
	t.Helper()
	dir := filepath.Dir(echo)
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
	l := lab.ForTest(t, lab.Options{Nodes: 2, NoDaemon: true})
	ctx := t.Context()
	echo := program(t, "echo")
	ref := image(t, l, echo)
	reaches := func(from, to string) bool {
		_, err := l.Output(ctx, from, echo, "dial", to+":9000")
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
			if out, err := exec.Command(echo, "dial", h.Addr.String()+":9000").CombinedOutput(); err != nil {
				t.Errorf("the machine does not reach %s: %s", h.Name, out)
			}
			if _, err := l.Output(ctx, h.Name, echo, "dial", ln.Addr().String()); err != nil {
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
		held := hold(t, l, "vm1", echo, "vm2:9000")
		if err := l.Fail(ctx, "vm2"); err != nil {
			t.Fatal(err)
		}
		if got := held(); got != "silent" {
			t.Errorf("a peer of the failed host was told: %s", got)
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
		output(t, l, "vm2", "docker", "start", "echo") // which returns before the program in it listens
		eventually(t, func() bool { return reaches("vm1", "vm2") })
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
	nothingLeft(t, l.Dir())
	if err := l.Down(ctx); err != nil {
		t.Errorf("second down: %v", err)
	}
}

// hold opens a connection from a host and returns, once it stands, what waits for its fate.
func hold(t *testing.T, l *lab.Lab, from, echo, addr string) (fate func() string) {
	t.Helper()
	r, w := io.Pipe()
	go func() {
		w.CloseWithError(l.Exec(t.Context(), from, []string{echo, "hold", addr}, lab.Stdio{Out: w}))
	}()
	lines := bufio.NewScanner(r)
	if !lines.Scan() || lines.Text() != "connected" {
		t.Fatalf("%s to %s: %q %v", from, addr, lines.Text(), lines.Err())
	}
	return func() string {
		if !lines.Scan() {
			t.Fatalf("%s to %s: %v", from, addr, lines.Err())
		}
		return lines.Text()
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

// nothingLeft looks for whatever of the lab in dir could be left on the machine. It looks only for what carries the
// lab's name: others may run labs at the same time.
func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("%s is left", dir)
	}
	space, uplink, groups := lab.Leftovers(dir)
	for what, now := range map[string]string{
		"network namespace": tool(t, "ip", "netns", "list"),
		"mount":             tool(t, "cat", "/proc/self/mountinfo"),
		"link":              tool(t, "ip", "-o", "link"),
	} {
		if strings.Contains(now, space) || strings.Contains(now, uplink) || strings.Contains(now, dir+"/") {
			t.Errorf("%s left:\n%s", what, now)
		}
	}
	for _, pattern := range []string{"/proc/[0-9]*/environ", "/proc/[0-9]*/cmdline", "/proc/[0-9]*/mountinfo"} {
		files, _ := filepath.Glob(pattern)
		for _, f := range files {
			if data, err := os.ReadFile(f); err == nil && bytes.Contains(data, []byte(dir+"/")) {
				t.Errorf("process left: %s", f)
			}
		}
	}
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		if left, _ := filepath.Glob(root + groups); left != nil {
			t.Errorf("control groups left: %s", left)
		}
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
