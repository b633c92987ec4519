package agent

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/api/types/system"
	"github.com/google/go-cmp/cmp"

	"github.com/miniswarm/miniswarm/agent/docker"
	"github.com/miniswarm/miniswarm/agent/docker/fake"
	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

const (
	ready    = swarm.TaskStateReady
	running  = swarm.TaskStateRunning
	shutdown = swarm.TaskStateShutdown
)

func TestATaskFromAssignmentToRemoval(t *testing.T) {
	withWorld(t, func(w *world) {
		w.engine.SetImage("web:1", fake.Program{})
		m := w.manager("a")
		m.complete(w.task("t1", ready))
		m.wantTasks("t1 ready prepared")
		w.wantEngine("container web.1.t1 web:1 created")

		m.assign(protocol.Assignments{Tasks: []*cluster.Task{w.task("t1", running)}})
		m.wantTasks("t1 running started")
		w.wantEngine("container web.1.t1 web:1 running")
		if cs := m.heard().state["t1"].ContainerStatus; cs == nil || cs.ContainerID == "" || cs.PID == 0 {
			t.Errorf("container status %+v", cs)
		}

		m.assign(protocol.Assignments{Tasks: []*cluster.Task{w.task("t1", ready)}}) // desired never goes back
		m.wantTasks("t1 running started")

		m.assign(protocol.Assignments{Tasks: []*cluster.Task{w.task("t1", shutdown)}})
		m.wantTasks("t1 shutdown shutdown")
		w.wantEngine("container web.1.t1 web:1 exited (0)")

		m.assign(protocol.Assignments{RemoveTasks: []string{"t1"}})
		w.wantEngine("")
	})
}

// A leader that lacks a task for a moment has its container taken away; when the task is back, so is a container.
func TestATaskThatComesBackWhileItLeaves(t *testing.T) {
	withWorld(t, func(w *world) {
		w.engine.SetImage("web:1", fake.Program{Deaf: true})
		m := w.manager("a")
		m.complete(w.task("t1", running), w.task("t2", running))
		m.wantTasks("t1 running started\nt2 running started")
		m.assign(protocol.Assignments{RemoveTasks: []string{"t1", "t2"}})
		m.assign(protocol.Assignments{Tasks: []*cluster.Task{w.task("t1", running), w.task("t2", running)}})
		m.assign(protocol.Assignments{RemoveTasks: []string{"t2"}})
		time.Sleep(time.Minute)
		w.wantEngine("container web.1.t1 web:1 running")
		if ids := w.engine.Ids(); len(ids) != 1 || w.engine.Starts(ids[0]) != 1 {
			t.Errorf("containers %q, want one that is new", ids)
		}
	})
}

func TestFailures(t *testing.T) {
	for _, tt := range []struct {
		name    string
		program fake.Program
		image   string
		want    string
	}{
		{"no image", fake.Program{}, "other:1", "t1 rejected preparing (No such image: web:1 (pull access denied for web:1: not found))"},
		{"the engine's disk is full", fake.Program{CreateError: "mkdir /var/lib/docker/overlay2/l: no space left on device"}, "web:1",
			"t1 rejected preparing (mkdir /var/lib/docker/overlay2/l: no space left on device)"},
		{"cannot start", fake.Program{StartError: "no such file"}, "web:1", "t1 failed starting (starting container failed: no such file)"},
		{"ends at once", fake.Program{Exits: time.Millisecond}, "web:1", "t1 complete finished"},
		{"fails at once", fake.Program{Exits: time.Millisecond, ExitCode: 3}, "web:1", "t1 failed started (task: non-zero exit (3))"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			withWorld(t, func(w *world) {
				w.engine.SetImage(tt.image, tt.program)
				w.manager("a").complete(w.task("t1", running))
				w.manager("a").wantTasks(tt.want)
			})
		})
	}
	t.Run("cannot be understood", func(t *testing.T) {
		withWorld(t, func(w *world) {
			task := w.task("t1", running)
			task.Spec.ContainerSpec = nil
			w.manager("a").complete(task)
			w.manager("a").wantTasks(`t1 rejected resolving controller failed (unsupported runtime "": nodes run tasks of type container)`)
			w.manager("a").complete()
			w.wantEngine("")
		})
	})
}

