package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/miniswarm/miniswarm/lab"
)

// The stock docker command, pointed at a node's socket, finds a swarm there and, next to it, the engine it knows.
func TestStockDocker(t *testing.T) {
	c := onShared(t)
	says := func(t *testing.T, pattern string, args ...string) string {
		t.Helper()
		out := c.docker(t, "vm1", args...)
		if !regexp.MustCompile(pattern).MatchString(out) {
			t.Errorf("docker %s does not say %q:\n%s", strings.Join(args, " "), pattern, out)
		}
		return out
	}
	// The events of all this are read along.
	events := c.follow(t, "vm1", "events", "--filter", "type=service", "--filter", "type=container", "--filter", "type=node")

	t.Run("info and version", func(t *testing.T) {
		says(t, `Swarm: active\n  NodeID: \w{25}\n  Is Manager: true\n`, "info")
		says(t, `^3 1\n$`, "info", "--format", "{{.Swarm.Nodes}} {{.Swarm.Managers}}")
		says(t, `(?m)^ miniswarm:\n`, "version")
		out := c.docker(t, "vm2", "info", "--format", "{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}")
		if strings.TrimSpace(out) != "active false" {
			t.Errorf("info on a worker: %s", out)
		}
		if out, err := c.tryDocker(t, "vm2", "node", "ls"); err == nil || !strings.Contains(err.Error(), "This node is not a swarm manager.") {
			t.Errorf("node ls on a worker: %s %v", out, err)
		}
	})
	t.Run("node", func(t *testing.T) {
		says(t, `(?m)^\w{25} \*\s+vm1\s+Ready\s+Active\s+Leader\s`, "node", "ls")
		says(t, `(?s)Hostname:\s+vm2\n.*State:\s+Ready.*Architecture:\s+\S+`, "node", "inspect", "--pretty", "vm2")
		says(t, `vm2`, "node", "update", "--label-add", "zone=a", "vm2")
		says(t, `^a\n$`, "node", "inspect", "--format", "{{.Spec.Labels.zone}}", "vm2")
		says(t, `vm2`, "node", "update", "--label-rm", "zone", "vm2")
		says(t, `Drain`, append([]string{"node", "inspect", "--pretty"}, strings.TrimSpace(c.docker(t, "vm1", "node", "update", "--availability", "drain", "vm3")))...)
		says(t, `vm3`, "node", "update", "--availability", "active", "vm3")
	})
	t.Run("service", func(t *testing.T) {
		out := says(t, `^\w{25}\n`, "service", "create", "--quiet", "--name", "web", "--replicas", "2", "--publish", "8080:8000", "--env", "A=1",
			"--label", "l=v", "--limit-memory", "64m", c.witness+":1")
		id := strings.TrimSpace(out)[:12]
		says(t, id+`\s+web\s+replicated\s+2/2\s+\S+/witness:1\s+\*:8080->8000/tcp`, "service", "ls")
		says(t, `(?s)web\.1 .*vm\d\s+Running\s+Running .*web\.2 `, "service", "ps", "web")
		says(t, `(?s)Name:\s+web\nLabels:\n l=v\n.*Replicas:\s+2\n.*Memory:\s+64MiB\n.*PublishedPort = 8080\n`, "service", "inspect", "--pretty", "web")
		says(t, `web scaled to 3`, "service", "scale", "--detach", "web=3")
		c.running(t, "web", 3)
		says(t, `web`, "service", "update", "--quiet", "--env-add", "B=2", "--image", c.witness+":2", "--update-parallelism", "0", "web")
		for _, r := range c.running(t, "web", 3) {
			if !strings.Contains(r.image, "witness:2") {
				t.Errorf("%s runs %s", r.name, r.image)
			}
		}
		says(t, `\[(A=1 B=2|B=2 A=1)\]`, "service", "inspect", "--format", "{{.Spec.TaskTemplate.ContainerSpec.Env}}", "web")
		eventually(t, "the log of every replica is shown", patience, func() error {
			out := c.docker(t, "vm1", "service", "logs", "web")
			for slot := 1; slot <= 3; slot++ {
				if !regexp.MustCompile(fmt.Sprintf(`(?m)^web\.%d\.\w+@vm\d +\| serving$`, slot)).MatchString(out) {
					return fmt.Errorf("slot %d says nothing:\n%s", slot, out)
				}
			}
			return nil
		})
		log := c.follow(t, "vm1", "service", "logs", "--follow", "--tail", "0", "web")
		eventually(t, "a request shows in the log that is followed", patience, func() error {
			if _, err := ask(t.Context(), c.addr("vm2", 8080)); err != nil {
				return err
			}
			return log.saw(`\| GET / from ` + regexp.QuoteMeta(c.MachineAddr().String()))
		})
		log.end()
		says(t, `^web\n$`, "service", "rm", "web")
		eventually(t, "the service is gone", patience, func() error { return c.empty(t.Context()) })
	})
	t.Run("stack", func(t *testing.T) {
		file := writeFile(t, "stack.yml", fmt.Sprintf("version: '3.8'\nservices:\n  web:\n    image: %s:1\n    deploy: {replicas: 2}\n    networks: [front]\nnetworks:\n  front: {}\n", c.witness))
		says(t, `(?s)Creating network s_front\nCreating service s_web\n`, "stack", "deploy", "--detach=true", "-c", file, "s")
		c.running(t, "s_web", 2)
		says(t, `(?m)^s\s+1\b`, "stack", "ls")
		says(t, `(?s)s_web\.1 .*s_web\.2 `, "stack", "ps", "s")
		says(t, `s_web\s+replicated\s+2/2`, "stack", "services", "s")
		says(t, `s_front\s+overlay\s+swarm`, "network", "ls")
		says(t, `(?s)Removing service s_web\nRemoving network s_front\n`, "stack", "rm", "s")
		eventually(t, "the stack is gone", patience, func() error { return c.empty(t.Context()) })
	})
	t.Run("network", func(t *testing.T) {
		says(t, `^\w{25}\n$`, "network", "create", "--driver", "overlay", "--label", "x=y", "net1")
		says(t, `^overlay swarm 10\.\d+\.\d+\.0/24\n$`, "network", "inspect", "--format", "{{.Driver}} {{.Scope}} {{(index .IPAM.Config 0).Subnet}}", "net1")
		says(t, `(?s)bridge\s+bridge\s+local.*ingress\s+overlay\s+swarm.*net1\s+overlay\s+swarm`, "network", "ls")
		says(t, `^net1\n$`, "network", "rm", "net1")
		says(t, `^\w{64}\n$`, "network", "create", "local1")
		says(t, `^local1\n$`, "network", "rm", "local1")
	})
	t.Run("containers of this node", func(t *testing.T) {
		c.docker(t, "vm1", "service", "create", "--quiet", "--detach", "--name", "g", "--mode", "global", c.witness+":1")
		here := on(c.running(t, "g", 3), "vm1")[0]
		says(t, `(?m)^`+here.id[:12]+`\s.*\s`+regexp.QuoteMeta(here.name)+`$`, "ps")
		says(t, `serving`, "logs", here.id)
		says(t, `^no tty\n$`, "exec", here.id, "/witness", "say", "no", "tty")
		// A terminal has to be there for -it: script makes one.
		out, err := c.Output(t.Context(), "vm1", "script", "-qec", "docker -H unix:///run/miniswarm.sock exec -it "+here.id+" /witness say a tty", "/dev/null")
		if err != nil || !strings.Contains(out, "a tty\r\n") {
			t.Errorf("exec -it: %q %v", out, err)
		}
		says(t, `^run\n$`, "run", "--rm", c.witness+":1", "say", "run")
		out, err = c.Output(t.Context(), "vm1", "sh", "-c", "echo in | docker -H unix:///run/miniswarm.sock run --rm -i "+c.witness+":1 say through")
		if err != nil || out != "through\n" {
			t.Errorf("run -i: %q %v", out, err)
		}
		c.docker(t, "vm1", "service", "rm", "g")
	})
	t.Run("events", func(t *testing.T) {
		for _, pattern := range []string{`service create \w{25} \(name=web\)`, `service update .*name=web.*replicas.new=3, replicas.old=2`, `service remove .*name=web`,
			`node update \w{25} \(availability.new=drain, availability.old=active, name=vm3\)`, `container start \w{64} .*witness`, `container die `} {
			eventually(t, "an event matches "+pattern, patience, func() error { return events.saw(pattern) })
		}
	})
}

