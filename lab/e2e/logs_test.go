package e2e

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// Logs of all nodes, while nodes come and go: who is away is named, the others are shown, nobody waits for ever, and a log
// that is followed goes on when the node is back.
func TestLogs(t *testing.T) {
	c := onShared(t)
	const everybody = 3
	c.docker(t, "vm1", "service", "create", "--quiet", "--name", "talk", "--mode", "global", "--publish", "mode=host,published=8081,target=8000", "--env", "WHO=me", "--container-label", "app=a,b", "--log-driver", "json-file",
		"--log-opt", "labels=app", "--log-opt", "env=WHO", c.witness+":1")
	c.running(t, "talk", everybody)
	// logs gives what is said on both streams, and how long it took.
	logs := func(args ...string) (string, time.Duration) {
		began := time.Now()
		cmd := "docker -H unix:///run/miniswarm.sock service logs " + strings.Join(args, " ") + " 2>&1"
		out, _ := c.Output(t.Context(), "vm1", "sh", "-c", cmd) // its exit code says that something is missing
		return out, time.Since(began)
	}
	says := func(out, host string) bool {
		return regexp.MustCompile(`(?m)^talk\.0\.\w{12}@` + host + ` +\| serving$`).MatchString(out)
	}
	eventually(t, "every node's log is shown", patience, func() error {
		if out, _ := logs("talk"); !says(out, "vm1") || !says(out, "vm2") || !says(out, "vm3") {
			return fmt.Errorf("the log:\n%s", out)
		}
		return nil
	})
	for _, tc := range []struct{ name, args, pattern string }{
		{"details", "--details talk", `(?m)^talk\.0\.\w{12}@vm2 +\| WHO=me,app=a,b serving$`},
		{"raw", "--raw talk", `(?m)^serving$`},
		{"timestamps", "--timestamps --no-task-ids talk", `(?m)^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z talk\.0@vm3 +\| serving$`},
		{"full ids", "--no-trunc --no-resolve talk", `(?m)^\w{25}\.0\.\w{25}@\w{25} +\| serving$`},
		{"none", "--tail 0 talk", `^$`},
		{"since", "--since 2100-01-01T00:00:00Z talk", `^$`},
	} {
		if out, _ := logs(tc.args); !regexp.MustCompile(tc.pattern).MatchString(out) {
			t.Errorf("%s: service logs %s said:\n%s", tc.name, tc.args, out)
		}
	}

	follow := c.follow(t, "vm1", "service", "logs", "--follow", "--tail", "0", "talk")
	vm3 := strings.TrimSpace(c.docker(t, "vm1", "node", "inspect", "--format", "{{.ID}}", "vm3"))
	missing := func(t *testing.T, pattern, host string, limit time.Duration) {
		t.Helper()
		eventually(t, "a node is named as missing", patience, func() error {
			out, took := logs("talk")
			if !regexp.MustCompile("warning: incomplete log stream. some logs could not be retrieved for the following reasons: "+pattern).MatchString(out) || says(out, host) || !says(out, "vm1") {
				return fmt.Errorf("the log:\n%s", out)
			}
			if took > limit {
				t.Errorf("it took %s to find out", took)
			}
			return nil
		})
	}
	if err := c.Cut(t.Context(), "vm3"); err != nil {
		t.Fatal(err)
	}
	missing(t, "node "+vm3+" (is not available|disconnected unexpectedly)", "vm3", patience/3)
	if err := c.Heal(t.Context(), "vm3"); err != nil {
		t.Fatal(err)
	}
	c.allReady(t)
	eventually(t, "the followed log goes on", patience, func() error {
		if _, err := ask(t.Context(), c.addr("vm3", 8081)); err != nil {
			return err
		}
		return follow.saw(`@vm3 +\| GET / from `)
	})
	follow.end()

	// An engine that is alive and does nothing.
	signal := func(t *testing.T, name string) {
		if out, err := c.Output(context.WithoutCancel(t.Context()), "vm2", "sh", "-c", "kill -"+name+" $(pidof dockerd)"); err != nil {
			t.Fatalf("%s: %v %s", name, err, out)
		}
	}
	last := c.follow(t, "vm1", "service", "logs", "--follow", "talk")
	signal(t, "STOP")
	defer signal(t, "CONT")
	missing(t, `node \w{25} has not answered for 10s`, "vm2", patience)

	// What is gone says nothing any more: the log that is followed ends.
	signal(t, "CONT")
	c.docker(t, "vm1", "service", "rm", "talk")
	select {
	case <-last.ended:
	case <-time.After(patience):
		t.Error("the log of a service that is gone is still followed")
	}
}
