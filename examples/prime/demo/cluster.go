package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// oneContainer is steps 1 and 2: a container by hand, and too many users for it.
func (s *story) oneContainer(ctx context.Context) error {
	s.tell.step("1. One container", "A web service that finds primes, on one machine, with a tenth of a processor.")
	if err := s.types(ctx, "vm1", "docker", "run", "-d", "--name", "fastapi-app-prime", "-p", "8000:8000", "--cpus", limit, s.image); err != nil {
		return err
	}
	base := "http://" + s.address("vm1") + ":8000"
	if err := answers(ctx, base+"/docs"); err != nil {
		return err
	}
	s.tell.seen("%s/docs shows its page", base)

	s.tell.step("2. Load", "")
	p, err := s.measured(ctx, "1 container", func(p phase) error {
		return told(p.Failures > 0 || p.P95 > 2000, "one container carries %d users", s.set.users)
	}, base)
	if err != nil {
		return err
	}
	s.one = p
	s.tell.seen("it is overloaded: %.0f %% of the requests fail", 100*p.failing())
	return s.types(ctx, "vm1", "docker", "rm", "-f", "fastapi-app-prime")
}

var (
	initialized = regexp.MustCompile(`Swarm initialized: current node \([a-z0-9]{25}\) is now a manager\.`)
	joinLine    = regexp.MustCompile(`miniswarm join --token (SWMTKN-1-\S+) (\S+:2377)`)
)

// formCluster is steps 3 and 4: init, join, node ls.
func (s *story) formCluster(ctx context.Context) error {
	s.tell.step("3. A cluster", "")
	text, err := s.shows(ctx, "vm1", "miniswarm", "init", "--advertise-addr", s.address("vm1"))
	if err != nil {
		return err
	}
	line := joinLine.FindStringSubmatch(text)
	if err := told(initialized.MatchString(text) && line != nil, "init prints %q", text); err != nil {
		return err
	}
	for _, host := range []string{"vm2", "vm3"} {
		text, err := s.shows(ctx, host, "miniswarm", "join", "--token", line[1], line[2])
		if err != nil {
			return err
		}
		if err := told(strings.TrimSpace(text) == "This node joined a swarm as a worker.", "join prints %q", text); err != nil {
			return err
		}
	}

	s.tell.step("4. Its nodes", "")
	if _, err := s.shows(ctx, "vm1", "miniswarm", "node", "ls"); err != nil {
		return err
	}
	text, err = s.asks(ctx, "vm1", "miniswarm", "node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.Availability}} {{.ManagerStatus}} {{.Self}}")
	if err != nil {
		return err
	}
	if err := told(text == "vm1 Ready Active Leader true\nvm2 Ready Active  false\nvm3 Ready Active  false", "node ls: %q", text); err != nil {
		return err
	}
	s.tell.seen("three nodes are Ready, vm1 leads")
	return nil
}

// deployFour is steps 5 to 7: the stack, service ls, docker ps on each node.
func (s *story) deployFour(ctx context.Context) error {
	s.tell.step("5. Deploy", "")
	if err := s.types(ctx, "vm1", "cat", "compose.yml"); err != nil {
		return err
	}
	began := time.Now()
	if err := s.types(ctx, "vm1", "miniswarm", "stack", "deploy", "-c", "compose.yml", stackName); err != nil {
		return err
	}
	converged, err := s.converged(ctx, began, 4)
	if err != nil {
		return err
	}
	s.report.Seconds.Converge4 = converged

	s.tell.step("6. The service", "")
	if err := s.listed(ctx, "4/4"); err != nil {
		return err
	}
	s.tell.seen("4 of 4 run, the last %.1f s after the command was typed", converged)

	s.tell.step("7. Where they are", "")
	counts, containers, err := s.placed(ctx, "4 replicas")
	if err != nil {
		return err
	}
	if err := told(slices.Equal(slices.Sorted(maps.Values(counts)), []int{1, 1, 2}), "the nodes run %v", counts); err != nil {
		return err
	}
	s.old = containers
	s.tell.seen("the nodes run 1, 1 and 2")
	s.tell.aside("Why there? The cluster can say it, with its numbers:")
	if err := s.types(ctx, "vm1", "miniswarm", "service", "explain", "--tasks", "1", serviceName); err != nil {
		return err
	}
	return nil
}

