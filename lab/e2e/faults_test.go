package e2e

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/lab"
)

// faultCluster is three managers and a worker with a service on all of them, under a load of writes and of clients.
type faultCluster struct {
	*testCluster
	ledger *ledger
}

// newFaultCluster makes one in a lab of its own; its daemons have disks of their own where diskMiB is positive.
func newFaultCluster(t *testing.T, name string, diskMiB int) *faultCluster {
	t.Helper()
	c := ownLab(t, name, lab.Options{Nodes: 4, Managers: 3, Cluster: true, DiskMiB: diskMiB})
	c.managers, c.workers = []string{"vm1", "vm2", "vm3"}, []string{"vm4"}
	c.allReady(t)
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "w", "--replicas", "8", "--publish", "8080:8000", c.witness+":1")
	c.running(t, "w", 8)
	return &faultCluster{testCluster: c, ledger: &ledger{c: c}}
}

// scenario is something that happens to the cluster, which is whole again in the end.
type scenario struct {
	name string
	do   func(t *testing.T)
}

func (f *faultCluster) oneAfterTheOther(t *testing.T, all []scenario) {
	t.Helper()
	for _, s := range all {
		if !t.Run(s.name, func(t *testing.T) {
			began := time.Now()
			s.do(t)
			t.Logf("took %.1f s", time.Since(began).Seconds())
		}) {
			return // the cluster is not as the next expects it
		}
	}
}

// grace is how long a node may be silent before its tasks are replaced; a fault that takes less must cost nothing.
const grace = 3 * time.Second

// slack is how much longer than a fault a node may be silent: until it would have shown itself before, four times a second, and
// until it does so again.
const slack = 500 * time.Millisecond

// Faults on real machines, one after the other on one cluster (the F numbers are those of docs/reliability.md). What was
// acknowledged stays, nothing is restarted that need not be, and with the fault gone all is as it should be.
func TestFaults(t *testing.T) {
	f := newFaultCluster(t, "faults", 400)
	f.oneAfterTheOther(t, []scenario{
		{"a starved node is not a dead one", f.starved},
		{"cut off for less than the grace", f.shortCut},
		{"a link that flaps (F11)", f.flapping},
		{"the leader is stopped and another elected, which restarts nothing", f.reelection},
		{"followers that do not reach each other (F10)", f.bridge},
		{"one way only, between leader and follower (F9)", f.oneWay},
		{"a leader that is not heard, and one that hears nobody (F9)", f.muteAndDeaf},
		{"the leader is stopped until others have its tasks (F13)", f.stopped},
		{"a frozen machine (F30)", f.frozen},
		{"the engine hangs (F24)", f.engineHangs},
		{"a container is renamed and paused by somebody (F25)", f.renamed},
		{"full disks (F5), and a follower past the log (F14)", f.fullDisks},
		{"the leader's disk hangs (F7)", f.hangingDisk},
		{"a rolling update, a node's death and the leader's within seconds (F43)", f.together},
		{"a manager is replaced while another is down", f.replaced},
		{"somebody flushes all rules (F41)", f.flushed},
	})
}

func (f *faultCluster) must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// nodes are the hosts of the cluster.
func (f *faultCluster) nodes() []string { return slices.Concat(f.managers, f.workers) }

// entries are the published port on the hosts of the cluster but these.
func (f *faultCluster) entries(but ...string) []string {
	var all []string
	for _, host := range f.nodes() {
		if !slices.Contains(but, host) {
			all = append(all, f.addr(host, 8080))
		}
	}
	return all
}

// taskIDs are all tasks of the service that the cluster remembers: who is restarted adds one.
func (f *faultCluster) taskIDs(t *testing.T) map[string]swarm.TaskState {
	t.Helper()
	ids := map[string]swarm.TaskState{}
	eventually(t, "tasks are listed", patience, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		all, err := f.swarm(f.leader()).TaskList(ctx, swarm.TaskListOptions{})
		for _, task := range all {
			ids[task.ID] = task.DesiredState
		}
		return err
	})
	return ids
}

// whole waits until the cluster is as it was before any fault, and checks that it remembers every acknowledged write.
func (f *faultCluster) whole(t *testing.T) []replica {
	t.Helper()
	f.allReady(t)
	f.reachable(t, len(f.managers))
	f.ledger.check(t, f.managers...)
	now := f.running(t, "w", 8)
	eventually(t, "containers are accounted for and every node reaches every replica", patience, func() error {
		if err := f.accounted(t.Context()); err != nil {
			return err
		}
		for _, addr := range f.entries() {
			if err := everyone(byShortID(now), 24, func() (answer, error) { return ask(t.Context(), addr) }, ""); err != nil {
				return fmt.Errorf("%s: %w", addr, err)
			}
		}
		return nil
	})
	return now
}

