package dispatcher

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

func (a *fakeAgent) look(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

func (w *world) commitCluster(edit func(*cluster.Cluster)) {
	w.t.Helper()
	next, change := &cluster.Cluster{}, cluster.CreateOf
	if c := w.store.Snapshot().Cluster(); c != nil {
		*next, change = *c, cluster.UpdateOf
	}
	next.ID, next.Spec.Name = "the-cluster", cluster.ClusterName
	edit(next)
	w.commit(change(next))
	synctest.Wait()
}

func TestADeposedLeaderDismissesNobody(t *testing.T) {
	inWorld(t, func(w *world) {
		w.store.deposed = true
		a := w.connect("n-joined-under-the-next-leader")
		<-a.ended
		a.look(func() {
			if a.left != "" {
				t.Errorf("told to leave (%q) by a leader that cannot know", a.left)
			}
		})
		a.close()
	})
}

func TestAgentsLearnWhoTheManagersAre(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.connect("n1")
		defer a.close()
		w.store.set(func() { w.managers = []protocol.ManagerAddr{{NodeID: "m2", Addr: "192.0.2.2:2377"}} })
		time.Sleep(2 * defaultPeriod)
		a.look(func() {
			if len(a.managers) != 1 || a.managers[0].NodeID != "m2" {
				t.Errorf("knows managers %v, want the one that joined after the session began", a.managers)
			}
		})
	})
}

// TestAgentsLearnOfANewManagerAtOnce: the only manager that they know of may be demoted as soon as there is another.
func TestAgentsLearnOfANewManagerAtOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.connect("n1")
		defer a.close()
		w.store.set(func() { w.managers = []protocol.ManagerAddr{{NodeID: "n2", Addr: "192.0.2.2:2377"}} })
		w.commit(cluster.PatchNode("n2", cluster.NodePatch{Role: swarm.NodeRoleManager, RaftID: 2, ManagerAddr: "192.0.2.2:2377"}))
		time.Sleep(time.Millisecond)
		a.look(func() {
			if len(a.managers) != 1 || a.managers[0].NodeID != "n2" {
				t.Errorf("knows managers %v a moment after another one came, want that one", a.managers)
			}
		})
	})
}

func TestTheHeartbeatPeriodCanBeChanged(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.connect("n1")
		a.look(func() {
			if a.period != defaultPeriod/beats {
				t.Errorf("period %v without a setting, want %v", a.period, defaultPeriod/beats)
			}
		})
		for _, c := range []struct{ set, want time.Duration }{{8 * time.Second, 2 * time.Second}, {1, minPeriod / beats}, {8 * time.Second, 2 * time.Second}} {
			w.commitCluster(func(cl *cluster.Cluster) { cl.Spec.Dispatcher.HeartbeatPeriod = c.set })
			a.look(func() {
				if a.period != c.want {
					t.Errorf("asked to beat every %v with a period of %v, want %v", a.period, c.set, c.want)
				}
			})
		}
		a.close()
		time.Sleep(20 * time.Second)
		if got := w.store.Snapshot().Node("n1").Status.State; got != swarm.NodeStateReady {
			t.Errorf("node is %s after 20 s of silence with a period of 8 s", got)
		}
		time.Sleep(6 * time.Second)
		if got := w.store.Snapshot().Node("n1").Status.State; got != swarm.NodeStateDown {
			t.Errorf("node is %s after 26 s of silence with a period of 8 s", got)
		}
	})
}

func TestANewLeaderDrainsWhatTheOldOneBeganToStop(t *testing.T) {
	inWorld(t, func(w *world) {
		w.place("t1", "n1", 1)
		w.commit(cluster.PatchTask("t1", cluster.TaskPatch{Status: &swarm.TaskStatus{State: swarm.TaskStateRunning}, DesiredState: swarm.TaskStateShutdown}))
		a := w.connect("n1")
		defer a.close()
		if got := a.told("t1"); got != swarm.TaskStateRunning {
			t.Errorf("told %q at once, before the nodes have acknowledged", got)
		}
		time.Sleep(defaultAckTimeout + defaultLinger)
		if got := a.told("t1"); got != swarm.TaskStateShutdown {
			t.Errorf("told %q after the wait, want shutdown", got)
		}
		a.report("t1", swarm.TaskStateShutdown)
		w.d.mu.Lock()
		defer w.d.mu.Unlock()
		if len(w.d.holds) > 0 {
			t.Errorf("%d holds are kept of a task that has stopped", len(w.d.holds))
		}
	})
}

