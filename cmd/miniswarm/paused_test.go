package main

import (
	"strings"
	"testing"

	"github.com/docker/docker/api/types/swarm"
)

func TestPausedUpdatesAreLoud(t *testing.T) {
	f := startFake(t, t.TempDir())
	f.member = true
	host := "unix://" + f.socket
	for _, name := range []string{"web", "back", "fine"} {
		if code, _, errs := call(t.Context(), "--host", host, "service", "create", "--detach", "--quiet", "--label", "com.docker.stack.namespace=of-"+name, "--name", name, "image:1"); code != 0 {
			t.Fatal(errs)
		}
	}
	f.services[0].UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateStatePaused, Message: "update paused due to failure or early termination of task abc"}
	f.services[1].UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateStateRollbackPaused, Message: "no previous specification"}
	f.services[2].UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateStateCompleted, Message: "update completed"}

	code, table, said := call(t.Context(), "--host", host, "service", "ls")
	want := "web: update paused due to failure or early termination of task abc. 'miniswarm service ps web' shows why; 'miniswarm service rollback web' goes back, 'miniswarm service update web' goes on.\n" +
		"back: rollback paused: no previous specification. 'miniswarm service ps back' shows why; 'miniswarm service update back' goes on.\n"
	if code != 0 || said != want || strings.Count(table, "\n") != 4 || strings.Contains(table, "paused") {
		t.Errorf("code %d, table:\n%s\nbeside it:\n%s\nwant:\n%s", code, table, said, want)
	}
	for _, args := range [][]string{{"-q"}, {"--quiet"}, {"--format", "{{.Name}}"}, {"--format", "json"}, {"--format", "table {{.Name}}"}} {
		if code, _, said := call(t.Context(), append([]string{"--host", host, "service", "ls"}, args...)...); code != 0 || said != "" {
			t.Errorf("service ls %v: code %d, beside it %q", args, code, said)
		}
	}
	if code, _, said := call(t.Context(), "--host", host, "stack", "services", "of-back"); code != 0 || !strings.HasPrefix(said, "back: rollback paused") || strings.Contains(said, "web") {
		t.Errorf("stack services: code %d, beside it %q", code, said)
	}
	f.member = false
	if code, _, said := call(t.Context(), "--host", host, "service", "ls"); code == 0 || strings.Contains(said, "paused") {
		t.Errorf("where there is no swarm: code %d, %q", code, said)
	}
}
