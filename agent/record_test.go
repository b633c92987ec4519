package agent

import (
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"github.com/google/go-cmp/cmp"

	"github.com/miniswarm/miniswarm/agent/taskdb"
	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

func TestRecorderKeepsWhatCouldNotBeWritten(t *testing.T) {
	now := time.Unix(1000, 0)
	task := func(id string) *cluster.Task { return &cluster.Task{Task: swarm.Task{ID: id}} }
	status := func(s swarm.TaskState) swarm.TaskStatus { return swarm.TaskStatus{State: s} }
	r := newRecorder(nil)
	r.putTask(task("a"), status(ready))
	r.putTask(task("a"), status(running))
	r.removeTask("gone")
	r.putNetwork(&cluster.Network{VNI: 1})
	r.putManagers([]protocol.ManagerAddr{{Addr: "m"}})
	r.putMesh(&protocol.Mesh{Seq: 1})
	first, later := r.take(now, false)
	want := taskdb.Changes{Tasks: []taskdb.Task{{Task: task("a"), Status: status(running)}}, RemoveTasks: []string{"gone"},
		Networks: []*cluster.Network{{VNI: 1}}, Managers: []protocol.ManagerAddr{{Addr: "m"}}, Mesh: &protocol.Mesh{Seq: 1}}
	if d := cmp.Diff(first, want); d != "" || later != 0 {
		t.Errorf("%s later %s", d, later)
	}

	// The write fails. What is newer by then wins, the rest comes again.
	r.removeTask("a")
	r.putMesh(&protocol.Mesh{Seq: 2})
	r.giveBack(first)
	again, _ := r.take(now.Add(time.Minute), false)
	want.Tasks, want.Mesh = nil, &protocol.Mesh{Seq: 2}
	want.RemoveTasks = []string{"a", "gone"}
	if len(again.RemoveTasks) == 2 && again.RemoveTasks[0] == "gone" {
		again.RemoveTasks[0], again.RemoveTasks[1] = "a", "gone"
	}
	if d := cmp.Diff(again, want); d != "" {
		t.Error(d)
	}

	// The routing table is written now and then only, and at the end.
	r.putMesh(&protocol.Mesh{Seq: 3})
	soon, later := r.take(now.Add(time.Minute+time.Second), false)
	if !soon.Empty() || later != recordMesh-time.Second {
		t.Errorf("%+v, later %s", soon, later)
	}
	if last, _ := r.take(now.Add(time.Minute+time.Second), true); last.Mesh == nil || last.Mesh.Seq != 3 {
		t.Errorf("%+v", last)
	}
}
