package e2e

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"
)

// The story's steps 4 to 9, with its own Compose file: four containers over three nodes, every node answers, twelve
// containers, and the four old ones never noticed.
func TestStory(t *testing.T) {
	c := onShared(t)
	t.Setenv("IMAGE", c.prime+":1")
	const service = "fastapi_fastapi-app"

	nodes := c.miniswarm(t, "vm1", "node", "ls")
	if !regexp.MustCompile(`(?m)^\w{25} \*\s+vm1\s+Ready\s+Active\s+Leader\s+\S+`).MatchString(nodes) {
		t.Errorf("node ls does not show vm1 as this node and leader:\n%s", nodes)
	}
	for _, w := range c.workers {
		if !regexp.MustCompile(`(?m)^\w{25}\s+` + w + `\s+Ready\s+Active\s+\S+`).MatchString(nodes) {
			t.Errorf("node ls does not show %s as a worker:\n%s", w, nodes)
		}
	}

	out := c.miniswarm(t, "vm1", "stack", "deploy", "-c", "../../examples/prime/compose.yml", "fastapi")
	for _, line := range []string{"Creating network fastapi_default", "Creating service " + service} {
		if !strings.Contains(out, line) {
			t.Errorf("stack deploy did not say %q:\n%s", line, out)
		}
	}
	old := c.running(t, service, 4)
	if got := slices.Sorted(maps.Values(spread(old))); !slices.Equal(got, []int{1, 1, 2}) {
		t.Errorf("four replicas are spread as %v", spread(old))
	}
	for _, r := range old {
		if !regexp.MustCompile(`^` + service + `\.[1-4]\.` + r.task + `$`).MatchString(r.name) {
			t.Errorf("container name %s", r.name)
		}
	}
	if ls := c.miniswarm(t, "vm1", "service", "ls"); !regexp.MustCompile(service + `\s+replicated\s+4/4\s+\S+/prime:1\s+\*:80->8000/tcp`).MatchString(ls) {
		t.Errorf("service ls:\n%s", ls)
	}
	if ps := c.docker(t, old[0].host, "ps", "-a"); !strings.Contains(ps, old[0].name) {
		t.Errorf("docker ps -a on %s:\n%s", old[0].host, ps)
	}
	c.reachesAll(t, service, 80, 4)

	// Scaling adds, it never recreates (I6).
	compose := strings.Replace(readFile(t, "../../examples/prime/compose.yml"), "replicas: 4", "replicas: 12", 1)
	start := time.Now()
	out = c.miniswarm(t, "vm1", "stack", "deploy", "-c", writeFile(t, "compose.yml", compose), "fastapi")
	if !strings.Contains(out, "Updating service "+service+" (id: ") {
		t.Errorf("deploying again said:\n%s", out)
	}
	now := c.running(t, service, 12)
	t.Logf("4 -> 12: %.1f s", time.Since(start).Seconds())
	if got := spread(now); got["vm1"] != 4 || got["vm2"] != 4 || got["vm3"] != 4 {
		t.Errorf("twelve replicas are spread as %v", got)
	}
	untouched(t, old, now)
	c.reachesAll(t, service, 80, 12)

	// Scaling down takes what came last and leaves the rest alone.
	c.miniswarm(t, "vm1", "service", "scale", service+"=5")
	fewer := c.running(t, service, 5)
	untouched(t, fewer, now)

	out = c.miniswarm(t, "vm1", "stack", "rm", "fastapi")
	for _, line := range []string{"Removing service " + service, "Removing network fastapi_default"} {
		if !strings.Contains(out, line) {
			t.Errorf("stack rm did not say %q:\n%s", line, out)
		}
	}
	eventually(t, "nothing of the stack is left", patience, func() error { return c.empty(t.Context()) })
}

// reachesAll asks every node's published port until every replica has answered there.
func (c *testCluster) reachesAll(t *testing.T, service string, port, n int) {
	t.Helper()
	for _, host := range append(slices.Clone(c.managers), c.workers...) {
		seen := map[string]int{}
		eventually(t, fmt.Sprintf("%d replicas of %s answer on %s", n, service, host), patience, func() error {
			for range n {
				who, err := primeReplica(t.Context(), c.addr(host, port))
				if err != nil {
					t.Errorf("%s: %v", host, err)
				}
				seen[who]++
			}
			if len(seen) != n {
				return fmt.Errorf("answered: %v", seen)
			}
			return nil
		})
	}
}

