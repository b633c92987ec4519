package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/agent/docker/fake"
	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/ingress/plan"
)

const nodeID = "node1"

// world is one node with fake managers. Most tests run it in a synctest bubble on a fake engine.
type world struct {
	*testing.T
	engine   *fake.Engine // nil where a real one is used
	life     context.Context
	settle   func() // lets everything come to rest, and a little time pass for what is batched
	mesh     *fakeMesh
	dir      string
	config   Config
	agent    *Agent
	cancel   context.CancelFunc
	ended    chan error
	mu       sync.Mutex
	managers map[string]*manager // guarded by mu; by address
}

// withWorld runs f beside an agent that knows the managers a and b, of which a leads.
func withWorld(t *testing.T, f func(w *world)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, life: t.Context(), engine: fake.New(), mesh: &fakeMesh{}, dir: dir, managers: map[string]*manager{}}
		w.settle = func() {
			time.Sleep(time.Second)
			synctest.Wait()
		}
		w.manager("a").leads()
		w.manager("b").follows("a")
		w.config = Config{NodeID: nodeID, StateDir: dir, Engine: w.engine, Dial: w.dial, Mesh: w.mesh, Version: "test",
			Managers: []protocol.ManagerAddr{{Addr: "a"}, {Addr: "b"}}}
		w.start()
		f(w)
		w.stop()
		for _, m := range w.managers {
			m.die()
		}
	})
}

// start starts an agent; a former one must have been stopped.
func (w *world) start() {
	w.Helper()
	a, err := New(w.config)
	if err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.life)
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	w.agent, w.cancel, w.ended = a, cancel, ended
	w.settle()
}

// stop ends the agent, as an upgrade of miniswarm does.
func (w *world) stop() error {
	w.cancel()
	return <-w.ended
}

func (w *world) manager(addr string) *manager {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.managers[addr]
	if m == nil {
		m = newManager(w, addr)
		w.managers[addr] = m
	}
	return m
}

// revive puts a new manager in a dead one's place.
func (w *world) revive(addr string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.managers[addr] = newManager(w, addr)
}

func (w *world) dial(ctx context.Context, addr string) (net.Conn, error) {
	w.mu.Lock()
	m := w.managers[addr]
	w.mu.Unlock()
	if m == nil || m.isDead() {
		<-ctx.Done() // a machine without power does not even refuse
		return nil, ctx.Err()
	}
	ours, theirs := net.Pipe()
	go m.serve(theirs)
	return ours, nil
}

func (w *world) task(id string, desired swarm.TaskState) *cluster.Task {
	t := &cluster.Task{Task: swarm.Task{ID: id, ServiceID: "svc1", Slot: 1, NodeID: nodeID, DesiredState: desired,
		Status: swarm.TaskStatus{State: swarm.TaskStateAssigned},
		Spec:   swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "web:1"}}}}
	t.ServiceAnnotations.Name = "web"
	return t
}

// manager is a leader or follower in memory.
type manager struct {
	w    *world
	addr string

	mu         sync.Mutex
	dead       bool     // guarded by mu, like all below
	leader     string   // where followers send agents; "" if itself leads
	mute       bool     // does not answer heartbeats any more
	conn       net.Conn // of the newest session
	dismissing bool     // answers every hello with a dismissal
	epoch      uint64   // of the cluster that it leads
	attach     func(protocol.AttachRequest) (status int, text string)
	seq        uint64 // number of the last assignments
	record     record
}

// record is what a manager has heard.
type record struct {
	sessions int                         // how many were opened
	hellos   []protocol.Hello            // all of them
	beats    int                         // heartbeats
	state    map[string]swarm.TaskStatus // of tasks
	history  []string                    // "task state" in the order reported, also repeated ones
	meshAcks []protocol.MeshAck
	logLines []string
	logEnds  []protocol.LogEnd
	streams  []string // what came of streams
}

// heard gives a copy of what the manager has heard.
func (m *manager) heard() record {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.record
	r.state = maps.Clone(r.state)
	return r
}

func (m *manager) set(change func()) { m.mu.Lock(); defer m.mu.Unlock(); change() }

func newManager(w *world, addr string) *manager {
	return &manager{w: w, addr: addr, record: record{state: map[string]swarm.TaskStatus{}}}
}

func (m *manager) leads()             { m.mu.Lock(); defer m.mu.Unlock(); m.leader = "" }
func (m *manager) follows(who string) { m.mu.Lock(); defer m.mu.Unlock(); m.leader = who }
func (m *manager) isDead() bool       { m.mu.Lock(); defer m.mu.Unlock(); return m.dead }

// die takes the manager away and closes its session.
func (m *manager) die() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = true
	m.hangUpLocked()
}