// loadFour is step 8: the crowd comes to the port of every node.
func (s *story) loadFour(ctx context.Context) error {
	s.tell.step("8. Load again", "Port 80 of every node leads to every replica, wherever it runs.")
	for _, u := range s.urls() {
		if err := answers(ctx, u+"/docs"); err != nil {
			return err
		}
	}
	p, err := s.measured(ctx, "4 replicas", func(p phase) error {
		return cmp.Or(
			told(p.Replicas == 4, "%d replicas answered, not 4", p.Replicas),
			told(p.RequestsPerSecond >= 2*s.one.RequestsPerSecond, "four replicas answer %.0f requests/s, one answered %.0f", p.RequestsPerSecond, s.one.RequestsPerSecond),
			told(p.failing() < s.one.failing(), "%.1f %% of the requests fail, with one container %.1f %%", 100*p.failing(), 100*s.one.failing()))
	}, s.urls()...)
	if err != nil {
		return err
	}
	s.four = p
	s.tell.seen("%.1f times the answers of one container, %.1f %% of the requests fail", p.RequestsPerSecond/max(1, s.one.RequestsPerSecond), 100*p.failing())
	return nil
}

// deployTwelve is step 9: scaling adds.
func (s *story) deployTwelve(ctx context.Context) error {
	s.tell.step("9. Twelve", "The file says 12 now, and the same command is typed again.")
	if err := s.types(ctx, "vm1", "sed", "-i", "s/replicas: 4/replicas: 12/", "compose.yml"); err != nil {
		return err
	}
	began := time.Now()
	if err := s.types(ctx, "vm1", "miniswarm", "stack", "deploy", "-c", "compose.yml", stackName); err != nil {
		return err
	}
	converged, err := s.converged(ctx, began, 12)
	if err != nil {
		return err
	}
	s.report.Seconds.Converge12 = converged
	if err := s.listed(ctx, "12/12"); err != nil {
		return err
	}
	s.tell.seen("12 of 12 run, the last %.1f s after the command was typed", converged)
	counts, now, err := s.placed(ctx, "12 replicas")
	if err != nil {
		return err
	}
	for host, n := range counts {
		if err := told(n == 4, "%s runs %d of 12", host, n); err != nil {
			return err
		}
	}
	s.tell.seen("every node runs 4")
	for id, started := range s.old {
		if err := told(now[id] == started, "container %.12s, started %s, is now started %q", id, started, now[id]); err != nil {
			return err
		}
		s.report.KeptIDs = append(s.report.KeptIDs, id)
	}
	slices.Sort(s.report.KeptIDs)
	s.tell.seen("the four old containers kept their ids and their start: scaling adds, it never recreates")
	return nil
}

// loadTwelve is step 10.
func (s *story) loadTwelve(ctx context.Context) error {
	s.tell.step("10. Load again", "")
	p, err := s.measured(ctx, "12 replicas", func(p phase) error {
		return cmp.Or(
			told(p.Replicas == 12, "%d replicas answered, not 12", p.Replicas),
			told(p.RequestsPerSecond >= 0.8*s.four.RequestsPerSecond, "twelve replicas answer %.0f requests/s, four answered %.0f", p.RequestsPerSecond, s.four.RequestsPerSecond),
			told(p.failing() <= max(s.four.failing(), 0.01), "%d requests fail, with four replicas %d", p.Failures, s.four.Failures))
	}, s.urls()...)
	if err != nil {
		return err
	}
	s.twelve = p
	s.tell.seen("about the same answers, or more, and %d failures where there were %d", p.Failures, s.four.Failures)
	return nil
}

