package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"github.com/miniswarm/miniswarm/agent/docker"
	"github.com/miniswarm/miniswarm/agent/taskdb"
	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/trouble"
)

const (
	minReconnect = 50 * time.Millisecond
	maxReconnect = 2 * time.Second
	// describeLimit is how long the first session waits for the engine to say what the node is like. A node whose engine
	// is away is still a node.
	describeLimit = 2 * time.Second
	// Containers are created and started a few at a time: measured on two processors, four to six give as short a
	// time for all as eight do, and a shorter one to the first.
	minSlots, slotsPerCPU = 6, 2
	databaseName          = "tasks.db"
)

// Config is what an agent is made of.
type Config struct {
	// NodeID is this node's id. Required.
	NodeID string
	// StateDir is the directory for the task database; it must exist. Required.
	StateDir string
	// Engine is where containers run. Required.
	Engine docker.Engine
	// Dial opens a mutually authenticated connection to a manager's cluster port. Required.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Managers are the managers known when the agent starts; those it learns of are kept on disk and added.
	Managers []protocol.ManagerAddr
	// Epoch is the greatest epoch of the cluster that this node has seen (cluster.NextEpoch): managers of a smaller one are not
	// followed. OnEpoch is called with a greater one before it is; what it returns an error for is not followed. May be nil.
	Epoch   uint64
	OnEpoch func(uint64) error
	// Mesh is the node's data plane; nil where another daemon has it. Such a node's containers get addresses from
	// their engine, and published ports do not lead to them.
	Mesh Mesh
	// Names is the name server of the node's containers; nil: they know only what their engine knows.
	Names Names
	// Networks makes the engine's networks. Give the one that the data plane uses, or nil for an own one.
	Networks *docker.Networks
	// Files is where containers find their secrets and configs; nil: tasks that use any are rejected.
	Files *docker.Files
	// DataAddr is the node's underlay address for overlay traffic; empty: as the managers see it.
	DataAddr string
	// Listeners tells which TCP ports a process listens on ([docker.Listeners] for containers on this machine). Containers
	// without a health check then count as running once they listen on what the mesh publishes, and are stopped once they
	// have accepted what they were sent. Nil: as soon as they run, and at once.
	Listeners func(pid int) (map[uint16]int, error)
	// Hostname describes the node until the engine has been reached.
	Hostname string
	// Version is miniswarm's version.
	Version string
	// Instance tells this run of the daemon from all others; empty: two machines that are the same node go unnoticed.
	Instance string
	// TLSInfo completes the node's description, and is asked whenever that is sent; may be nil. See [Agent.Redescribe].
	TLSInfo func() swarm.TLSInfo
	// Heartbeat overrides the period that the leader asks for; 0 does not.
	Heartbeat time.Duration
	// Offline skips pulls of images that are on the node (DOCKER_SERVICE_PREFER_OFFLINE_IMAGE=1).
	Offline bool
	// About answers the leader's requests about this node itself, below /node/; nil: not found.
	About http.Handler
	// OnNode is called with this node's object whenever the leader sends it, OnManagers with the managers. They must
	// return quickly. OnRefused is called when the leader has a session with another machine that is the same node, OnAlone when
	// no manager has given a session, with what each address asked came to. All may be nil.
	OnNode     func(*cluster.Node)
	OnManagers func([]protocol.ManagerAddr)
	OnRefused  func(reason string)
	OnAlone    func(map[string]error)
	// OnTrust is called with what the node is to trust at the beginning of a session, when that changes, and when the node is
	// to be reminded of it. It must return quickly. It may be nil.
	OnTrust func(protocol.Trust)
	// Logger is told about events; nil means silence.
	Logger *slog.Logger
}