// spreadOut puts replicas on every host again, for the next fault wants some everywhere.
func (f *faultCluster) spreadOut(t *testing.T) {
	t.Helper()
	if got := spread(f.whole(t)); len(got) == len(f.nodes()) {
		return
	}
	f.miniswarm(t, f.leader(), "service", "update", "--detach", "--force", "--update-parallelism", "0", "w")
	eventually(t, "replicas are on every host", patience, func() error {
		all, err := f.converged(t.Context(), "w", 8)
		if got := spread(all); err == nil && len(got) != len(f.nodes()) {
			err = fmt.Errorf("spread as %v", got)
		}
		return err
	})
	f.whole(t)
}

// undisturbed carries out a fault that must cost no task: afterwards the cluster has the tasks and containers that it had, and
// no others, and went on taking writes through the managers named. A fault that took longer than the grace, on a machine that had
// something else to do, proves nothing, and is said.
func (f *faultCluster) undisturbed(t *testing.T, through []string, fault func() (longest time.Duration)) {
	t.Helper()
	before, tasks := f.whole(t), f.taskIDs(t)
	w := f.ledger.write(t, through...)
	w.acknowledged(t, 5)
	longest := fault()
	ended := time.Now()
	took := w.next(t, ended)
	w.stop()
	t.Logf("longest time without an acknowledged write: %.2f s", took.Seconds())
	after := f.whole(t)
	if longest+slack >= grace {
		t.Logf("this machine was so slow that the fault took %.1f s, about the grace or longer: what it cost is not judged", longest.Seconds())
		f.spreadOut(t)
		return
	}
	untouched(t, before, after)
	if now := f.taskIDs(t); !maps.Equal(tasks, now) {
		t.Errorf("tasks were %v and are %v", tasks, now)
	}
}

// brief does something, waits, and undoes it, and says how long it was done.
func brief(t *testing.T, during time.Duration, do, undo func(context.Context) error) time.Duration {
	t.Helper()
	ctx := t.Context()
	began := time.Now()
	if err := do(ctx); err != nil {
		t.Fatal(err)
	}
	time.Sleep(during)
	if err := undo(ctx); err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}

// onHost makes an operation of the lab one on a host.
func onHost(host string, do func(context.Context, string) error) func(context.Context) error {
	return func(ctx context.Context) error { return do(ctx, host) }
}

func (f *faultCluster) starved(t *testing.T) {
	follower := f.others(f.currentLeader(t))[0]
	for _, c := range []struct {
		name, host string
		stop       func(context.Context, string) error
	}{
		{"agent of a worker stopped", "vm4", f.PauseDaemon},
		{"daemon of a follower stopped", follower, f.PauseDaemon},
		{"machine of a worker frozen", "vm4", f.Pause},
	} {
		t.Run(c.name, func(t *testing.T) {
			f.undisturbed(t, f.others(follower), func() time.Duration {
				return brief(t, 2*time.Second, onHost(c.host, c.stop), onHost(c.host, f.Resume))
			})
		})
	}
	t.Run("no processor left", func(t *testing.T) {
		f.undisturbed(t, f.others(follower), func() time.Duration {
			f.must(t, f.Starve(t.Context(), "vm4", 0.3))
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			for range 2 {
				go func() { _ = f.Exec(ctx, "vm4", []string{"sh", "-c", "while :; do :; done"}, lab.Stdio{}) }()
			}
			longest := f.silence(ctx, "vm4")
			f.must(t, f.Resume(t.Context(), "vm4"))
			return longest
		})
	})
}

