package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"golang.org/x/sync/errgroup"

	"github.com/miniswarm/miniswarm/lab"
)

// trial is one run of everything that takes hosts with engines.
type trial struct {
	rounds, failures, swarmFailures int
	ours, swarm                     *system // swarm is nil when Docker Swarm is left out
	out                             *table
}

func clusterFlags(f *flag.FlagSet) func(context.Context, *table) error {
	t := &trial{}
	f.IntVar(&t.rounds, "rounds", 5, "how many `times` 4 -> 12, the systems taking turns; 0 measures only what fails")
	f.IntVar(&t.failures, "failures", 3, "how many `times` a worker, a manager's process and the leader's host fail")
	f.IntVar(&t.swarmFailures, "swarm-failures", 1, "the same for Docker Swarm, which takes `times` a minute and a half")
	withSwarm := f.Bool("swarm", true, "measure Docker Swarm beside it, on hosts of its own")
	return func(ctx context.Context, out *table) (err error) {
		if err := lab.Check(); err != nil {
			return err
		}
		t.out = out
		b, err := build(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, b.remove()) }()
		// Three managers and a worker.
		if t.ours, err = newMiniswarm(ctx, b, 4, 3); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, t.ours.end()) }()
		if *withSwarm {
			if t.swarm, err = newSwarm(ctx, b, 4, 3); err != nil {
				return err
			}
			defer func() {
				if t.swarm != nil {
					err = errors.Join(err, t.swarm.end())
				}
			}()
		}
		if t.rounds > 0 {
			if err := t.scaling(ctx); err != nil {
				return err
			}
		}
		if t.swarm != nil {
			if err := t.fail(ctx, t.swarm, t.swarmFailures); err != nil {
				return err
			}
			// What is measured next has the machine to itself.
			s := t.swarm
			t.swarm = nil
			if err := s.end(); err != nil {
				return err
			}
		}
		for _, measure := range []func(context.Context) error{t.follow, t.upkeep} {
			if t.rounds == 0 {
				break
			}
			if err := measure(ctx); err != nil {
				return err
			}
		}
		return t.fail(ctx, t.ours, t.failures)
	}
}

// way is one way to have eight more containers; do takes them from nothing to running, undo back.
type way struct {
	name     string
	do, undo func(ctx context.Context) error
}

// scaling is 4 -> 12 beside eight containers without a cluster.
func (t *trial) scaling(ctx context.Context) error {
	ways := []way{t.engines("8 parallel `docker run` on the engines", t.dockerRun), t.engines("8 parallel create and start by the engines' API", t.createStart)}
	service := func(s *system, name, suffix string, port uint32) error {
		if err := s.create(ctx, name, 4, port); err != nil {
			return err
		}
		to := func(n uint64) func(context.Context) error {
			return func(ctx context.Context) error {
				if err := s.scale(ctx, s.hosts[0], name, n); err != nil {
					return err
				}
				return s.running(ctx, s.hosts[0], name, int(n), "")
			}
		}
		ways = append(ways, way{s.name + ": 4 -> 12 until all run" + suffix, to(12), to(4)})
		return s.running(ctx, s.hosts[0], name, 4, "")
	}
	for _, s := range []*system{t.ours, t.swarm} {
		if s == nil {
			continue
		}
		if err := s.ready(ctx); err != nil {
			return err
		}
		if err := service(s, "plain", "", 0); err != nil {
			return err
		}
	}
	if err := service(t.ours, "published", ", with a published port", 8081); err != nil {
		return err
	}
	times := make([][]time.Duration, len(ways))
	for round := range t.rounds + 1 {
		for i, w := range ways {
			begun := time.Now()
			if err := w.do(ctx); err != nil {
				return err
			}
			if took := time.Since(begun); round > 0 { // the first one warms up
				times[i] = append(times[i], took)
			}
			if err := w.undo(ctx); err != nil {
				return err
			}
			if err := rest(ctx, time.Second); err != nil {
				return err
			}
		}
	}
	for i, w := range ways {
		t.out.add(w.name, spread(times[i]), fmt.Sprintf("%.2fx docker run", median(times[i]).Seconds()/median(times[0]).Seconds()))
	}
	for _, name := range []string{"plain", "published"} {
		if err := t.ours.remove(ctx, name); err != nil {
			return err
		}
	}
	if t.swarm == nil {
		return nil
	}
	return t.swarm.remove(ctx, "plain")
}

// rest lets containers finish dying before the next thing is measured.
func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// engines is eight containers made by run at the same time, on the engines of the hosts in turn.
func (t *trial) engines(name string, run func(ctx context.Context, h lab.Host, name string) error) way {
	on := func(i int) lab.Host { return t.ours.hosts[i%len(t.ours.hosts)] }
	all := func(ctx context.Context, f func(ctx context.Context, h lab.Host, name string) error) error {
		g, ctx := errgroup.WithContext(ctx)
		for i := range 8 {
			g.Go(func() error { return f(ctx, on(i), fmt.Sprint("bench", i)) })
		}
		return g.Wait()
	}
	remove := func(ctx context.Context, h lab.Host, name string) error {
		return t.ours.callAt(ctx, h.EngineSocket, http.MethodDelete, "/containers/"+name+"?force=1", nil, nil)
	}
	return way{name, func(ctx context.Context) error { return all(ctx, run) }, func(ctx context.Context) error { return all(ctx, remove) }}
}

func (t *trial) dockerRun(ctx context.Context, h lab.Host, name string) error {
	cmd := exec.CommandContext(ctx, "docker", "run", "-d", "--name", name, t.ours.image)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+h.EngineSocket)
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("docker run: %w: %s", err, strings.TrimSpace(string(said)))
	}
	return nil
}

func (t *trial) createStart(ctx context.Context, h lab.Host, name string) error {
	if err := t.ours.callAt(ctx, h.EngineSocket, http.MethodPost, "/containers/create?name="+name, container.Config{Image: t.ours.image}, nil); err != nil {
		return err
	}
	return t.ours.callAt(ctx, h.EngineSocket, http.MethodPost, "/containers/"+name+"/start", nil, nil)
}