func TestANodeWithABrokenSessionIsWaitedForWhileItMayRoute(t *testing.T) {
	inWorld(t, func(w *world) {
		w.place("t1", "n1", 1)
		a, b := w.connect("n1"), w.connect("n2")
		defer a.close()
		a.report("t1", swarm.TaskStateRunning)
		b.close()
		w.commit(cluster.PatchTask("t1", cluster.TaskPatch{DesiredState: swarm.TaskStateShutdown}))
		time.Sleep(400 * time.Millisecond)
		if got := a.told("t1"); got != swarm.TaskStateRunning {
			t.Errorf("told %q while n2, whose daemon restarts, routes by the old table", got)
		}
		time.Sleep(2 * time.Second)
		if got := a.told("t1"); got != swarm.TaskStateShutdown {
			t.Errorf("told %q after the deadline", got)
		}
	})
}

func TestANodeThatCannotApplyTheMeshHasNotAcknowledgedIt(t *testing.T) {
	inWorld(t, func(w *world) {
		w.place("t1", "n1", 1)
		a, b := w.connect("n1"), w.connect("n2")
		defer a.close()
		defer b.close()
		a.report("t1", swarm.TaskStateRunning)
		b.look(func() { b.acks = false })
		w.commit(cluster.PatchTask("t1", cluster.TaskPatch{DesiredState: swarm.TaskStateShutdown}))
		synctest.Wait()
		b.send(protocol.FromAgent{MeshAck: &protocol.MeshAck{Seq: 1 << 40, Err: "no such device"}})
		time.Sleep(time.Second)
		if got := a.told("t1"); got != swarm.TaskStateRunning {
			t.Errorf("told %q though n2 still routes to it", got)
		}
	})
}

func TestTheDefaultLogDriverFillsIn(t *testing.T) {
	inWorld(t, func(w *world) {
		w.commitCluster(func(c *cluster.Cluster) { c.Spec.TaskDefaults.LogDriver = &swarm.Driver{Name: "journald"} })
		a := w.connect("n1")
		defer a.close()
		for id, own := range map[string]*swarm.Driver{"t1": nil, "t2": {Name: "none"}} {
			task := &cluster.Task{}
			task.ID, task.NodeID, task.DesiredState, task.Status.State = id, "n1", swarm.TaskStateRunning, swarm.TaskStateAssigned
			task.Spec.ContainerSpec, task.Spec.LogDriver = &swarm.ContainerSpec{}, own
			w.commit(cluster.CreateOf(task))
		}
		synctest.Wait()
		a.look(func() {
			if a.drivers["t1"] != "journald" || a.drivers["t2"] != "none" {
				t.Errorf("log drivers %v, want the default for t1 and its own for t2", a.drivers)
			}
		})
		if w.task("t1").Spec.LogDriver != nil {
			t.Error("the stored task was modified")
		}
	})
}

