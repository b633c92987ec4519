package engineapi

import (
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/orchestrator"
	"github.com/miniswarm/miniswarm/scheduler"
)

func TestExplain(t *testing.T) {
	w := newWorld(t)
	svc := aService("svc1", "web", 3)
	svc.Spec.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{MemoryBytes: 1 << 30}}
	small := aNode("node3", "vm3")
	small.Description.Resources.MemoryBytes = 1 << 28
	pending := aTask("task3", svc, 3, "", swarm.TaskStatePending)
	pending.Status.Err = "no suitable node (insufficient resources on 3 nodes)"
	old := aTask("task0", svc, 1, "node2", swarm.TaskStateFailed)
	old.DesiredState = swarm.TaskStateShutdown
	w.control.put(t, aNode("node1", "vm1"), aNode("node2", "vm2"), small, svc, aTask("task1", svc, 1, "node1", swarm.TaskStateRunning), aTask("task2", svc, 2, "node1", swarm.TaskStateRunning), pending, old)
	w.control.decisions["task1"] = []orchestrator.Decision{{Kind: orchestrator.ScaleUp, ServiceID: "svc1", Tasks: []string{"task1"}, Reason: "slot 1 of web is empty"}}

	e := must[TaskExplanation](w, 200, "GET", "/miniswarm/tasks/task1/explain", nil)
	if e.Task.ID != "task1" || e.Service != "web" || len(e.Recorded) != 1 || e.Now.CurrentNode != "node1" || len(e.Now.Table) != 3 {
		t.Errorf("task: %+v", e)
	}
	for _, text := range []string{"task task1 (web.1): running, wanted running, on vm1", "scale-up: slot 1 of web is empty", "as of now:", "the task is on vm1; the table shows the cluster without it", "vm3", "FAILS"} {
		if !strings.Contains(e.Text, text) {
			t.Errorf("%q is not in:\n%s", text, e.Text)
		}
	}
	p := must[TaskExplanation](w, 200, "GET", "/miniswarm/tasks/web.3.task3/explain", nil)
	if p.Recorded == nil || !strings.Contains(p.Text, "nothing is remembered of how it came about") || !strings.Contains(p.Text, "no suitable node (insufficient resources on 3 nodes)") {
		t.Errorf("pending: %+v\n%s", p.Recorded, p.Text)
	}
	s := must[ServiceExplanation](w, 200, "GET", "/miniswarm/services/web/explain", nil)
	if len(s.Tasks) != 3 || s.Omitted != 0 || s.Next == nil || !strings.Contains(s.Text, "one replica more:") {
		t.Errorf("service: %d tasks, %d omitted, next %+v\n%s", len(s.Tasks), s.Omitted, s.Next, s.Text)
	}
	if s := must[ServiceExplanation](w, 200, "GET", "/v1.41/miniswarm/services/svc1/explain?limit=1", nil); len(s.Tasks) != 1 || s.Omitted != 2 || !strings.Contains(s.Text, "2 more tasks are left out") {
		t.Errorf("limited: %d tasks, %d omitted", len(s.Tasks), s.Omitted)
	}
	short := must[ServiceExplanation](w, 200, "GET", "/miniswarm/services/web/explain?compact=1", nil).Text
	for _, text := range []string{"service web: replicated, 3 tasks wanted", "web.1  running on vm1", "web.3  pending, without a node: no suitable node", "not vm3: needs 1 GiB, 256 MiB free", "one replica more would go to vm"} {
		if !strings.Contains(short, text) {
			t.Errorf("%q is not in:\n%s", text, short)
		}
	}
	w.refused("GET", "/miniswarm/tasks/x/explain", nil, 404, "task x not found")
	w.refused("GET", "/miniswarm/services/x/explain", nil, 404, "service x not found")
	w.refused("GET", "/miniswarm/services/web/explain?limit=few", nil, 400, "invalid value for limit: few: give a number of tasks")
}

// A task that waits is decided on with every change; who reads that wants to know since when, not each of them.
func TestEqualDecisionsAreFolded(t *testing.T) {
	began := time.Date(2026, 11, 26, 1, 2, 3, 0, time.UTC)
	wait := func(i int, why string) orchestrator.Decision {
		return orchestrator.Decision{Kind: orchestrator.Wait, Reason: why,
			Placement: &scheduler.Decision{Service: "web", Wanted: 1, Index: uint64(i), Time: began.Add(time.Duration(i) * time.Second), Explanation: why}}
	}
	var b strings.Builder
	writeRecorded(&b, []orchestrator.Decision{{Kind: orchestrator.ScaleUp, Reason: "slot 1 of web is empty"},
		wait(1, "no room"), wait(4, "no room"), wait(9, "no room"), wait(10, "no node"), wait(12, "no room")})
	const want = `scale-up: slot 1 of web is empty
wait: no room
  service web: 0 of 1 placed, from the state at index 9
  no room
  0 nodes, 0 examined
  decided alike 3 times, since the state at index 1, 2026-11-26T01:02:04Z
wait: no node
  service web: 0 of 1 placed, from the state at index 10
  no node
  0 nodes, 0 examined
wait: no room
  service web: 0 of 1 placed, from the state at index 12
  no room
  0 nodes, 0 examined
`
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}

// A global service has no tasks on nodes that do not take any, and says why.
func TestExplainGlobal(t *testing.T) {
	w := newWorld(t)
	svc := aService("svc1", "agent", 1)
	svc.Spec.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}}
	svc.Spec.TaskTemplate.ContainerSpec.Labels = map[string]string{cluster.LabelPrivileged: "true"}
	open := aNode("node1", "vm1")
	open.Spec.Labels = map[string]string{cluster.LabelAllow: "privileged"}
	task := aTask("task1", svc, 0, "node1", swarm.TaskStateRunning)
	w.control.put(t, open, aNode("node2", "vm2"), svc, task)
	e := must[ServiceExplanation](w, 200, "GET", "/miniswarm/services/agent/explain?compact=1", nil)
	if len(e.Without) != 1 || e.Without[0].Hostname != "vm2" || !strings.Contains(e.Text, "not on vm2: the node allows nothing beyond the ordinary") {
		t.Errorf("%+v\n%s", e.Without, e.Text)
	}
}

// Between two attempts a service may have nothing but the attempt that failed, whose successor failed before it was begun.
func TestExplainShowsWhatFailed(t *testing.T) {
	w := newWorld(t)
	svc := aService("svc1", "bad", 1)
	task := aTask("task1", svc, 1, "node1", swarm.TaskStateRejected)
	task.DesiredState, task.Status.Err = swarm.TaskStateReady, "No such image: nope:1"
	w.control.put(t, aNode("node1", "vm1"), svc, task)
	short := must[ServiceExplanation](w, 200, "GET", "/miniswarm/services/bad/explain?compact=1", nil).Text
	if !strings.Contains(short, "1 task wanted") || !strings.Contains(short, "bad.1  rejected on vm1; No such image: nope:1") {
		t.Errorf("\n%s", short)
	}
}

func TestHypotheticalTakesTheFirstFreeSlot(t *testing.T) {
	c := newFakeControl()
	svc := aService("svc1", "web", 3)
	ended := aTask("t2", svc, 2, "node1", swarm.TaskStateFailed)
	ended.DesiredState = swarm.TaskStateShutdown
	c.put(t, svc, aTask("t1", svc, 1, "node1", swarm.TaskStateRunning), ended, aTask("t3", svc, 3, "node1", swarm.TaskStateRunning))
	if got := hypothetical(c.snapshot(), svc).Slot; got != 2 {
		t.Errorf("slot %d", got)
	}
}
