package main

import (
	"context"
	"flag"
	"fmt"
	"runtime"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/raftstore"
)

// churn is a service that comes, changes and goes, again and again.
type churn struct {
	First, Last int
	Dir         string
}

// held is what a manager holds after so many cycles.
type held struct {
	Cycles            int
	Heap, Disk        int64
	Entries           uint64 // of the log, in memory
	Objects, Routines int
	Took              time.Duration
}

func (h held) String() string {
	return fmt.Sprintf("heap %s, on disk %s, %d entries in memory, %d objects, %d goroutines; %.0f s", mib(h.Heap), mib(h.Disk), h.Entries, h.Objects, h.Routines, h.Took.Seconds())
}

func churnFlags(f *flag.FlagSet) func(context.Context, *table) error {
	c := churn{}
	f.IntVar(&c.First, "first", 2000, "look first after so many `cycles`")
	f.IntVar(&c.Last, "last", 10_000, "and again after so many")
	f.StringVar(&c.Dir, "dir", "", "`directory` on the disk to measure; the system's temporary one by default")
	return func(ctx context.Context, out *table) error {
		var all []held
		if err := inChild(ctx, "churn", c, &all); err != nil {
			return err
		}
		for _, h := range all {
			out.add(fmt.Sprintf("after %d times create, update and remove", h.Cycles), h.String())
		}
		return nil
	}
}

func churnChild(ctx context.Context, args []byte) (any, error) {
	c, err := argsOf[churn](args)
	if err != nil {
		return nil, err
	}
	return c.run(ctx)
}

// run goes through the cycles and looks twice at what is held.
func (c churn) run(ctx context.Context, tune ...func(*raftstore.Config)) (all []held, err error) {
	ctl, end, err := newControl(ctx, c.Dir, tune...)
	if err != nil {
		return nil, err
	}
	defer func() {
		if e := end(); err == nil {
			err = e
		}
	}()
	if err := ctl.put(ctx, ctl.readyNodes(10)); err != nil {
		return nil, err
	}
	begun := time.Now()
	for n := 1; n <= c.Last; n++ {
		if err := ctl.cycle(ctx, n); err != nil {
			return nil, fmt.Errorf("cycle %d: %w", n, err)
		}
		if n == c.First || n == c.Last {
			all = append(all, ctl.holds(n, time.Since(begun)))
		}
	}
	return all, nil
}

// cycle creates a service of two replicas with a network and a port of its own, updates it, and removes it with its network. Only its
// nodes stay.
func (c *control) cycle(ctx context.Context, n int) error {
	network := &cluster.Network{}
	network.ID, network.Spec.Name = c.ids.Next(), fmt.Sprintf("network%d", n)
	network.Spec.DriverConfiguration = &swarm.Driver{Name: "overlay"}
	service := c.newService(n, 2)
	service.Spec.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: network.ID}}
	service.Spec.UpdateConfig = &swarm.UpdateConfig{Parallelism: 2, Monitor: time.Nanosecond}
	service.Spec.EndpointSpec = &swarm.EndpointSpec{Mode: swarm.ResolutionModeVIP}
	if err := c.put(ctx, []cluster.Change{cluster.CreateOf(network), cluster.CreateOf(service)}); err != nil {
		return err
	}
	if err := c.run(ctx); err != nil {
		return err
	}
	if _, err := c.store.Update(ctx, func(snap *cluster.Snapshot) (*cluster.Txn, error) {
		s := *snap.Service(service.ID)
		s.Spec.TaskTemplate.ForceUpdate++
		s.SpecVersion = s.Version
		return &cluster.Txn{Changes: []cluster.Change{cluster.UpdateOf(&s)}}, nil
	}); err != nil {
		return err
	}
	if err := c.run(ctx); err != nil {
		return err
	}
	if err := c.put(ctx, []cluster.Change{cluster.RemoveOf(c.store.Snapshot().Service(service.ID))}); err != nil {
		return err
	}
	if err := c.run(ctx); err != nil {
		return err
	}
	if err := c.put(ctx, []cluster.Change{cluster.RemoveOf(c.store.Snapshot().Network(network.ID))}); err != nil {
		return err
	}
	return c.run(ctx)
}

// run lets the loop and the agents act until both rest.
func (c *control) run(ctx context.Context) error {
	for {
		if err := c.settle(ctx); err != nil {
			return err
		}
		if n, err := c.report(ctx); n == 0 || err != nil {
			return err
		}
	}
}

func (c *control) holds(cycles int, took time.Duration) held {
	runtime.GC()
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	st := c.store.Status()
	h := held{Cycles: cycles, Heap: int64(mem.HeapAlloc), Disk: st.DiskBytes, Entries: st.LogEntries, Routines: runtime.NumGoroutine(), Took: took}
	snap := c.store.Snapshot()
	for _, k := range cluster.Kinds() {
		h.Objects += snap.Len(k)
	}
	return h
}
