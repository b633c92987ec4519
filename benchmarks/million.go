package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"time"

	"github.com/miniswarm/miniswarm/cluster"
)

// million is the size of one run.
type million struct {
	Nodes, Services, Tasks int
	Dir, Profile           string
}

type millionResult struct {
	Wall, Plan, Commit, CPU time.Duration
	Peak, Live, Disk        int64
	Passes                  int
}

func millionFlags(f *flag.FlagSet) func(context.Context, *table) error {
	tasks := f.Int("tasks", 1_000_000, "how many `tasks`")
	dir := f.String("dir", "", "`directory` on the disk to measure; the system's temporary one by default")
	profile := f.String("cpuprofile", "", "write processor profiles to `file`.NODES.SERVICES")
	return func(ctx context.Context, out *table) error {
		for _, m := range []million{{Nodes: 1000, Services: 1}, {Nodes: 1000, Services: 1000}, {Nodes: 10_000, Services: 1}, {Nodes: 10_000, Services: 1000}} {
			m.Tasks, m.Dir = *tasks, *dir
			if *profile != "" {
				m.Profile = fmt.Sprintf("%s.%d.%d", *profile, m.Nodes, m.Services)
			}
			var r millionResult
			if err := inChild(ctx, "million", m, &r); err != nil {
				return err
			}
			out.add(fmt.Sprintf("%d tasks, %d services, %d nodes", m.Tasks, m.Services, m.Nodes), fmt.Sprintf("%.1f s", r.Wall.Seconds()),
				fmt.Sprintf("decided in %.2f s (%.2f µs a task)", r.Plan.Seconds(), float64(r.Plan.Microseconds())/float64(m.Tasks)),
				fmt.Sprintf("stored in %.1f s", r.Commit.Seconds()), fmt.Sprintf("cpu %.1f s", r.CPU.Seconds()),
				"peak resident "+mib(r.Peak), "live heap after "+mib(r.Live), "on disk "+mib(r.Disk), fmt.Sprintf("%d passes", r.Passes))
		}
		return nil
	}
}

// millionChild times from the proposal of the services until every task is stored with its node and the loop has
// nothing left to do.
func millionChild(ctx context.Context, args []byte) (_ any, err error) {
	m, err := argsOf[million](args)
	if err != nil {
		return nil, err
	}
	c, end, err := newControl(ctx, m.Dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if e := end(); err == nil {
			err = e
		}
	}()
	if err := c.put(ctx, c.readyNodes(m.Nodes)); err != nil {
		return nil, err
	}
	if err := c.settle(ctx); err != nil {
		return nil, err
	}
	var services []cluster.Change
	for i := range m.Services {
		services = append(services, cluster.CreateOf(c.newService(i, uint64(m.Tasks/m.Services))))
	}
	if m.Profile != "" {
		f, err := os.Create(m.Profile)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return nil, err
		}
		defer pprof.StopCPUProfile()
	}
	var r millionResult
	begun, cpu := time.Now(), processorTime()
	if err := c.put(ctx, services); err != nil {
		return nil, err
	}
	for {
		n, err := c.pass(ctx)
		if err != nil {
			return nil, err
		}
		r.Plan, r.Commit, r.Passes = r.Plan+c.plan, r.Commit+c.commit, r.Passes+1
		if n == 0 {
			break
		}
	}
	r.Wall, r.CPU = time.Since(begun), processorTime()-cpu
	if r.Peak, err = statusBytes("self", "VmHWM"); err != nil {
		return nil, err
	}
	if n := assigned(c.store.Snapshot()); n != m.Tasks {
		return nil, fmt.Errorf("%d tasks have a node, want %d", n, m.Tasks)
	}
	r.Disk = c.store.Status().DiskBytes
	runtime.GC()
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	r.Live = int64(mem.HeapAlloc)
	return r, nil
}