// A task that has failed is replaced by another, so its container must not run on, whatever has failed.
func TestNothingRunsOfATaskThatFailed(t *testing.T) {
	withWorld(t, func(w *world) {
		w.engine.SetImage("web:1", fake.Program{})
		m := w.manager("a")
		m.complete(w.task("t1", running))
		m.wantTasks("t1 running started")
		w.engine.Conceal("web.1.t1", errors.New("its configuration is damaged"))
		time.Sleep(time.Minute) // until it is looked at again
		m.wantTasks("t1 failed started (its configuration is damaged)")
		w.wantEngine("container web.1.t1 web:1 exited (0)")
	})
}

func TestShutdownInterruptsPullAndHealthWait(t *testing.T) {
	withWorld(t, func(w *world) {
		w.engine.SetRegistry("web:1", fake.Registry{Takes: time.Hour}, fake.Program{})
		m := w.manager("a")
		m.complete(w.task("t1", running))
		m.wantTasks("t1 preparing preparing")
		m.assign(protocol.Assignments{Tasks: []*cluster.Task{w.task("t1", shutdown)}})
		m.wantTasks("t1 shutdown shutdown")

		w.engine.SetImage("web:1", fake.Program{Health: time.Hour})
		w.engine.SetRegistry("web:1", fake.Registry{}, fake.Program{Health: time.Hour})
		m.assign(protocol.Assignments{RemoveTasks: []string{"t1"}, Tasks: []*cluster.Task{w.task("t2", running)}})
		m.wantTasks("t1 shutdown shutdown\nt2 starting starting")
		m.assign(protocol.Assignments{RemoveTasks: []string{"t2"}})
		w.wantEngine("")
	})
}

func TestContainersOutliveSessionAgentAndManagers(t *testing.T) {
	withWorld(t, func(w *world) {
		w.engine.SetImage("web:1", fake.Program{})
		a, b := w.manager("a"), w.manager("b")
		a.complete(w.task("t1", running), w.task("t2", running))
		a.wantTasks("t1 running started\nt2 running started")

		// The leader dies; the agent finds the next one and tells it everything it knows.
		a.die()
		b.leads()
		time.Sleep(5 * time.Second)
		b.wantTasks("t1 running started\nt2 running started")
		w.wantEngine("container web.1.t1 web:1 running\ncontainer web.1.t2 web:1 running")

		// The agent restarts while no manager is there.
		b.die()
		_ = w.stop()
		w.start()
		time.Sleep(time.Minute)
		for _, id := range w.engine.Ids() {
			if n := w.engine.Starts(id); n != 1 {
				t.Errorf("container %s was started %d times", id, n)
			}
		}
		// Without managers it still sees what happens, and reports it when one is back.
		w.engine.Exit("web.1.t1", 7)
		time.Sleep(time.Minute)
		w.revive("b")
		time.Sleep(10 * time.Second)
		w.manager("b").wantTasks("t1 failed started (task: non-zero exit (7))\nt2 running started")
	})
}

