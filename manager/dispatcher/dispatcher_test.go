package dispatcher

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// tables is a store without replication: it applies at once and tells its followers.
type tables struct {
	mu     sync.Mutex
	state  *cluster.State
	events chan []cluster.Event
	// deposed makes it the store of a leader that others do not follow any more.
	deposed bool
	// stall holds every proposal until it is closed; nil holds none.
	stall chan struct{}
}

func (s *tables) Snapshot() *cluster.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.Snapshot()
}

func (s *tables) Read(context.Context) (*cluster.Snapshot, error) {
	if s.deposed {
		return nil, errors.New("no majority")
	}
	return s.Snapshot(), nil
}

// set changes what the store does from now on.
func (s *tables) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *tables) Propose(ctx context.Context, txn *cluster.Txn) (uint64, error) {
	s.mu.Lock()
	stall := s.stall
	s.mu.Unlock()
	if stall != nil {
		select {
		case <-stall:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	index := s.state.Index() + 1
	ev, err := s.state.Apply(txn, index)
	if err == nil && len(ev) > 0 {
		s.events <- ev
	}
	return index, err
}

// world is a dispatcher over tables with two nodes and one service that publishes a port.
type world struct {
	epoch    uint64 // that nodes have seen
	t        *testing.T
	store    *tables
	d        *Dispatcher
	managers []protocol.ManagerAddr // guarded by the store's lock
}

const (
	webService = "web-service"
	ingressID  = "ingress-network"
)

// inWorld runs f beside a running dispatcher, in virtual time.
func inWorld(t *testing.T, f func(w *world)) {
	inWorldAfter(t, func() Former { return Former{} }, f)
}

// inWorldAfter is inWorld with another leader before.
func inWorldAfter(t *testing.T, former func() Former, f func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		store := &tables{state: cluster.NewState(), events: make(chan []cluster.Event, 1024)}
		w := &world{t: t, store: store}
		svc := &cluster.Service{}
		svc.ID, svc.Spec.Name = webService, "web"
		svc.Endpoint.Ports = []swarm.PortConfig{{Protocol: swarm.PortConfigProtocolTCP, TargetPort: 8000, PublishedPort: 80, PublishMode: swarm.PortConfigPublishModeIngress}}
		w.commit(cluster.CreateOf(node("n1")), cluster.CreateOf(node("n2")), cluster.CreateOf(svc))
		<-store.events
		w.d = New(Config{Store: store, Logger: slog.New(slog.DiscardHandler), IDs: cluster.SeededIDs(1), Managers: w.listManagers, Former: former()})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.d.Run(ctx, store.Snapshot(), store.events) }()
		synctest.Wait()
		f(w)
		cancel()
		<-done
	})
}

func node(id string) *cluster.Node {
	n := &cluster.Node{DataAddr: "192.0.2.1"}
	n.ID, n.Status.State = id, swarm.NodeStateUnknown
	return n
}

func (w *world) commit(changes ...cluster.Change) {
	w.t.Helper()
	if _, err := w.store.Propose(w.t.Context(), &cluster.Txn{Time: time.Now(), Changes: changes}); err != nil {
		w.t.Fatal(err)
	}
}

// place creates a task of the web service on a node, with an ingress address.
func (w *world) place(id, nodeID string, slot int) {
	t := &cluster.Task{}
	t.ID, t.ServiceID, t.Slot, t.NodeID, t.DesiredState = id, webService, slot, nodeID, swarm.TaskStateRunning
	t.Status.State = swarm.TaskStateAssigned
	net := swarm.Network{ID: ingressID}
	net.Spec.Ingress = true
	t.NetworksAttachments = []swarm.NetworkAttachment{{Network: net, Addresses: []string{fmt.Sprintf("10.0.0.%d/24", 10+slot)}}}
	w.commit(cluster.CreateOf(t))
}

func (w *world) listManagers() []protocol.ManagerAddr {
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	return w.managers
}

func (w *world) task(id string) *cluster.Task { return w.store.Snapshot().Task(id) }