// freeze stops the manager where it is: connections stay open and nothing comes back.
func (m *manager) freeze() { m.set(func() { m.mute, m.dead = true, true }) }

// hangUp ends the session, as a leader does that steps down.
func (m *manager) hangUp() { m.mu.Lock(); defer m.mu.Unlock(); m.hangUpLocked() }

func (m *manager) hangUpLocked() {
	if m.conn != nil {
		_ = m.conn.Close()
		m.conn = nil
	}
}

func (m *manager) serve(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	req, err := http.ReadRequest(r)
	if err != nil {
		return
	}
	if id, ok := strings.CutPrefix(req.URL.Path, protocol.PathStreams+"/"); ok {
		m.takeStream(conn, r, id)
		return
	}
	m.mu.Lock()
	leader, attach := m.leader, m.attach
	m.mu.Unlock()
	if leader == "" && req.URL.Path == protocol.PathAttach {
		var ask protocol.AttachRequest
		if err := json.NewDecoder(req.Body).Decode(&ask); err != nil {
			m.w.Errorf("attach: %v", err)
		}
		status, text := attach(ask)
		fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", status, http.StatusText(status), len(text), text)
		return
	}
	if leader != "" {
		fmt.Fprintf(conn, "HTTP/1.1 421 Misdirected Request\r\n%s: %s\r\nContent-Length: 0\r\n\r\n", protocol.HeaderLeader, leader)
		return
	}
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", protocol.UpgradeStream)
	dec := json.NewDecoder(r)
	var first protocol.FromAgent
	if err := dec.Decode(&first); err != nil || first.Hello == nil {
		m.w.Errorf("session began with %+v, %v", first, err)
		return
	}
	m.mu.Lock()
	m.record.sessions++
	m.seq = 0
	m.record.hellos = append(m.record.hellos, *first.Hello)
	m.conn = conn
	dismissing, epoch := m.dismissing, m.epoch
	m.mu.Unlock()
	if dismissing {
		m.write(conn, protocol.ToAgent{Leave: &protocol.LeaveRequired{Reason: "it was removed"}})
		return
	}
	m.write(conn, protocol.ToAgent{Welcome: &protocol.Welcome{SessionID: "s", HeartbeatPeriod: 250 * time.Millisecond, Epoch: epoch,
		Managers: []protocol.ManagerAddr{{Addr: "a"}, {Addr: "b"}}}})
	for {
		var f protocol.FromAgent
		if err := dec.Decode(&f); err != nil {
			return
		}
		if answer := m.hear(f); answer != nil {
			m.write(conn, *answer)
		}
	}
}

// takeStream takes a stream that the agent opens, asks it for what the stream's id names, and keeps it until the agent ends it.
func (m *manager) takeStream(conn net.Conn, r *bufio.Reader, id string) {
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", protocol.UpgradeStream)
	fmt.Fprintf(conn, "GET /tasks/%s/containers/any/json HTTP/1.1\r\nHost: node\r\n\r\n", id)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		m.w.Errorf("stream %s: %v", id, err)
		return
	}
	body, _ := io.ReadAll(resp.Body)
	m.set(func() {
		m.record.streams = append(m.record.streams, fmt.Sprintf("%s: %d %s", id, resp.StatusCode, strings.TrimSpace(string(body))))
	})
	_, _ = io.Copy(io.Discard, r)
	m.set(func() { m.record.streams = append(m.record.streams, id+": ended") })
}

func (m *manager) hear(f protocol.FromAgent) *protocol.ToAgent {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case f.Hello != nil:
		m.record.hellos = append(m.record.hellos, *f.Hello)
	case f.Heartbeat != nil:
		m.record.beats++
		if !m.mute {
			return &protocol.ToAgent{Heartbeat: &protocol.Heartbeat{}}
		}
	case f.Status != nil:
		for _, t := range f.Status.Tasks {
			m.record.state[t.ID] = t.Status
			m.record.history = append(m.record.history, t.ID+" "+string(t.Status.State))
		}
		return &protocol.ToAgent{StatusAck: &protocol.StatusAck{Seq: f.Status.Seq}}
	case f.MeshAck != nil:
		m.record.meshAcks = append(m.record.meshAcks, *f.MeshAck)
	case f.LogChunk != nil:
		line := string(f.LogChunk.Data)
		if f.LogChunk.Details != "" {
			line = f.LogChunk.Details + " " + line
		}
		m.record.logLines = append(m.record.logLines, f.LogChunk.Stream+": "+line)
	case f.LogEnd != nil:
		m.record.logEnds = append(m.record.logEnds, *f.LogEnd)
	}
	return nil
}

