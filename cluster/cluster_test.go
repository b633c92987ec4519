package cluster

import (
	"errors"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"
)

func service(id, name string) *Service {
	s := &Service{}
	s.ID, s.Spec.Name = id, name
	return s
}

func task(id, serviceID string, slot int, node string) *Task {
	t := &Task{}
	t.ID, t.ServiceID, t.Slot, t.NodeID = id, serviceID, slot, node
	t.Status.State, t.DesiredState = swarm.TaskStateNew, swarm.TaskStateRunning
	return t
}

func ids(seq func(func(*Task) bool)) string {
	out := ""
	for t := range seq {
		out += t.ID + " "
	}
	return out
}

func TestApplyIsAllOrNothing(t *testing.T) {
	st := NewState()
	when := time.Unix(1000, 0)
	if _, err := st.Apply(&Txn{Time: when, Changes: []Change{CreateOf(service("s1", "web")), CreateOf(task("t1", "s1", 1, ""))}}, 5); err != nil {
		t.Fatal(err)
	}
	before, err := st.Snapshot().Digest()
	if err != nil {
		t.Fatal(err)
	}
	bad := []Change{
		CreateOf(task("t2", "s1", 2, "n1")),
		PatchTask("t1", TaskPatch{NodeID: "n1", DesiredState: swarm.TaskStateShutdown}),
		{Action: Remove, Kind: KindTask, ID: "t1"},
		CreateOf(service("s2", "WEB")), // names are compared without regard to case
	}
	_, err = st.Apply(&Txn{Time: when, Changes: bad}, 6)
	if !errors.Is(err, ErrNameConflict) {
		t.Fatalf("got %v, want a name conflict", err)
	}
	after, _ := st.Snapshot().Digest()
	if before != after {
		t.Error("a refused transaction changed the tables")
	}
	if got := ids(st.Snapshot().TasksOfNode("n1")); got != "" {
		t.Errorf("a refused transaction left %q in the index by node", got)
	}
	if got := st.Index(); got != 6 {
		t.Errorf("index is %d, want 6: a refused transaction is applied too", got)
	}
}

func TestVersions(t *testing.T) {
	st := NewState()
	mustApply(t, st, 5, CreateOf(service("s1", "web")))
	read := st.Snapshot().Service("s1")
	changed := *read
	changed.Spec.Labels = map[string]string{"a": "b"}
	mustApply(t, st, 7, UpdateOf(&changed))
	if got := st.Snapshot().Service("s1").Version.Index; got != 7 {
		t.Errorf("version is %d, want the log index 7", got)
	}
	if _, err := st.Apply(&Txn{Changes: []Change{UpdateOf(&changed)}}, 8); !errors.Is(err, ErrOutOfSequence) {
		t.Errorf("got %v, want %v", err, ErrOutOfSequence)
	}
	if read.Spec.Labels != nil {
		t.Error("an object handed out earlier was modified")
	}
}

func TestGuards(t *testing.T) {
	st := NewState()
	mustApply(t, st, 5, CreateOf(service("s1", "web")))
	seen := st.Snapshot()
	mustApply(t, st, 6, CreateOf(service("s2", "db")))
	_, err := st.Apply(&Txn{Guards: []Guard{{KindService, seen.Index()}}, Changes: []Change{CreateOf(service("s3", "x"))}}, 7)
	if !errors.Is(err, ErrGuard) || !Retryable(err) {
		t.Errorf("got %v, want %v", err, ErrGuard)
	}
}

