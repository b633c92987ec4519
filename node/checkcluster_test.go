package node

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/node/doctor"
	"github.com/miniswarm/miniswarm/raftstore"
)

func TestQuorum(t *testing.T) {
	empty := cluster.NewState().Snapshot()
	for _, c := range []struct {
		voters, learners, heard int
		level                   doctor.Level
		says                    string
	}{
		{1, 0, 1, doctor.Ok, "one manager"},
		{2, 0, 2, doctor.Warning, "2 of 2 managers answer, 2 are needed, 0 more may be lost"},
		{3, 0, 3, doctor.Ok, "3 of 3 managers answer, 2 are needed, 1 more may be lost"},
		{3, 0, 2, doctor.Failure, "2 of 3 managers answer, 2 are needed, 0 more may be lost"},
		{3, 0, 2, doctor.Failure, "the leader does not hear from manager n2 (10.0.0.2:2377)"},
		{5, 0, 4, doctor.Ok, "4 of 5 managers answer, 3 are needed, 1 more may be lost"},
		{5, 0, 3, doctor.Failure, "3 of 5 managers answer, 3 are needed, 0 more may be lost"},
		{3, 1, 3, doctor.Warning, "manager 10.0.0.3:2377 has yet to catch up"},
	} {
		st := raftstore.Status{Reachable: map[uint64]bool{}}
		for i := range c.voters + c.learners {
			st.Members = append(st.Members, protocol.Member{RaftID: uint64(i), NodeID: fmt.Sprint("n", i), Addr: fmt.Sprintf("10.0.0.%d:2377", i), Learner: i >= c.voters})
			st.Reachable[uint64(i)] = i < c.heard
		}
		if fs := checkQuorum(st, empty); !has(fs, "quorum", c.level, c.says) {
			t.Errorf("%d voters, %d heard: %+v, want %s %q", c.voters, c.heard, fs, c.level, c.says)
		}
	}
}

// Where there are nodes enough for three managers, one is too few.
func TestASingleManagerOfManyNodes(t *testing.T) {
	st := raftstore.Status{Members: []protocol.Member{{RaftID: 1, NodeID: "n1"}}, Reachable: map[uint64]bool{1: true}}
	state := cluster.NewState()
	for i, level := range []doctor.Level{doctor.Ok, doctor.Ok, doctor.Warning} {
		n := &cluster.Node{}
		n.ID = fmt.Sprint("n", i+1)
		if _, err := state.Apply(&cluster.Txn{Changes: []cluster.Change{cluster.CreateOf(n)}}, uint64(i+1)); err != nil {
			t.Fatal(err)
		}
		if fs := checkQuorum(st, state.Snapshot()); !has(fs, "quorum", level, "when it is lost, nothing can be changed") {
			t.Errorf("%d nodes: %+v, want %s", i+1, fs, level)
		}
	}
}

func TestARotationThatWaitsForNodes(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	state := cluster.NewState()
	if fs := checkRotation(state.Snapshot(), now); len(fs) > 0 {
		t.Errorf("without a cluster: %+v", fs)
	}
	c := &cluster.Cluster{Rotation: &cluster.RootRotation{}}
	c.ID, c.TLSInfo = "c1", swarm.TLSInfo{CertIssuerSubject: []byte("new"), CertIssuerPublicKey: []byte("new")}
	renewed, down := &cluster.Node{}, &cluster.Node{}
	renewed.ID, renewed.Description.Hostname, renewed.Description.TLSInfo = "n1", "vm1", c.TLSInfo
	down.ID, down.Description.Hostname, down.Status.State = "n2", "vm2", swarm.NodeStateDown
	if _, err := state.Apply(&cluster.Txn{Time: now, Changes: []cluster.Change{cluster.CreateOf(c), cluster.CreateOf(renewed), cluster.CreateOf(down)}}, 1); err != nil {
		t.Fatal(err)
	}
	if fs := checkRotation(state.Snapshot(), now.Add(time.Second)); !has(fs, "root rotation", doctor.Ok, "1 nodes have yet to renew") {
		t.Errorf("just begun: %+v", fs)
	}
	if fs := checkRotation(state.Snapshot(), now.Add(time.Minute)); !has(fs, "root rotation", doctor.Warning, "waits for vm2 (down)") || strings.Contains(fs[0].Says, "vm1") {
		t.Errorf("%+v", fs)
	}
}