// listed shows service ls and checks its columns.
func (s *story) listed(ctx context.Context, replicas string) error {
	if _, err := s.shows(ctx, "vm1", "miniswarm", "service", "ls"); err != nil {
		return err
	}
	text, err := s.asks(ctx, "vm1", "miniswarm", "service", "ls", "--format", "{{.Name}} {{.Mode}} {{.Replicas}} {{.Image}} {{.Ports}}")
	if err != nil {
		return err
	}
	want := fmt.Sprintf("%s replicated %s %s *:80->8000/tcp", serviceName, replicas, s.image)
	return told(text == want, "service ls says %q, not %q", text, want)
}

// placed shows docker ps on each node that is on, and gives how many replicas each runs, and all their containers' ids with
// their starts.
func (s *story) placed(ctx context.Context, after string) (map[string]int, map[string]string, error) {
	counts, containers := map[string]int{}, map[string]string{}
	hosts, err := s.lab.Hosts()
	if err != nil {
		return nil, nil, err
	}
	for _, h := range hosts {
		if !h.On {
			continue
		}
		if _, err := s.shows(ctx, h.Name, "docker", "ps", "-a"); err != nil {
			return nil, nil, err
		}
		ids, err := s.asks(ctx, h.Name, "docker", "ps", "--quiet", "--no-trunc", "--filter", "label=com.docker.swarm.service.name="+serviceName)
		if err != nil {
			return nil, nil, err
		}
		counts[h.Name] = len(strings.Fields(ids))
		if counts[h.Name] == 0 {
			continue
		}
		text, err := s.asks(ctx, h.Name, append([]string{"docker", "inspect", "--format", "{{.Id}} {{.State.StartedAt}} {{.Name}}"}, strings.Fields(ids)...)...)
		if err != nil {
			return nil, nil, err
		}
		for line := range strings.Lines(text) {
			f := strings.Fields(line)
			if err := told(len(f) == 3 && containerName.MatchString(f[2]), "container %q on %s", line, h.Name); err != nil {
				return nil, nil, err
			}
			containers[f[0]] = f[1]
		}
	}
	s.report.Placements = append(s.report.Placements, placement{After: after, Hosts: counts})
	return counts, containers, nil
}

var containerName = regexp.MustCompile(`^/` + regexp.QuoteMeta(serviceName) + `\.[0-9]+\.[a-z0-9]{25}$`)

// task is what the cluster knows of one.
type task struct {
	ID, NodeID, DesiredState string
	Status                   struct {
		Timestamp time.Time
		State     string
	}
}

// wantedTasks gives the service's tasks that are to run.
func (s *story) wantedTasks(ctx context.Context) ([]task, error) {
	ids, err := s.asks(ctx, "vm1", "miniswarm", "task", "ls", "--quiet", "--no-trunc", "--filter", "service="+serviceName, "--filter", "desired-state=running")
	if err != nil || ids == "" {
		return nil, err
	}
	text, err := s.asks(ctx, "vm1", append([]string{"miniswarm", "task", "inspect"}, strings.Fields(ids)...)...)
	if err != nil {
		return nil, err
	}
	var tasks []task
	if err := json.Unmarshal([]byte(text), &tasks); err != nil {
		return nil, fmt.Errorf("read task inspect: %w", err)
	}
	return tasks, nil
}

// converged gives the seconds from began until the last of n tasks ran, by the clock of the nodes, which is this machine's.
func (s *story) converged(ctx context.Context, began time.Time, n int) (float64, error) {
	tasks, err := s.wantedTasks(ctx)
	if err != nil {
		return 0, err
	}
	last := began
	for _, t := range tasks {
		if err := told(t.Status.State == "running", "task %s is %s", t.ID, t.Status.State); err != nil {
			return 0, err
		}
		if t.Status.Timestamp.After(last) {
			last = t.Status.Timestamp
		}
	}
	return round(last.Sub(began).Seconds()), told(len(tasks) == n, "%d tasks are to run, not %d", len(tasks), n)
}