// stream is the output of a command that goes on.
type stream struct {
	cancel context.CancelFunc
	ended  chan struct{}
	lines  chan string
	seen   []string
}

// follow starts a docker command that does not end by itself.
func (c *testCluster) follow(t *testing.T, host string, args ...string) *stream {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	s := &stream{cancel: cancel, ended: make(chan struct{}), lines: make(chan string, 10000)}
	r, w := io.Pipe()
	go func() {
		defer close(s.ended)
		_ = c.Exec(ctx, host, append([]string{"docker", "-H", "unix:///run/miniswarm.sock"}, args...), lab.Stdio{Out: w, Err: w})
		w.Close()
	}()
	go func() {
		for in := bufio.NewScanner(r); in.Scan(); {
			s.lines <- in.Text()
		}
	}()
	t.Cleanup(s.end)
	return s
}

func (s *stream) end() { s.cancel(); <-s.ended }

// saw says whether a line has matched so far.
func (s *stream) saw(pattern string) error {
	for {
		select {
		case line := <-s.lines:
			s.seen = append(s.seen, line)
			continue
		case <-time.After(10 * time.Millisecond):
		}
		break
	}
	re := regexp.MustCompile(pattern)
	for _, line := range s.seen {
		if re.MatchString(line) {
			return nil
		}
	}
	return fmt.Errorf("no line of %d matches %s:\n%s", len(s.seen), pattern, strings.Join(s.seen[max(0, len(s.seen)-30):], "\n"))
}
