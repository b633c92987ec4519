package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/agent/docker"
	"github.com/miniswarm/miniswarm/agent/taskdb"
	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// attachmentLimit is how long a task waits for its node's address in a network (swarm-semantics.md, 9.8).
const attachmentLimit = 30 * time.Second

var errNoAttachment = errors.New("node is missing network attachments, ip addresses may be exhausted")

// worker keeps a runner for every task of this node.
type worker struct {
	log     *slog.Logger
	runtime *docker.Runtime
	// attachments watches over the containers that people attach to networks.
	attachments *attachments
	reporter    *reporter
	recorder    *recorder
	payloads    *payloads
	// tidy is called when something may have become superfluous on the engine, networksChanged when networks or the
	// node's addresses in them did, tasksChanged when there are other tasks.
	tidy, networksChanged, tasksChanged func()

	ctx     context.Context // of Run; runners live in it
	runners sync.WaitGroup

	mu    sync.Mutex
	tasks map[string]*runner // guarded by mu; by task id
	// returning are the tasks that came back while their runners were still taking the former containers away; guarded by mu.
	returning map[string]*cluster.Task
	networks  map[string]*cluster.Network // guarded by mu; by id
	node      *cluster.Node               // guarded by mu; nil until known
	changed   chan struct{}               // guarded by mu; closed and replaced when node changes or there are more tasks
	complete  bool                        // guarded by mu; a complete list has arrived in this process
	ended     bool                        // guarded by mu; wait has returned, so that nothing is run any more
}

func newWorker(log *slog.Logger, rep *reporter, rec *recorder) *worker {
	return &worker{log: log, reporter: rep, recorder: rec, payloads: newPayloads(), tasks: map[string]*runner{},
		returning: map[string]*cluster.Task{}, networks: map[string]*cluster.Network{}, changed: make(chan struct{})}
}

// resume takes up what was stored before the last end of the agent.
func (w *worker) resume(c taskdb.Content) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range c.Networks {
		w.networks[n.ID] = n
	}
	w.node = c.Node
	for _, t := range c.Tasks {
		w.startLocked(t.Task, t.Status)
	}
}

// apply takes what the leader sent. It does not wait for the engine.
func (w *worker) apply(a *protocol.Assignments) {
	w.payloads.apply(a)
	w.mu.Lock()
	defer w.mu.Unlock()
	networksChanged := w.applyNetworksLocked(a)
	if a.Node != nil {
		networksChanged = networksChanged || w.node == nil || !maps.Equal(w.node.Attachments, a.Node.Attachments) || w.node.DataAddr != a.Node.DataAddr
		w.node = a.Node
		w.recorder.putNode(a.Node)
	}
	listed := map[string]bool{}
	started := false
	for _, t := range a.Tasks {
		listed[t.ID] = true
		if r := w.tasks[t.ID]; r != nil {
			if r.isLeaving() {
				w.returning[t.ID] = t
				continue
			}
			if r.want(t) {
				w.recorder.putTask(r.current())
			}
			continue
		}
		w.startLocked(t, t.Status)
		w.recorder.putTask(t, t.Status)
		started = true
	}
	for _, id := range a.RemoveTasks {
		delete(w.returning, id)
		if r := w.tasks[id]; r != nil {
			r.leave()
		}
	}
	if a.Complete {
		for id, r := range w.tasks {
			if !listed[id] {
				delete(w.returning, id)
				r.leave()
			}
		}
		w.complete = true
		w.tidy()
	}
	if started || a.Node != nil {
		close(w.changed)
		w.changed = make(chan struct{})
	}
	if networksChanged {
		w.networksChanged()
	}
	if started {
		w.tasksChanged()
	}
}

func (w *worker) applyNetworksLocked(a *protocol.Assignments) (changed bool) {
	listed := map[string]bool{}
	for _, n := range a.Networks {
		listed[n.ID] = true
		w.networks[n.ID] = n
		w.recorder.putNetwork(n)
		changed = true
	}
	remove := slices.Clone(a.RemoveNetworks)
	if a.Complete {
		for id := range w.networks {
			if !listed[id] {
				remove = append(remove, id)
			}
		}
	}
	for _, id := range remove {
		delete(w.networks, id)
		w.recorder.removeNetwork(id)
		changed = true
	}
	if len(remove) > 0 {
		w.tidy()
	}
	return changed
}