// fakeAgent is the other end of a session.
type fakeAgent struct {
	w     *world
	conn  net.Conn
	out   chan protocol.FromAgent
	stop  context.CancelFunc
	ended chan struct{}

	mu    sync.Mutex
	tasks map[string]swarm.TaskState
	mesh  map[string]protocol.MeshService
	seq   uint64
	acks  bool // acknowledge meshes at once
	left  string

	refused  string
	period   time.Duration
	managers []protocol.ManagerAddr
	peers    map[string]protocol.Peer
	drivers  map[string]string // log drivers by task
	payloads map[string]string // what secrets and configs hold, by id
	streams  []string          // ids of the streams that were asked for
	trust    []protocol.Trust  // what was to be trusted, one after the other
	ahead    time.Duration     // of the node's clock before the leader's
}

// pipeWriter lets ServeSession take a connection over as if from an HTTP server.
type pipeWriter struct {
	*httptest.ResponseRecorder
	conn net.Conn
}

func (p pipeWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return p.conn, bufio.NewReadWriter(bufio.NewReader(p.conn), bufio.NewWriter(p.conn)), nil
}

// connect opens a session for the node; its agent beats every 250 ms until beating is stopped.
func (w *world) connect(nodeID string) *fakeAgent { return w.connectAs(nodeID, "") }

// connectAs opens a session for a run of the node's daemon.
func (w *world) connectAs(nodeID, instance string) *fakeAgent {
	return w.greetAs(nodeID, protocol.Hello{DataPlane: true, Instance: instance, Epoch: w.epoch})
}

// greetAs opens a session in which the node introduces itself so.
func (w *world) greetAs(nodeID string, hello protocol.Hello) *fakeAgent {
	server, client := net.Pipe()
	a := &fakeAgent{w: w, conn: client, out: make(chan protocol.FromAgent, 1024), ended: make(chan struct{}), tasks: map[string]swarm.TaskState{}, mesh: map[string]protocol.MeshService{}, acks: true,
		peers: map[string]protocol.Peer{}, drivers: map[string]string{}, payloads: map[string]string{}}
	ctx, cancel := context.WithCancel(w.t.Context())
	a.stop = cancel
	req := httptest.NewRequest(http.MethodGet, protocol.PathSession, nil)
	go func() {
		defer close(a.ended)
		w.d.ServeSession(pipeWriter{httptest.NewRecorder(), server}, req, nodeID, "192.0.2.9")
	}()
	in := bufio.NewReader(client)
	if _, err := http.ReadResponse(in, req); err != nil {
		w.t.Fatal(err)
	}
	go a.read(in)
	go a.write()
	a.send(protocol.FromAgent{Hello: &hello})
	go func() {
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				a.mu.Lock()
				now := time.Now().Add(a.ahead)
				a.mu.Unlock()
				a.send(protocol.FromAgent{Heartbeat: &protocol.Heartbeat{Clock: now}})
			}
		}
	}()
	synctest.Wait()
	return a
}

func (a *fakeAgent) send(m protocol.FromAgent) { a.out <- m }

// write sends what was queued, one after the other, until the session has ended.
func (a *fakeAgent) write() {
	enc := json.NewEncoder(a.conn)
	for {
		select {
		case <-a.ended:
			return
		case m := <-a.out:
			_ = enc.Encode(m) // the end of the session is noticed by ended
		}
	}
}

func (a *fakeAgent) read(in *bufio.Reader) {
	dec := json.NewDecoder(in)
	for {
		var m protocol.ToAgent
		if dec.Decode(&m) != nil {
			return
		}
		a.mu.Lock()
		switch {
		case m.Welcome != nil:
			a.period, a.managers = m.Welcome.HeartbeatPeriod, m.Welcome.Managers
		case m.Trust != nil:
			a.trust = append(a.trust, *m.Trust)
		case m.Refused != nil:
			a.refused = m.Refused.Reason
		case m.Stream != nil:
			a.streams = append(a.streams, m.Stream.ID)
		case m.Managers != nil:
			a.managers = m.Managers
		case m.Assignments != nil:
			if m.Assignments.Complete {
				clear(a.tasks)
				clear(a.payloads)
			}
			for _, s := range m.Assignments.Secrets {
				a.payloads[s.ID] = string(s.Spec.Data)
			}
			for _, c := range m.Assignments.Configs {
				a.payloads[c.ID] = string(c.Spec.Data)
			}
			for _, id := range slices.Concat(m.Assignments.RemoveSecrets, m.Assignments.RemoveConfigs) {
				delete(a.payloads, id)
			}
			for _, t := range m.Assignments.Tasks {
				a.tasks[t.ID] = t.DesiredState
				if t.Spec.LogDriver != nil {
					a.drivers[t.ID] = t.Spec.LogDriver.Name
				}
			}
			for _, id := range m.Assignments.RemoveTasks {
				delete(a.tasks, id)
			}
		case m.Mesh != nil:
			if m.Mesh.Complete {
				clear(a.mesh)
			}
			for _, s := range m.Mesh.Services {
				a.mesh[s.ServiceID] = s
			}
			for _, id := range m.Mesh.RemoveServices {
				delete(a.mesh, id)
			}
			for _, p := range m.Mesh.Peers {
				a.peers[p.NodeID] = p
			}
			for _, id := range m.Mesh.RemovePeers {
				delete(a.peers, id)
			}
			a.seq = m.Mesh.Seq
			if a.acks {
				a.send(protocol.FromAgent{MeshAck: &protocol.MeshAck{Seq: m.Mesh.Seq}})
			}
		case m.Leave != nil:
			a.left = m.Leave.Reason
		}
		a.mu.Unlock()
	}
}