func TestOnlyACompleteListRemovesWhatIsUnknown(t *testing.T) {
	withWorld(t, func(w *world) {
		w.engine.SetImage("web:1", fake.Program{})
		stray := func(node, task string) {
			c := docker.Container{Name: "c-" + task}
			c.Config = container.Config{Image: "web:1", Labels: map[string]string{docker.LabelNodeID: node, docker.LabelTaskID: task}}
			id, err := w.engine.Create(w.Context(), &c)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.engine.Start(w.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		stray(nodeID, "old")
		stray("node2", "neighbour")
		w.settle()
		const both = "container c-neighbour web:1 running\ncontainer c-old web:1 running"
		w.wantEngine(both)
		w.manager("a").complete(w.task("t1", running))
		w.wantEngine("container c-neighbour web:1 running\ncontainer web.1.t1 web:1 running")
		w.manager("a").complete()
		w.wantEngine("container c-neighbour web:1 running")
	})
}

func TestALostDatabaseCostsNoContainer(t *testing.T) {
	withWorld(t, func(w *world) {
		w.engine.SetImage("web:1", fake.Program{})
		m := w.manager("a")
		m.complete(w.task("t1", running), w.task("t2", running))
		_ = w.stop()
		w.config.StateDir = t.TempDir()
		w.start()
		known := w.task("t1", running)
		known.Status.State = running
		gone := w.task("t3", running)
		gone.Status.State = running
		orphaned := w.task("t2", running)
		orphaned.Status.State = swarm.TaskStateOrphaned
		m.complete(known, gone, orphaned)
		if n := w.engine.Starts("web.1.t1"); n != 1 {
			t.Errorf("started %d times", n)
		}
		if got := m.heard().state["t3"]; got.State != swarm.TaskStateFailed || got.Err != "No such container: web.1.t3" {
			t.Errorf("a container that is gone: %+v", got)
		}
		w.wantEngine("container web.1.t1 web:1 running\ncontainer web.1.t2 web:1 exited (0)")
	})
}

func TestATaskThatWasGivenUpIsStopped(t *testing.T) {
	withWorld(t, func(w *world) {
		w.engine.SetImage("web:1", fake.Program{})
		m := w.manager("a")
		m.complete(w.task("t1", running))
		m.hangUp()
		w.settle()
		orphaned := w.task("t1", running)
		orphaned.Status.State = swarm.TaskStateOrphaned
		m.complete(orphaned)
		w.wantEngine("container web.1.t1 web:1 exited (0)")
	})
}

func TestAnEngineThatIsAwayFailsNoTask(t *testing.T) {
	withWorld(t, func(w *world) {
		w.engine.SetImage("web:1", fake.Program{})
		m := w.manager("a")
		m.complete(w.task("t1", running))
		w.engine.Vanish()
		m.assign(protocol.Assignments{Tasks: []*cluster.Task{w.task("t2", running)}})
		time.Sleep(time.Minute)
		if got := m.tasks(); !strings.HasPrefix(got, "t1 running started\nt2 preparing preparing (the Docker Engine does not answer") &&
			!strings.Contains(got, "\nt2 preparing preparing (") {
			t.Errorf("while the engine is away:\n%s", got)
		}
		w.engine.Return()
		time.Sleep(5 * time.Second)
		m.wantTasks("t1 running started\nt2 running started")
		if n := w.engine.Starts("web.1.t1"); n != 1 {
			t.Errorf("started %d times", n)
		}
		w.engine.Crash()
		time.Sleep(time.Minute)
		m.wantTasks("t1 running started\nt2 running started")
		w.engine.Return()
		time.Sleep(5 * time.Second)
		m.wantTasks("t1 failed started (task: non-zero exit (255))\nt2 failed started (task: non-zero exit (255))")
	})
}

func TestHeartbeatsAndMeshDoNotWaitForTheEngine(t *testing.T) {
	withWorld(t, func(w *world) {
		w.engine.SetImage("web:1", fake.Program{})
		m := w.manager("a")
		release := w.engine.Hang()
		defer release()
		m.complete(w.task("t1", running))
		m.send(protocol.ToAgent{Mesh: &protocol.Mesh{Seq: 3, Complete: true, Peers: []protocol.Peer{{NodeID: nodeID, Addr: "192.0.2.1"}}}})
		before := m.heard().beats
		time.Sleep(time.Minute)
		if n := m.heard().beats - before; n < 230 {
			t.Errorf("%d heartbeats in a minute", n)
		}
		if len(m.heard().meshAcks) != 1 || m.heard().meshAcks[0].Seq != 3 {
			t.Errorf("mesh acknowledgements %+v", m.heard().meshAcks)
		}
		if m.heard().sessions != 1 {
			t.Errorf("%d sessions", m.heard().sessions)
		}
	})
}

func TestRoutesChangeWhileTheDataPlaneIsReadBack(t *testing.T) {
	withWorld(t, func(w *world) {
		m := w.manager("a")
		m.complete()
		w.mesh.setHangs()
		w.engine.Vanish()
		time.Sleep(5 * time.Second)
		w.engine.Return()
		time.Sleep(5 * time.Second)
		if n := w.mesh.verifications(); n != 1 {
			t.Fatalf("verified %d times after the engine was away, want once", n)
		}
		m.send(protocol.ToAgent{Mesh: &protocol.Mesh{Seq: 3, Complete: true, Peers: []protocol.Peer{{NodeID: nodeID, Addr: "192.0.2.1"}}}})
		w.settle()
		if acks := m.heard().meshAcks; len(acks) != 1 || acks[0].Seq != 3 {
			t.Errorf("mesh acknowledgements %+v", acks)
		}
	})
}

func TestFindingTheLeader(t *testing.T) {
	for _, tt := range []struct {
		name   string
		set    func(a *manager)
		within time.Duration
	}{
		{"it steps down and points to the next", func(a *manager) { a.follows("b"); a.hangUp() }, 500 * time.Millisecond},
		{"its machine dies", (*manager).die, time.Second},
		{"it freezes", (*manager).freeze, 2500 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			withWorld(t, func(w *world) {
				w.settle()
				a, b := w.manager("a"), w.manager("b")
				if n := a.heard().sessions; n != 1 {
					t.Fatalf("%d sessions with a", n)
				}
				b.leads()
				tt.set(a)
				began := time.Now()
				for b.heard().sessions == 0 && time.Since(began) < time.Minute {
					time.Sleep(10 * time.Millisecond)
				}
				if d := time.Since(began); d > tt.within {
					t.Errorf("found after %s", d)
				}
			})
		})
	}
}

// Nodes and managers are upgraded one after the other: what a newer leader says besides is passed over.
func TestANewerLeaderIsUnderstoodAsFarAsPossible(t *testing.T) {
	withWorld(t, func(w *world) {
		w.engine.SetImage("web:1", fake.Program{})
		m := w.manager("a")
		m.say(`{"Novelty":{"Of":["a","newer",1]}}`)
		m.complete(w.task("t1", running))
		m.say(`{"Heartbeat":{"Novelty":1},"Novelty":"x"}`)
		m.wantTasks("t1 running started")
		if n := len(m.heard().hellos); n != 1 {
			t.Errorf("%d sessions, want one that goes on", n)
		}
	})
}

func TestAGapInAssignmentsBeginsANewSession(t *testing.T) {
	withWorld(t, func(w *world) {
		w.engine.SetImage("web:1", fake.Program{})
		m := w.manager("a")
		m.complete(w.task("t1", running))
		m.set(func() { m.seq += 2 })
		m.assign(protocol.Assignments{RemoveTasks: []string{"t1"}})
		if m.heard().sessions != 2 {
			t.Errorf("%d sessions", m.heard().sessions)
		}
		w.wantEngine("container web.1.t1 web:1 running")
	})
}

func TestStatusesAreBatched(t *testing.T) {
	withWorld(t, func(w *world) {
		w.engine.SetImage("web:1", fake.Program{})
		var tasks []*cluster.Task
		for _, id := range strings.Split("abcdefghijklmnopqrst", "") {
			tasks = append(tasks, w.task(id, running))
		}
		m := w.manager("a")
		m.complete(tasks...)
		last := map[string]string{}
		for _, h := range m.heard().history {
			id, state, _ := strings.Cut(h, " ")
			last[id] = state
		}
		for id, state := range last {
			if state != "running" {
				t.Errorf("task %s is %s", id, state)
			}
		}
		// Six states each would be 120; what happens within the time of a batch is told once.
		if len(m.heard().history) > 60 {
			t.Errorf("%d statuses were sent", len(m.heard().history))
		}
	})
}

func TestMesh(t *testing.T) {
	withWorld(t, func(w *world) {
		m := w.manager("a")
		ingress := &cluster.Network{VNI: 4096, Network: swarm.Network{ID: "net1"}}
		ingress.Spec.Name, ingress.Spec.Ingress = "ingress", true
		node := &cluster.Node{Node: swarm.Node{ID: nodeID}, DataAddr: "192.0.2.1", Attachments: map[string]string{"net1": "10.0.0.2/24"}}
		service := func(backends ...protocol.Backend) protocol.MeshService {
			return protocol.MeshService{ServiceID: "svc1", Name: "web", Ports: []swarm.PortConfig{{PublishedPort: 80, TargetPort: 8000},
				{PublishedPort: 81, TargetPort: 81, PublishMode: swarm.PortConfigPublishModeHost}}, Backends: backends}
		}
		peers := []protocol.Peer{{NodeID: nodeID, Addr: "192.0.2.1"}, {NodeID: "node2", Addr: "192.0.2.2", Down: true, Attachments: map[string]string{"net1": "10.0.0.3/24"}}}
		m.send(protocol.ToAgent{Mesh: &protocol.Mesh{Seq: 5, Complete: true, Peers: peers, Services: []protocol.MeshService{
			service(protocol.Backend{TaskID: "t1", NodeID: nodeID, Addr: "10.0.0.10"}, protocol.Backend{TaskID: "t2", NodeID: "node2", Addr: "10.0.0.11"})}}})
		m.assign(protocol.Assignments{Complete: true, Node: node, Networks: []*cluster.Network{ingress}})
		const around = "network ingress 10.0.0.0/24 gateway 10.0.0.2\npeer node2 192.0.2.2 alive=false\n"
		const alone = "network ingress 10.0.0.0/24 gateway 10.0.0.2\npeer node2 192.0.2.2 alive=false suspect\n"
		check := func(want string) {
			t.Helper()
			if d := cmp.Diff(w.mesh.last(), want); d != "" {
				t.Error(d)
			}
		}
		check(around + "port 80/tcp -> 8000: 10.0.0.10 10.0.0.11")

		// Differences; numbers may jump, services that are not named stay.
		other := protocol.MeshService{ServiceID: "svc2", Name: "db", Ports: []swarm.PortConfig{{PublishedPort: 53, TargetPort: 53, Protocol: "udp"}}}
		m.send(protocol.ToAgent{Mesh: &protocol.Mesh{Seq: 9, Services: []protocol.MeshService{other}}})
		m.send(protocol.ToAgent{Mesh: &protocol.Mesh{Seq: 11, Services: []protocol.MeshService{service(protocol.Backend{TaskID: "t1", Addr: "10.0.0.10", Draining: true})}}})
		w.settle()
		check(around + "port 80/tcp -> 8000: 10.0.0.10(draining)\nport 53/udp -> 53:")

		// An error is told once, and success after it.
		w.mesh.setFail(true)
		m.send(protocol.ToAgent{Mesh: &protocol.Mesh{Seq: 12, RemoveServices: []string{"svc2"}}})
		time.Sleep(time.Minute)
		w.mesh.setFail(false)
		time.Sleep(time.Minute)
		want := []protocol.MeshAck{{Seq: 12, Err: "port 80/tcp is taken"}, {Seq: 12}}
		acks := m.heard().meshAcks
		if d := cmp.Diff(acks[len(acks)-2:], want); d != "" {
			t.Error(d)
		}

		// A node without managers routes as it did before, but trusts no peer to be there.
		m.die()
		w.settle()
		check(alone + "port 80/tcp -> 8000: 10.0.0.10(draining)")

		// So does one that starts without managers.
		_ = w.stop()
		w.mesh.forget()
		w.start()
		w.settle()
		check(alone + "port 80/tcp -> 8000: 10.0.0.10(draining)")

		// Unless the kernel still routes by what a former process put there, which is newer than the record.
		_ = w.stop()
		w.mesh.forget()
		w.mesh.setInstalled(true)
		w.start()
		w.settle()
		check("none")
		time.Sleep(kernelFirst) // and no leader has come
		w.settle()
		check(alone + "port 80/tcp -> 8000: 10.0.0.10(draining)")
		w.revive("a")
		m = w.manager("a")
		time.Sleep(10 * time.Second) // past every pause between two attempts to connect
		m.send(protocol.ToAgent{Mesh: &protocol.Mesh{Seq: 20, Complete: true, Peers: peers, Services: []protocol.MeshService{service()}}})
		w.settle()
		check(around + "port 80/tcp -> 8000:")
	})
}

func TestHelloDescribesTheNode(t *testing.T) {
	withWorld(t, func(w *world) {
		w.settle()
		m := w.manager("a")
		want := swarm.NodeDescription{Hostname: "vm1", Platform: swarm.Platform{Architecture: "x86_64", OS: "linux"},
			Resources: swarm.Resources{NanoCPUs: 2e9, MemoryBytes: 2 << 30, GenericResources: []swarm.GenericResource{
				{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: "SSD", Value: 2}}}},
			Engine: swarm.EngineDescription{EngineVersion: "20.10.24", Labels: map[string]string{"disk": "ssd"}, Plugins: []swarm.PluginDescription{
				{Type: "Log", Name: "json-file"}, {Type: "Network", Name: "bridge"}, {Type: "Network", Name: "host"}, {Type: "Network", Name: "overlay"}, {Type: "Volume", Name: "local"}}}}
		if d := cmp.Diff(m.heard().hellos, []protocol.Hello{{Description: want, DataPlane: true, Version: "test"}}); d != "" {
			t.Error(d)
		}
		w.engine.SetInfo(func(info *system.Info) { info.NCPU = 4 })
		time.Sleep(30 * time.Second)
		if len(m.heard().hellos) != 2 || m.heard().hellos[1].Description.Resources.NanoCPUs != 4e9 {
			t.Errorf("after a change: %+v", m.heard().hellos)
		}
		// With the engine away it says what it said last.
		m.assign(protocol.Assignments{Complete: true, Node: &cluster.Node{Node: swarm.Node{ID: nodeID, Description: m.heard().hellos[1].Description}}})
		_ = w.stop()
		w.engine.Vanish()
		w.start()
		time.Sleep(5 * time.Second)
		if h := m.heard().hellos; len(h) != 3 || !cmp.Equal(h[2], h[1]) {
			t.Errorf("without an engine: %+v", h[2:])
		}
	})
}