func TestANodeHoldsASecretWhileATaskOfItUsesIt(t *testing.T) {
	inWorld(t, func(w *world) {
		s, c := &cluster.Secret{}, &cluster.Config{}
		s.ID, s.Spec.Name, s.Spec.Data = "s1", "pw", []byte("hunter2")
		c.ID, c.Spec.Name, c.Spec.Data = "c1", "conf", []byte("a=b")
		w.commit(cluster.CreateOf(s), cluster.CreateOf(c))
		uses := func(id, node string) {
			task := &cluster.Task{}
			task.ID, task.NodeID, task.DesiredState, task.Status.State = id, node, swarm.TaskStateRunning, swarm.TaskStateAssigned
			task.Spec.ContainerSpec = &swarm.ContainerSpec{Secrets: []*swarm.SecretReference{{SecretID: "s1"}}, Configs: []*swarm.ConfigReference{{ConfigID: "c1"}}}
			w.commit(cluster.CreateOf(task))
		}
		uses("t1", "n1")
		a, b := w.connect("n1"), w.connect("n2")
		defer a.close()
		defer b.close()
		holds := func(when string, agent *fakeAgent, want string) {
			t.Helper()
			synctest.Wait()
			agent.look(func() {
				if got := fmt.Sprint(agent.payloads); got != want {
					t.Errorf("%s: the node holds %s, want %s", when, got, want)
				}
			})
		}
		both := "map[c1:a=b s1:hunter2]"
		holds("its task uses them", a, both)
		holds("it has no task", b, "map[]")
		uses("t2", "n1")
		uses("t3", "n2")
		holds("a task came", b, both)
		a.report("t1", swarm.TaskStateFailed)
		holds("one of two tasks has ended", a, both)
		a.report("t2", swarm.TaskStateFailed)
		holds("both have ended", a, "map[]")
		holds("another node's tasks have ended", b, both)
		w.commit(cluster.Change{Action: cluster.Remove, Kind: cluster.KindTask, ID: "t3"})
		holds("its task was removed", b, "map[]")
		uses("t4", "n2")
		holds("another task came", b, both)
		b.close()
		b = w.connect("n2")
		holds("a new session", b, both)
	})
}

func TestAStoreThatStallsIsNotTheNodesSilence(t *testing.T) {
	inWorld(t, func(w *world) {
		for i := range 2 * reportQueue {
			w.place("t"+strings.Repeat("x", i+1), "n1", i+1)
		}
		a := w.connect("n1")
		stall := make(chan struct{})
		w.store.set(func() { w.store.stall = stall })
		for i := range 2 * reportQueue {
			st := protocol.TaskStatus{ID: "t" + strings.Repeat("x", i+1), Status: swarm.TaskStatus{State: swarm.TaskStateRunning}}
			a.send(protocol.FromAgent{Status: &protocol.Status{Seq: uint64(i + 1), Tasks: []protocol.TaskStatus{st}}})
		}
		time.Sleep(10 * time.Second)
		close(stall)
		time.Sleep(time.Second)
		if got := w.store.Snapshot().Node("n1").Status.State; got != swarm.NodeStateReady {
			t.Errorf("node is %s because the store was slow", got)
		}
		a.close()
	})
}

func TestANodeCalledDownInTheMomentOfItsReturnIsReadyAgain(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.connect("n1")
		defer a.close()
		w.commit(cluster.PatchNode("n1", cluster.NodePatch{Status: &swarm.NodeStatus{State: swarm.NodeStateDown}}))
		time.Sleep(defaultPeriod)
		if got := w.store.Snapshot().Node("n1").Status; got.State != swarm.NodeStateReady || got.Addr != "192.0.2.9" {
			t.Errorf("a node with a living session is %+v", got)
		}
	})
}

// TestALeaderThatSleptAccusesNobody: what is silent when the leader's machine wakes has a full grace again.
func TestALeaderThatSleptAccusesNobody(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.connect("n1")
		defer a.close()
		a.look(func() { a.acks = false }) // those are signs of life too
		a.stop()
		time.Sleep(5 * defaultPeriod / 2)
		w.d.forgive(time.Now())
		time.Sleep(defaultPeriod)
		if got := w.store.Snapshot().Node("n1").Status.State; got != swarm.NodeStateReady {
			t.Errorf("node is %s right after the leader woke", got)
		}
		time.Sleep(missed * defaultPeriod)
		if got := w.store.Snapshot().Node("n1").Status.State; got != swarm.NodeStateDown {
			t.Errorf("node is %s though it stayed silent", got)
		}
	})
}