// report tells the leader the state of a task.
func (a *fakeAgent) report(id string, state swarm.TaskState) {
	a.send(protocol.FromAgent{Status: &protocol.Status{Seq: 1, Tasks: []protocol.TaskStatus{{ID: id, Status: swarm.TaskStatus{State: state}}}}})
	synctest.Wait()
}

func (a *fakeAgent) told(id string) swarm.TaskState {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tasks[id]
}

// routes gives "task" or "task(draining)" for each replica of the web service.
func (a *fakeAgent) routes() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := ""
	for _, b := range a.mesh[webService].Backends {
		out += b.TaskID
		if b.Draining {
			out += "(draining)"
		}
		out += " "
	}
	return out
}

// close breaks the session as a crash of the daemon does.
func (a *fakeAgent) close() {
	a.stop()
	a.conn.Close()
	<-a.ended
}

func TestASessionMakesTheNodeReadyAndTellsItsTasks(t *testing.T) {
	inWorld(t, func(w *world) {
		w.place("t1", "n1", 1)
		a := w.connect("n1")
		defer a.close()
		if n := w.store.Snapshot().Node("n1"); n.Status.State != swarm.NodeStateReady || n.Status.Addr != "192.0.2.9" {
			t.Errorf("node is %+v, want ready at the address it came from", n.Status)
		}
		if got := a.told("t1"); got != swarm.TaskStateRunning {
			t.Errorf("told %q, want running", got)
		}
		w.place("t2", "n1", 2)
		synctest.Wait()
		if got := a.told("t2"); got != swarm.TaskStateRunning {
			t.Errorf("a later task: told %q, want running", got)
		}
		a.report("t1", swarm.TaskStateRunning)
		if got := a.routes(); got != "t1 " {
			t.Errorf("routes to %q once t1 runs, want t1", got)
		}
		w.commit(cluster.Change{Action: cluster.Remove, Kind: cluster.KindTask, ID: "t2"})
		synctest.Wait()
		if got := a.told("t2"); got != "" {
			t.Errorf("a removed task is still told as %q", got)
		}
	})
}

func TestAReplicaStopsOnlyAfterEveryNodeRoutesAroundIt(t *testing.T) {
	inWorld(t, func(w *world) {
		w.place("t1", "n1", 1)
		a, b := w.connect("n1"), w.connect("n2")
		defer a.close()
		defer b.close()
		a.report("t1", swarm.TaskStateRunning)
		b.mu.Lock()
		b.acks = false
		b.mu.Unlock()
		w.commit(cluster.PatchTask("t1", cluster.TaskPatch{DesiredState: swarm.TaskStateShutdown}))
		synctest.Wait()
		time.Sleep(500 * time.Millisecond)
		if got := a.told("t1"); got != swarm.TaskStateRunning {
			t.Fatalf("told %q while n2 has not acknowledged", got)
		}
		if got := a.routes() + b.routes(); got != "t1(draining) t1(draining) " {
			t.Errorf("routes to %q: want no new connection to the replica, and those it has kept", got)
		}
		b.mu.Lock()
		seq := b.seq
		b.mu.Unlock()
		b.send(protocol.FromAgent{MeshAck: &protocol.MeshAck{Seq: seq}})
		synctest.Wait()
		if got := a.told("t1"); got != swarm.TaskStateRunning {
			t.Error("no linger after the last acknowledgement")
		}
		time.Sleep(defaultLinger + 10*time.Millisecond)
		if got := a.told("t1"); got != swarm.TaskStateShutdown {
			t.Errorf("told %q after everybody acknowledged and the linger, want shutdown", got)
		}
		a.report("t1", swarm.TaskStateShutdown)
		if got := a.routes() + b.routes(); got != "" {
			t.Errorf("routes to %q after the replica has ended", got)
		}
	})
}