// While an external CA is away everything goes on, but a promotion waits without a word.
func TestAnExternalCAThatDoesNotAnswer(t *testing.T) {
	state := cluster.NewState()
	member, waiting := &cluster.Node{}, &cluster.Node{}
	member.ID, member.Description.Hostname, member.Spec.Role, member.Status.State = "n1", "vm1", swarm.NodeRoleManager, swarm.NodeStateReady
	waiting.ID, waiting.Description.Hostname, waiting.Spec.Role, waiting.Status.State = "n2", "vm2", swarm.NodeRoleManager, swarm.NodeStateReady
	if _, err := state.Apply(&cluster.Txn{Changes: []cluster.Change{cluster.CreateOf(member), cluster.CreateOf(waiting)}}, 1); err != nil {
		t.Fatal(err)
	}
	members := []protocol.Member{{RaftID: 1, NodeID: "n1"}}
	away, there := identity.Probe{URL: "https://a/x", Err: errors.New("refused")}, identity.Probe{URL: "https://b/x"}
	find := func(probes ...identity.Probe) []doctor.Finding {
		return checkExternalCAs(probes, state.Snapshot(), members)
	}
	if fs := find(); len(fs) > 0 {
		t.Errorf("without one: %+v", fs)
	}
	if fs := find(there); !has(fs, "external CA", doctor.Ok, "https://b/x answers") || len(fs) != 1 {
		t.Errorf("one that answers: %+v", fs)
	}
	if fs := find(away); !has(fs, "external CA", doctor.Failure, "external CA https://a/x does not answer: refused; no node can join") || !strings.Contains(fs[0].Says, "; vm2 cannot become a manager") {
		t.Errorf("one that is away: %+v", fs)
	}
	if fs := find(away, there); !has(fs, "external CA", doctor.Warning, "https://a/x does not answer: refused; another signs") || len(fs) != 2 {
		t.Errorf("one of two: %+v", fs)
	}
}

// A manager that is gone for good cannot be removed before it is demoted, and the cure says so; by its id where another node has its name.
func TestLostManagersAreDemotedFirst(t *testing.T) {
	n := &cluster.Node{}
	n.ID, n.Spec.Role, n.Description.Hostname, n.Status.State = "n1", swarm.NodeRoleManager, "vm1", swarm.NodeStateDown
	state := cluster.NewState()
	create := func(n *cluster.Node, index uint64) {
		if _, err := state.Apply(&cluster.Txn{Changes: []cluster.Change{cluster.CreateOf(n)}}, index); err != nil {
			t.Fatal(err)
		}
	}
	create(n, 1)
	st := raftstore.Status{Members: []protocol.Member{{RaftID: 1, NodeID: "n1"}, {RaftID: 2, NodeID: "n2"}, {RaftID: 3, NodeID: "n3"}}, Reachable: map[uint64]bool{2: true, 3: true}}
	for _, fs := range [][]doctor.Finding{checkQuorum(st, state.Snapshot()), checkNodes(state.Snapshot())} {
		if !strings.Contains(fs[0].Cure, "'miniswarm node demote vm1' and 'miniswarm node rm --force vm1'") {
			t.Errorf("%+v", fs[0])
		}
	}
	again := &cluster.Node{}
	again.ID, again.Description.Hostname, again.Status.State = "n4", "vm1", swarm.NodeStateReady
	create(again, 2)
	for _, fs := range [][]doctor.Finding{checkQuorum(st, state.Snapshot()), checkNodes(state.Snapshot())} {
		if !strings.Contains(fs[0].Cure, "'miniswarm node demote n1' and 'miniswarm node rm --force n1'") {
			t.Errorf("with two of a name: %+v", fs[0])
		}
	}
}

// A manager that is silent may be locked where managers lock; a worker has no lock.
func TestASilentManagerMayBeLocked(t *testing.T) {
	st := raftstore.Status{Members: []protocol.Member{{RaftID: 1, NodeID: "n1"}, {RaftID: 2, NodeID: "n2"}, {RaftID: 3, NodeID: "n3"}}, Reachable: map[uint64]bool{2: true, 3: true}}
	for _, locks := range []bool{false, true} {
		manager, worker, c := &cluster.Node{}, &cluster.Node{}, &cluster.Cluster{}
		manager.ID, manager.Spec.Role, manager.Status.State = "n1", swarm.NodeRoleManager, swarm.NodeStateDown
		worker.ID, worker.Spec.Role, worker.Status.State = "n4", swarm.NodeRoleWorker, swarm.NodeStateDown
		c.ID, c.Spec.EncryptionConfig.AutoLockManagers = "c1", locks
		state := cluster.NewState()
		if _, err := state.Apply(&cluster.Txn{Changes: []cluster.Change{cluster.CreateOf(c), cluster.CreateOf(manager), cluster.CreateOf(worker)}}, 1); err != nil {
			t.Fatal(err)
		}
		for _, f := range append(checkQuorum(st, state.Snapshot())[:1], checkNodes(state.Snapshot())...) {
			if want := locks && !strings.Contains(f.Says, "n4") && f.Level == doctor.Failure; strings.Contains(f.Cure, "'miniswarm unlock'") != want {
				t.Errorf("locks %v: %+v", locks, f)
			}
		}
	}
}

