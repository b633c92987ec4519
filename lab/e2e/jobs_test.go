package e2e

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"
)

// Jobs run to their end: so often, so many at a time, once on each node, again when they are changed, elsewhere when a
// node is lost, and not for ever when they fail.
func TestJobs(t *testing.T) {
	c := onShared(t)

	t.Run("replicated", func(t *testing.T) {
		out := c.miniswarm(t, "vm1", "service", "create", "--name", "five", "--mode", "replicated-job", "--replicas", "5", "--max-concurrent", "2",
			c.witness+":1", "work", "1s")
		if !strings.Contains(out, "job complete") {
			t.Errorf("create said:\n%s", out)
		}
		tasks := c.ended(t, "five", 5, swarm.TaskStateComplete)
		for slot, task := range tasks {
			if task.Slot != slot {
				t.Errorf("task %d is in slot %d", slot, task.Slot)
			}
		}
		runs := c.runs(t, "five")
		if len(runs) != 5 {
			t.Errorf("%d containers", len(runs))
		}
		for _, r := range runs {
			atATime := 0
			for _, other := range runs {
				if !other.began.After(r.began) && other.ended.After(r.began) {
					atATime++
				}
			}
			if atATime > 2 || r.code != 0 {
				t.Errorf("%s ended with %d; %d ran when it began", r.name, r.code, atATime)
			}
		}
		if out := c.miniswarm(t, "vm1", "service", "ls"); !regexp.MustCompile(`five\s+replicated job\s+0/2 \(5/5 completed\)`).MatchString(out) {
			t.Errorf("ls:\n%s", out)
		}
	})
	t.Run("a failure is tried again until it is over", func(t *testing.T) {
		out, err := c.tryMiniswarm(t, "vm1", "service", "create", "--name", "bad", "--mode", "replicated-job", "--restart-max-attempts", "2", "--restart-delay", "100ms",
			c.witness+":1", "work", "0s", "3")
		if err == nil || !strings.Contains(out+err.Error(), "the job has ended: 0 of 1 completed, 1 not tried again") {
			t.Errorf("create waits for what cannot be, or does not say so: %v\n%s", err, out)
		}
		c.ended(t, "bad", 3, swarm.TaskStateFailed)
		eventually(t, "the last failure says that it was the last", patience, func() error {
			return contains(c.miniswarm(t, "vm1", "service", "ps", "--no-trunc", "bad"), "task: non-zero exit (3); not tried again: 2 restarts are allowed")
		})
		if out := c.miniswarm(t, "vm1", "service", "explain", "bad"); !strings.Contains(out, "0 of 1 completed, 0 under way, 1 at a time, 1 not tried again") {
			t.Errorf("explain:\n%s", out)
		}
		if runs := c.runs(t, "bad"); len(runs) != 3 {
			t.Errorf("%d containers", len(runs))
		}
	})
	t.Run("global", func(t *testing.T) {
		if out := c.miniswarm(t, "vm1", "service", "create", "--name", "scan", "--mode", "global-job", c.witness+":1", "work", "100ms"); !strings.Contains(out, "job complete") {
			t.Errorf("create said:\n%s", out)
		}
		onEach := func(n int) []run {
			t.Helper()
			c.ended(t, "scan", n, swarm.TaskStateComplete)
			var runs []run
			eventually(t, fmt.Sprintf("%d containers, one on each node", n), patience, func() error {
				runs = c.runs(t, "scan")
				hosts := map[string]bool{}
				for _, r := range runs {
					hosts[r.host] = true
				}
				if len(runs) != n || len(hosts) != n {
					return fmt.Errorf("%d containers on %v", len(runs), hosts)
				}
				return nil
			})
			return runs
		}
		first := onEach(3)
		// Changed, it runs again; what is left of the run before goes.
		c.miniswarm(t, "vm1", "service", "update", "--quiet", "--label-add", "a=b", "scan")
		for _, r := range onEach(3) {
			if slices.ContainsFunc(first, func(f run) bool { return f.name == r.name }) {
				t.Errorf("%s is of the first run", r.name)
			}
		}
		c.joinSpare(t)
		onEach(4)
		c.leaveSpare(t)
		if out, err := c.tryMiniswarm(t, "vm1", "service", "scale", "scan=2"); err == nil || !strings.Contains(out+err.Error(), "scale can only be used with replicated or replicated-job mode") {
			t.Errorf("scale: %v %s", err, out)
		}
	})
	t.Run("a lost node", func(t *testing.T) {
		// A progress bar watches all the while. What the lost node seems to run for ever must not hold it up.
		progress := c.follow(t, "vm1", "service", "create", "--name", "lost", "--mode", "replicated-job", "--replicas", "3", c.witness+":1", "work", "10s")
		eventually(t, "each node works", patience, func() error {
			all, err := c.tryReplicas(t.Context(), "lost")
			if got := spread(all); err != nil || len(got) != 3 {
				return fmt.Errorf("%v: %w", got, err)
			}
			return nil
		})
		if err := c.Fail(t.Context(), "vm2"); err != nil {
			t.Fatal(err)
		}
		failed := time.Now()
		took := eventually(t, "the work of the lost node is begun elsewhere", patience, func() error {
			tasks, err := c.swarm("vm1").TaskList(t.Context(), swarm.TaskListOptions{Filters: filters.NewArgs(filters.Arg("service", "lost"))})
			if len(tasks) == 4 && !slices.ContainsFunc(tasks, func(task swarm.Task) bool { return task.NodeID == "" }) {
				return nil
			}
			return fmt.Errorf("%s: %w", states(tasks), err)
		})
		t.Logf("worker failed -> its work begun elsewhere: %.1f s", took.Seconds())
		eventually(t, "the job is complete", patience, func() error { return progress.saw("job complete") })
		t.Logf("worker failed -> job complete: %.1f s", time.Since(failed).Seconds())
		if err := c.Start(t.Context(), "vm2"); err != nil {
			t.Fatal(err)
		}
		c.nodeState(t, "vm2", "Ready")
		eventually(t, "all of it is accounted for", patience, func() error { return c.accounted(t.Context()) })
		c.ended(t, "lost", 3, swarm.TaskStateComplete)
	})
	t.Run("the example", func(t *testing.T) {
		t.Setenv("IMAGE", c.Registry()+"/jobs:1")
		t.Setenv("SHARES", "3")
		c.miniswarm(t, "vm1", "stack", "deploy", "-c", "../../examples/jobs/compose.yml", "work")
		c.ended(t, "work_count", 3, swarm.TaskStateComplete)
		c.ended(t, "work_survey", 3, swarm.TaskStateComplete)
		eventually(t, "the shares add up", patience, func() error {
			log := c.miniswarm(t, "vm1", "service", "logs", "--raw", "work_count")
			sum := 0
			for _, m := range regexp.MustCompile(`(?m)^share \d of 3: (\d+) primes`).FindAllStringSubmatch(log, -1) {
				n, _ := strconv.Atoi(m[1])
				sum += n
			}
			if sum != 148933 {
				return fmt.Errorf("%d primes up to two million:\n%s", sum, log)
			}
			return nil
		})
	})
}

