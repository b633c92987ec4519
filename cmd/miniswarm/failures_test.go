package main

import (
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"
)

// While a service is waited for, each reason for which its tasks end is told once, and in full.
func TestFailuresAreTold(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(1_700_000_000+int64(s), 0) }
	task := func(slot int, state swarm.TaskState, updated int, err string) swarm.Task {
		return swarm.Task{Slot: slot, NodeID: "n1", Meta: swarm.Meta{UpdatedAt: at(updated)}, Status: swarm.TaskStatus{State: state, Err: err}}
	}
	var out strings.Builder
	p := &progressPrinter{write: &out, last: map[string]string{}, nodes: map[string]string{"n1": "vm1"}}
	f := &failures{service: "web", since: at(10)}
	missing := "No such image: registry.local/web:1 (manifest for registry.local/web:1 not found)"
	for _, tasks := range [][]swarm.Task{
		nil,
		{task(1, swarm.TaskStateFailed, 9, "task: non-zero exit (3)")}, // before the command
		{task(1, swarm.TaskStateRunning, 11, ""), task(1, swarm.TaskStateFailed, 11, "task: non-zero exit (1)"), task(1, swarm.TaskStatePending, 12, "no suitable node")},
		{task(2, swarm.TaskStateFailed, 12, "task: non-zero exit (1)"), task(1, swarm.TaskStateFailed, 11, "task: non-zero exit (1)")},
		{task(0, swarm.TaskStateRejected, 13, missing+"\n")},
	} {
		f.tell(tasks, p)
	}
	p.line(message{ID: "3/4", Status: missing[:60] + "…"}) // as Docker's progress has it
	p.line(message{ID: "3/4", Status: "another trouble…"})
	want := "web.1 on vm1 failed: task: non-zero exit (1)\nweb on vm1 failed: " + missing + "\ntask 3/4: another trouble…\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}

// An update that has stopped says what became of the task for which it did.
func TestPausedUpdateSaysWhy(t *testing.T) {
	for image, why := range map[string]string{"fails:1": ": task: non-zero exit (1)", "completes:1": ", which is complete"} {
		f := startFake(t, t.TempDir())
		f.member = true
		host := "unix://" + f.socket
		if code, _, errs := call(t.Context(), "--host", host, "service", "create", "--detach", "--name", image[:4], "any"); code != 0 {
			t.Fatal(errs)
		}
		svc := &f.services[len(f.services)-1]
		svc.UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateStatePaused}
		svc.UpdateStatus.Message = "update paused due to failure or early termination of task " + taskID(1, f.version+1)
		code, _, errs := call(t.Context(), "--host", host, "service", "update", "--image", image, image[:4])
		if code != exitFailed || !strings.Contains(errs, svc.UpdateStatus.Message+why+"\n") {
			t.Errorf("%s: code %d, %s", image, code, errs)
		}
	}
}