func TestPatchesNeverGoBack(t *testing.T) {
	st := NewState()
	mustApply(t, st, 1, CreateOf(task("t1", "s1", 1, "")))
	running := &swarm.TaskStatus{State: swarm.TaskStateRunning, ContainerStatus: &swarm.ContainerStatus{ContainerID: "c"}}
	mustApply(t, st, 2, PatchTask("t1", TaskPatch{NodeID: "n1", Status: running, DesiredState: swarm.TaskStateShutdown}))
	ev := mustApply(t, st, 3, PatchTask("t1", TaskPatch{Status: &swarm.TaskStatus{State: swarm.TaskStateStarting}, DesiredState: swarm.TaskStateRunning}))
	if len(ev) != 0 {
		t.Errorf("a patch to earlier states made events: %v", ev)
	}
	mustApply(t, st, 4, PatchTask("t1", TaskPatch{NodeID: "n2"}))
	got := st.Snapshot().Task("t1")
	if got.NodeID != "n1" || got.Status.State != swarm.TaskStateRunning || got.DesiredState != swarm.TaskStateShutdown || got.Version.Index != 2 {
		t.Errorf("patches moved the task backwards: %+v", got)
	}
	mustApply(t, st, 5, PatchTask("t1", TaskPatch{Status: &swarm.TaskStatus{State: swarm.TaskStateShutdown}}))
	if got := st.Snapshot().Task("t1"); got.Status.ContainerStatus == nil {
		t.Error("a report without container status forgot the container")
	}
	mustApply(t, st, 6, PatchTask("gone", TaskPatch{NodeID: "n2"}))
}

func TestSnapshotsAreIsolatedAndIndexed(t *testing.T) {
	st := NewState()
	mustApply(t, st, 1, CreateOf(task("b", "s1", 2, "n1")), CreateOf(task("a", "s1", 2, "n1")), CreateOf(task("c", "s1", 1, "")), CreateOf(task("d", "s2", 1, "n1")))
	old := st.Snapshot()
	mustApply(t, st, 2, PatchTask("c", TaskPatch{NodeID: "n1"}), Change{Action: Remove, Kind: KindTask, ID: "a"})
	for _, c := range []struct{ what, got, want string }{
		{"old by service", ids(old.TasksOfService("s1")), "c a b "},
		{"old by node", ids(old.TasksOfNode("n1")), "a b d "},
		{"new by service", ids(st.Snapshot().TasksOfService("s1")), "c b "},
		{"new by node", ids(st.Snapshot().TasksOfNode("n1")), "b c d "},
		{"new by slot", ids(st.Snapshot().TasksOfSlot("s1", 2)), "b "},
	} {
		if c.got != c.want {
			t.Errorf("%s: got %q, want %q", c.what, c.got, c.want)
		}
	}
}

func TestMatches(t *testing.T) {
	st := NewState()
	n := &Node{}
	n.ID, n.Description.Hostname = "node1", "vm1"
	mustApply(t, st, 1, CreateOf(service("abc1", "web")), CreateOf(service("abc2", "abc")), CreateOf(n))
	for ref, want := range map[string]int{"web": 1, "WEB": 0, "abc": 1, "ab": 2, "abc1": 1, "": 0, "x": 0} {
		if got := len(st.Snapshot().Matches(KindService, ref)); got != want {
			t.Errorf("%q matches %d services, want %d", ref, got, want)
		}
	}
	if got := st.Snapshot().Matches(KindNode, "vm1"); len(got) != 1 {
		t.Errorf("a hostname matches %d nodes, want 1", len(got))
	}
}

func TestRestoreGivesTheSameTables(t *testing.T) {
	st := NewState()
	mustApply(t, st, 3, CreateOf(service("s1", "web")), CreateOf(task("t1", "s1", 1, "n1")))
	snap, back := st.Snapshot(), NewState()
	modified := map[Kind]uint64{}
	for _, k := range Kinds() {
		modified[k] = snap.Modified(k)
		for o := range snap.Objects(k) {
			back.Restore(o)
		}
	}
	back.RestoreIndex(snap.Index(), modified)
	a, _ := snap.Digest()
	b, _ := back.Snapshot().Digest()
	if a != b || back.Index() != 3 || back.Snapshot().Modified(KindService) != 3 || back.Snapshot().Modified(KindNode) != 0 {
		t.Error("restored tables differ")
	}
}