// run is a container of a job that has ended.
type run struct {
	host, name   string
	code         int
	began, ended time.Time
}

// runs lists the containers of a job that have ended, on all hosts.
func (c *testCluster) runs(t *testing.T, service string) []run {
	t.Helper()
	var runs []run
	for _, h := range c.hosts {
		list, err := c.engine(h.Name).ContainerList(t.Context(), container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", serviceLabel+"="+service))})
		if err != nil {
			t.Fatalf("containers of %s: %v", h.Name, err)
		}
		for _, one := range list {
			d, err := c.engine(h.Name).ContainerInspect(t.Context(), one.ID)
			if err != nil {
				t.Fatalf("containers of %s: %v", h.Name, err)
			}
			r := run{host: h.Name, name: strings.TrimPrefix(d.Name, "/"), code: d.State.ExitCode}
			r.began, _ = time.Parse(time.RFC3339Nano, d.State.StartedAt)
			r.ended, _ = time.Parse(time.RFC3339Nano, d.State.FinishedAt)
			runs = append(runs, r)
		}
	}
	return runs
}

// ended waits until exactly n tasks of a job are in a final state and none is on its way there. It gives them in the order
// of their slots.
func (c *testCluster) ended(t *testing.T, service string, n int, state swarm.TaskState) []swarm.Task {
	t.Helper()
	var tasks []swarm.Task
	eventually(t, fmt.Sprintf("%s has %d tasks that are %s", service, n, state), patience, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		all, err := c.swarm(c.leader()).TaskList(ctx, swarm.TaskListOptions{Filters: filters.NewArgs(filters.Arg("service", service))})
		if err != nil {
			return err
		}
		tasks = nil
		for _, task := range all {
			switch {
			case task.Status.State == state:
				tasks = append(tasks, task)
			case task.DesiredState != swarm.TaskStateShutdown:
				return fmt.Errorf("it has %s", states(all))
			}
		}
		if len(tasks) != n {
			return fmt.Errorf("it has %s", states(all))
		}
		return nil
	})
	slices.SortFunc(tasks, func(a, b swarm.Task) int { return cmp.Compare(a.Slot, b.Slot) })
	return tasks
}

func states(tasks []swarm.Task) string {
	count := map[swarm.TaskState]int{}
	for _, task := range tasks {
		count[task.Status.State]++
	}
	return fmt.Sprint(count)
}
