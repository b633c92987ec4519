package e2e

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/lab"
)

// What cannot work is refused in words that say what and where, and nothing of it is left.
func TestRefusals(t *testing.T) {
	c := onShared(t)
	refused := func(t *testing.T, pattern string, args ...string) {
		t.Helper()
		out, err := c.tryMiniswarm(t, "vm1", args...)
		if err == nil {
			t.Errorf("miniswarm %s was accepted:\n%s", strings.Join(args, " "), out)
		} else if said := out + err.Error(); !regexp.MustCompile(pattern).MatchString(said) {
			t.Errorf("miniswarm %s does not say %q:\n%s", strings.Join(args, " "), pattern, said)
		}
	}
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "first", "--publish", "8080:8000", c.witness+":1")

	t.Run("one port twice", func(t *testing.T) {
		refused(t, `port '8080' is already in use by service 'first' \(\w{25}\) as an ingress port`,
			"service", "create", "--detach", "--name", "second", "--publish", "8080:8000", c.witness+":1")
		refused(t, `name conflicts with an existing object: service first already exists`, "service", "create", "--detach", "--name", "first", c.witness+":1")
		refused(t, `(?i)no such service: nosuch|service nosuch not found`, "service", "scale", "--detach", "nosuch=2")
	})

	for _, compose := range []struct{ name, text, says string }{
		{"a value of the wrong type", "version: '3.8'\nservices:\n  web:\n    image: x\n    deploy:\n      replicas: many\n", `compose\.yml:6: services\.web\.deploy\.replicas: `},
		{"an unknown key", "version: '3.8'\nservices:\n  web:\n    imag: x\n", `compose\.yml:4: services\.web\.imag: .*imag is not allowed`},
		{"no YAML", "version: '3.8'\nservices:\n  web:\n    ports: [1\n", `compose\.yml:\d: `},
		{"a network that is not there", "version: '3.8'\nservices:\n  web:\n    image: x\n    networks: [nope]\n", `compose\.yml:5: services\.web\.networks.*nope`},
		{"a port that is none", "version: '3.8'\nservices:\n  web:\n    image: x\n    ports: ['80:eighty']\n", `compose\.yml:5: services\.web\.ports`},
	} {
		t.Run("Compose file with "+compose.name, func(t *testing.T) {
			refused(t, compose.says, "stack", "deploy", "--detach", "-c", writeFile(t, "compose.yml", compose.text), "s")
		})
	}
	services, err := c.swarm("vm1").ServiceList(t.Context(), swarm.ServiceListOptions{})
	if err != nil || len(services) != 1 {
		t.Errorf("%d services after all refusals, want 1: %v", len(services), err)
	}
}

// What fits nowhere waits, says why with the numbers, and runs as soon as something has changed.
func TestPendingSaysWhy(t *testing.T) {
	c := onShared(t)
	for _, wait := range []struct {
		name    string
		create  []string
		says    string // by service ps
		explain string // by task explain
		change  []string
	}{
		{"a reservation nobody can meet", []string{"--reserve-memory", "900g"}, "no suitable node (insufficient resources on 3 nodes)",
			`(?s)needs 900 GiB, \S+ GiB free.*needs 900 GiB, \S+ GiB free.*needs 900 GiB`, []string{"service", "update", "--detach", "--reserve-memory", "8m", "w"}},
		{"a constraint nobody meets", []string{"--constraint", "node.labels.zone==a"}, "no suitable node (scheduling constraints not satisfied on 3 nodes)",
			`node\.labels\.zone is "", must be "a"`, []string{"node", "update", "--label-add", "zone=a", "vm2"}},
	} {
		t.Run(wait.name, func(t *testing.T) {
			c.miniswarm(t, "vm1", append(append([]string{"service", "create", "--detach", "--name", "w"}, wait.create...), c.witness+":1")...)
			eventually(t, "service ps says why it waits", patience, func() error {
				return contains(c.miniswarm(t, "vm1", "service", "ps", "--no-trunc", "w"), wait.says)
			})
			task := strings.Fields(c.miniswarm(t, "vm1", "service", "ps", "-q", "w"))[0]
			for _, out := range []string{c.miniswarm(t, "vm1", "task", "explain", task), c.miniswarm(t, "vm1", "service", "explain", "w")} {
				if !regexp.MustCompile(wait.explain).MatchString(out) {
					t.Errorf("the explanation lacks %q:\n%s", wait.explain, out)
				}
			}
			t.Cleanup(func() { _ = c.relabel(context.WithoutCancel(t.Context()), "vm2") })
			c.miniswarm(t, "vm1", wait.change...)
			where := c.running(t, "w", 1)[0]
			if strings.Contains(wait.change[0], "node") && where.host != "vm2" {
				t.Errorf("it runs on %s, the label is on vm2", where.host)
			}
			c.miniswarm(t, "vm1", "service", "rm", "w")
		})
	}
}

