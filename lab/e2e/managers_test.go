package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/lab"
)

// failoverBound is how long the cluster may take no writes after its leader is lost; the bar is 1.5 s.
const failoverBound = 30 * time.Second

// Three managers: what was acknowledged stays (I1), containers outlive every manager, a minority changes nothing and
// serves on (I13).
func TestManagers(t *testing.T) {
	c := ownLab(t, "managers", lab.Options{Nodes: 3, Managers: 3, Cluster: true})
	c.managers = []string{"vm1", "vm2", "vm3"}
	ctx := t.Context()
	c.allReady(t)
	c.miniswarm(t, "vm2", "service", "create", "--detach", "--name", "w", "--replicas", "6", "--publish", "8080:8000", "--publish", "8081:8001", c.witness+":1")
	old := c.running(t, "w", 6)
	kept := dialTalks(t, 6, c.addr("vm1", 8081), c.addr("vm2", 8081), c.addr("vm3", 8081))
	ledger := &ledger{c: c}

	t.Run("the leader's daemon is killed", func(t *testing.T) {
		leader := c.currentLeader(t)
		p := startProbe(t, c.addr("vm1", 8080), c.addr("vm2", 8080), c.addr("vm3", 8080))
		w := ledger.write(t, c.others(leader)...)
		w.acknowledged(t, 20)
		if err := c.KillDaemon(ctx, leader); err != nil {
			t.Fatal(err)
		}
		took := w.next(t, time.Now())
		t.Logf("leader killed -> no writes for %.2f s", took.Seconds())
		w.stop()
		if now := c.currentLeader(t); now == leader {
			t.Errorf("%s leads without a daemon", now)
		}
		ledger.check(t, c.others(leader)...)
		untouched(t, old, c.replicas(t, "w"))
		if err := c.StartDaemon(ctx, leader); err != nil {
			t.Fatal(err)
		}
		c.reachable(t, 3)
		ledger.check(t, leader)
		untouched(t, old, c.running(t, "w", 6))
		if err := kept.alive(); err != nil {
			t.Error(err)
		}
		p.none(t, "while the leader's daemon was away")
	})

	t.Run("all daemons are killed", func(t *testing.T) {
		w := ledger.write(t, "vm1", "vm2", "vm3")
		w.acknowledged(t, 20)
		p := startProbe(t, c.addr("vm1", 8080), c.addr("vm2", 8080), c.addr("vm3", 8080))
		all(t, c.managers, func(host string) error { return c.KillDaemon(ctx, host) })
		w.stop()
		if err := kept.alive(); err != nil {
			t.Errorf("without any daemon: %v", err)
		}
		all(t, c.managers, func(host string) error { return c.StartDaemon(ctx, host) })
		c.allReady(t)
		c.reachable(t, 3)
		ledger.check(t, c.managers...)
		untouched(t, old, c.running(t, "w", 6))
		if err := kept.alive(); err != nil {
			t.Errorf("with all daemons back: %v", err)
		}
		p.none(t, "while all daemons were away")
	})

	t.Run("a follower is cut off", func(t *testing.T) { c.cutOff(t, ledger, c.others(c.currentLeader(t))[0]) })
	t.Run("the leader is cut off", func(t *testing.T) { c.cutOff(t, ledger, c.currentLeader(t)) })

	t.Run("the leader's power fails", func(t *testing.T) {
		leader := c.currentLeader(t)
		rest := c.others(leader)
		before := c.running(t, "w", 6)
		p := startProbe(t, c.addr(rest[0], 8080), c.addr(rest[1], 8080))
		w := ledger.write(t, rest...)
		w.acknowledged(t, 20)
		if err := c.Fail(ctx, leader); err != nil {
			t.Fatal(err)
		}
		lost := time.Now()
		took := w.next(t, lost)
		t.Logf("leader's power failed -> no writes for %.2f s", took.Seconds())
		now := c.runningElsewhere(t, "w", 6, leader)
		t.Logf("leader's power failed -> its replicas running elsewhere: %.1f s", time.Since(lost).Seconds())
		w.stop()
		untouched(t, on(before, rest...), now)
		p.settled(t, "clients of the other nodes", lost)
		ledger.check(t, rest...)
		if err := c.Start(ctx, leader); err != nil {
			t.Fatal(err)
		}
		c.allReady(t)
		c.reachable(t, 3)
		ledger.check(t, leader)
		untouched(t, now, c.running(t, "w", 6))
		eventually(t, "containers are accounted for", patience, func() error { return c.accounted(ctx) })
	})

	t.Run("two of three lose their power", func(t *testing.T) {
		leader := c.currentLeader(t)
		rest := c.others(leader)
		mine := on(c.running(t, "w", 6), rest[0])
		all(t, []string{leader, rest[1]}, func(host string) error { return c.Fail(ctx, host) })
		if err := ledger.tryWrite(ctx, rest[0]); err == nil {
			t.Errorf("%s alone acknowledged a write", rest[0])
		} else {
			t.Logf("a write without a majority: %v", err)
		}
		if len(mine) > 0 {
			eventually(t, "the node that is left serves with what it has", patience, func() error {
				return everyone(byShortID(mine), 6, func() (answer, error) { return ask(ctx, c.addr(rest[0], 8080)) }, "")
			})
		}
		all(t, []string{leader, rest[1]}, func(host string) error { return c.Start(ctx, host) })
		c.allReady(t)
		ledger.check(t, c.managers...)
		untouched(t, mine, c.running(t, "w", 6))
		w := ledger.write(t, rest[0])
		w.acknowledged(t, 5)
		w.stop()
	})
}