// startLocked begins to run a task from a status that is known of it.
func (w *worker) startLocked(t *cluster.Task, st swarm.TaskStatus) {
	log := w.log.With("task", t.ID, "service", t.ServiceAnnotations.Name)
	report := func(t *cluster.Task, st swarm.TaskStatus) {
		w.reporter.put(t.ID, st)
		w.recorder.putTask(t, st)
	}
	known := *t
	known.Status = st
	r := newRunner(t, st, nil, log, report)
	var err error
	if t.Attachment() {
		// One that has ended is not verified: its address may be another's by now.
		r.ctl = &attachment{all: w.attachments, task: &known}
	} else {
		var ctl *docker.Controller
		if ctl, err = docker.NewController(w.runtime, &known); err == nil {
			r.ctl = ctl
		}
		r.verify = cluster.Terminal(st.State)
	}
	w.tasks[t.ID] = r
	w.reporter.know(t.ID, st)
	w.runners.Add(1)
	go func() {
		defer w.runners.Done()
		if err != nil && !cluster.Terminal(st.State) {
			r.advance(st.State, "resolving controller failed")
			r.fail(err)
		}
		if r.run(w.ctx) {
			w.removed(t.ID, r)
		}
	}()
}

// removed forgets a task whose container is gone.
func (w *worker) removed(id string, r *runner) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tasks[id] == r {
		delete(w.tasks, id)
		w.reporter.forget(id)
		w.recorder.removeTask(id)
		w.tidy()
		if t := w.returning[id]; t != nil {
			delete(w.returning, id)
			w.startLocked(t, t.Status)
			w.recorder.putTask(t, t.Status)
			w.tasksChanged()
		}
	}
}

// wait returns when all runners have ended.
func (w *worker) wait() {
	w.runners.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
}

// needs says whether containers of this node are on a network, or may come to be: it takes part in it, or has a task there
// that has not ended. Nobody needs anything of a worker that has ended, as when the node leaves.
func (w *worker) needs(networkID string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return false
	}
	if w.networks[networkID] != nil {
		return true
	}
	for _, r := range w.tasks {
		if t, st := r.current(); !cluster.Terminal(st.State) && !r.isLeaving() && slices.ContainsFunc(t.NetworksAttachments,
			func(a swarm.NetworkAttachment) bool { return a.Network.ID == networkID }) {
			return true
		}
	}
	return false
}

// runnerOf gives the runner of a task, nil if the task is not on this node.
func (w *worker) runnerOf(taskID string) *runner {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tasks[taskID]
}

// knows says which tasks and networks belong to this node; ok is false until a complete list has arrived.
func (w *worker) knows() (tasks, networks map[string]bool, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	tasks, networks = map[string]bool{}, map[string]bool{}
	for id := range w.tasks {
		tasks[id] = true
	}
	for id := range w.networks {
		networks[id] = true
	}
	return tasks, networks, w.complete
}

// place gives the node and its networks as they are now; node is nil until known.
func (w *worker) place() (node *cluster.Node, networks []*cluster.Network) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(w.networks)) {
		networks = append(networks, w.networks[id])
	}
	return w.node, networks
}

// allowed is what this node's containers may have beyond the ordinary.
func (w *worker) allowed() cluster.Allowance {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.node == nil {
		return cluster.Allowance{}
	}
	return cluster.Allowed(w.node)
}

// attachment gives the node's own address in a network, waiting for the managers to allocate it.
func (w *worker) attachment(ctx context.Context, networkID string) (netip.Prefix, error) {
	limit := time.NewTimer(attachmentLimit)
	defer limit.Stop()
	for {
		w.mu.Lock()
		node, changed := w.node, w.changed
		w.mu.Unlock()
		if node != nil {
			if p, err := netip.ParsePrefix(node.Attachments[networkID]); err == nil {
				return p, nil
			}
		}
		select {
		case <-changed:
		case <-limit.C:
			return netip.Prefix{}, errNoAttachment
		case <-ctx.Done():
			return netip.Prefix{}, context.Cause(ctx)
		}
	}
}