// Every way to a published port: over TCP and UDP, from outside, from the node itself and from a container on it; and
// the client's address arrives.
func TestPublishedPorts(t *testing.T) {
	c := onShared(t)
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "w", "--replicas", "3", "--publish", "8080:8000", "--publish", "8081:8001",
		"--publish", "8082:8002/udp", c.witness+":1")
	all := c.running(t, "w", 3)
	who := map[string]string{} // container host name to replica's host
	for _, r := range all {
		who[r.id[:12]] = r.host
	}
	machine := c.MachineAddr().String()
	nodes := []string{"vm1", "vm2", "vm3"}

	for _, entry := range nodes {
		t.Run("through "+entry, func(t *testing.T) {
			eventually(t, "every replica answers over TCP and sees the client", patience, func() error {
				return everyone(who, 9, func() (answer, error) { return ask(t.Context(), c.addr(entry, 8080)) }, machine)
			})
			eventually(t, "every replica answers over UDP and sees the client", patience, func() error {
				return everyone(who, 9, func() (answer, error) { return askUDP(t.Context(), c.addr(entry, 8082)) }, machine)
			})
			for from, get := range map[string][]string{
				"the node by its address":        {"get", "http://" + c.addr(entry, 8080)},
				"the node by 127.0.0.1":          {"get", "http://127.0.0.1:8080"},
				"the node by localhost":          {"get", "http://localhost:8080"},
				"the node over UDP":              {"udp", c.addr(entry, 8082)},
				"the node by 127.0.0.1 over UDP": {"udp", "127.0.0.1:8082"},
			} {
				eventually(t, "every replica answers "+from, patience, func() error {
					return everyone(who, 6, func() (answer, error) { return c.witnessIn(t, entry, get...) }, "")
				})
			}
			eventually(t, "every replica answers a container on the node", patience, func() error {
				return everyone(who, 6, func() (answer, error) {
					out, err := c.Output(t.Context(), entry, "docker", "run", "--rm", c.witness+":1", "get", "http://"+c.addr(entry, 8080))
					return parse(out, err)
				}, "")
			})
			// From one node to another the asking node is the client. Its own replica sees the entry node instead, which
			// has to stand in between: an answer that never leaves the node would reach the client from a stranger.
			other := nodes[(slices.Index(nodes, entry)+1)%3]
			eventually(t, "every replica answers another node and sees it", patience, func() error {
				return everyone(who, 6, func() (answer, error) {
					a, err := c.witnessIn(t, other, "get", "http://"+c.addr(entry, 8080))
					want := hostOf(c.addr(other, 0))
					if who[a.Replica] == other {
						want = hostOf(c.addr(entry, 0))
					}
					if err == nil && a.from() != want {
						err = fmt.Errorf("%s asked %s, the replica on %s saw %s", other, entry, who[a.Replica], a.Client)
					}
					return a, err
				}, "")
			})
		})
	}

	t.Run("ports change with the service", func(t *testing.T) {
		c.miniswarm(t, "vm1", "service", "update", "--publish-rm", "8080:8000", "--publish-add", "8090:8000", "w")
		eventually(t, "the new port answers on every node and the old one on none", patience, func() error {
			for _, n := range nodes {
				if _, err := ask(t.Context(), c.addr(n, 8090)); err != nil {
					return err
				}
				if _, err := ask(t.Context(), c.addr(n, 8080)); err == nil {
					return fmt.Errorf("%s still answers on port 8080", n)
				}
			}
			return nil
		})
	})
}

// A host-mode port answers where the replica is, and only there.
func TestHostPort(t *testing.T) {
	c := onShared(t)
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "h", "--replicas", "2", "--publish", "published=8085,target=8000,mode=host", c.witness+":1")
	all := c.running(t, "h", 2)
	for _, n := range []string{"vm1", "vm2", "vm3"} {
		a, err := ask(t.Context(), c.addr(n, 8085))
		at := slices.IndexFunc(all, func(r replica) bool { return r.host == n })
		switch {
		case at < 0 && err == nil:
			t.Errorf("%s answers though it has no replica", n)
		case at >= 0 && err != nil:
			t.Errorf("%s has a replica and does not answer: %v", n, err)
		case at >= 0 && a.Replica != all[at].id[:12]:
			t.Errorf("%s: %s answered, not its own replica", n, a.Replica)
		case at >= 0 && a.from() != c.MachineAddr().String():
			t.Errorf("%s: the replica saw %s, not the client", n, a.from())
		}
	}
	// A third fits, a fourth does not: each node has the port once.
	c.miniswarm(t, "vm1", "service", "scale", "--detach", "h=4")
	eventually(t, "three run and one says why not", patience, func() error {
		tasks, err := c.tasks(t.Context(), "h")
		if err != nil {
			return err
		}
		runs, says := 0, ""
		for _, task := range tasks {
			if task.Status.State == swarm.TaskStateRunning {
				runs++
			} else {
				says = task.Status.Err
			}
		}
		if runs != 3 || !strings.Contains(says, "host-mode port already in use on 3 nodes") {
			return fmt.Errorf("%d run, the fourth says %q", runs, says)
		}
		return nil
	})
}
