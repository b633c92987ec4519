package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/lab"
)

// joinSpare makes vm4 a worker, leaveSpare makes it none again.
func (c *testCluster) joinSpare(t *testing.T) {
	t.Helper()
	token := strings.TrimSpace(c.miniswarm(t, "vm1", "token", "-q", "worker"))
	if out := c.miniswarm(t, "vm4", "join", "--token", token, c.addr("vm1", 2377)); !strings.Contains(out, "This node joined a swarm as a worker.") {
		t.Errorf("join said: %s", out)
	}
	c.nodeState(t, "vm4", "Ready")
}

func (c *testCluster) leaveSpare(t *testing.T) {
	t.Helper()
	if out := c.miniswarm(t, "vm4", "leave"); !strings.Contains(out, "Node left the swarm.") {
		t.Errorf("leave said: %s", out)
	}
	c.forget(t, "vm4")
}

// forget removes a node that has left, as soon as it is shown Down.
func (c *testCluster) forget(t *testing.T, host string) {
	t.Helper()
	c.nodeState(t, host, "Down")
	c.miniswarm(t, "vm1", "node", "rm", host)
}

// machineState is all of a host's that miniswarm may change, as text.
func (c *testCluster) machineState(t *testing.T, host string) map[string]string {
	t.Helper()
	state := map[string]string{}
	for what, script := range map[string]string{
		"firewall rules":      `nft -s list ruleset 2>/dev/null | grep -v '^#' | sed 's/counter packets [0-9]* bytes [0-9]*/counter/'`,
		"devices":             `ip -o link | grep -v veth | sed 's/^[0-9]*: //; s/ mtu.*link/ link/; s/@if[0-9]*//'`,
		"addresses":           `ip -o addr show | grep -v 'veth\|fe80::' | awk '{print $2, $3, $4}'`, // those of the link come with the first port of a bridge
		"routes":              `ip route show table all | grep -v 'veth\|fe80::\|ff00::' | sort`,
		"rules":               `ip rule`,
		"engine's containers": `docker ps -aq`,
		"engine's networks":   `docker network ls --format '{{.Name}} {{.Driver}}' | sort`,
		"files of tasks":      `find /run/miniswarm 2>/dev/null; grep '^miniswarm ' /proc/self/mounts || true`,
		"listening sockets":   `ss -Hltun | awk '{print $1, $5}' | sort`,
	} {
		out, err := c.Output(t.Context(), host, "sh", "-c", script)
		if err != nil {
			t.Fatalf("%s of %s: %v", what, host, err)
		}
		state[what] = out
	}
	return state
}

// sameState names the lines that have come and gone.
func sameState(was, now map[string]string) error {
	var errs []error
	for what := range was {
		before, after := strings.Split(was[what], "\n"), strings.Split(now[what], "\n")
		for _, line := range before {
			if !slices.Contains(after, line) {
				errs = append(errs, fmt.Errorf("%s: gone is %q", what, line))
			}
		}
		for _, line := range after {
			if !slices.Contains(before, line) {
				errs = append(errs, fmt.Errorf("%s: there is %q", what, line))
			}
		}
		if len(errs) == 0 && len(before) != len(after) {
			errs = append(errs, fmt.Errorf("%s: %d lines instead of %d", what, len(after), len(before)))
		}
	}
	return errors.Join(errs...)
}

// A node that leaves takes everything with it: containers, networks, rules, devices, reserved ports, its certificate. It
// may come again as somebody new.
func TestLeave(t *testing.T) {
	c := onShared(t)
	ctx := t.Context()
	before := c.machineState(t, "vm4")
	files := tree(t, filepath.Join(c.Dir(), "vm4", "miniswarm"))
	c.docker(t, "vm1", "network", "create", "--driver", "overlay", "net1")
	c.miniswarm(t, "vm1", "secret", "create", "pw", writeFile(t, "pw", "hunter2"))
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "w", "--mode", "global", "--network", "net1", "--secret", "pw", "--publish", "8080:8000", c.witness+":1")
	c.running(t, "w", 3)
	for round := range 2 {
		c.joinSpare(t)
		all := c.running(t, "w", 4)
		eventually(t, "the new node answers with every replica, and the others with its own", patience, func() error {
			for _, n := range []string{"vm4", "vm1"} {
				if err := everyone(byShortID(all), 12, func() (answer, error) { return ask(ctx, c.addr(n, 8080)) }, c.MachineAddr().String()); err != nil {
					return fmt.Errorf("%s: %w", n, err)
				}
			}
			return nil
		})
		c.leaveSpare(t)
		eventually(t, fmt.Sprintf("nothing of the cluster is left on vm4 (round %d)", round+1), patience, func() error {
			if err := sameState(before, c.machineState(t, "vm4")); err != nil {
				return err
			}
			if left := tree(t, filepath.Join(c.Dir(), "vm4", "miniswarm")); !slices.Equal(left, files) {
				return fmt.Errorf("files in the state directory were %v and are %v", files, left)
			}
			return nil
		})
		untouched(t, on(all, "vm1", "vm2", "vm3"), c.running(t, "w", 3))
	}
	if _, err := c.tryMiniswarm(t, "vm4", "leave"); err == nil || !strings.Contains(err.Error(), "not part of a swarm") {
		t.Errorf("leaving twice: %v", err)
	}
	if _, err := c.tryMiniswarm(t, "vm1", "leave"); err == nil || !strings.Contains(err.Error(), "--force") {
		t.Errorf("the last manager leaves without force: %v", err)
	}
}

