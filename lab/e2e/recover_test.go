package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/lab"
	"github.com/miniswarm/miniswarm/manager/backup"
)

// A cluster that has lost its managers comes back: from what is left of them, and from a backup on another machine. What runs goes on
// running, the managers that were lost do not disturb, and no node flaps (F16).
func TestRecover(t *testing.T) {
	c := ownLab(t, "recover", lab.Options{Nodes: 4, Managers: 3, Cluster: true})
	c.managers, c.workers = []string{"vm1", "vm2", "vm3"}, []string{"vm4"}
	ctx := t.Context()
	c.allReady(t)
	c.miniswarm(t, "vm2", "service", "create", "--detach", "--name", "w", "--replicas", "8", "--publish", "8080:8000", "--publish", "8081:8001", c.witness+":1")
	old := c.running(t, "w", 8)
	ledger := &ledger{c: c}
	wr := ledger.write(t, c.managers...)
	wr.acknowledged(t, 20)
	wr.stop()
	leader := c.currentLeader(t)
	survivor, wiped, kept := c.others(leader)[0], leader, c.others(leader)[1]
	ledger.check(t, survivor)
	file, keyFile := filepath.Join(t.TempDir(), "backup"), filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(keyFile, []byte(backup.NewRecoveryKey().Text()), 0o600); err != nil {
		t.Fatal(err)
	}

	// Two of three lose their power, and one of them its disk. Clients of the two nodes that are left are served all the while, but for
	// the moment in which the dead are found out.
	p := startProbe(t, c.addr(survivor, 8080), c.addr("vm4", 8080))
	all(t, []string{wiped, kept}, func(host string) error { return c.Fail(ctx, host) })
	lost := time.Now()
	if err := os.RemoveAll(filepath.Join(c.Dir(), wiped, "miniswarm")); err != nil {
		t.Fatal(err)
	}
	var plan, report backup.Report
	if err := json.Unmarshal([]byte(c.miniswarm(t, survivor, "recover", "--dry-run", "--format", "json")), &plan); err != nil {
		t.Fatal(err)
	}
	if !plan.DryRun || len(plan.Dropped) != 2 || plan.Objects["service"] != 1 || plan.Objects["node"] != 4 || plan.MayMiss == "" {
		t.Errorf("a dry run says %+v", plan)
	}
	if err := ledger.tryWrite(ctx, survivor); err == nil {
		t.Error("a write was acknowledged after a dry run")
	}
	var out string
	eventually(t, "the survivor recovers", patience, func() (err error) {
		out, err = c.tryMiniswarm(t, survivor, "recover", "--format", "json") // not while it believes that there is a leader
		return err
	})
	recovered := time.Now()
	if err := json.Unmarshal([]byte(out), &report); err != nil || report.NodeID != plan.NodeID || report.Index < plan.Index {
		t.Errorf("recovered %s, a dry run said %+v (%v)", out, plan, err)
	}
	c.managers = []string{survivor}
	now := c.running(t, "w", 8)
	t.Logf("recover -> all replicas run: %.1f s", time.Since(recovered).Seconds())
	untouched(t, on(old, survivor, "vm4"), now)
	p.settled(t, "clients of the nodes that are left", lost)
	ledger.check(t, survivor)
	wr = ledger.write(t, survivor)
	wr.acknowledged(t, 20)
	wr.stop()

	// They come back: one as a new machine, the other with the log of a cluster of three. It is refused, goes on as a worker and
	// takes up its part, and nothing else changes.
	p = startProbe(t, c.addr(survivor, 8080), c.addr("vm4", 8080))
	all(t, []string{wiped, kept}, func(host string) error { return c.Start(ctx, host) })
	eventually(t, "the manager with the old log is refused", patience, func() error { return c.refused(ctx, kept, "was recovered without this manager") })
	if out, err := c.tryMiniswarm(t, kept, "node", "ls"); err == nil || !strings.Contains(out+err.Error(), "node promote") {
		t.Errorf("asked for nodes it says %s (%v)", out, err)
	}
	c.nodeState(t, kept, "Ready")
	// The containers that the former node has left are nobody's. Its networks stay, and give way to those of the node to be.
	if _, err := c.Output(ctx, wiped, "sh", "-c", "docker ps -aq | xargs -r docker rm -f"); err != nil {
		t.Error(err)
	}
	untouched(t, now, c.running(t, "w", 8))
	eventually(t, "containers are accounted for", patience, func() error { return c.accounted(ctx) })
	c.reachable(t, 1)
	p.none(t, "while the lost managers came back")
	c.miniswarm(t, survivor, "service", "update", "--force", "--update-parallelism", "0", "w")
	now = c.running(t, "w", 8)
	if len(on(now, kept)) == 0 {
		t.Errorf("no replica is on %s: %v", kept, spread(now))
	}

	// The manager that recovered is lost for good. Another machine, at another address, takes its place from a backup.
	c.miniswarm(t, survivor, "backup", "--key-file", keyFile, file)
	if out := c.miniswarm(t, kept, "backup", "--check", "--key-file", keyFile, file); !strings.Contains(out, "Whole and readable") {
		t.Errorf("a check says %s", out)
	}
	p = startProbe(t, c.addr("vm4", 8080), c.addr(kept, 8080))
	if err := c.Fail(ctx, survivor); err != nil {
		t.Fatal(err)
	}
	lost = time.Now()
	out = c.miniswarm(t, wiped, "recover", "--from", file, "--key-file", keyFile)
	rejoin := "miniswarm rejoin " + c.addr(wiped, 2377)
	if !strings.Contains(out, rejoin) {
		t.Errorf("recover does not say how nodes find it:\n%s", out)
	}
	c.managers = []string{wiped}
	for _, host := range []string{"vm4", kept} {
		c.miniswarm(t, host, "rejoin", c.addr(wiped, 2377))
	}
	now2 := c.running(t, "w", 8)
	untouched(t, on(now, "vm4", kept), now2)
	p.settled(t, "clients while another machine takes the manager's place", lost)
	ledger.check(t, wiped)

	// It was not lost, after all: there are two clusters. No node goes back to the older one, and it gives way when it is told to.
	if err := c.Start(ctx, survivor); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the older cluster's manager leads its own", patience, func() error {
		_, err := c.swarm(survivor).NodeList(ctx, swarm.NodeListOptions{})
		return err
	})
	c.miniswarm(t, survivor, "rejoin", c.addr(wiped, 2377))
	if err := c.refused(ctx, survivor, "was recovered without this manager"); err != nil {
		t.Error(err)
	}
	c.nodeState(t, survivor, "Ready")
	untouched(t, now2, c.running(t, "w", 8))
	eventually(t, "containers are accounted for", patience, func() error { return c.accounted(ctx) })
	c.reachable(t, 1)
}

// refused says whether a host knows that it is no manager any more, and why.
func (c *testCluster) refused(ctx context.Context, host, why string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	info, err := c.swarm(host).Info(ctx)
	switch {
	case err != nil:
		return err
	case info.Swarm.ControlAvailable || info.Swarm.LocalNodeState != swarm.LocalNodeStateActive:
		return fmt.Errorf("%s is %s, manager: %v", host, info.Swarm.LocalNodeState, info.Swarm.ControlAvailable)
	case !strings.Contains(info.Swarm.Error, why):
		return errors.New("it says: " + info.Swarm.Error)
	}
	return nil
}
