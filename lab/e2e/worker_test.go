package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"
)

const (
	// repairBound is how long replicas of a lost node may take to run elsewhere; DESIGN's bar on an idle machine is 5 s.
	repairBound = 60 * time.Second
	// rerouteBound is how long clients of the other nodes may meet a lost node; the bar is 1 s.
	rerouteBound = 10 * time.Second
)

// The power of a worker fails: clients of the other nodes go on after a moment, its replicas run elsewhere, and when the
// machine is back nothing of its old self serves.
func TestWorkerPowerFailure(t *testing.T) {
	c := onShared(t)
	ctx := t.Context()
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "w", "--replicas", "6", "--publish", "8080:8000", c.witness+":1")
	before := c.running(t, "w", 6)
	p := startProbe(t, c.addr("vm1", 8080), c.addr("vm3", 8080))

	if err := c.Fail(ctx, "vm2"); err != nil {
		t.Fatal(err)
	}
	lost := time.Now()
	after := c.runningElsewhere(t, "w", 6, "vm2")
	t.Logf("worker failed -> 6 replicas running elsewhere: %.1f s", time.Since(lost).Seconds())
	if took := time.Since(lost); took > repairBound {
		t.Errorf("repair took %s", took)
	}
	untouched(t, on(before, "vm1", "vm3"), after)
	c.nodeState(t, "vm2", "Down")
	p.settled(t, "clients of the other nodes", lost)

	// The machine comes back. Whoever answers from now on is a replica of today.
	p = startProbe(t, c.addr("vm1", 8080), c.addr("vm3", 8080))
	if err := c.Start(ctx, "vm2"); err != nil {
		t.Fatal(err)
	}
	today := byShortID(after)
	eventually(t, "vm2 serves again, and its containers are accounted for", patience, func() error {
		a, err := ask(ctx, c.addr("vm2", 8080))
		if err != nil {
			return err
		}
		if today[a.Replica] == "" {
			t.Errorf("%s answered through vm2: a replica of before the failure, or none", a.Replica)
		}
		return c.accounted(ctx)
	})
	c.nodeState(t, "vm2", "Ready")
	now := c.running(t, "w", 6)
	untouched(t, after, now)
	p.none(t, "while the worker came back")

	// New work goes there again.
	c.miniswarm(t, "vm1", "service", "scale", "--detach", "w=9")
	if got := spread(c.running(t, "w", 9)); got["vm2"] != 3 {
		t.Errorf("nine replicas are spread as %v", got)
	}
}

// A worker whose cable is pulled keeps its containers and serves its own clients; its replicas are replaced all the same,
// and once the cable is back the old copies go before anybody is sent to them (I4, I10, I13).
func TestWorkerCut(t *testing.T) {
	c := onShared(t)
	ctx := t.Context()
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "w", "--replicas", "6", "--publish", "8080:8000", c.witness+":1")
	before := c.running(t, "w", 6)
	old := on(before, "vm2")

	if err := c.Cut(ctx, "vm2"); err != nil {
		t.Fatal(err)
	}
	lost := time.Now()
	c.nodeState(t, "vm2", "Down")
	eventually(t, "six replicas run elsewhere", repairBound, func() error {
		all, err := c.tryReplicas(ctx, "w")
		if n := len(on(all, "vm1", "vm3")); err != nil || n != 6 {
			return fmt.Errorf("%d replicas elsewhere: %w", n, err)
		}
		return nil
	})
	t.Logf("worker cut -> 6 replicas running elsewhere: %.1f s", time.Since(lost).Seconds())
	all := c.replicas(t, "w")
	untouched(t, before, all)
	c.servesItself(t, "vm2", old)

	p := startProbe(t, c.addr("vm1", 8080), c.addr("vm3", 8080))
	if err := c.Heal(ctx, "vm2"); err != nil {
		t.Fatal(err)
	}
	c.nodeState(t, "vm2", "Ready")
	now := c.running(t, "w", 6)
	if n := len(on(now, "vm2")); n != 0 {
		t.Errorf("%d replicas on the node that came back; nothing should have moved", n)
	}
	untouched(t, on(all, "vm1", "vm3"), now)
	eventually(t, "containers are accounted for and the node that came back serves", patience, func() error {
		if err := c.accounted(ctx); err != nil {
			return err
		}
		return everyone(byShortID(now), 12, func() (answer, error) { return ask(ctx, c.addr("vm2", 8080)) }, "")
	})
	p.none(t, "while the worker came back")
}