// cutOff pulls the cable of one manager: it acknowledges nothing, its containers run and serve on, the others go on
// writing; when the cable is back it catches up.
func (c *testCluster) cutOff(t *testing.T, ledger *ledger, host string) {
	ctx := t.Context()
	before := c.running(t, "w", 6)
	rest := c.others(host)
	if err := c.Cut(ctx, host); err != nil {
		t.Fatal(err)
	}
	lost := time.Now()
	w := ledger.write(t, rest...)
	took := w.next(t, lost)
	t.Logf("%s cut off -> no writes for %.2f s", host, took.Seconds())
	w.acknowledged(t, 20)
	w.stop()
	if err := ledger.tryWrite(ctx, host); err == nil {
		t.Errorf("%s acknowledged a write without a majority", host)
	} else {
		t.Logf("a write to the manager that is cut off: %v", err)
	}
	mine := on(before, host)
	c.servesItself(t, host, mine)
	eventually(t, "its replicas run elsewhere as well", patience, func() error {
		all, err := c.tryReplicas(ctx, "w")
		if n := len(on(all, rest...)); err != nil || n != 6 {
			return fmt.Errorf("%d elsewhere: %w", n, err)
		}
		untouched(t, before, all)
		return nil
	})
	ledger.check(t, rest...)
	if err := c.Heal(ctx, host); err != nil {
		t.Fatal(err)
	}
	c.allReady(t)
	c.reachable(t, 3)
	ledger.check(t, c.managers...)
	c.running(t, "w", 6)
	eventually(t, "containers are accounted for", patience, func() error { return c.accounted(ctx) })
	// Even out again, for the next scenario wants replicas everywhere.
	c.miniswarm(t, rest[0], "service", "update", "--force", "--update-parallelism", "0", "w")
	c.running(t, "w", 6)
}