// Agent is the worker of one node.
type Agent struct {
	cfg         Config
	log         *slog.Logger
	watcher     *docker.Watcher
	worker      *worker
	reporter    *reporter
	recorder    *recorder
	describer   *describer
	mesh        *meshKeeper
	janitor     *janitor
	networks    *docker.Networks
	attachments *attachments
	alone       trouble.Log // without a leader

	mu       sync.Mutex
	running  bool                   // guarded by mu
	session  *session               // guarded by mu; nil between sessions
	parted   time.Time              // guarded by mu; when the last session ended, zero before
	opened   uint64                 // guarded by mu; sessions so far
	managers []protocol.ManagerAddr // guarded by mu
	leader   string                 // guarded by mu; address of the last leader
	epoch    uint64                 // guarded by mu; the greatest seen
	seeks    uint64                 // guarded by mu; calls of Seek
	found    chan struct{}          // guarded by mu; closed at the next session, nil if nobody waits for it
}

// New gives an agent. It starts nothing.
func New(cfg Config) (*Agent, error) {
	switch {
	case cfg.NodeID == "":
		return nil, errors.New("agent: no node id")
	case cfg.StateDir == "":
		return nil, errors.New("agent: no state directory")
	case cfg.Engine == nil:
		return nil, errors.New("agent: no engine")
	case cfg.Dial == nil:
		return nil, errors.New("agent: no way to reach managers")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	a := &Agent{cfg: cfg, log: cfg.Logger, managers: cfg.Managers, epoch: cfg.Epoch, networks: cfg.Networks}
	if a.networks == nil {
		a.networks = docker.NewNetworks(cfg.Engine, cfg.NodeID)
	}
	a.watcher = docker.NewWatcher(cfg.Engine, cfg.NodeID, a.log)
	a.reporter = newReporter()
	a.recorder = newRecorder(a.log)
	a.worker = newWorker(a.log, a.reporter, a.recorder)
	a.attachments = newAttachments(cfg.Engine, a.networks, a.worker.attachment, a.log)
	a.worker.attachments = a.attachments
	a.networks.Heed(a.worker.needs)
	a.describer = newDescriber(cfg.Engine, cfg.Hostname, cfg.TLSInfo, a.log, a.redescribe)
	a.mesh = &meshKeeper{nodeID: cfg.NodeID, dataAddr: cfg.DataAddr, mesh: cfg.Mesh, names: cfg.Names, place: a.worker.place, clients: a.worker.clients,
		recorder: a.recorder, log: a.log, wake: make(chan struct{}, 1), rename: make(chan struct{}, 1), suspect: make(chan struct{}, 1)}
	a.watcher.Opened, a.attachments.seen = a.mesh.doubt, a.mesh.askers
	a.janitor = &janitor{nodeID: cfg.NodeID, engine: cfg.Engine, files: cfg.Files, knows: a.worker.knows, log: a.log, wake: make(chan struct{}, 1)}
	if cfg.Mesh == nil {
		a.janitor.networks = a.networks
	}
	a.worker.tidy, a.worker.networksChanged, a.worker.tasksChanged = a.janitor.poke, a.mesh.poke, a.mesh.askers
	a.worker.runtime = &docker.Runtime{
		Engine: cfg.Engine, Watcher: a.watcher, Images: docker.NewImages(cfg.Engine), Networks: a.networks,
		Node: func() docker.Node {
			n := docker.Node{ID: cfg.NodeID, Description: a.describer.description(), FixedAddresses: cfg.Mesh != nil, Names: cfg.Names != nil, Allowed: a.worker.allowed()}
			if cfg.Files != nil {
				n.Files = cfg.Files.Dir()
			}
			return n
		},
		Attachment: a.worker.attachment, Payloads: a.worker.payloads, Files: cfg.Files, Offline: cfg.Offline, Logger: a.log, Listeners: cfg.Listeners,
		Slots: make(chan struct{}, max(minSlots, slotsPerCPU*runtime.NumCPU())),
	}
	return a, nil
}

// Run works until ctx ends or the cluster lets the node go (*RemovedError). Containers go on running after it, and
// the next Run takes them over. It may be called once.
func (a *Agent) Run(ctx context.Context) error {
	a.mu.Lock()
	if a.running {
		a.mu.Unlock()
		return errors.New("agent: Run called twice")
	}
	a.running = true
	a.mu.Unlock()

	db, err := taskdb.Open(filepath.Join(a.cfg.StateDir, databaseName))
	if db == nil {
		return fmt.Errorf("agent: %w", err)
	}
	defer db.Close()
	if err != nil {
		a.log.Error("the task database was damaged", "err", err)
	}
	stored, err := db.Read()
	if err != nil {
		a.log.Error("parts of the task database could not be read", "err", err)
	}

	g, ctx := errgroup.WithContext(ctx)
	a.worker.ctx = ctx
	a.addManagers(stored.Managers)
	a.mesh.resume(stored.Mesh)
	if stored.Node != nil {
		a.describer.assume(stored.Node.Description)
	}
	g.Go(func() error { return a.watcher.Run(ctx) })
	g.Go(func() error { return a.describer.run(ctx) })
	g.Go(func() error { return a.mesh.run(ctx) })
	g.Go(func() error { return a.janitor.run(ctx) })
	g.Go(func() error { return a.attachments.run(ctx) })
	g.Go(func() error { return a.sessions(ctx) })
	a.worker.resume(stored)
	a.mesh.poke()

	// The recorder ends last, so that what the others did last is on disk.
	recording, stop := context.WithCancel(context.WithoutCancel(ctx))
	recorded := make(chan struct{})
	go func() {
		defer close(recorded)
		a.recorder.run(recording, db)
	}()
	err = g.Wait()
	a.worker.wait()
	stop()
	<-recorded
	return err
}

// sessions holds one session after the other.
func (a *Agent) sessions(ctx context.Context) error {
	a.describer.await(ctx, describeLimit)
	pause, told := minReconnect, ""
	for {
		err := a.oneSession(ctx, func() {
			pause, told = minReconnect, ""
			a.alone.Over(time.Now())
		})
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if _, ok := errors.AsType[*RemovedError](err); ok {
			return err
		}
		if refused, ok := errors.AsType[*refusedError](err); ok {
			if told != refused.reason {
				told = refused.reason
				a.log.Error("another machine is this node", "err", err)
			}
			if a.cfg.OnRefused != nil {
				a.cfg.OnRefused(refused.Error())
			}
			pause = maxReconnect
		} else {
			if all := refusals(err); len(all) > 0 && a.cfg.OnAlone != nil {
				a.cfg.OnAlone(all)
			}
			if tell, lasting := a.alone.Again(time.Now(), ""); tell {
				a.log.Info("no session with a leader; containers go on", "since", lasting.Round(time.Second), "err", err)
			}
		}
		// Jitter keeps the agents of a large cluster from asking a new leader all at once.
		if !pauseFor(ctx, pause/2+rand.N(pause/2)) {
			return context.Cause(ctx)
		}
		pause = min(2*pause, maxReconnect)
	}
}

func (a *Agent) oneSession(ctx context.Context, welcomed func()) error {
	addrs, seeks := a.candidates()
	if len(addrs) == 0 {
		return errors.New("no manager is known")
	}
	conn, addr, err := connectAny(ctx, a.cfg.Dial, addrs)
	if err != nil {
		return err
	}
	defer conn.Close()
	return a.serve(ctx, conn, addr, seeks, func() {
		a.mu.Lock()
		a.leader = addr
		a.mu.Unlock()
		a.log.Info("session with the leader", "leader", addr)
		welcomed()
	})
}

// candidates lists the managers to ask: the last leader first, the others in random order; seeks is how often it was said where
// to look.
func (a *Agent) candidates() (addrs []string, seeks uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range a.managers {
		if m.Addr != "" && m.Addr != a.leader && !slices.Contains(addrs, m.Addr) {
			addrs = append(addrs, m.Addr)
		}
	}
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	if a.leader != "" {
		addrs = slices.Insert(addrs, 0, a.leader)
	}
	return addrs, a.seeks
}

// Seek has the agent look for its leader at another address first, for a cluster whose managers have moved while this node could
// not hear of it. A session that there is ends; containers do not notice. The result is closed when there
// is a session that was begun after the call.
func (a *Agent) Seek(addr string) <-chan struct{} {
	a.addManagers([]protocol.ManagerAddr{{Addr: addr}})
	a.mu.Lock()
	a.leader = addr
	a.seeks++
	s := a.session
	if a.found == nil {
		a.found = make(chan struct{})
	}
	found := a.found
	a.mu.Unlock()
	if s != nil {
		_ = s.conn.Close()
	}
	return found
}

func (a *Agent) seenEpoch() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.epoch
}

