package sim

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/agent/docker"
	"github.com/miniswarm/miniswarm/agent/docker/fake"
	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/raftstore"
)

const (
	clusterID     = "cluster000000000000000001"
	snapshotEvery = 150
	keepEntries   = 40
	foreign       = "somebody-elses" // a container on every host that is not ours
)

// broken says what is wrong with a world on purpose.
type broken struct {
	// lyingDisk: the log is said to be on disk before it is. To everybody else that is a store that acknowledges before its
	// fsync.
	lyingDisk bool
	// hasty: containers are said to have stopped while they still run.
	hasty bool
	// staleReads: managers answer reads by what they have themselves.
	staleReads bool
	// forge: somebody answers the leader in the name of other members.
	forge forgery
}

// options are what a test wants of a world.
type options struct {
	seed   uint64
	broken broken
	// faults may draw from fewer kinds; nil: all.
	faults []faultKind
}

// world is a cluster with its machines.
type world struct {
	seed     uint64
	dir      string
	net      *network
	messages *raftstore.Network // between stores; nil where they speak over net
	hosts    []*host
	managers int         // at first; the first hosts
	changing bool        // nodes are promoted and demoted
	founded  atomic.Bool // the first manager has made the cluster
	ca       *identity.CA
	logger   *slog.Logger
	broken   broken
	begin    time.Time
	checks   *checks
	cuts     atomic.Int64 // counts changes of what is cut
	aligning sync.Mutex   // see align

	mu         sync.Mutex // guards all below
	lines      []string
	violations []string
}

// result is what came of a run.
type result struct {
	trace      string
	violations []string
	acked      int // requests that were carried out
	ops        int
	converged  time.Duration // after the last fault
	history    []porcupine.Operation
}

// run plays a seed.
func run(t *testing.T, o options) (r result) {
	dir, err := os.MkdirTemp(memory(), "miniswarm-sim-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	synctest.Test(t, func(t *testing.T) {
		w := &world{seed: o.seed, dir: dir, broken: o.broken, begin: time.Now(), net: newNetwork(o.seed)}
		w.logger = slog.New(slog.DiscardHandler)
		if *verbose {
			w.logger = slog.New(slog.NewTextHandler(traceWriter{w}, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				if a.Key == slog.TimeKey {
					return slog.Attr{}
				}
				return a
			}}))
		}
		w.checks = newChecks(w)
		r = w.play(t.Context(), o)
	})
	r.linearizable()
	return r
}

// memory is where the disks are: in memory where that is possible, so that thousands of seeds do not wait for a real one.
func memory() string {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		return "/dev/shm"
	}
	return ""
}

type traceWriter struct{ w *world }

func (t traceWriter) Write(p []byte) (int, error) {
	t.w.trace("    %s", strings.TrimSpace(string(p)))
	return len(p), nil
}

func (w *world) trace(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, fmt.Sprintf("%8.3f ", time.Since(w.begin).Seconds())+fmt.Sprintf(format, args...))
}

// violate notes that something is not as it must be.
func (w *world) violate(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.trace("VIOLATION %s", text)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.violations = append(w.violations, fmt.Sprintf("at %.3f s: ", time.Since(w.begin).Seconds())+text)
}

// unable notes that a daemon does not start.
func (w *world) unable(h *host, err error) {
	w.violate("%s: the daemon does not start: %v", h, err)
}

// stream gives a source of chance for one purpose, so that no goroutine takes another's.
func (w *world) stream(purpose uint64) *rand.Rand { return rand.New(rand.NewPCG(w.seed, purpose)) }

// known are the managers that nodes are told of when they join.
func (w *world) known() []protocol.ManagerAddr {
	var out []protocol.ManagerAddr
	for _, h := range w.hosts[:w.managers] {
		out = append(out, protocol.ManagerAddr{NodeID: h.id(), Addr: address(h.i)})
	}
	return out
}

// eligible are the hosts that may be managers.
func (w *world) eligible() []*host {
	if w.changing {
		return w.hosts
	}
	return w.hosts[:w.managers]
}

// managing lists the managers of all hosts that have one now.
func (w *world) managing() (all []*managing) {
	for _, h := range w.hosts {
		if g := h.managing(); g != nil {
			all = append(all, g)
		}
	}
	return all
}

