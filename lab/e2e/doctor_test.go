package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miniswarm/miniswarm/lab"
)

// diagnosis is what 'miniswarm doctor --format json' prints.
type diagnosis struct {
	Node    report
	Cluster *struct {
		Findings []finding
		Nodes    []report
	}
	Unasked *finding
	code    int
}

type report struct {
	Hostname string
	Findings []finding
}

type finding struct{ Check, Level, Says, Cure string }

// doctor asks on a host.
func (c *testCluster) doctor(t *testing.T, host string) (d diagnosis, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	s := c.run(ctx, t, host, nil, "doctor", "--format", "json", "--state-dir", "/nowhere")
	d.code = s.code
	if err := json.Unmarshal([]byte(s.out), &d); err != nil {
		return d, fmt.Errorf("doctor on %s: %w: %s %s", host, err, s.out, s.err)
	}
	return d, nil
}

// of are the findings about a node, or about the cluster.
func (d diagnosis) of(where string) (fs []finding) {
	if where == "cluster" {
		if d.Unasked != nil {
			fs = append(fs, *d.Unasked)
		}
		if d.Cluster != nil {
			fs = append(fs, d.Cluster.Findings...)
		}
		return fs
	}
	if d.Node.Hostname == where {
		return d.Node.Findings
	}
	if d.Cluster != nil {
		for _, r := range d.Cluster.Nodes {
			if r.Hostname == where {
				return r.Findings
			}
		}
	}
	return nil
}

// want is a finding that a doctor has to have.
type want struct{ where, check, level, says string }

func (d diagnosis) has(w want) error {
	for _, f := range d.of(w.where) {
		if f.Check == w.check && f.Level == w.level && strings.Contains(f.Says, w.says) {
			if f.Cure == "" {
				return fmt.Errorf("%s: %s comes without a cure", w.where, f.Says)
			}
			return nil
		}
	}
	return fmt.Errorf("%s: no %s about %s with %q among %+v", w.where, w.level, w.check, w.says, d.of(w.where))
}

// named is nil if asking on these hosts finds all that is wanted, each with that exit code.
func (c *testCluster) named(t *testing.T, ask []string, code int, wants []want) error {
	t.Helper()
	var all []diagnosis
	for _, host := range ask {
		d, err := c.doctor(t, host)
		if err != nil {
			return err
		}
		if d.code != code {
			return fmt.Errorf("on %s: code %d, want %d", host, d.code, code)
		}
		all = append(all, d)
	}
	for _, w := range wants {
		var errs []error
		for _, d := range all {
			errs = append(errs, d.has(w))
		}
		if !slices.Contains(errs, nil) {
			return errors.Join(errs...)
		}
	}
	return nil
}

// diskIsSlow says that a finding is about how long this machine's disk takes to keep something, which all hosts of all labs share
// and which says nothing about the cluster.
func diskIsSlow(f finding) bool {
	return f.Check == "disk latency" && strings.Contains(f.Says, "until the disk has it")
}

// well is nil if nothing at all is wrong.
func (d diagnosis) well(nodes int) error {
	if d.Cluster == nil || len(d.Cluster.Nodes) != nodes {
		return fmt.Errorf("not all nodes reported: %+v", d)
	}
	slow := false
	for _, where := range append([]report{d.Node, {"cluster", d.of("cluster")}}, d.Cluster.Nodes...) {
		for _, f := range where.Findings {
			switch {
			case f.Level == "ok":
			case diskIsSlow(f):
				slow = true
			default:
				return fmt.Errorf("%s: %+v", where.Hostname, f)
			}
		}
	}
	if d.code != 0 && !slow {
		return fmt.Errorf("all is well with code %d", d.code)
	}
	return nil
}

// A healthy cluster has nothing wrong with it; what is broken then is named where it is, with its cure, and not any more once
// it is repaired.
func TestDoctor(t *testing.T) {
	c := ownLab(t, "doctor", lab.Options{Nodes: 4, Managers: 3, Cluster: true, DiskMiB: 1024})
	c.managers, c.workers = []string{"vm1", "vm2", "vm3"}, []string{"vm4"}
	ctx := t.Context()
	c.allReady(t)
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "w", "--replicas", "4", "--publish", "8080:8000", c.witness+":1")
	c.running(t, "w", 4)
	healthy := func(t *testing.T) {
		t.Helper()
		eventually(t, "nothing is wrong", patience, func() error {
			d, err := c.doctor(t, "vm1")
			if err != nil {
				return err
			}
			return d.well(4)
		})
	}
	healthy(t)
	if out := c.miniswarm(t, "vm4", "doctor", "--all"); !strings.Contains(out, "this is a worker") || strings.Contains(out, "\x1b") {
		t.Errorf("on a worker:\n%s", out)
	}

	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		name       string
		hurt, cure func() error
		code       int
		ask        []string
		wants      []want
		remembered bool // for a while, after it is repaired
	}{
		{"an engine is stopped", func() error { return c.StopEngine(ctx, "vm4") }, func() error { return c.StartEngine(ctx, "vm4") }, 2, []string{"vm1"},
			[]want{{"vm4", "engine", "failure", "does not answer"}}, false},
		{"a manager is cut off, and says so itself", func() error { return c.Cut(ctx, "vm3") }, func() error { return c.Heal(ctx, "vm3") }, 2, []string{"vm1", "vm3"},
			[]want{{"cluster", "quorum", "failure", "does not hear from manager vm3"}, {"cluster", "quorum", "failure", "0 more may be lost"}, {"cluster", "nodes", "failure", "vm3 ("}, {"vm1", "managers", "failure", "does not answer"},
				{"cluster", "cluster", "failure", "cannot be looked at"}, {"vm3", "session", "failure", "no session with a leader"}, {"vm3", "managers", "failure", "does not answer"}}, false},
		{"a disk is full", func() error { return c.FillDisk(ctx, "vm4") }, func() error { return c.FreeDisk(ctx, "vm4") }, 2, []string{"vm1"},
			[]want{{"vm4", "disk", "failure", "MiB free"}}, false},
		{"a daemon is stopped", func() error { return c.StopDaemon(ctx, "vm4") }, func() error { return c.StartDaemon(ctx, "vm4") }, 2, []string{"vm4"},
			[]want{{"vm4", "daemon", "failure", "no daemon answers"}}, false},
		{"a service finds no place", func() error {
			_, err := c.tryMiniswarm(t, "vm1", "service", "create", "--detach", "--name", "nowhere", "--constraint", "node.hostname==none", c.witness+":1")
			return err
		}, func() error { _, err := c.tryMiniswarm(t, "vm1", "service", "rm", "nowhere"); return err }, 1, []string{"vm1"},
			[]want{{"cluster", "services", "warning", "nowhere: 0 of 1 tasks run; no suitable node (scheduling constraints not satisfied on 4 nodes)"}}, false},
		{"somebody flushes our rules", func() error { _, err := c.Output(ctx, "vm2", "nft", "delete", "table", "ip", "miniswarm"); return err }, func() error { return nil }, 1, []string{"vm1"},
			[]want{{"vm2", "data plane", "warning", "repaired"}}, true},
	} {
		if !t.Run(step.name, func(t *testing.T) {
			must(t, step.hurt())
			eventually(t, "it is named, with a cure", patience, func() error {
				return c.named(t, step.ask, step.code, step.wants)
			})
			must(t, step.cure())
			if !step.remembered {
				healthy(t)
			}
		}) {
			return
		}
	}
}
