package taskdb

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/docker/docker/api/types/swarm"
	"github.com/google/go-cmp/cmp"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

func task(id string, state swarm.TaskState) Task {
	return Task{Task: &cluster.Task{Task: swarm.Task{ID: id}}, Status: swarm.TaskStatus{State: state}}
}

func TestWhatIsWrittenIsReadAfterReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tasks.db")
	db, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	writes := []Changes{
		{Tasks: []Task{task("a", swarm.TaskStateRunning), task("b", swarm.TaskStatePreparing)}},
		{Tasks: []Task{task("b", swarm.TaskStateRunning)}, RemoveTasks: []string{"a"},
			Networks: []*cluster.Network{{VNI: 7, Network: swarm.Network{ID: "n"}}, {Network: swarm.Network{ID: "m"}}}},
		{RemoveNetworks: []string{"m"}, Node: &cluster.Node{DataAddr: "10.0.0.1"},
			Managers: []protocol.ManagerAddr{{NodeID: "x", Addr: "10.0.0.2:2377"}}, Mesh: &protocol.Mesh{Seq: 4}},
	}
	for _, w := range writes {
		if err := db.Write(w); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db, err = Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	got, err := db.Read()
	if err != nil {
		t.Fatal(err)
	}
	want := Content{
		Tasks:    []Task{task("b", swarm.TaskStateRunning)},
		Networks: []*cluster.Network{{VNI: 7, Network: swarm.Network{ID: "n"}}},
		Node:     &cluster.Node{DataAddr: "10.0.0.1"},
		Managers: []protocol.ManagerAddr{{NodeID: "x", Addr: "10.0.0.2:2377"}},
		Mesh:     &protocol.Mesh{Seq: 4},
	}
	if d := cmp.Diff(got, want); d != "" {
		t.Error(d)
	}
	if err := db.Clear(); err != nil {
		t.Fatal(err)
	}
	if got, err := db.Read(); err != nil || len(got.Tasks) > 0 || got.Node != nil {
		t.Errorf("after Clear: %+v, %v", got, err)
	}
}

func TestADamagedFileIsPutAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tasks.db")
	if err := os.WriteFile(path, make([]byte, 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := Open(path)
	if db == nil || err == nil {
		t.Fatalf("got %v, %v; want a new file and an error that says so", db, err)
	}
	defer db.Close()
	if err := db.Write(Changes{Tasks: []Task{task("a", swarm.TaskStateNew)}}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path + ".damaged"); err != nil {
		t.Error(err)
	}
}