func TestServicesThatAreNotAsDeclared(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	two := uint64(2)
	add := func(name string, update *swarm.UpdateStatus, states ...swarm.TaskStatus) []cluster.Change {
		s := &cluster.Service{Service: swarm.Service{ID: name, UpdateStatus: update}}
		s.Spec.Name, s.Spec.Mode.Replicated = name, &swarm.ReplicatedService{Replicas: &two}
		out := []cluster.Change{cluster.CreateOf(s)}
		for i, st := range states {
			out = append(out, cluster.CreateOf(&cluster.Task{Task: swarm.Task{ID: fmt.Sprint(name, i), ServiceID: name, Slot: i + 1, DesiredState: swarm.TaskStateRunning, Status: st}}))
		}
		return out
	}
	running, pending := swarm.TaskStatus{State: swarm.TaskStateRunning}, swarm.TaskStatus{State: swarm.TaskStatePending, Err: "no suitable node (insufficient resources on 3 nodes)"}
	paused := &swarm.UpdateStatus{State: swarm.UpdateStatePaused, Message: "update paused due to failure"}
	for _, c := range []struct {
		name    string
		changes []cluster.Change
		age     time.Duration // of everything
		level   doctor.Level
		says    string
	}{
		{"sound", add("web", nil, running, running), time.Hour, doctor.Ok, "all 1 run as declared"},
		{"no place", add("web", nil, running, pending), time.Hour, doctor.Warning, "web: 1 of 2 tasks run; no suitable node (insufficient resources on 3 nodes)"},
		{"starting", add("web", nil, running, swarm.TaskStatus{State: swarm.TaskStatePreparing}), time.Second, doctor.Ok, "all 1"},
		{"starting for too long", add("web", nil, running, swarm.TaskStatus{State: swarm.TaskStatePreparing}), time.Hour, doctor.Warning, "web: 1 of 2 tasks run"},
		{"paused", add("web", paused, running, running), time.Hour, doctor.Warning, "the update of web is paused: update paused due to failure"},
	} {
		t.Run(c.name, func(t *testing.T) {
			state := cluster.NewState()
			if _, err := state.Apply(&cluster.Txn{Time: now.Add(-c.age), Changes: c.changes}, 1); err != nil {
				t.Fatal(err)
			}
			if fs := checkServices(state.Snapshot(), now); !has(fs, "services", c.level, c.says) {
				t.Errorf("%+v", fs)
			}
		})
	}
}

func TestClocks(t *testing.T) {
	for ahead, level := range map[time.Duration]doctor.Level{0: doctor.Ok, 1500 * time.Millisecond: doctor.Ok, -3 * time.Second: doctor.Warning, time.Hour: doctor.Failure} {
		if f := clock("this machine's", ahead); f.Level != level || (level == doctor.Ok) != (f.Cure == "") {
			t.Errorf("%s: %+v", ahead, f)
		}
	}
}

func TestSilentPeersHaveTheirNames(t *testing.T) {
	state := cluster.NewState()
	for i, host := range []string{"vm1", ""} {
		n := &cluster.Node{}
		n.ID, n.Description.Hostname = fmt.Sprintf("node%021d", i+1), host
		if _, err := state.Apply(&cluster.Txn{Changes: []cluster.Change{cluster.CreateOf(n)}}, uint64(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	const says = "do not answer: node000000000000000000001, node000000000000000000002"
	fs := []doctor.Finding{doctor.Bad(checkOfPeers, "", says), doctor.Bad("session", "", says)}
	namePeers(state.Snapshot(), fs)
	if fs[0].Says != "do not answer: vm1, node000000000000000000002" || fs[1].Says != says {
		t.Errorf("%+v", fs)
	}
}