// follow decides whether to follow the leader at an address, which leads the cluster of that epoch; an error says why not.
func (a *Agent) follow(addr string, epoch uint64) error {
	switch seen := a.seenEpoch(); {
	case epoch < seen:
		a.mu.Lock()
		if a.leader == addr {
			a.leader = "" // it is not the one to ask first
		}
		a.mu.Unlock()
		return fmt.Errorf("it leads the cluster as it was before it was recovered at %s", cluster.EpochTime(seen).Format(time.RFC3339))
	case epoch == seen:
		return nil
	}
	if a.cfg.OnEpoch != nil {
		if err := a.cfg.OnEpoch(epoch); err != nil {
			return fmt.Errorf("note that the cluster was recovered: %w", err)
		}
	}
	a.mu.Lock()
	a.epoch = epoch
	a.mu.Unlock()
	a.log.Info("the cluster was recovered; from now on its new managers are followed and no others", "recovered", cluster.EpochTime(epoch))
	return nil
}

// Leader is the address of the manager that this agent had its last session with, empty before the first.
func (a *Agent) Leader() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.leader
}

func (a *Agent) welcomed(w *protocol.Welcome) {
	if w.Managers != nil {
		a.setManagers(w.Managers)
	}
	if w.Node != nil && a.cfg.OnNode != nil {
		a.cfg.OnNode(w.Node)
	}
}