// A daemon that starts on a machine that is cut off has never heard of its peers. What a former one left in the kernel leads to
// them, and still it finds out that nobody is to be reached (I13).
func TestWorkerStartsCutOff(t *testing.T) {
	c := onShared(t)
	ctx := t.Context()
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "w", "--replicas", "6", "--publish", "8080:8000", c.witness+":1")
	before := c.running(t, "w", 6)
	eventually(t, "vm2 leads to every replica", patience, func() error {
		return everyone(byShortID(before), 12, func() (answer, error) { return ask(ctx, c.addr("vm2", 8080)) }, "")
	})
	for _, do := range []func(context.Context, string) error{c.StopDaemon, c.Cut, c.StartDaemon} {
		if err := do(ctx, "vm2"); err != nil {
			t.Fatal(err)
		}
	}
	c.servesItself(t, "vm2", on(before, "vm2"))
	if err := c.Heal(ctx, "vm2"); err != nil {
		t.Fatal(err)
	}
	c.nodeState(t, "vm2", "Ready")
	now := c.running(t, "w", 6)
	eventually(t, "the node that came back serves", patience, func() error {
		if err := c.accounted(ctx); err != nil {
			return err
		}
		return everyone(byShortID(now), 12, func() (answer, error) { return ask(ctx, c.addr("vm2", 8080)) }, "")
	})
}

// servesItself waits until a node that is cut off has found out that nobody is to be reached, and answers its own clients
// with its own replicas, every time.
func (c *testCluster) servesItself(t *testing.T, host string, own []replica) {
	t.Helper()
	inside := func() (answer, error) { return c.witnessIn(t, host, "get", "http://127.0.0.1:8080") }
	took := eventually(t, host+", which is cut off, serves its own clients with its own replicas", patience, func() error {
		for range 20 {
			if err := everyone(byShortID(own), 20, inside, ""); err != nil {
				return err
			}
		}
		return nil
	})
	t.Logf("%s, cut off, serves its own clients with its own replicas after %.1f s", host, took.Seconds())
}

// runningElsewhere waits until a service runs n replicas, none of them on host.
func (c *testCluster) runningElsewhere(t *testing.T, service string, n int, host string) []replica {
	t.Helper()
	var all []replica
	eventually(t, fmt.Sprintf("%s runs %d replicas on other hosts than %s", service, n, host), patience, func() (err error) {
		if all, err = c.converged(t.Context(), service, n); err == nil && len(on(all, host)) > 0 {
			err = fmt.Errorf("still %d on %s", len(on(all, host)), host)
		}
		return err
	})
	return all
}

// nodeState waits until `node ls` shows a host in that state.
func (c *testCluster) nodeState(t *testing.T, host, state string) {
	t.Helper()
	eventually(t, host+" is "+state, patience, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		nodes, err := c.swarm(c.leader()).NodeList(ctx, swarm.NodeListOptions{})
		for _, n := range nodes {
			if n.Description.Hostname == host && strings.EqualFold(string(n.Status.State), state) {
				return nil
			}
		}
		if err == nil {
			err = fmt.Errorf("it is not")
		}
		return err
	})
}

// on are the replicas on these hosts.
func on(all []replica, hosts ...string) []replica {
	var some []replica
	for _, r := range all {
		for _, h := range hosts {
			if r.host == h {
				some = append(some, r)
			}
		}
	}
	return some
}

// byShortID gives the host of each replica by the name its container has for itself.
func byShortID(all []replica) map[string]string {
	m := map[string]string{}
	for _, r := range all {
		m[r.id[:12]] = r.host
	}
	return m
}

// settled checks that requests failed or stalled for a moment after something was lost at most, and that none failed before.
func (p *probe) settled(t *testing.T, who string, lost time.Time) {
	t.Helper()
	p.stop()
	failures, asked := p.failed()
	var last time.Duration
	for _, f := range failures {
		if f.at.Add(askLimit).Before(lost) {
			t.Errorf("%s: a request failed %s before anything was lost: %v", who, lost.Sub(f.at), f.err)
		}
		last = max(last, f.at.Sub(lost))
	}
	for _, at := range p.stalls {
		last = max(last, at.Sub(lost))
	}
	t.Logf("%s: %d requests, %d failed, %d stalled, the last of them begun %.2f s after the loss", who, asked, len(failures), len(p.stalls), last.Seconds())
	if last > rerouteBound {
		t.Errorf("%s: a request begun %s after the loss failed or stalled", who, last)
	}
}