// someManager draws a host that clients turn to.
func (w *world) someManager(r *rand.Rand) *host {
	may := w.eligible()
	n := r.IntN(len(may))
	for i := range may {
		if h := may[(n+i)%len(may)]; !w.changing || h.managing() != nil {
			return h
		}
	}
	return may[n]
}

// build makes the machines.
func (w *world) build(size *rand.Rand) error {
	w.managers = 3
	if size.IntN(4) == 0 {
		w.managers = 5
	}
	if size.IntN(2) == 0 && w.broken.forge != hollow { // which leads to more messages at once than there is time for, if they take none
		w.messages = raftstore.NewNetwork(w.seed)
	}
	w.changing = size.IntN(4) == 0 || w.broken.forge != "" || *members
	var err error
	if w.ca, err = identity.NewCA(identity.CAConfig{}); err != nil {
		return err
	}
	for i := range w.managers + 2 {
		h := &host{w: w, i: i, manager: i < w.managers, engine: fake.New(), mesh: &mesh{}}
		h.setID(fmt.Sprintf("node%021d", i))
		h.state = filepath.Join(w.dir, h.String())
		h.disk = &disk{h: h, dir: filepath.Join(w.dir, h.String()+"-store-0"), rand: w.stream(1000 + uint64(i))}
		if err := os.Mkdir(h.state, 0o700); err != nil {
			return err
		}
		for v := 1; v <= 3; v++ {
			h.engine.SetImage(fmt.Sprint("app:", v), fake.Program{})
		}
		h.engine.SetImage(sick, fake.Program{Exits: 500 * time.Millisecond, ExitCode: 1})
		h.engine.SetImage(done, fake.Program{Exits: time.Second})
		other := &docker.Container{Name: foreign}
		other.Config.Image = "app:1"
		id, err := h.engine.Create(context.Background(), other)
		if err != nil {
			return err
		}
		if err := h.engine.Start(context.Background(), id); err != nil {
			return err
		}
		if err := h.credentials(w.ca); err != nil {
			return err
		}
		w.hosts = append(w.hosts, h)
	}
	for _, h := range w.hosts {
		h.learnManagers(w.known())
	}
	return nil
}

// found gives the first objects: the cluster, all nodes, the ingress network.
func (w *world) found() *cluster.Txn {
	key, err := w.ca.KeyPEM()
	if err != nil {
		panic(err)
	}
	tokens, err := identity.NewJoinTokens(w.ca.Root().PEM(), nil)
	if err != nil {
		panic(err)
	}
	c := &cluster.Cluster{RootCA: w.ca.Root().PEM(), RootCAKey: key, JoinTokens: tokens, MeshKey: make([]byte, 32)}
	c.ID, c.Spec.Name, c.DefaultAddrPool, c.SubnetSize, c.DataPathPort = clusterID, cluster.ClusterName, []string{"10.64.0.0/12"}, 24, 4789
	limit := int64(history)
	c.Spec.Orchestration.TaskHistoryRetentionLimit = &limit
	c.Spec.Dispatcher.HeartbeatPeriod = time.Second
	ingress := &cluster.Network{}
	ingress.ID, ingress.Spec.Name, ingress.Spec.Ingress, ingress.Spec.Scope = "ingress000000000000000001", "ingress", true, "swarm"
	ingress.Spec.DriverConfiguration = &swarm.Driver{Name: "overlay"}
	txn := &cluster.Txn{Changes: []cluster.Change{cluster.CreateOf(c), cluster.CreateOf(ingress)}}
	for _, h := range w.hosts {
		n := &cluster.Node{Role: swarm.NodeRoleWorker}
		if h.manager {
			n.Role = swarm.NodeRoleManager
		}
		n.ID, n.Spec.Role, n.Spec.Availability, n.Spec.Labels = h.id(), n.Role, swarm.NodeAvailabilityActive, map[string]string{}
		n.Status = swarm.NodeStatus{State: swarm.NodeStateUnknown}
		txn.Changes = append(txn.Changes, cluster.CreateOf(n))
	}
	return txn
}