func TestLogDetails(t *testing.T) {
	withWorld(t, func(w *world) {
		w.engine.SetImage("web:1", fake.Program{})
		m := w.manager("a")
		detailed := w.task("t2", running)
		detailed.Spec.ContainerSpec.Labels = map[string]string{"app": "a,b"}
		detailed.Spec.LogDriver = &swarm.Driver{Name: "json-file", Options: map[string]string{"labels": "app,none"}}
		m.complete(w.task("t1", running), detailed)
		for _, id := range w.engine.Ids() {
			w.engine.Print(id, "stdout", time.Now(), "of two words")
		}
		for _, id := range []string{"t1", "t2"} {
			m.send(protocol.ToAgent{LogRequest: &protocol.LogRequest{ID: id, TaskID: id, Stdout: true, Details: true}})
			w.settle()
		}
		if d := cmp.Diff(m.heard().logLines, []string{"stdout: of two words\n", "stdout: app=a%2Cb of two words\n"}); d != "" {
			t.Error(d)
		}
	})
}

func TestLogs(t *testing.T) {
	withWorld(t, func(w *world) {
		w.engine.SetImage("web:1", fake.Program{})
		m := w.manager("a")
		m.complete(w.task("t1", running))
		id := w.engine.Ids()[0]
		w.engine.Print(id, "stdout", time.Now(), "hello")
		w.engine.Print(id, "stderr", time.Now(), "oh")
		m.send(protocol.ToAgent{LogRequest: &protocol.LogRequest{ID: "r1", TaskID: "t1", Stdout: true, Stderr: true}})
		m.send(protocol.ToAgent{LogRequest: &protocol.LogRequest{ID: "r2", TaskID: "t9", Stdout: true}})
		w.settle()
		if d := cmp.Diff(m.heard().logLines, []string{"stdout: hello\n", "stderr: oh\n"}); d != "" {
			t.Error(d)
		}
		ends := map[string]string{}
		for _, e := range m.heard().logEnds {
			ends[e.ID] = e.Err
		}
		if d := cmp.Diff(ends, map[string]string{"r1": "", "r2": "task t9 is not on this node"}); d != "" {
			t.Error(d)
		}
		m.send(protocol.ToAgent{LogRequest: &protocol.LogRequest{ID: "r3", TaskID: "t1", Stdout: true, Follow: true}})
		w.settle()
		m.send(protocol.ToAgent{LogCancel: &protocol.LogCancel{ID: "r3"}})
		w.settle()
		if len(m.heard().logEnds) != 2 {
			t.Errorf("ends %+v", m.heard().logEnds)
		}
		// Followed from before its start; and one that never starts.
		m.assign(protocol.Assignments{Tasks: []*cluster.Task{w.task("t2", ready), w.task("t3", ready)}})
		for _, id := range []string{"t2", "t3"} {
			m.send(protocol.ToAgent{LogRequest: &protocol.LogRequest{ID: id, TaskID: id, Stdout: true, Follow: true}})
		}
		w.settle()
		w.engine.Print("web.1.t2", "stdout", time.Now(), "later")
		m.assign(protocol.Assignments{Tasks: []*cluster.Task{w.task("t2", running), w.task("t3", shutdown)}})
		if lines := m.heard().logLines; lines[len(lines)-1] != "stdout: later\n" {
			t.Errorf("lines %q", lines)
		}
		if e := m.heard().logEnds; len(e) != 3 || e[2] != (protocol.LogEnd{ID: "t3"}) {
			t.Errorf("ends %+v", e)
		}
	})
}

