package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/lab"
)

// Machines get other addresses while everything runs, and nobody tells the daemons (F18); then machines are copied (F20). What runs
// goes on, and nobody is another than he was.
func TestMoved(t *testing.T) {
	f := newFaultCluster(t, "moved", 0)
	f.oneAfterTheOther(t, []scenario{
		{"the worker's address changes", func(t *testing.T) { f.move(t, "vm4") }},
		{"a follower's address changes", func(t *testing.T) { f.move(t, f.others(f.currentLeader(t))[0]) }},
		{"the leader's address changes", func(t *testing.T) { f.move(t, f.currentLeader(t)) }},
		{"a follower comes back elsewhere", f.comesBackElsewhere},
		{"all managers' addresses change at once", f.allMove},
		{"a worker is copied", func(t *testing.T) { f.copied(t, "vm4") }},
		{"a manager is copied", func(t *testing.T) { f.copied(t, f.others(f.currentLeader(t))[0]) }},
	})
}

// moveTo gives hosts other addresses at once, and waits for nothing.
func (f *faultCluster) moveTo(t *testing.T, hosts ...string) {
	t.Helper()
	all(t, hosts, func(host string) error {
		_, err := f.Move(t.Context(), host, netip.Addr{})
		return err
	})
	var err error
	f.hosts, err = f.Hosts()
	f.must(t, err)
}

// known waits until the cluster has sessions with hosts at the addresses that they have, and says how long that took.
func (f *faultCluster) known(t *testing.T, through string, hosts ...string) time.Duration {
	t.Helper()
	return eventually(t, "nodes are known at their new addresses", patience, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		nodes, err := f.swarm(through).NodeList(ctx, swarm.NodeListOptions{})
		if err != nil {
			return err
		}
		for _, n := range nodes {
			name := n.Description.Hostname
			if !slices.Contains(hosts, name) {
				continue
			}
			if n.Status.Addr != hostOf(f.addr(name, 1)) || n.ManagerStatus != nil && n.ManagerStatus.Addr != f.addr(name, 2377) {
				return fmt.Errorf("%s is at %s, and known at %s, %+v", name, f.addr(name, 2377), n.Status.Addr, n.ManagerStatus)
			}
		}
		return nil
	})
}

// move gives a host another address. Its tasks go on, and clients of the other hosts meet its old address for a moment at the most.
func (f *faultCluster) move(t *testing.T, host string) {
	through := f.others(host)
	p := startProbe(t, f.entries(host)...)
	moved := time.Now()
	f.undisturbed(t, through, func() time.Duration {
		moved = time.Now()
		f.moveTo(t, host)
		f.known(t, through[0], host)
		return time.Since(moved)
	})
	t.Logf("%s moved -> known, reachable, and serving as before after %.1f s", host, time.Since(moved).Seconds())
	p.settled(t, "clients of the other nodes", moved)
}

// comesBackElsewhere moves a manager while its daemon is off.
func (f *faultCluster) comesBackElsewhere(t *testing.T) {
	host := f.others(f.currentLeader(t))[0]
	f.undisturbed(t, f.others(host), func() time.Duration {
		began := time.Now()
		f.must(t, f.KillDaemon(t.Context(), host))
		f.moveTo(t, host)
		f.must(t, f.StartDaemon(t.Context(), host))
		f.known(t, f.others(host)[0], host)
		return time.Since(began)
	})
}