// Two daemons in one network namespace: the second finds the data plane taken, says so, and is a node all the same.
func TestTwoDaemonsInOneNamespace(t *testing.T) {
	c := onShared(t)
	dir := t.TempDir()
	engine, err := c.Host("vm4")
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	socket := filepath.Join(dir, "second.sock")
	go func() {
		ended <- c.Exec(ctx, "vm3", []string{c.binary, "daemon", "--engine", "unix://" + engine.EngineSocket, "--socket", socket,
			"--state-dir", filepath.Join(dir, "state"), "--listen-addr", c.addr("vm3", 3377), "--advertise-addr", c.addr("vm3", 3377)}, lab.Stdio{Out: log, Err: log})
	}()
	defer func() {
		cancel()
		<-ended
		if t.Failed() {
			data, _ := os.ReadFile(log.Name())
			t.Logf("the second daemon:\n%s", data)
		}
	}()
	second := func(args ...string) (string, error) {
		return c.Output(t.Context(), "vm3", append([]string{c.binary, "--host", "unix://" + socket}, args...)...)
	}
	eventually(t, "the second daemon answers", patience, func() error { _, err := second("version"); return err })

	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "w", "--replicas", "3", "--publish", "8080:8000", c.witness+":1")
	all := c.running(t, "w", 3)
	token := strings.TrimSpace(c.miniswarm(t, "vm1", "token", "-q", "worker"))
	if out, err := second("join", "--token", token, c.addr("vm1", 2377)); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	c.nodeState(t, "vm4", "Ready")
	eventually(t, "its log says that the data plane is taken", patience, func() error {
		data, err := os.ReadFile(log.Name())
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(data)) {
			if strings.Contains(line, "data plane") {
				t.Log(strings.TrimSpace(line))
				return nil
			}
		}
		return io.EOF
	})
	// It runs containers, and the first daemon's mesh is as good as before.
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "there", "--constraint", "node.hostname==vm4", c.witness+":1")
	eventually(t, "a container runs with the second daemon", patience, func() error {
		list, err := c.labelled(t.Context(), "vm4", false)
		if err == nil && len(list) != 1 {
			err = fmt.Errorf("%d containers", len(list))
		}
		return err
	})
	// Nothing reaches what the second daemon runs, so that a port of its own is all that can be published there.
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "there-too", "--publish", "8090:8000", "--constraint", "node.hostname==vm4", c.witness+":1")
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "on-its-host", "--publish", "published=8091,target=8000,mode=host", "--constraint", "node.hostname==vm4", c.witness+":1")
	c.running(t, "on-its-host", 1)
	eventually(t, "what has no place there is told why", patience, func() error {
		out, err := c.tryMiniswarm(t, "vm1", "service", "ps", "--no-trunc", "there-too")
		if err == nil && !strings.Contains(out, "no data plane on 1 node") {
			err = errors.New(out)
		}
		return err
	})
	c.miniswarm(t, "vm1", "service", "update", "--detach", "--constraint-rm", "node.hostname==vm4", "there-too")
	later := c.running(t, "there-too", 1)
	for _, n := range []string{"vm1", "vm2", "vm3"} {
		eventually(t, "what is published now answers through "+n, patience, func() error {
			return everyone(byShortID(later), 3, func() (answer, error) { return ask(t.Context(), c.addr(n, 8090)) }, c.MachineAddr().String())
		})
		if err := everyone(byShortID(all), 9, func() (answer, error) { return ask(t.Context(), c.addr(n, 8080)) }, c.MachineAddr().String()); err != nil {
			t.Errorf("through %s: %v", n, err)
		}
	}
	if out, err := second("leave"); err != nil {
		t.Errorf("%v %s", err, out)
	}
	eventually(t, "its container is gone", patience, func() error {
		list, err := c.labelled(t.Context(), "vm4", true)
		if err == nil && len(list) != 0 {
			err = fmt.Errorf("%d containers", len(list))
		}
		return err
	})
	c.forget(t, "vm4")
	tasks, err := c.swarm("vm1").TaskList(t.Context(), swarm.TaskListOptions{Filters: filters.NewArgs(filters.Arg("service", "w"), filters.Arg("desired-state", "running"))})
	if err != nil || len(tasks) != 3 {
		t.Errorf("%d tasks of w: %v", len(tasks), err)
	}
	untouched(t, all, c.running(t, "w", 3))
}
