package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// scale is a cluster in which one service goes from 4 to 12, again and again.
type scale struct {
	Nodes, Tasks, Rounds int
	Dir                  string
}

type scaleResult struct {
	// Of each round: from the proposal of the new spec until the eight tasks are stored with their nodes; the part of
	// it that decided; and the processor time of everything until the loop rests.
	Wall, Plan, CPU []time.Duration
	// WriteCPU and WriteWall are the same for two writes that decide nothing: what the store takes of it.
	WriteCPU, WriteWall []time.Duration
}

func scaleFlags(f *flag.FlagSet) func(context.Context, *table) error {
	s := scale{}
	f.IntVar(&s.Nodes, "nodes", 10_000, "how many `nodes`")
	f.IntVar(&s.Tasks, "tasks", 100_000, "how many `tasks` there are, in services of 100")
	f.IntVar(&s.Rounds, "rounds", 30, "how many `times`")
	f.StringVar(&s.Dir, "dir", "", "`directory` on the disk to measure; the system's temporary one by default")
	return func(ctx context.Context, out *table) error {
		var r scaleResult
		if err := inChild(ctx, "scale", s, &r); err != nil {
			return err
		}
		ms := func(v []time.Duration) string {
			sorted := slices.Sorted(slices.Values(v))
			return fmt.Sprintf("p50 %.2f ms, p95 %.2f ms", sorted[len(v)/2].Seconds()*1e3, sorted[len(v)*95/100].Seconds()*1e3)
		}
		what := fmt.Sprintf("4 -> 12, %d nodes, %d tasks: ", s.Nodes, s.Tasks)
		out.add(what+"until the eight are placed and stored", ms(r.Wall))
		out.add(what+"the decision", ms(r.Plan))
		out.add(what+"processor time of spec, pass, commit and observing", ms(r.CPU))
		out.add("two writes of the same size that decide nothing", ms(r.WriteWall))
		out.add("their processor time", ms(r.WriteCPU))
		return nil
	}
}

// argsOf reads what inChild passed.
func argsOf[T any](args []byte) (v T, err error) {
	err = json.Unmarshal(args, &v)
	return v, err
}

func scaleChild(ctx context.Context, args []byte) (_ any, err error) {
	s, err := argsOf[scale](args)
	if err != nil {
		return nil, err
	}
	c, end, err := newControl(ctx, s.Dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if e := end(); err == nil {
			err = e
		}
	}()
	changes := c.readyNodes(s.Nodes)
	for i := range s.Tasks / 100 {
		changes = append(changes, cluster.CreateOf(c.newService(i, 100)))
	}
	web := c.newService(1_000_000, 4)
	if err := c.put(ctx, append(changes, cluster.CreateOf(web))); err != nil {
		return nil, err
	}
	if err := c.settle(ctx); err != nil {
		return nil, err
	}
	// What is measured are eight new tasks, not what a start leaves to collect.
	runtime.GC()
	var r scaleResult
	for range s.Rounds {
		begun, cpu := time.Now(), processorTime()
		if err := c.scaleTo(ctx, web.ID, 12); err != nil {
			return nil, err
		}
		n, err := c.pass(ctx)
		if err != nil {
			return nil, err
		}
		r.Wall, r.Plan = append(r.Wall, time.Since(begun)), append(r.Plan, c.plan)
		if n != 8 {
			return nil, fmt.Errorf("the pass made %d changes, want 8", n)
		}
		if n, err := c.pass(ctx); n != 0 || err != nil {
			return nil, fmt.Errorf("the loop does not rest: %d changes, %w", n, err)
		}
		r.CPU = append(r.CPU, processorTime()-cpu)
		if err := c.scaleTo(ctx, web.ID, 4); err != nil {
			return nil, err
		}
		if err := c.settle(ctx); err != nil {
			return nil, err
		}
		if err := c.removeStopped(ctx, web.ID); err != nil {
			return nil, err
		}
		begun, cpu = time.Now(), processorTime()
		for range 2 {
			other := &cluster.Config{}
			other.ID = c.ids.Next()
			other.Spec.Name, other.Spec.Data = other.ID, make([]byte, 1024)
			if err := c.put(ctx, []cluster.Change{cluster.CreateOf(other)}); err != nil {
				return nil, err
			}
		}
		r.WriteWall, r.WriteCPU = append(r.WriteWall, time.Since(begun)), append(r.WriteCPU, processorTime()-cpu)
		if err := c.settle(ctx); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// scaleTo changes the service as the API does.
func (c *control) scaleTo(ctx context.Context, id string, replicas uint64) error {
	_, err := c.store.Update(ctx, func(snap *cluster.Snapshot) (*cluster.Txn, error) {
		s := *snap.Service(id)
		s.Spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: &replicas}
		s.SpecVersion = s.Version
		return &cluster.Txn{Changes: []cluster.Change{cluster.UpdateOf(&s)}}, nil
	})
	return err
}

// removeStopped does what agents would: tasks that were told to go are gone.
func (c *control) removeStopped(ctx context.Context, service string) error {
	var changes []cluster.Change
	for t := range c.store.Snapshot().TasksOfService(service) {
		if t.DesiredState != swarm.TaskStateRunning {
			changes = append(changes, cluster.PatchTask(t.ID, cluster.TaskPatch{Status: &swarm.TaskStatus{State: swarm.TaskStateShutdown, Timestamp: time.Now()}}))
		}
	}
	if err := c.put(ctx, changes); err != nil {
		return err
	}
	return c.settle(ctx)
}