// allMove gives all managers other addresses, at which none of them looks for another. They have to be told one, and so has the worker.
func (f *faultCluster) allMove(t *testing.T) {
	before := f.whole(t)
	f.moveTo(t, f.managers...)
	moved := time.Now()
	eventually(t, "managers that do not find each other say what to do", patience, func() error {
		d, err := f.doctor(t, "vm1")
		if err != nil {
			return err
		}
		for _, one := range d.Node.Findings {
			if one.Check == "managers" && one.Level == "failure" && strings.Contains(one.Cure, "miniswarm rejoin") {
				return nil
			}
		}
		return fmt.Errorf("%+v", d.Node.Findings)
	})
	told := time.Now()
	all(t, []string{"vm2", "vm3", "vm4"}, func(host string) error {
		return within(t.Context(), patience, func() error {
			_, err := f.tryMiniswarm(t, host, "rejoin", f.addr("vm1", 2377))
			return err
		})
	})
	t.Logf("told one address -> all have sessions: %.1f s", time.Since(told).Seconds())
	f.known(t, "vm1", f.managers...)
	now := f.whole(t)
	t.Logf("all managers moved -> whole after %.1f s", time.Since(moved).Seconds())
	// Who has not found the new leader within the grace is replaced, as after any time without one.
	late := f.calledDown(t, moved)
	t.Logf("called down by the new leader: %v", late)
	untouched(t, on(before, slices.DeleteFunc(f.nodes(), func(host string) bool { return slices.Contains(late, host) })...), now)
	f.spreadOut(t)
}

// calledDown are the hosts that some leader has called down since then, as the managers' logs tell.
func (f *faultCluster) calledDown(t *testing.T, since time.Time) []string {
	t.Helper()
	var down []string
	for _, host := range f.managers {
		for line := range strings.Lines(readFile(t, f.hostNamed(t, host).DaemonLog)) {
			at, err := time.Parse(time.RFC3339Nano, between(line, "time=", " "))
			if err == nil && at.After(since) && strings.Contains(line, `msg="node is down"`) {
				down = append(down, between(line, "hostname=", " "))
			}
		}
	}
	return down
}

// copied runs a copy of a host beside it: the original goes on, and the copy is told what to do, and does it.
func (f *faultCluster) copied(t *testing.T, host string) {
	ctx := t.Context()
	before, tasks := f.whole(t), f.taskIDs(t)
	p := startProbe(t, f.entries(host)...) // the original stands still while it is copied
	name, err := f.Copy(ctx, host)
	f.must(t, err)
	began := time.Now()
	eventually(t, "the copy knows what it is", patience, func() error {
		info, err := f.swarm(name).Info(ctx)
		if err == nil && (!strings.Contains(info.Swarm.Error, "in session with another machine at "+hostOf(f.addr(host, 1))) || !strings.Contains(info.Swarm.Error, "swarm leave --force")) {
			err = fmt.Errorf("it says: %s", info.Swarm.Error)
		}
		return err
	})
	t.Logf("the copy of %s knows what it is after %.1f s", host, time.Since(began).Seconds())
	d, err := f.doctor(t, name)
	f.must(t, err)
	f.must(t, d.has(want{name, "session", "failure", "in session with another machine"}))
	if log := readFile(t, f.hostNamed(t, f.currentLeader(t)).DaemonLog); !strings.Contains(log, "two machines are the same node; the one that came later is refused") {
		t.Error("the leader's log does not name the copy")
	}
	now := f.whole(t)
	untouched(t, before, now)
	p.none(t, "clients of the other nodes, beside a copy")

	// What the copy runs is nobody's, and goes.
	runs, err := f.labelled(ctx, name, false)
	f.must(t, err)
	t.Logf("the copy runs %d of the original's containers", len(runs))
	if _, err := f.tryMiniswarm(t, name, "leave", "--force"); err != nil {
		t.Error(err)
	}
	if left, err := f.labelled(ctx, name, true); err != nil || len(left) > 0 {
		t.Errorf("after leaving the copy has %+v (%v)", left, err)
	}
	token := strings.TrimSpace(f.miniswarm(t, f.leader(), "token", "-q", "worker"))
	f.miniswarm(t, name, "join", "--token", token, f.addr(f.leader(), 2377))
	f.nodeState(t, name, "Ready")
	f.miniswarm(t, name, "leave")
	f.nodeState(t, name, "Down")
	f.miniswarm(t, f.leader(), "node", "rm", name)
	untouched(t, before, f.whole(t))
	if now := f.taskIDs(t); len(now) != len(tasks) {
		t.Errorf("tasks were %v and are %v", tasks, now)
	}
	f.must(t, f.Fail(ctx, name))
}

func (c *testCluster) hostNamed(t *testing.T, host string) lab.Host {
	t.Helper()
	h, err := c.Host(host)
	if err != nil {
		t.Fatal(err)
	}
	return h
}