// TestTheFormerLeadersSilenceIsOlderThanTheNewLeader: its node is down when it has been silent for the grace, if it had a period
// to find the new leader.
func TestTheFormerLeadersSilenceIsOlderThanTheNewLeader(t *testing.T) {
	for _, c := range []struct {
		name         string
		silent, down time.Duration // when the new leader begins, and after that
	}{
		{"as long as an election takes", 1500 * time.Millisecond, 1500 * time.Millisecond},
		{"a long election", 2800 * time.Millisecond, time.Second},
		{"nobody led for long", time.Minute, 3 * time.Second},
		{"it handed over", 0, 3 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorldAfter(t, func() Former { return Former{NodeID: "n1", Heard: time.Now().Add(-c.silent)} }, func(w *world) {
				w.commit(cluster.PatchNode("n1", cluster.NodePatch{Status: &swarm.NodeStatus{State: swarm.NodeStateReady}}))
				w.commit(cluster.PatchNode("n2", cluster.NodePatch{Status: &swarm.NodeStatus{State: swarm.NodeStateReady}}))
				state := func(id string) swarm.NodeState { return w.store.Snapshot().Node(id).Status.State }
				time.Sleep(c.down - 10*time.Millisecond)
				if state("n1") != swarm.NodeStateReady {
					t.Errorf("down too early")
				}
				time.Sleep(defaultPeriod/beats + 10*time.Millisecond)
				if state("n1") != swarm.NodeStateDown {
					t.Errorf("not down %s after the new leader began", c.down)
				}
				if c.down < missed*defaultPeriod && state("n2") != swarm.NodeStateReady {
					t.Error("another node has not had its grace")
				}
			})
		})
	}
	// One that is back is judged like everybody.
	inWorldAfter(t, func() Former { return Former{NodeID: "n1", Heard: time.Now().Add(-2 * time.Second)} }, func(w *world) {
		a := w.connect("n1")
		time.Sleep(2 * time.Second)
		a.close()
		time.Sleep(2 * time.Second)
		if got := w.store.Snapshot().Node("n1").Status.State; got != swarm.NodeStateReady {
			t.Errorf("the former leader's node is %s", got)
		}
	})
}

func TestPeersComeAndGoAsDifferences(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.connect("n1")
		defer a.close()
		w.commit(cluster.CreateOf(node("n3")), cluster.Change{Action: cluster.Remove, Kind: cluster.KindNode, ID: "n2"})
		synctest.Wait()
		a.look(func() {
			if _, old := a.peers["n2"]; old || len(a.peers) != 2 || a.peers["n3"].Addr != "192.0.2.1" {
				t.Errorf("peers %v, want n1 and n3", a.peers)
			}
		})
	})
}

func TestLogsEndWithTheSessionTheyCameThrough(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.connect("n1")
		done := make(chan error, 1)
		go func() {
			done <- w.d.TaskLogs(w.t.Context(), "n1", protocol.LogRequest{TaskID: "t1", Follow: true}, func(protocol.LogMessage) error { return nil })
		}()
		synctest.Wait()
		b := w.connect("n1") // the daemon restarted, and the old connection has not broken yet
		if err := <-done; err == nil {
			t.Error("the log of a replaced session ended without an error")
		}
		a.close()
		b.close()
	})
}

func TestAHugeMessageEndsTheSession(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.connect("n1")
		a.send(protocol.FromAgent{LogChunk: &protocol.LogMessage{ID: strings.Repeat("x", maxMessage+1)}})
		<-a.ended
		a.close()
	})
}

// TestACallerThatSaysNothingHoldsUpNobody: a term must end at once even while connections wait for their hello.
func TestACallerThatSaysNothingHoldsUpNobody(t *testing.T) {
	inWorld(t, func(w *world) {
		server, client := net.Pipe()
		go w.d.ServeSession(pipeWriter{httptest.NewRecorder(), server}, httptest.NewRequest(http.MethodGet, protocol.PathSession, nil), "n1", "192.0.2.9")
		_, _ = client.Read(make([]byte, 1024))
		before := time.Now()
		w.t.Cleanup(func() {
			if took := time.Since(before); took > time.Second {
				t.Errorf("the dispatcher took %v to stop", took)
			}
		})
	})
}
