package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"
)

// stuff makes the log grow: it creates and removes large configs through one manager until enough says that it is.
func (f *faultCluster) stuff(t *testing.T, host string, enough func() bool) (written int) {
	t.Helper()
	data := make([]byte, 900<<10)
	_, _ = rand.Read(data) // never fails
	for began := time.Now(); !enough(); {
		if time.Since(began) > patience {
			t.Fatalf("not enough after %d MB", written>>20)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		api := f.swarm(host)
		resp, err := api.ConfigCreate(ctx, swarm.ConfigSpec{Annotations: swarm.Annotations{Name: fmt.Sprintf("stuff-%d", time.Now().UnixNano())}, Data: data})
		if err == nil {
			written += len(data)
			_ = api.ConfigRemove(ctx, resp.ID) // what stays does no harm
		}
		cancel()
	}
	return written
}

// broken is what a node says of its part in the swarm, "" while it has one.
func (f *faultCluster) broken(t *testing.T, host string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	info, err := f.swarm(host).Info(ctx)
	if err != nil {
		return ""
	}
	return info.Swarm.Error
}

// snapshotSize is the size of the newest snapshot on a host's disk; its mounts are the host's own.
func (f *faultCluster) snapshotSize(t *testing.T, host string) (name string, size int64) {
	t.Helper()
	h, err := f.Host(host)
	f.must(t, err)
	files, err := filepath.Glob(filepath.Join("/proc", fmt.Sprint(h.PID), "root", f.Dir(), host, "miniswarm/raft/snap/*.snap"))
	f.must(t, err)
	for _, path := range files {
		if info, err := os.Stat(path); err == nil {
			name, size = max(name, filepath.Base(path)), info.Size()
		}
	}
	return name, size
}

const noRoom = "no space left on device"

// fullDisks fills the disk of a follower, then also that of the leader. Each gives up with the reason rather than go on without a
// disk; the cluster goes on as long as a majority has one; and with room again each takes its part up by itself, the follower from a
// snapshot that is many messages long.
func (f *faultCluster) fullDisks(t *testing.T) {
	ctx := t.Context()
	before := f.whole(t)
	leader := f.currentLeader(t)
	follower := f.others(leader)[0]
	rest := f.others(follower)
	// Something for the snapshot to hold.
	for range 6 {
		data := make([]byte, 900<<10)
		_, _ = rand.Read(data)
		_, err := f.swarm(leader).ConfigCreate(ctx, swarm.ConfigSpec{Annotations: swarm.Annotations{Name: fmt.Sprintf("kept-%d", time.Now().UnixNano())}, Data: data})
		f.must(t, err)
	}
	f.must(t, f.FillDisk(ctx, follower))
	n := f.stuff(t, leader, func() bool { return strings.Contains(f.broken(t, follower), noRoom) })
	t.Logf("the follower gave up after %d MB: %s", n>>20, f.broken(t, follower))
	w := f.ledger.write(t, rest...)
	w.acknowledged(t, 10)
	w.stop()

	f.must(t, f.FillDisk(ctx, leader))
	p := startProbe(t, f.entries()...)
	n = f.stuff(t, leader, func() bool { return strings.Contains(f.broken(t, leader), noRoom) })
	t.Logf("the leader gave up after %d MB: %s", n>>20, f.broken(t, leader))
	last := rest[0]
	if last == leader {
		last = rest[1]
	}
	out := f.miniswarm(t, last, "node", "ls", "--stale", "--format", "{{.Hostname}}")
	if known := strings.Fields(out); len(known) != len(f.hosts) {
		t.Errorf("the last manager, asked for what it knows, says:\n%s", out)
	}
	f.must(t, f.FreeDisk(ctx, leader))
	w = f.ledger.write(t, rest...)
	t.Logf("room on the leader's disk -> next write after %.2f s", w.next(t, time.Now()).Seconds())
	w.stop()

	was, _ := f.snapshotSize(t, follower)
	f.must(t, f.FreeDisk(ctx, follower))
	eventually(t, "the follower has a snapshot of the leader's", patience, func() error {
		now, size := f.snapshotSize(t, follower)
		if now <= was || size < 4<<20 {
			return fmt.Errorf("%s with %d bytes, was %s", now, size, was)
		}
		return nil
	})
	after := f.whole(t)
	p.none(t, "without room on disks") // containers need none there
	// The daemons of the two had no part in the cluster for longer than the grace, so their tasks were moved; the others' were not.
	for _, r := range before {
		if r.host != leader && r.host != follower {
			untouched(t, []replica{r}, after)
		}
	}
	f.spreadOut(t)
}

// hangingDisk: the leader's disk takes no write any more and says nothing. It hands leadership over, and when the disk answers it
// follows.
func (f *faultCluster) hangingDisk(t *testing.T) {
	ctx := t.Context()
	leader := f.currentLeader(t)
	w := f.ledger.write(t, f.others(leader)...)
	w.acknowledged(t, 5)
	lost := time.Now()
	f.must(t, f.HangDisk(ctx, leader))
	eventually(t, "another leads, and takes writes", patience, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if n := len(w.acks); n == 0 || w.acks[n-1].begun.Before(lost.Add(500*time.Millisecond)) {
			return fmt.Errorf("no write since")
		}
		return nil
	})
	t.Logf("leader's disk hangs -> no writes for %.2f s", w.next(t, lost.Add(500*time.Millisecond)).Seconds())
	f.must(t, f.Resume(ctx, leader))
	w.next(t, time.Now())
	w.stop()
	f.spreadOut(t)
}

// flushed: another tool takes all rules of the kernel away, the mesh's too. The engine's own rules are gone as well, and stay so until
// it is started again: that it cannot make a network before is Docker's affair, and why this is the last of the faults.
func (f *faultCluster) flushed(t *testing.T) {
	p := startProbe(t, f.entries()...)
	lost := time.Now()
	if _, err := f.Output(t.Context(), "vm4", "nft", "flush", "ruleset"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "vm4 reaches every replica", patience, func() error {
		return everyone(byShortID(f.replicas(t, "w")), 24, func() (answer, error) { return ask(t.Context(), f.addr("vm4", 8080)) }, "")
	})
	t.Logf("all rules flushed -> every replica answers through the node after %.2f s", time.Since(lost).Seconds())
	p.settled(t, "clients of all nodes", lost)
}