func TestLeaving(t *testing.T) {
	withWorld(t, func(w *world) {
		w.engine.SetImage("web:1", fake.Program{})
		m := w.manager("a")
		m.complete(w.task("t1", running))
		m.send(protocol.ToAgent{Leave: &protocol.LeaveRequired{Reason: "it was removed"}})
		var removed *RemovedError
		if err := <-w.ended; !errors.As(err, &removed) || removed.Reason != "it was removed" {
			t.Errorf("got %v", err)
		}
		w.wantEngine("container web.1.t1 web:1 running")
		if err := w.agent.Leave(context.Background()); err != nil {
			t.Error(err)
		}
		w.wantEngine("")
		m.set(func() { m.dismissing = true })
		w.start()
		if err := <-w.ended; !errors.As(err, &removed) {
			t.Errorf("a new session: %v", err)
		}
		w.ended <- nil
		synctest.Wait()
	})
}

func TestStreamsToTheLeader(t *testing.T) {
	withWorld(t, func(w *world) {
		w.engine.SetImage("web:1", fake.Program{})
		m := w.manager("a")
		m.complete(w.task("t1", swarm.TaskStateRunning))
		w.settle()
		for _, id := range []string{"t1", "unknown"} {
			m.send(protocol.ToAgent{Stream: &protocol.StreamRequest{ID: id}})
			w.settle()
		}
		got := m.heard().streams
		if len(got) != 2 || !strings.HasPrefix(got[0], "t1: 200 ") || !strings.Contains(got[0], "/web.1.t1") || !strings.HasPrefix(got[1], "unknown: 404 ") {
			t.Fatalf("streams: %q", got)
		}
		m.hangUp() // and all streams of the session end with it
		w.settle()
		if got := m.heard().streams[2:]; len(got) != 2 {
			t.Errorf("of two streams ended: %q", got)
		}
	})
}