// Joining with the wrong word or at the wrong door says which of the two it was, and leaves the machine as it was.
func TestJoinRefused(t *testing.T) {
	c := onShared(t)
	ctx := t.Context()
	worker := strings.TrimSpace(c.miniswarm(t, "vm1", "token", "-q", "worker"))
	// A cluster that vm4 has founded and left has a token of the right form.
	c.miniswarm(t, "vm4", "init")
	foreign := strings.TrimSpace(c.miniswarm(t, "vm4", "token", "-q", "worker"))
	c.miniswarm(t, "vm4", "leave", "--force")
	parts := strings.Split(worker, "-") // SWMTKN-1-digest-secret
	if len(parts) != 4 {
		t.Fatalf("token %q", worker)
	}
	secret := parts[3]
	wrong := strings.Join(parts[:3], "-") + "-" + flip(secret)
	rotated := strings.TrimSpace(c.miniswarm(t, "vm1", "token", "-q", "manager"))
	c.miniswarm(t, "vm1", "token", "--rotate", "-q", "manager")
	state := filepath.Join(c.Dir(), "vm4", "miniswarm")
	before := tree(t, state)

	for _, join := range []struct{ name, token, addr, says string }{
		{"a wrong secret", wrong, c.addr("vm1", 2377), `(?i)token`},
		{"a token that was rotated", rotated, c.addr("vm1", 2377), `(?i)token`},
		{"a truncated token", worker[:len(worker)-5], c.addr("vm1", 2377), `(?i)token`},
		{"no token at all", "sesame", c.addr("vm1", 2377), `(?i)token`},
		{"another cluster's token", foreign, c.addr("vm1", 2377), `(?i)certificate|cluster|token`},
		{"nobody at that address", worker, strings.TrimSuffix(c.addr("vm1", 2377), "11:2377") + "200:2377", `(?i)reach|route|timeout|timed out`},
		{"a peer that speaks in clear", worker, c.Registry(), `(?i)TLS|plain|clear|HTTP`},
		{"a worker's door", worker, c.addr("vm2", 2377), `(?i)manager|refused`},
	} {
		t.Run(join.name, func(t *testing.T) {
			start := time.Now()
			out, err := c.tryMiniswarm(t, "vm4", "join", "--token", join.token, join.addr)
			if err == nil {
				t.Fatalf("vm4 joined:\n%s", out)
			}
			t.Logf("%.1f s: %v", time.Since(start).Seconds(), err)
			if !regexp.MustCompile(join.says).MatchString(out + err.Error()) {
				t.Errorf("that does not match %s", join.says)
			}
			for _, secret := range []string{secret, flip(secret)} {
				if strings.Contains(out+err.Error(), secret) {
					t.Error("the error tells the secret")
				}
			}
			if got := strings.TrimSpace(c.docker(t, "vm4", "info", "--format", "{{.Swarm.LocalNodeState}}")); got != "inactive" {
				t.Errorf("vm4 is %s", got)
			}
			if after := tree(t, state); !slices.Equal(after, before) {
				t.Errorf("the state directory held %v and now holds %v", before, after)
			}
		})
	}
	nodes, err := c.swarm("vm1").NodeList(ctx, swarm.NodeListOptions{})
	if err != nil || len(nodes) != 3 {
		t.Errorf("%d nodes after all that, want 3: %v", len(nodes), err)
	}

	t.Run("the right word at the right door", func(t *testing.T) {
		c.joinSpare(t)
		c.leaveSpare(t)
	})
}

// A process that holds a published port already is named and keeps its traffic; once it has gone the mesh has the port.
func TestPortHeldByAnother(t *testing.T) {
	c := onShared(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	held := make(chan error, 1)
	go func() { held <- c.Exec(ctx, "vm2", []string{c.witnessBinary(), "hold", "0.0.0.0:8085"}, lab.Stdio{}) }()
	eventually(t, "another process listens on vm2", patience, func() error {
		_, err := c.Output(ctx, "vm2", "sh", "-c", "ss -ltn | grep :8085")
		return err
	})
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "w", "--publish", "8085:8000", c.witness+":1")
	c.running(t, "w", 1)
	for _, n := range []string{"vm1", "vm3"} {
		eventually(t, n+" answers", patience, func() error { _, err := ask(ctx, c.addr(n, 8085)); return err })
	}
	eventually(t, "the log of vm2 names the service and the port", patience, func() error {
		h, err := c.Host("vm2")
		if err != nil {
			return err
		}
		data, err := os.ReadFile(h.DaemonLog)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(data)) {
			if strings.Contains(line, "8085") && strings.Contains(line, "service w") {
				t.Log(strings.TrimSpace(line))
				return nil
			}
		}
		return contains(string(data), "a line with 8085 and the service")
	})
	if a, err := ask(ctx, c.addr("vm2", 8085)); err == nil {
		t.Errorf("%s answered in place of the process that holds the port on vm2", a.Replica)
	}
	cancel()
	<-held
	eventually(t, "vm2 answers once the port is free", patience, func() error { _, err := ask(t.Context(), c.addr("vm2", 8085)); return err })
}

// relabel takes all labels from a node.
func (c *testCluster) relabel(ctx context.Context, host string) error {
	api := c.swarm(c.leader())
	nodes, err := api.NodeList(ctx, swarm.NodeListOptions{})
	for _, n := range nodes {
		if n.Description.Hostname == host && len(n.Spec.Labels) > 0 {
			n.Spec.Labels = nil
			err = api.NodeUpdate(ctx, n.ID, n.Version, n.Spec)
		}
	}
	return err
}

// flip changes every character of a token's secret and keeps its form.
func flip(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '1' {
			return '2'
		}
		return '1'
	}, s)
}

// tree lists the files below a directory.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && path != dir {
			all = append(all, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func contains(text, want string) error {
	if !strings.Contains(text, want) {
		return &missing{text, want}
	}
	return nil
}

type missing struct{ text, want string }

func (m *missing) Error() string { return "it does not say " + m.want + ":\n" + m.text }