func TestAJobsTaskGetsTrafficUntilItHasEnded(t *testing.T) {
	inWorld(t, func(w *world) {
		w.place("t1", "n1", 1)
		w.commit(cluster.PatchTask("t1", cluster.TaskPatch{DesiredState: swarm.TaskStateComplete}))
		a := w.connect("n1")
		defer a.close()
		a.report("t1", swarm.TaskStateRunning)
		if got := a.routes(); got != "t1 " {
			t.Errorf("routes to %q while the task runs", got)
		}
		a.report("t1", swarm.TaskStateComplete)
		if got := a.routes(); got != "" {
			t.Errorf("routes to %q after the task has ended", got)
		}
	})
}

func TestALeavingReplicaIsNobodysLastResort(t *testing.T) {
	inWorld(t, func(w *world) {
		w.place("t1", "n1", 1)
		w.place("t2", "n2", 2)
		a, b := w.connect("n1"), w.connect("n2")
		defer b.close()
		a.report("t1", swarm.TaskStateRunning)
		b.report("t2", swarm.TaskStateRunning)
		w.commit(cluster.PatchTask("t2", cluster.TaskPatch{DesiredState: swarm.TaskStateShutdown}))
		a.close() // the only replica that stays is on a node that has fallen silent
		time.Sleep(1100 * time.Millisecond)
		if got := b.routes(); got != "t1 t2(draining) " {
			t.Errorf("routes to %q, want new connections to the silent node only", got)
		}
	})
}

func TestAnAbsentAcknowledgementDelaysAStopOnlySoLong(t *testing.T) {
	inWorld(t, func(w *world) {
		var log bytes.Buffer
		w.d.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		w.place("t1", "n1", 1)
		a, b := w.connect("n1"), w.connect("n2")
		defer a.close()
		defer b.close()
		a.report("t1", swarm.TaskStateRunning)
		b.mu.Lock()
		b.acks = false
		b.mu.Unlock()
		w.commit(cluster.PatchTask("t1", cluster.TaskPatch{DesiredState: swarm.TaskStateShutdown}))
		time.Sleep(defaultAckTimeout + 300*time.Millisecond)
		if got := a.told("t1"); got != swarm.TaskStateShutdown {
			t.Errorf("told %q after the deadline, want shutdown", got)
		}
		w.d.mu.Lock()
		defer w.d.mu.Unlock()
		if !strings.Contains(log.String(), "may still send to them\" tasks=1 node=n2") {
			t.Errorf("the log does not name the node:\n%s", log.String())
		}
	})
}

func TestTwoClocksOfSilence(t *testing.T) {
	inWorld(t, func(w *world) {
		w.place("t1", "n1", 1)
		w.place("t2", "n2", 2)
		a, b := w.connect("n1"), w.connect("n2")
		defer b.close()
		a.report("t1", swarm.TaskStateRunning)
		b.report("t2", swarm.TaskStateRunning)
		a.close()
		time.Sleep(1100 * time.Millisecond)
		if got := b.routes(); got != "t1(draining) t2 " {
			t.Errorf("after 1.1 s of silence: routes %q, want no new connections to t1", got)
		}
		if got := w.store.Snapshot().Node("n1").Status.State; got != swarm.NodeStateReady {
			t.Errorf("after 1.1 s the node is %s, want still ready", got)
		}
		time.Sleep(2200 * time.Millisecond)
		if got := w.store.Snapshot().Node("n1").Status; got.State != swarm.NodeStateDown || got.Message != "heartbeat failure" {
			t.Errorf("after 3.3 s the node is %+v, want down", got)
		}
		synctest.Wait()
		if got := b.routes(); got != "t2 " {
			t.Errorf("a node that is down is routed to: %q", got)
		}
	})
}

