package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/examples/prime/load/loadgen"
)

// Under load through all nodes a service is scaled, updated and moved, and no client is refused, cut off or lied to (I7).
// One crowd keeps its connections, as browsers do, another makes one for each request. A second service stops the
// moment it is told to, with no drain of its own: even then nobody is lost who connects afresh. Both have a health check,
// for without one a container is sent requests before its process listens.
func TestUnderLoad(t *testing.T) {
	c := onShared(t)
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "p", "--replicas", "3", "--publish", "80:8000", "--limit-cpu", "0.5", c.prime+":h1")
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "w", "--replicas", "3", "--publish", "8080:8000", c.witness+":h1")
	c.running(t, "p", 3)
	c.running(t, "w", 3)

	both := func(args ...string) {
		for service, image := range map[string]string{"p": c.prime, "w": c.witness} {
			var line []string
			for _, a := range args {
				line = append(line, strings.NewReplacer("IMAGE", image, "SERVICE", service).Replace(a))
			}
			c.miniswarm(t, "vm1", line...)
		}
	}
	runs := func(n int, version string) {
		t.Helper()
		for _, service := range []string{"p", "w"} {
			eventually(t, fmt.Sprintf("%d replicas of %s run version %s", n, service, version), 2*patience, func() error {
				all, err := c.converged(t.Context(), service, n)
				for _, r := range all {
					if ref, _, _ := strings.Cut(r.image, "@"); !strings.HasSuffix(ref, ":"+version) {
						return fmt.Errorf("%s on %s runs %s", r.name, r.host, r.image)
					}
				}
				return err
			})
		}
	}
	nodes := []string{"vm1", "vm2", "vm3"}
	for _, n := range nodes {
		for port, service := range map[int]string{80: "p", 8080: "w"} {
			eventually(t, service+" answers on "+n, patience, func() error {
				if service == "p" {
					_, err := primeReplica(t.Context(), c.addr(n, port))
					return err
				}
				_, err := ask(t.Context(), c.addr(n, port))
				return err
			})
		}
	}

	for _, step := range []struct {
		name string
		do   func(t *testing.T)
	}{
		{"scale up", func(t *testing.T) {
			both("service", "scale", "--detach", "SERVICE=6")
			runs(6, "h1")
		}},
		{"rolling update, start first", func(t *testing.T) {
			both("service", "update", "--detach", "--update-order", "start-first", "--update-parallelism", "2", "--image", "IMAGE:h2", "SERVICE")
			runs(6, "h2")
		}},
		{"rolling update, stop first", func(t *testing.T) {
			both("service", "update", "--detach", "--update-order", "stop-first", "--update-parallelism", "2", "--image", "IMAGE:h1", "SERVICE")
			runs(6, "h1")
		}},
		{"drain of a node", func(t *testing.T) {
			c.miniswarm(t, "vm1", "node", "update", "--availability", "drain", "vm3")
			for _, service := range []string{"p", "w"} {
				c.runningElsewhere(t, service, 6, "vm3")
			}
			c.miniswarm(t, "vm1", "node", "update", "--availability", "active", "vm3")
		}},
		{"scale down", func(t *testing.T) {
			both("service", "scale", "--detach", "SERVICE=2")
			runs(2, "h1")
		}},
	} {
		t.Run(step.name, func(t *testing.T) {
			var crowds []*crowd
			for i, fresh := range []bool{false, true} {
				cfg := loadgen.Config{Balance: loadgen.RoundRobin, Users: 4, ThinkMin: 20 * time.Millisecond, ThinkMax: 100 * time.Millisecond,
					Timeout: 30 * time.Second, NewConnections: fresh, Seed: uint64(i + 1), FirstPhase: step.name}
				for _, n := range nodes {
					cfg.Targets = append(cfg.Targets, "http://"+c.addr(n, 80))
				}
				crowds = append(crowds, startCrowd(t, cfg))
			}
			p := startProbe(t, c.addr("vm1", 8080), c.addr("vm2", 8080), c.addr("vm3", 8080))
			step.do(t)
			p.none(t, "service w")
			for _, w := range crowds {
				r := w.end(t).Total
				t.Logf("service p: %d requests, %d failed, %.0f/s, p99 %.0f ms", r.Requests, r.Failures, r.RequestsPerSecond, r.Latency.P99)
				if r.Failures != 0 || r.Requests == 0 {
					t.Errorf("%d of %d requests failed, from %.2f s to %.2f s: %v %v", r.Failures, r.Requests, r.FailingFrom, r.FailingTo, r.Classes, r.Examples)
				}
			}
		})
	}
	tasks, err := c.swarm("vm1").TaskList(t.Context(), swarm.TaskListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if task.Status.State == swarm.TaskStateFailed || task.Status.State == swarm.TaskStateRejected {
			t.Errorf("task %s of slot %d is %s: %s", task.ID, task.Slot, task.Status.State, task.Status.Err)
		}
	}
}

