package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/orchestrator"
	"github.com/miniswarm/miniswarm/raftstore"
)

// maxChanges is the size of one transaction of a plan, as in package manager.
const maxChanges = 2000

// control is the control plane without machines: a store of one member, on disk, and the leader's loop around
// orchestrator.Next as package manager runs it. There are no agents, so tasks stay ASSIGNED.
type control struct {
	store   *raftstore.Store
	watch   *raftstore.Watch
	planner *orchestrator.Planner
	ids     cluster.IDs
	seen    uint64
	// plan and commit are how long the last pass decided and stored.
	plan, commit time.Duration
}

// newControl opens a store in a new directory below dir and waits until it leads. The caller calls end.
func newControl(ctx context.Context, dir string, tune ...func(*raftstore.Config)) (c *control, end func() error, err error) {
	dir, err = os.MkdirTemp(dir, "miniswarm-bench-")
	if err != nil {
		return nil, nil, err
	}
	cfg := raftstore.Config{Dir: dir, NodeID: "bench", Addr: "127.0.0.1:2377", Bootstrap: true, Transport: raftstore.Alone(), Key: make([]byte, raftstore.KeySize)}
	for _, f := range tune {
		f(&cfg)
	}
	store, err := raftstore.Open(cfg)
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- store.Run(running) }()
	end = func() error {
		stop()
		return errors.Join(<-ended, os.RemoveAll(dir))
	}
	if err := leads(ctx, store); err != nil {
		return nil, nil, errors.Join(err, end())
	}
	c = controlOf(store)
	stopStore := end
	return c, func() error { c.watch.Close(); return stopStore() }, nil
}

// controlOf is the leader's loop over a store that leads.
func controlOf(store *raftstore.Store) *control {
	c := &control{store: store, planner: orchestrator.New(orchestrator.Options{}), ids: cluster.RandomIDs(rand.Reader), watch: store.Watch(4096)}
	c.planner.Reset(c.watch.Start)
	c.seen = c.watch.Start.Index()
	return c
}

// leads waits until the member leads.
func leads(ctx context.Context, store *raftstore.Store) error {
	changes := store.LeaderChanges()
	for {
		select {
		case l, ok := <-changes:
			if !ok {
				return errors.New("the store ended before it led")
			}
			if l.Leader {
				return nil
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// put stores changes from outside of the loop, such as new nodes, in transactions of the usual size.
func (c *control) put(ctx context.Context, changes []cluster.Change) error {
	for len(changes) > 0 {
		n := min(len(changes), maxChanges)
		if _, err := c.store.Propose(ctx, &cluster.Txn{Changes: changes[:n]}); err != nil {
			return err
		}
		changes = changes[n:]
	}
	return nil
}

// pass is the loop's: observe what was committed, plan, commit. It returns the number of changes.
func (c *control) pass(ctx context.Context) (int, error) {
	snap := c.store.Snapshot()
	for latest(snap) > c.seen {
		batch, ok := <-c.watch.Events()
		if !ok {
			return 0, fmt.Errorf("the watch ended: %w", c.watch.Err())
		}
		for _, ev := range batch {
			c.planner.Observe(ev)
			c.seen = max(c.seen, ev.Index)
		}
	}
	begun := time.Now()
	plan := c.planner.Next(snap, begun, c.ids)
	c.plan = time.Since(begun)
	for rest := plan.Changes; len(rest) > 0; {
		n := min(len(rest), maxChanges)
		if _, err := c.store.Propose(ctx, &cluster.Txn{Time: begun, Changes: rest[:n], OwnTasks: true}); err != nil {
			return 0, err
		}
		clear(rest[:n])
		rest = rest[n:]
	}
	c.commit = time.Since(begun) - c.plan
	return len(plan.Changes), nil
}

// settle passes until nothing is left to do.
func (c *control) settle(ctx context.Context) error {
	for {
		if n, err := c.pass(ctx); n == 0 || err != nil {
			return err
		}
	}
}

func latest(snap *cluster.Snapshot) (index uint64) {
	for _, k := range cluster.Kinds() {
		index = max(index, snap.Modified(k))
	}
	return index
}

// readyNodes are n nodes with room for everything.
func (c *control) readyNodes(n int) []cluster.Change {
	changes := make([]cluster.Change, n)
	for i := range changes {
		node := &cluster.Node{}
		node.ID = c.ids.Next()
		node.Spec.Availability, node.Status.State = swarm.NodeAvailabilityActive, swarm.NodeStateReady
		node.Description.Hostname = fmt.Sprintf("host%d", i)
		node.Description.Platform = swarm.Platform{Architecture: "x86_64", OS: "linux"}
		node.Description.Resources = swarm.Resources{NanoCPUs: 64e9, MemoryBytes: 256 << 30}
		changes[i] = cluster.CreateOf(node)
	}
	return changes
}

// newService is a replicated service like one that a person writes.
func (c *control) newService(i int, replicas uint64) *cluster.Service {
	s := &cluster.Service{}
	s.ID, s.Spec.Name = c.ids.Next(), fmt.Sprintf("service%d", i)
	s.Spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "registry.example.com/app:1.2.3", Env: []string{"A=1", "B=2"}}
	s.Spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: &replicas}
	return s
}

// report does what agents would: tasks run, and those that were told to go are gone. It says how many reported.
func (c *control) report(ctx context.Context) (int, error) {
	var changes []cluster.Change
	for t := range c.store.Snapshot().Tasks() {
		state := swarm.TaskStateRunning
		switch {
		case t.NodeID == "" || cluster.Terminal(t.Status.State):
			continue
		case !t.Wanted():
			state = swarm.TaskStateShutdown
		case t.Status.State == swarm.TaskStateRunning || t.DesiredState != swarm.TaskStateRunning:
			continue
		}
		changes = append(changes, cluster.PatchTask(t.ID, cluster.TaskPatch{Status: &swarm.TaskStatus{State: state, Timestamp: time.Now(), Message: "started",
			ContainerStatus: &swarm.ContainerStatus{ContainerID: t.ID + t.ID, PID: 4711}}}))
	}
	return len(changes), c.put(ctx, changes)
}

// assigned counts the tasks that have a node.
func assigned(snap *cluster.Snapshot) (n int) {
	for t := range snap.Tasks() {
		if t.NodeID != "" && t.Status.State == swarm.TaskStateAssigned {
			n++
		}
	}
	return n
}