// all does something to several hosts at once.
func all(t *testing.T, hosts []string, do func(string) error) {
	t.Helper()
	errs := make([]error, len(hosts))
	var wg sync.WaitGroup
	for i, h := range hosts {
		wg.Go(func() { errs[i] = do(h) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func (c *testCluster) others(host string) []string {
	return slices.DeleteFunc(slices.Clone(c.managers), func(m string) bool { return m == host })
}

// currentLeader waits until the managers that run agree on a leader, and names its host.
func (c *testCluster) currentLeader(t *testing.T) string {
	t.Helper()
	var leader string
	eventually(t, "the managers agree on a leader", patience, func() error {
		leader = ""
		for _, m := range c.managers {
			if h, err := c.Host(m); err != nil || !h.Daemon || h.Cut || len(h.Faults) > 0 {
				continue
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			nodes, err := c.swarm(m).NodeList(ctx, swarm.NodeListOptions{})
			cancel()
			if err != nil {
				return err
			}
			for _, n := range nodes {
				if n.ManagerStatus != nil && n.ManagerStatus.Leader {
					if leader != "" && leader != n.Description.Hostname {
						return fmt.Errorf("%s is said to lead, and %s", leader, n.Description.Hostname)
					}
					leader = n.Description.Hostname
				}
			}
		}
		if leader == "" {
			return errors.New("nobody leads")
		}
		return nil
	})
	return leader
}

// reachable waits until `node ls` shows that many managers as reachable.
func (c *testCluster) reachable(t *testing.T, want int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d managers are reachable", want), patience, func() error {
		nodes, err := c.swarm(c.leader()).NodeList(t.Context(), swarm.NodeListOptions{})
		n := 0
		for _, node := range nodes {
			if node.ManagerStatus != nil && node.ManagerStatus.Reachability == swarm.ReachabilityReachable {
				n++
			}
		}
		if err != nil || n != want {
			return fmt.Errorf("%d: %w", n, err)
		}
		return nil
	})
}

// ledger makes writes and remembers which of them were acknowledged: those must be there for ever.
type ledger struct {
	c *testCluster

	mu    sync.Mutex
	asked int
	acked map[string]string // id to name
}

// tryWrite creates one object through a manager.
func (l *ledger) tryWrite(ctx context.Context, host string) error {
	l.mu.Lock()
	l.asked++
	name := fmt.Sprintf("write-%d", l.asked)
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	api := l.c.swarm(host)
	defer api.Close()
	resp, err := api.ConfigCreate(ctx, swarm.ConfigSpec{Annotations: swarm.Annotations{Name: name}, Data: []byte(name)})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.acked == nil {
		l.acked = map[string]string{}
	}
	l.acked[resp.ID] = name
	return nil
}

// check asks each of the managers for everything that was ever acknowledged.
func (l *ledger) check(t *testing.T, hosts ...string) {
	t.Helper()
	l.mu.Lock()
	want := map[string]string{}
	for id, name := range l.acked {
		want[id] = name
	}
	l.mu.Unlock()
	for _, host := range hosts {
		var have []swarm.Config
		eventually(t, "configs are listed by "+host, patience, func() (err error) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			have, err = l.c.swarm(host).ConfigList(ctx, swarm.ConfigListOptions{})
			return err
		})
		got := map[string]string{}
		for _, one := range have {
			got[one.ID] = string(one.Spec.Data)
		}
		lost := 0
		for id, name := range want {
			if got[id] != name {
				lost++
			}
		}
		if lost > 0 {
			t.Errorf("%d of %d acknowledged writes are not there, asking %s", lost, len(want), host)
		}
	}
}

// writer writes without pause through some managers in turn.
type writer struct {
	cancel context.CancelFunc
	ended  chan struct{}

	started time.Time

	mu   sync.Mutex
	acks []acknowledged
	errs []error
}

type acknowledged struct{ begun, ended time.Time }

func (l *ledger) write(t *testing.T, hosts ...string) *writer {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	w := &writer{cancel: cancel, ended: make(chan struct{}), started: time.Now()}
	go func() {
		defer close(w.ended)
		for n := 0; ctx.Err() == nil; n++ {
			at := time.Now()
			err := l.tryWrite(ctx, hosts[n%len(hosts)])
			w.mu.Lock()
			if err == nil {
				w.acks = append(w.acks, acknowledged{at, time.Now()})
			} else if ctx.Err() == nil {
				w.errs = append(w.errs, err)
			}
			w.mu.Unlock()
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	t.Cleanup(w.stop)
	return w
}

func (w *writer) stop() { w.cancel(); <-w.ended }

// acknowledged waits for so many acknowledged writes.
func (w *writer) acknowledged(t *testing.T, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d writes are acknowledged", n), patience, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.acks) < n {
			return fmt.Errorf("%d; errors: %v", len(w.acks), errors.Join(w.errs...))
		}
		return nil
	})
}

// next waits for the acknowledgement of a write that was begun after lost, and returns the longest time from one
// acknowledgement to the next: for so long the cluster took no writes.
func (w *writer) next(t *testing.T, lost time.Time) time.Duration {
	t.Helper()
	eventually(t, "a write is acknowledged", failoverBound, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.acks) == 0 || w.acks[len(w.acks)-1].begun.Before(lost) {
			return fmt.Errorf("none; errors: %v", errors.Join(w.errs...))
		}
		return nil
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	longest, last := time.Duration(0), w.started
	for _, a := range w.acks {
		longest, last = max(longest, a.ended.Sub(last)), a.ended
	}
	return longest
}