func TestARestartOfTheDaemonLosesNothing(t *testing.T) {
	inWorld(t, func(w *world) {
		w.place("t1", "n1", 1)
		a, b := w.connect("n1"), w.connect("n2")
		defer b.close()
		a.report("t1", swarm.TaskStateRunning)
		a.close()
		time.Sleep(2 * time.Second)
		if got := b.routes(); got != "t1 " {
			t.Errorf("the only replica is left without new connections while its daemon restarts: %q", got)
		}
		a = w.connect("n1")
		defer a.close()
		time.Sleep(5 * time.Second)
		if got := w.store.Snapshot().Node("n1").Status.State; got != swarm.NodeStateReady {
			t.Errorf("node is %s after its daemon came back, want ready", got)
		}
		if got := a.told("t1"); got != swarm.TaskStateRunning {
			t.Errorf("told %q after the restart, want running", got)
		}
	})
}

// Nodes and managers are upgraded one after the other: what a newer node says besides is passed over.
func TestANewerNodeIsUnderstoodAsFarAsPossible(t *testing.T) {
	inWorld(t, func(w *world) {
		w.place("t1", "n1", 1)
		a := w.connect("n1")
		defer a.close()
		for _, line := range []string{`{"Novelty":{"Of":["a","newer",1]}}`, `{"Heartbeat":{"Novelty":1}}`, `{"MeshAck":{"Seq":1,"Novelty":{}},"Novelty":"x"}`} {
			if _, err := a.conn.Write([]byte(line + "\n")); err != nil {
				t.Fatal(err)
			}
		}
		a.report("t1", swarm.TaskStateRunning)
		if got := w.store.Snapshot().Task("t1").Status.State; got != swarm.TaskStateRunning {
			t.Errorf("the task is %s, and was reported to run", got)
		}
	})
}

func TestReportsAboutForeignTasksEndTheSession(t *testing.T) {
	inWorld(t, func(w *world) {
		w.place("t2", "n2", 1)
		a := w.connect("n1")
		a.report("t2", swarm.TaskStateFailed)
		synctest.Wait()
		select {
		case <-a.ended:
		default:
			t.Error("the session goes on after a report about another node's task")
		}
		if got := w.task("t2").Status.State; got != swarm.TaskStateAssigned {
			t.Errorf("the foreign report was stored: %s", got)
		}
		a.close()
	})
}

func TestARemovedNodeIsDismissed(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.connect("n1")
		w.commit(cluster.Change{Action: cluster.Remove, Kind: cluster.KindNode, ID: "n1"})
		synctest.Wait()
		a.mu.Lock()
		left := a.left
		a.mu.Unlock()
		if left == "" {
			t.Error("the node was not told that it has been removed")
		}
		a.close()
		a = w.connect("n1")
		a.mu.Lock()
		left = a.left
		a.mu.Unlock()
		if left == "" {
			t.Error("a removed node that comes back was not told so")
		}
		a.close()
		w.d.mu.Lock()
		defer w.d.mu.Unlock()
		if at, kept := w.d.heard["n1"]; kept {
			t.Errorf("that it was heard at %s is kept for ever", at)
		}
	})
}

func TestLogsComeFromTheNode(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.connect("n1")
		defer a.close()
		got, done := "", make(chan error, 1)
		go func() {
			done <- w.d.TaskLogs(w.t.Context(), "n1", protocol.LogRequest{TaskID: "t1"}, func(m protocol.LogMessage) error { got += string(m.Data); return nil })
		}()
		synctest.Wait()
		w.d.mu.Lock()
		id := ""
		for k := range w.d.logs {
			id = k
		}
		w.d.mu.Unlock()
		a.send(protocol.FromAgent{LogChunk: &protocol.LogMessage{ID: id, Data: []byte("hello ")}})
		a.send(protocol.FromAgent{LogChunk: &protocol.LogMessage{ID: id, Data: []byte("world")}})
		a.send(protocol.FromAgent{LogEnd: &protocol.LogEnd{ID: id}})
		if err := <-done; err != nil || got != "hello world" {
			t.Errorf("got %q, %v", got, err)
		}
		if err := w.d.TaskLogs(w.t.Context(), "n2", protocol.LogRequest{}, nil); err == nil {
			t.Error("logs of a node without session gave no error")
		}
		go func() {
			done <- w.d.TaskLogs(w.t.Context(), "n1", protocol.LogRequest{TaskID: "t1", Follow: true}, func(protocol.LogMessage) error { return errors.New("unused") })
		}()
		synctest.Wait()
		a.close()
		if err := <-done; err == nil {
			t.Error("the log of a node that went away ended without an error")
		}
	})
}