// assemble starts the first manager, then the others, which join it.
func (w *world) assemble(life context.Context, running *sync.WaitGroup) error {
	for i, h := range w.hosts {
		h.wanted.Store(true)
		running.Go(func() { h.supervise(life) })
		if i == 0 {
			if !w.wait(time.Minute, func() bool { s := w.leaderSnapshot(); return s != nil && s.Cluster() != nil }) {
				return fmt.Errorf("the first manager makes no cluster")
			}
			w.founded.Store(true)
		}
	}
	if !w.wait(time.Minute, func() bool {
		l := w.leader()
		ready, voters := 0, 0
		if l == nil {
			return false
		}
		for n := range l.store.Snapshot().Nodes() {
			if n.Status.State == swarm.NodeStateReady {
				ready++
			}
		}
		for _, m := range l.store.Members() {
			if !m.Learner {
				voters++
			}
		}
		return ready == len(w.hosts) && voters == w.managers
	}) {
		return fmt.Errorf("the cluster does not come together")
	}
	return nil
}

// wait lets time pass until something is true.
func (w *world) wait(limit time.Duration, ok func() bool) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if ok() {
			return true
		}
	}
	return false
}

// leader is the manager that leads and can do so, nil if none does.
func (w *world) leader() *managing {
	var best *managing
	var term uint64
	for _, g := range w.managing() {
		if l := g.store.Leadership(); l.Leader && l.Term >= term && g.manager.Dispatcher() != nil {
			best, term = g, l.Term
		}
	}
	return best
}

// led is the manager that leads. It waits for one, for a change of leaders is no fault; nil if nobody comes to lead, which is one.
func (w *world) led() (p *managing) {
	if !w.wait(30*time.Second, func() bool { p = w.leader(); return p != nil }) {
		w.violate("I5: nobody leads")
	}
	return p
}

// leaderSnapshot is what the leader has, nil where nobody leads.
func (w *world) leaderSnapshot() *cluster.Snapshot {
	if p := w.leader(); p != nil {
		return p.store.Snapshot()
	}
	return nil
}

// cut cuts the way from one host to another (by 1), or takes that cut away (by -1).
func (w *world) cut(from, to, by int) {
	w.cuts.Add(1)
	w.net.change(from, to, by)
	w.align()
}

// align has the messages between stores cut where the ways between their hosts are.
func (w *world) align() {
	if w.messages == nil {
		return
	}
	w.aligning.Lock()
	defer w.aligning.Unlock()
	for _, a := range w.hosts {
		for _, b := range w.hosts {
			if a != b {
				w.messages.Cut(a.raftID.Load(), b.raftID.Load(), w.net.isCut(a.i, b.i))
			}
		}
	}
}

// How a request may end without an answer.
const (
	notSent  = 0
	noAnswer = -1
)

// api sends a request to the Engine API of a host, as a client on that machine would.
func (w *world) api(ctx context.Context, h *host, method, path string, body any) (status int, answer []byte) {
	p := h.managing()
	if p == nil || h.disk.powerless.Load() {
		return notSent, nil
	}
	text := ""
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			panic(err)
		}
		text = string(b)
	}
	ctx, cancel := context.WithTimeout(ctx, 8*time.Second)
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)()
	req := httptest.NewRequestWithContext(ctx, method, path, strings.NewReader(text))
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	rec := httptest.NewRecorder()
	p.api.Socket().ServeHTTP(rec, req)
	if rec.Code >= 500 && !strings.Contains(rec.Body.String(), "out of sequence") {
		w.trace("%s %s at %s: %d %s", method, path, h, rec.Code, strings.TrimSpace(rec.Body.String()))
		return noAnswer, nil
	}
	if p.ctx.Err() != nil && rec.Code != http.StatusOK && rec.Code != http.StatusCreated && rec.Code != http.StatusNoContent {
		return noAnswer, nil
	}
	return rec.Code, rec.Body.Bytes()
}

// engineOf is the engine as a host's agent meets it.
func (w *world) engineOf(h *host) docker.Engine {
	if w.broken.hasty {
		return &hasty{Engine: h.engine, stopping: map[string]bool{}}
	}
	return h.engine
}