// write sends; a session that has ended loses it. Pipes have no buffer, so writers take turns in goroutines' order.
func (m *manager) write(conn net.Conn, msg protocol.ToAgent) {
	data, err := json.Marshal(msg)
	if err != nil {
		m.w.Error(err)
	}
	_, _ = conn.Write(append(data, '\n'))
}

// say sends what no message of this version is.
func (m *manager) say(line string) {
	m.mu.Lock()
	conn := m.conn
	m.mu.Unlock()
	if _, err := conn.Write([]byte(line + "\n")); err != nil {
		m.w.Error(err)
	}
	m.w.settle()
}

func (m *manager) send(msg protocol.ToAgent) {
	m.mu.Lock()
	conn := m.conn
	m.mu.Unlock()
	if conn == nil {
		m.w.Fatal("no session")
	}
	m.write(conn, msg)
}

// assign sends assignments with the next number and lets them take effect.
func (m *manager) assign(a protocol.Assignments) {
	m.tell(a)
	m.w.settle()
}

func (m *manager) tell(a protocol.Assignments) {
	m.mu.Lock()
	m.seq++
	a.Seq = m.seq
	m.mu.Unlock()
	m.send(protocol.ToAgent{Assignments: &a})
}

func (m *manager) complete(tasks ...*cluster.Task) {
	m.assign(protocol.Assignments{Complete: true, Tasks: tasks})
}

// tasks describes what was reported, one line a task.
func (m *manager) tasks() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var lines []string
	for _, id := range slices.Sorted(maps.Keys(m.record.state)) {
		st := m.record.state[id]
		line := id + " " + string(st.State) + " " + st.Message
		if st.Err != "" {
			line += " (" + st.Err + ")"
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

func (m *manager) wantTasks(want string) {
	m.w.Helper()
	if got := m.tasks(); got != want {
		m.w.Errorf("tasks as reported:\n%s\nwant:\n%s", got, want)
	}
}

func (w *world) wantEngine(want string) {
	w.Helper()
	if got := w.engine.Describe(); got != want {
		w.Errorf("engine:\n%s\nwant:\n%s", got, want)
	}
}

// fakeMesh remembers what it was asked to apply.
type fakeMesh struct {
	mu      sync.Mutex
	applied []plan.Input // guarded by mu
	fail    bool         // guarded by mu
	// installed says that a former process's table is in the kernel.
	installed bool // guarded by mu
	// hangs lets Verify wait for an engine that gives no answer; verified counts its calls.
	hangs    bool // guarded by mu
	verified int  // guarded by mu
}

func (f *fakeMesh) Apply(_ context.Context, in plan.Input) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.applied = append(f.applied, in)
	if f.fail {
		return errors.New("port 80/tcp is taken")
	}
	return nil
}

// Installed says that the machine has booted: its kernel has nothing of a former process.
func (f *fakeMesh) Installed(context.Context) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.installed, nil
}

func (f *fakeMesh) Verify(ctx context.Context) (bool, error) {
	f.mu.Lock()
	hangs := f.hangs
	f.verified++
	f.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return false, ctx.Err()
	}
	return false, nil
}

// last describes the newest table: a line a port.
func (f *fakeMesh) last() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.applied) == 0 {
		return "none"
	}
	in := f.applied[len(f.applied)-1]
	var lines []string
	for _, n := range in.Networks {
		lines = append(lines, fmt.Sprintf("network %s %s gateway %s", n.Name, n.Subnet, in.Self.Gateways[n.ID]))
	}
	for _, p := range in.Peers {
		line := fmt.Sprintf("peer %s %s alive=%v", p.ID, p.Underlay, p.Alive)
		if p.Suspect {
			line += " suspect"
		}
		lines = append(lines, line)
	}
	for _, p := range in.Ports {
		line := fmt.Sprintf("port %d/%s -> %d:", p.Published, p.Protocol, p.Target)
		for _, b := range p.Backends {
			line += " " + b.Addr.String()
			if b.Draining {
				line += "(draining)"
			}
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

func (f *fakeMesh) forget() { f.mu.Lock(); defer f.mu.Unlock(); f.applied = nil }

func (f *fakeMesh) setInstalled(v bool) { f.mu.Lock(); defer f.mu.Unlock(); f.installed = v }

func (f *fakeMesh) setHangs() { f.mu.Lock(); defer f.mu.Unlock(); f.hangs, f.verified = true, 0 }

func (f *fakeMesh) verifications() int { f.mu.Lock(); defer f.mu.Unlock(); return f.verified }

func (f *fakeMesh) setFail(v bool) { f.mu.Lock(); defer f.mu.Unlock(); f.fail = v }
