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
	wrote := now.Add(time.Minute)
	for took, pause := range map[time.Duration]time.Duration{time.Millisecond: minRecordMesh, 10 * time.Millisecond: 200 * time.Millisecond, time.Second: maxRecordMesh} {
		r.rest(wrote, took)
		r.putMesh(&protocol.Mesh{Seq: 3})
		soon, later := r.take(wrote.Add(40*time.Millisecond), false)
		if want := pause - 40*time.Millisecond; !soon.Empty() || later != want {
			t.Errorf("a write took %s: %+v, later %s, want %s", took, soon, later, want)
		}
	}
	if last, _ := r.take(wrote, true); last.Mesh == nil || last.Mesh.Seq != 3 {
		t.Errorf("%+v", last)
	}
}

// An agent that is killed soon after its start, and then cut off, goes by the table on disk: the leader's must be there.
func TestFormerTableDoesNotDelayTheLeaders(t *testing.T) {
	r := newRecorder(nil)
	k := &meshKeeper{recorder: r, wake: make(chan struct{}, 1)}
	k.resume(&protocol.Mesh{Seq: 7, Complete: true})
	if c, _ := r.take(time.Unix(1000, 0), true); !c.Empty() {
		t.Errorf("recorded at once again: %+v", c)
	}
	k.take(&protocol.Mesh{Seq: 1, Complete: true}, nil)
	if c, later := r.take(time.Unix(1000, 0), false); c.Mesh == nil || c.Mesh.Seq != 1 {
		t.Errorf("the leader's table waits %s: %+v", later, c)
	}
}