func (a *Agent) setManagers(list []protocol.ManagerAddr) {
	a.mu.Lock()
	a.managers = list
	a.mu.Unlock()
	a.recorder.putManagers(list)
	if a.cfg.OnManagers != nil {
		a.cfg.OnManagers(list)
	}
}

func (a *Agent) addManagers(list []protocol.ManagerAddr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.managers = slices.Concat(a.managers, list)
}

func (a *Agent) setSession(s *session) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.session = s
	if s == nil {
		a.parted = time.Now()
		return
	}
	a.opened++
	switch {
	case s.seeks != a.seeks: // it was begun before somebody said where to look
		_ = s.conn.Close()
	case a.found != nil:
		close(a.found)
		a.found = nil
	}
}

// Redescribe tells the leader what the node is like, as when its certificate has changed. It returns when that is sent, or
// there is nobody to send it to: a later session begins with it anyway.
func (a *Agent) Redescribe() { a.redescribe() }

// redescribe tells the leader that the node has changed.
func (a *Agent) redescribe() {
	a.mu.Lock()
	s := a.session
	a.mu.Unlock()
	if s != nil {
		_ = s.hello() // a session that has just ended says hello anew anyway
	}
}

// Leave stops and removes all containers of this node, then their files and its networks, and forgets everything. Run must have ended.
// It needs the engine and waits for it as long as ctx allows; what could not be removed is in the error, and it may be
// called again. Secrets do not stay, whatever happens: containers that run on keep what they have open.
func (a *Agent) Leave(ctx context.Context) error {
	var err error
	for {
		err = a.clear(ctx)
		if !errors.Is(err, docker.ErrUnavailable) || !pauseFor(ctx, maxRetry) {
			break
		}
	}
	if a.cfg.Files != nil {
		err = errors.Join(err, a.cfg.Files.Close())
	}
	if rmErr := os.Remove(filepath.Join(a.cfg.StateDir, databaseName)); rmErr != nil && !errors.Is(rmErr, fs.ErrNotExist) {
		err = errors.Join(err, fmt.Errorf("forget the tasks of this node: %w", rmErr))
	}
	return err
}

func (a *Agent) clear(ctx context.Context) error {
	list, err := a.cfg.Engine.List(ctx, docker.LabelNodeID, a.cfg.NodeID)
	if err != nil {
		return fmt.Errorf("list containers of this node: %w", err)
	}
	if err := dispose(ctx, a.cfg.Engine, list, a.log); err != nil {
		return err
	}
	if err := a.attachments.clear(ctx, a.cfg.NodeID); err != nil {
		return err
	}
	return a.networks.Keep(ctx, func(string) bool { return false })
}
