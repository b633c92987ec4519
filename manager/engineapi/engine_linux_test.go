package engineapi

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/lab"
)

// TestARealEngineBehindTheSocket runs the docker command against a node's socket in front of a real engine: whatever is
// not the swarm's must work as if the engine had been asked.
func TestARealEngineBehindTheSocket(t *testing.T) {
	l := lab.ForTest(t, lab.Options{Nodes: 1, NoDaemon: true})
	host, err := l.Host("vm1")
	if err != nil {
		t.Fatal(err)
	}
	c := newCLI(t)
	c.serve(host.EngineSocket)
	c.watched()
	started := time.Now()

	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "box"), "./testdata/box")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the box: %v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY box /box\nENTRYPOINT [\"/box\"]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_BUILDKIT", "0")
	c.shows(c.ok("build", "-t", "box:1", dir), "Successfully tagged box:1")

	t.Run("run", func(t *testing.T) {
		c.shows(c.ok("run", "--rm", "box:1", "echo", "hello", "there"), "hello there")
		if _, _, ok := c.run("", "run", "--rm", "box:1", "fail"); ok {
			t.Error("the exit code is lost")
		}
		long := strings.Repeat("line of text\n", 100_000) // more than every buffer on the way
		out, errs, ok := c.run(long, "run", "-i", "--rm", "box:1", "cat")
		if !ok || out != long || !strings.Contains(errs, "read 1300000 <nil>") {
			t.Errorf("ok %v, %d bytes back, %s", ok, len(out), errs)
		}
	})
	t.Run("exec and attach", func(t *testing.T) {
		c.ok("run", "-d", "--name", "c1", "box:1")
		c.shows(c.ok("ps", "--format", "{{.Names}} {{.Image}}"), "c1 box:1")
		out, errs, ok := c.run("through exec", "exec", "-i", "c1", "/box", "cat")
		if !ok || out != "through exec" || !strings.Contains(errs, "read 12 <nil>") {
			t.Errorf("exec -i: ok %v %q %s", ok, out, errs)
		}
		// script gives the command a terminal, as a person has.
		cmd := exec.CommandContext(t.Context(), "script", "-qec", c.docker+" exec -it c1 /box tty", "/dev/null")
		cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+c.socket, "DOCKER_CONFIG="+c.config)
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "this is a terminal") {
			t.Errorf("exec -it: %v %s", err, out)
		}
		c.shows(c.ok("logs", "c1"), "serving")
		c.shows(c.ok("top", "c1"), "/box")
		c.shows(c.ok("stats", "--no-stream", "--format", "{{.Name}}", "c1"), "c1")
		c.shows(c.ok("inspect", "c1", "--format", "{{.State.Status}}"), "running")
		waited := make(chan string, 1)
		go func() { out, _, _ := c.run("", "wait", "c1"); waited <- out }()
		c.ok("stop", "-t", "5", "c1")
		c.shows(<-waited, "0")
	})
	t.Run("files and images", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, []byte("copied"), 0o600); err != nil {
			t.Fatal(err)
		}
		c.ok("cp", file, "c1:/file")
		c.ok("cp", "c1:/file", file+".back")
		if back, err := os.ReadFile(file + ".back"); err != nil || string(back) != "copied" {
			t.Errorf("cp: %q %v", back, err)
		}
		c.ok("save", "-o", file, "box:1")
		c.ok("rmi", "-f", "box:1")
		c.shows(c.ok("load", "-i", file), "Loaded image: box:1")
		c.shows(c.ok("images", "--format", "{{.Repository}}:{{.Tag}}"), "box:1")
	})
	t.Run("networks and volumes", func(t *testing.T) {
		c.ok("network", "create", "mine")
		c.shows(c.ok("network", "ls"), "mine bridge local", "ingress overlay swarm", "host host local")
		c.shows(c.ok("network", "ls", "--filter", "driver=bridge", "--format", "{{.Name}}"), "mine")
		c.ok("network", "connect", "mine", "c1")
		c.ok("network", "disconnect", "mine", "c1")
		c.shows(c.ok("network", "prune", "-f"), "mine")
		c.ok("volume", "create", "data")
		c.shows(c.ok("volume", "ls"), "data")
		c.shows(c.ok("system", "df"), "Images", "Local Volumes")
	})
	t.Run("merged answers", func(t *testing.T) {
		c.shows(c.ok("info"), "Swarm: active", "Is Manager: true", "Server Version: 20.10")
		c.shows(c.ok("version"), "miniswarm: Version: 1.2.3", "containerd:", "API version: 1.41")
		c.control.now = time.Now()
		c.control.put(t, aService("svc1", "web", 1))
		c.ok("rm", "c1")
		out := c.ok("events", "--since", started.Format(time.RFC3339Nano), "--until", time.Now().Add(time.Second).Format(time.RFC3339Nano))
		c.shows(out, "container exec_start: /box cat", "container destroy", "service create svc1 (name=web)")
		if strings.Index(out, "container die") > strings.Index(out, "service create") {
			t.Errorf("the past is out of order:\n%s", out)
		}
	})
	t.Run("a client that goes away", func(t *testing.T) {
		c.ok("run", "-d", "--name", "c2", "box:1")
		cmd := exec.CommandContext(t.Context(), c.docker, "logs", "-f", "c2")
		cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+c.socket, "DOCKER_CONFIG="+c.config)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		c.ok("rm", "-f", "c2")
	})
	t.Run("the engine comes back", func(t *testing.T) {
		if err := l.StopEngine(t.Context(), "vm1"); err != nil {
			t.Fatal(err)
		}
		c.shows(c.ok("node", "ls"), "vm1 Ready")
		c.fails("does not answer", "ps")
		if err := l.StartEngine(t.Context(), "vm1"); err != nil {
			t.Fatal(err)
		}
		c.ok("ps")
		must[[]swarm.Service](c.world, 200, "GET", "/services", nil)
	})
}