// What was begun is finished: connections to a replica that leaves go on until it has ended, while nobody new is sent
// to it.
func TestConnectionsAreFinished(t *testing.T) {
	c := onShared(t)
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "w", "--replicas", "6", "--env", "DRAIN=8s", "--stop-grace-period", "30s",
		"--publish", "8080:8000", "--publish", "8081:8001", c.witness+":1")
	before := c.running(t, "w", 6)
	var all []*talk
	for _, entry := range []string{"vm1", "vm2", "vm3"} {
		for range 6 {
			all = append(all, dialTalk(t, c.addr(entry, 8081)))
		}
	}
	c.miniswarm(t, "vm1", "service", "scale", "--detach", "w=2")
	// Those that leave are known by their tasks; each replica has one connection at least through some node.
	staying := map[string]bool{}
	eventually(t, "four replicas are to leave", patience, func() error {
		tasks, err := c.tasks(t.Context(), "w")
		if err != nil || len(tasks) != 2 {
			return fmt.Errorf("%d tasks should run: %w", len(tasks), err)
		}
		for _, task := range tasks {
			staying[task.Status.ContainerStatus.ContainerID[:12]] = true
		}
		return nil
	})
	var stays []*talk
	leaves := map[*talk]string{} // and the replica they are with
	for _, k := range all {
		a, err := k.say("who is there?")
		if err != nil {
			t.Fatalf("a connection was cut when its replica was told to leave: %v", err)
		}
		if staying[a.Replica] {
			stays = append(stays, k)
		} else {
			leaves[k] = a.Replica
		}
	}
	if len(leaves) == 0 {
		t.Fatalf("no connection is with a replica that leaves; replicas were %+v", before)
	}
	eventually(t, "new connections go to those that stay", patience, func() error {
		for range 12 {
			for _, entry := range []string{"vm1", "vm2", "vm3"} {
				if a, err := ask(t.Context(), c.addr(entry, 8080)); err != nil || !staying[a.Replica] {
					return fmt.Errorf("%s answered through %s: %w", a.Replica, entry, err)
				}
			}
		}
		return nil
	})
	for k, id := range leaves {
		_, err := k.say("still there?")
		if err == nil {
			continue
		}
		// Cut, then: but has the replica ended?
		for _, r := range before {
			if r.id[:12] != id {
				continue
			}
			if logs, _ := c.Output(t.Context(), r.host, "docker", "logs", r.id); !strings.Contains(logs, "stopping") {
				t.Errorf("a connection to %s was cut though it still served: %v", r.name, err)
			}
		}
	}
	now := c.running(t, "w", 2)
	untouched(t, now, before)
	for _, k := range stays {
		if _, err := k.say("still there?"); err != nil {
			t.Errorf("a connection to a replica that stays was cut: %v", err)
		}
	}
}

// A replica that stands still while it is told to leave, as a starved machine has it do, still answers what it was sent.
func TestAReplicaThatStandsStill(t *testing.T) {
	c := onShared(t)
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "w", "--replicas", "3", "--publish", "8080:8000", c.witness+":1")
	var still replica
	for _, r := range c.running(t, "w", 3) {
		if r.host != "vm1" {
			still = r
		}
	}
	d, err := c.engine(still.host).ContainerInspect(t.Context(), still.id)
	if err != nil {
		t.Fatal(err)
	}
	pid := fmt.Sprint(d.State.Pid)
	p := startProbe(t, c.addr("vm1", 8080), c.addr("vm2", 8080), c.addr("vm3", 8080))
	signal := func(name string) {
		if _, err := c.Output(t.Context(), still.host, "kill", "-"+name, pid); err != nil {
			t.Fatal(err)
		}
	}
	signal("STOP")
	eventually(t, "requests wait for the replica that stands still", patience, func() error {
		listener, err := c.Output(t.Context(), still.host, "awk", "$4 == \"0A\" && $5 ~ /:00000003$/", "/proc/"+pid+"/net/tcp6")
		if err == nil && listener == "" {
			err = errors.New("none from each node yet")
		}
		return err
	})
	c.miniswarm(t, "vm1", "node", "update", "--availability", "drain", still.host)
	// It would have been told to stop long since. It is waited for twice as long, which leaves this test time to look for the last time.
	for began := time.Now(); time.Since(began) < time.Second; time.Sleep(50 * time.Millisecond) {
		told, err := c.Output(t.Context(), still.host, "awk", "/^ShdPnd/ && $2 ~ /4...$/", "/proc/"+pid+"/status")
		if err != nil || told != "" {
			t.Errorf("the replica was told to stop before it had accepted all connections (%v)", err)
			break
		}
	}
	signal("CONT")
	c.runningElsewhere(t, "w", 3, still.host)
	p.none(t, "service w")
}