// silence is the longest time, until ctx ends, for which the daemon of a host had no word for anybody: what others on this machine
// take may leave a starved host nothing at all.
func (f *faultCluster) silence(ctx context.Context, host string) (longest time.Duration) {
	daemon, last := f.swarm(host), time.Now()
	for ctx.Err() == nil {
		if _, err := daemon.Ping(ctx); err == nil {
			longest, last = max(longest, time.Since(last)), time.Now()
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return max(longest, time.Since(last))
}

func (f *faultCluster) shortCut(t *testing.T) {
	leader := f.currentLeader(t)
	follower := f.others(leader)[0]
	for what, host := range map[string]string{"a worker": "vm4", "a follower": follower} {
		t.Run(what, func(t *testing.T) {
			p := startProbe(t, f.entries(host)...)
			lost := time.Now()
			f.undisturbed(t, f.others(follower), func() time.Duration {
				return brief(t, 1500*time.Millisecond, onHost(host, f.Cut), onHost(host, f.Heal))
			})
			p.settled(t, "clients of the other nodes", lost)
		})
	}
}

func (f *faultCluster) flapping(t *testing.T) {
	follower := f.others(f.currentLeader(t))[0]
	f.undisturbed(t, f.others(follower), func() (longest time.Duration) {
		for range 4 {
			longest = max(longest, brief(t, 800*time.Millisecond, onHost(follower, f.Cut), onHost(follower, f.Heal)))
			time.Sleep(800 * time.Millisecond)
		}
		return longest
	})
}

// reelection stops the leader's process just until another leads.
func (f *faultCluster) reelection(t *testing.T) {
	leader := f.currentLeader(t)
	p := startProbe(t, f.entries()...)
	f.undisturbed(t, f.others(leader), func() time.Duration {
		began := time.Now()
		f.must(t, f.PauseDaemon(t.Context(), leader))
		w := f.ledger.write(t, f.others(leader)...)
		w.next(t, began.Add(100*time.Millisecond)) // what was under way is not meant
		w.stop()
		f.must(t, f.Resume(t.Context(), leader))
		return time.Since(began)
	})
	if now := f.currentLeader(t); now == leader {
		t.Errorf("%s leads still", now)
	}
	p.none(t, "while the leader's process was stopped")
}

func (f *faultCluster) bridge(t *testing.T) {
	leader := f.currentLeader(t)
	a, b := f.others(leader)[0], f.others(leader)[1]
	// The leader is the bridge: nobody needs what is lost.
	f.undisturbed(t, f.managers, func() time.Duration {
		ctx := t.Context()
		f.must(t, f.Lose(ctx, a, b, 100))
		f.must(t, f.Lose(ctx, b, a, 100))
		time.Sleep(4 * time.Second) // longer than any election
		if now := f.currentLeader(t); now != leader {
			t.Errorf("%s leads instead of %s, which everybody reaches", now, leader)
		}
		f.must(t, f.Heal(ctx, a))
		return 0
	})
	// A follower is the bridge: the other one hears nothing of the leader and cannot depose it.
	ctx := t.Context()
	f.must(t, f.Lose(ctx, a, leader, 100))
	f.must(t, f.Lose(ctx, leader, a, 100))
	w := f.ledger.write(t, leader, b)
	time.Sleep(4 * time.Second)
	took := w.next(t, time.Now())
	w.stop()
	t.Logf("longest time without an acknowledged write: %.2f s", took.Seconds())
	if took > 1500*time.Millisecond {
		t.Errorf("no writes for %s though leader and bridge reach each other", took)
	}
	f.must(t, f.Heal(ctx, a))
	if now := f.currentLeader(t); now != leader {
		t.Errorf("%s leads instead of %s, which had a majority all the time", now, leader)
	}
	f.spreadOut(t)
}

func (f *faultCluster) oneWay(t *testing.T) {
	leader := f.currentLeader(t)
	follower, rest := f.others(leader)[0], f.others(leader)[1]
	for what, way := range map[string][2]string{
		"the follower does not hear the leader": {leader, follower}, "the leader does not hear the follower": {follower, leader}} {
		t.Run(what, func(t *testing.T) {
			f.undisturbed(t, []string{leader, rest}, func() time.Duration {
				return brief(t, 2*time.Second, func(ctx context.Context) error { return f.Lose(ctx, way[0], way[1], 100) }, onHost(follower, f.Heal))
			})
			if now := f.currentLeader(t); now != leader {
				t.Errorf("%s leads instead of %s, which had a majority all the time", now, leader)
			}
		})
	}
}

func (f *faultCluster) muteAndDeaf(t *testing.T) {
	ctx := t.Context()
	for what, lose := range map[string]func(leader string) error{
		"mute": func(leader string) error { return f.Lose(ctx, leader, "", 100) },
		"deaf": func(leader string) error { return f.Lose(ctx, "", leader, 100) },
	} {
		t.Run(what, func(t *testing.T) {
			leader := f.currentLeader(t)
			w := f.ledger.write(t, f.others(leader)...)
			w.acknowledged(t, 5)
			lost := time.Now()
			f.must(t, lose(leader))
			t.Logf("leader %s -> no writes for %.2f s", what, w.next(t, lost.Add(200*time.Millisecond)).Seconds())
			f.must(t, f.Heal(ctx, leader))
			w.next(t, time.Now())
			w.stop()
			f.whole(t)
		})
	}
	f.spreadOut(t)
}

// stopped leaves the leader stopped until the others have replaced its tasks. It wakes up as a leader, with a write in its
// hands, and must neither carry that out on its own nor keep what was moved.
func (f *faultCluster) stopped(t *testing.T) {
	ctx := t.Context()
	leader := f.currentLeader(t)
	rest := append(f.others(leader), "vm4")
	mine := on(f.whole(t), leader)
	w := f.ledger.write(t, f.others(leader)...)
	w.acknowledged(t, 5)
	p := startProbe(t, f.entries()...)
	lost := time.Now()
	f.must(t, f.PauseDaemon(ctx, leader))
	late := make(chan error, 1)
	go func() { late <- f.ledger.tryWrite(ctx, leader) }() // waits in the socket of the stopped process
	t.Logf("leader stopped -> no writes for %.2f s", w.next(t, lost.Add(200*time.Millisecond)).Seconds())
	eventually(t, "its replicas run elsewhere as well", patience, func() error {
		all, err := f.tryReplicas(ctx, "w")
		if n := len(on(all, rest...)); err != nil || n != 8 {
			return fmt.Errorf("%d elsewhere: %w", n, err)
		}
		return nil
	})
	t.Logf("leader stopped -> its replicas running elsewhere: %.1f s", time.Since(lost).Seconds())
	moved := on(f.replicas(t, "w"), rest...)
	tasks := f.taskIDs(t)
	p.none(t, "while the leader's process was stopped") // its containers served on
	f.must(t, f.Resume(ctx, leader))
	now := f.whole(t)
	untouched(t, moved, now)
	for _, r := range mine {
		if slices.ContainsFunc(now, func(n replica) bool { return n.id == r.id }) {
			t.Errorf("%s runs on %s still; its task was moved", r.name, r.host)
		}
	}
	if after := f.taskIDs(t); len(after) != len(tasks) {
		t.Errorf("%d tasks after the old leader came back, %d before", len(after), len(tasks))
	}
	w.stop()
	t.Logf("the write that waited in the old leader: %v", <-late) // with nil the ledger holds the cluster to it
	f.spreadOut(t)
}

// frozen stops a whole machine, containers too: its kernel still answers pings and opens connections.
func (f *faultCluster) frozen(t *testing.T) {
	ctx := t.Context()
	leader := f.currentLeader(t)
	host := f.others(leader)[0]
	rest := append(f.others(host), "vm4")
	before := f.whole(t)
	p := startProbe(t, f.entries(host)...)
	w := f.ledger.write(t, f.others(host)...)
	lost := time.Now()
	f.must(t, f.Pause(ctx, host))
	eventually(t, "its replicas run elsewhere", patience, func() error {
		tasks, err := f.tasks(ctx, "w")
		n := 0
		for _, task := range tasks {
			if task.Status.State == swarm.TaskStateRunning && !slices.ContainsFunc(on(before, host), func(r replica) bool { return r.task == task.ID }) {
				n++
			}
		}
		if err != nil || n != 8 || len(tasks) != 8 {
			return fmt.Errorf("%d of %d tasks: %w", n, len(tasks), err)
		}
		return nil
	})
	t.Logf("machine frozen -> its replicas running elsewhere: %.1f s", time.Since(lost).Seconds())
	took := w.next(t, lost)
	w.stop()
	t.Logf("longest time without an acknowledged write: %.2f s", took.Seconds())
	f.must(t, f.Resume(ctx, host))
	now := f.whole(t)
	p.settled(t, "clients of the other nodes", lost)
	untouched(t, on(before, rest...), now)
	for _, r := range on(before, host) {
		if slices.ContainsFunc(now, func(n replica) bool { return n.id == r.id }) {
			t.Errorf("%s runs on %s still; its task was moved", r.name, r.host)
		}
	}
	f.spreadOut(t)
}

// engineHangs stops dockerd: its sockets accept and nothing answers. Containers serve on, and nothing is taken from the node.
func (f *faultCluster) engineHangs(t *testing.T) {
	p := startProbe(t, f.entries()...)
	f.undisturbed(t, f.managers, func() time.Duration {
		brief(t, 5*time.Second, onHost("vm4", f.PauseEngine), onHost("vm4", f.Resume))
		return 0
	})
	p.none(t, "while the engine of vm4 hung")
	f.miniswarm(t, f.leader(), "service", "scale", "--detach", "w=12")
	f.running(t, "w", 12)
	f.miniswarm(t, f.leader(), "service", "scale", "--detach", "w=8")
	f.spreadOut(t)
}

// renamed: a container is known by its labels. And who pauses one has paused it, as with Docker Swarm; the task goes on with it.
func (f *faultCluster) renamed(t *testing.T) {
	ctx := t.Context()
	f.undisturbed(t, f.managers, func() time.Duration {
		r := on(f.replicas(t, "w"), "vm4")[0]
		f.must(t, f.engine("vm4").ContainerRename(ctx, r.id, "somebody-elses-idea"))
		f.must(t, f.engine("vm4").ContainerPause(ctx, r.id))
		time.Sleep(time.Second)
		f.must(t, f.engine("vm4").ContainerUnpause(ctx, r.id))
		return 0
	})
	r := on(f.replicas(t, "w"), "vm4")
	f.miniswarm(t, f.leader(), "service", "update", "--detach", "--force", "--update-parallelism", "0", "w")
	eventually(t, "the renamed container is replaced like any other", patience, func() error {
		all, err := f.converged(ctx, "w", 8)
		if err == nil && slices.ContainsFunc(all, func(n replica) bool { return n.id == r[0].id }) {
			err = fmt.Errorf("it is there still")
		}
		return err
	})
	f.spreadOut(t)
}

// together: while a service is updated the power of one of its nodes fails, and then the leader's process is killed. All of it comes
// to its end.
func (f *faultCluster) together(t *testing.T) {
	ctx := t.Context()
	leader := f.currentLeader(t)
	w := f.ledger.write(t, f.others(leader)...)
	p := startProbe(t, f.entries("vm4")...)
	f.miniswarm(t, leader, "service", "update", "--detach", "--update-order", "start-first", "--update-parallelism", "2", "--update-monitor", "1s", "--image", f.witness+":2", "w")
	eventually(t, "the update has begun", patience, func() error {
		all, err := f.tryReplicas(ctx, "w")
		if err == nil && !slices.ContainsFunc(all, func(r replica) bool { return strings.Contains(r.image, ":2") }) {
			err = fmt.Errorf("no replica is new")
		}
		return err
	})
	f.must(t, f.Fail(ctx, "vm4"))
	f.must(t, f.KillDaemon(ctx, leader))
	lost := time.Now()
	t.Logf("a node and the leader's process lost -> no writes for %.2f s", w.next(t, lost).Seconds())
	f.must(t, f.StartDaemon(ctx, leader)) // nobody else would stop the old replicas there
	var now []replica
	eventually(t, "eight replicas of the new version run on the other nodes", 2*patience, func() (err error) {
		if now, err = f.converged(ctx, "w", 8); err != nil {
			return err
		}
		for _, r := range now {
			if !strings.Contains(r.image, ":2") || r.host == "vm4" {
				return fmt.Errorf("%s on %s runs %s", r.name, r.host, r.image)
			}
		}
		return nil
	})
	t.Logf("... -> updated and repaired after %.1f s", time.Since(lost).Seconds())
	w.stop()
	p.settled(t, "clients of the other nodes", lost)
	f.must(t, f.Start(ctx, "vm4"))
	f.spreadOut(t)
}

// replaced: a manager is down for good. Another takes its place, and with it the cluster stands the loss of one more; when the lost
// one is back after all it is no part of it.
func (f *faultCluster) replaced(t *testing.T) {
	ctx := t.Context()
	leader := f.currentLeader(t)
	down, other := f.others(leader)[0], f.others(leader)[1]
	f.must(t, f.Fail(ctx, down))
	f.nodeState(t, down, "Down")
	token := strings.TrimSpace(f.miniswarm(t, leader, "token", "-q", "manager"))
	f.miniswarm(t, "vm4", "leave")
	f.miniswarm(t, leader, "node", "rm", "--force", "vm4")
	f.miniswarm(t, "vm4", "join", "--token", token, f.addr(leader, 2377))
	f.reachable(t, 3)
	f.miniswarm(t, leader, "node", "demote", down)
	f.miniswarm(t, leader, "node", "rm", "--force", down)
	f.managers, f.workers = []string{leader, other, "vm4"}, nil
	f.spreadOut(t)
	f.must(t, f.KillDaemon(ctx, leader))
	w := f.ledger.write(t, f.others(leader)...)
	w.next(t, time.Now())
	w.stop()
	f.must(t, f.StartDaemon(ctx, leader))
	f.must(t, f.Start(ctx, down))
	eventually(t, "the manager that was replaced hears so, and runs nothing", patience, func() error {
		all, err := f.labelled(ctx, down, true)
		if said := f.broken(t, down); err != nil || len(all) > 0 || !strings.Contains(said, "removed") {
			return fmt.Errorf("it says %q and has %d containers: %w", said, len(all), err)
		}
		return nil
	})
	t.Logf("it says: %s", f.broken(t, down))
	f.spreadOut(t)
}
