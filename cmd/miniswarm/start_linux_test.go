package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/miniswarm/miniswarm/lab"
)

// On a machine without a daemon, init starts one, says so, and the cluster is there. The daemon outlives the command.
func TestInitStartsTheDaemon(t *testing.T) {
	l := lab.ForTest(t, lab.Options{Nodes: 1, NoDaemon: true})
	binary, dir := lab.Miniswarm(t), t.TempDir()
	h, err := l.Host("vm1")
	if err != nil {
		t.Fatal(err)
	}
	miniswarm := func(args ...string) string {
		t.Helper()
		out, err := l.Output(t.Context(), "vm1", append([]string{"env", "-u", "MINISWARM_HOST", "MINISWARM_ENGINE=unix://" + h.EngineSocket,
			"MINISWARM_STATE_DIR=" + filepath.Join(dir, "state"), "MINISWARM_LOG_FILE=" + filepath.Join(dir, "log"), "sh", "-c", `"$@" 2>&1`, "sh", binary}, args...)...)
		if err != nil {
			t.Fatalf("miniswarm %v: %v\n%s", args, err, out)
		}
		return out
	}
	if out := miniswarm("init", "--advertise-addr", "eth0"); !strings.HasPrefix(out, "Started the daemon (pid ") || !strings.Contains(out, "Swarm initialized") {
		t.Errorf("init says %q", out)
	}
	if out := miniswarm("node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"); out != "vm1 Leader\n" {
		t.Errorf("node ls says %q", out)
	}
	if out := miniswarm("leave", "--force"); out != "Node left the swarm.\n" {
		t.Errorf("leave says %q", out)
	}
	if out := miniswarm("init"); strings.Contains(out, "Started") {
		t.Errorf("the daemon that runs was started again: %q", out)
	}
}