func mustApply(t *testing.T, st *State, index uint64, changes ...Change) []Event {
	t.Helper()
	ev, err := st.Apply(&Txn{Time: time.Unix(int64(index), 0), Changes: changes}, index)
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

func TestANodeRemembersSinceWhenItIsDown(t *testing.T) {
	s := NewState()
	n := &Node{}
	n.ID = "n1"
	mustApply := func(at int64, c Change) *Node {
		t.Helper()
		if _, err := s.Apply(&Txn{Time: time.Unix(at, 0), Changes: []Change{c}}, uint64(at)); err != nil {
			t.Fatal(err)
		}
		return s.Snapshot().Node("n1")
	}
	status := func(state swarm.NodeState) Change {
		return PatchNode("n1", NodePatch{Status: &swarm.NodeStatus{State: state}})
	}
	mustApply(1, CreateOf(n))
	for _, c := range []struct {
		at     int64
		change Change
		want   time.Time
	}{
		{2, status(swarm.NodeStateReady), time.Time{}},
		{3, status(swarm.NodeStateDown), time.Unix(3, 0)},
		{4, PatchNode("n1", NodePatch{DataAddr: "192.0.2.1"}), time.Unix(3, 0)},
		{5, status(swarm.NodeStateDown), time.Unix(3, 0)},
		{6, status(swarm.NodeStateReady), time.Time{}},
	} {
		if got := mustApply(c.at, c.change).DownSince; !got.Equal(c.want) {
			t.Errorf("after the change at %d: down since %v, want %v", c.at, got, c.want)
		}
	}
}

// TestTasksMadeForATransactionAreNotCopied: and what is in the tables already, or is not a task, never changes.
func TestTasksMadeForATransactionAreNotCopied(t *testing.T) {
	st := NewState()
	made, svc := task("t1", "s1", 1, ""), service("s1", "web")
	if _, err := st.Apply(&Txn{Time: time.Unix(1000, 0), Changes: []Change{CreateOf(svc), CreateOf(made)}, OwnTasks: true}, 5); err != nil {
		t.Fatal(err)
	}
	before := st.Snapshot()
	if before.Task("t1") != made || made.Version.Index != 5 {
		t.Error("the task was copied, or carries no version")
	}
	if svc.Version.Index != 0 {
		t.Error("a service was changed in the hands of who made it")
	}
	changed := *made
	changed.Slot = 2
	for i, c := range []*Task{made, &changed} { // the first is what the tables hold
		if _, err := st.Apply(&Txn{Time: time.Unix(1001, 0), Changes: []Change{UpdateOf(c)}, OwnTasks: true}, uint64(6+i)); err != nil {
			t.Fatal(err)
		}
		changed.Version = st.Snapshot().Task("t1").Version
	}
	if got := before.Task("t1"); got.Version.Index != 5 || got.Slot != 1 {
		t.Errorf("a snapshot changed: version %d, slot %d", got.Version.Index, got.Slot)
	}
	if got := st.Snapshot().Task("t1"); got != &changed || got.Version.Index != 7 || !got.CreatedAt.Equal(time.Unix(1000, 0)) {
		t.Errorf("the task is %+v", got.Meta)
	}
	// Others keep their objects as they are.
	kept := task("t2", "s1", 3, "")
	if _, err := st.Apply(&Txn{Changes: []Change{CreateOf(kept)}}, 8); err != nil || kept.Version.Index != 0 || st.Snapshot().Task("t2") == kept {
		t.Errorf("the task of a transaction that does not own it was taken (%v)", err)
	}
}

// TestOnlyOneOfTwoRemoves: both read the object; a client that removed nothing must not be told that it did.
func TestOnlyOneOfTwoRemoves(t *testing.T) {
	st := NewState()
	if _, err := st.Apply(&Txn{Changes: []Change{CreateOf(service("s1", "web"))}}, 5); err != nil {
		t.Fatal(err)
	}
	seen := st.Snapshot().Service("s1")
	if _, err := st.Apply(&Txn{Changes: []Change{RemoveSeen(seen)}}, 6); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Apply(&Txn{Changes: []Change{RemoveSeen(seen)}}, 7); !errors.Is(err, ErrNotExist) {
		t.Errorf("the second removal: %v, want %v", err, ErrNotExist)
	}
	if _, err := st.Apply(&Txn{Changes: []Change{RemoveOf(seen)}}, 8); err != nil {
		t.Errorf("a removal that does not care: %v", err)
	}
}
