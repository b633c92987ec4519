package e2e

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/lab"
)

// Who is a manager changes under load: nobody who asks the service notices, and no container is touched. What would lose
// the quorum is refused, and who was removed while it was away hears so.
func TestMembership(t *testing.T) {
	c := ownLab(t, "membership", lab.Options{Nodes: 4, Managers: 3, Cluster: true})
	ctx := t.Context()
	c.managers = []string{"vm1", "vm2", "vm3", "vm4"}
	c.allReady(t)
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "w", "--replicas", "8", "--publish", "8080:8000", "--publish", "8081:8001", c.witness+":1")
	old := c.running(t, "w", 8)
	everywhere := []string{c.addr("vm1", 8080), c.addr("vm2", 8080), c.addr("vm3", 8080), c.addr("vm4", 8080)}
	c.role(t, "vm4", swarm.NodeRoleWorker)
	kept := dialTalks(t, 6, c.addr("vm1", 8081), c.addr("vm4", 8081))
	p := startProbe(t, everywhere...)

	if out := c.docker(t, "vm2", "node", "promote", "vm4"); !strings.Contains(out, "Node vm4 promoted to a manager in the swarm.") {
		t.Errorf("promote said: %s", out)
	}
	took := c.role(t, "vm4", swarm.NodeRoleManager)
	t.Logf("promoted and reachable after %.1f s", took.Seconds())

	former := c.currentLeader(t)
	rest := c.others(former)
	if out := c.docker(t, rest[0], "node", "demote", former); !strings.Contains(out, "Manager "+former+" demoted in the swarm.") {
		t.Errorf("demote said: %s", out)
	}
	c.managers = rest
	t.Logf("leader demoted after %.1f s", c.role(t, former, swarm.NodeRoleWorker).Seconds())
	if now := c.currentLeader(t); now == former {
		t.Errorf("%s leads as a worker", now)
	}
	if out, err := c.tryDocker(t, former, "node", "ls"); err == nil || !strings.Contains(err.Error()+out, "Worker nodes can't be used to view or modify cluster state") {
		t.Errorf("node ls on a former manager: %s %v", out, err)
	}
	other := c.others(c.currentLeader(t))[0]
	c.docker(t, other, "node", "demote", other)
	c.role(t, other, swarm.NodeRoleWorker)
	c.managers = c.others(other)
	c.docker(t, c.managers[0], "node", "promote", other)
	c.role(t, other, swarm.NodeRoleManager)
	c.managers = append(c.managers, other)
	p.none(t, "while managers came and went")
	if err := kept.alive(); err != nil {
		t.Error(err)
	}
	untouched(t, old, c.running(t, "w", 8))

	// A manager dies. The others cannot spare one more; it can be demoted and removed.
	dead := c.others(c.currentLeader(t))[0]
	rest = c.others(dead)
	alive := slices.DeleteFunc([]string{"vm1", "vm2", "vm3", "vm4"}, func(h string) bool { return h == dead })
	before := c.running(t, "w", 8)
	if err := c.Fail(ctx, dead); err != nil {
		t.Fatal(err)
	}
	c.managers = rest
	eventually(t, "the dead manager is unreachable", patience, func() error {
		out, err := c.tryMiniswarm(t, rest[0], "node", "ls", "--filter", "name="+dead, "--format", "{{.Status}} {{.ManagerStatus}}")
		if err == nil && strings.TrimSpace(out) != "Down Unreachable" {
			err = errors.New(out)
		}
		return err
	})
	for _, refused := range []struct{ command, words string }{
		{"node demote " + rest[0], "can't remove member from the raft: this would result in a loss of quorum: of 2 managers that would remain 1 can be reached, and 2 are needed"},
		{"swarm leave", "Removing this node leaves 1 managers out of 3. Without a Raft quorum your swarm will be inaccessible."},
		{"node rm --force " + dead, "It must be demoted to worker before removal"},
	} {
		if out, err := c.tryDocker(t, rest[1], strings.Fields(refused.command)...); err == nil || !strings.Contains(err.Error()+out, refused.words) {
			t.Errorf("docker %s: %s %v", refused.command, out, err)
		}
	}
	c.docker(t, rest[0], "node", "demote", dead)
	c.docker(t, rest[0], "node", "rm", "--force", dead)
	now := c.runningElsewhere(t, "w", 8, dead)
	untouched(t, on(before, alive...), now)

	if err := c.Start(ctx, dead); err != nil {
		t.Fatal(err)
	}
	eventually(t, "who was removed hears how to come back, and has stopped what it ran", patience, func() error {
		info, err := c.swarm(dead).Info(ctx)
		if err != nil {
			return err
		}
		if info.Swarm.LocalNodeState != swarm.LocalNodeStateError || !strings.Contains(info.Swarm.Error, `it was removed; to take part again, run "docker swarm leave --force"`) {
			return fmt.Errorf("%s: %s", info.Swarm.LocalNodeState, info.Swarm.Error)
		}
		if out, err := c.tryDocker(t, dead, "node", "ls"); err == nil || !strings.Contains(err.Error()+out, "it was removed") {
			return fmt.Errorf("node ls: %s %w", out, err)
		}
		if list, err := c.labelled(ctx, dead, true); err != nil || len(list) > 0 {
			return fmt.Errorf("%d containers: %w", len(list), err)
		}
		return nil
	})
	c.docker(t, dead, "swarm", "leave", "--force")
	token := strings.TrimSpace(c.docker(t, rest[0], "swarm", "join-token", "-q", "manager"))
	c.docker(t, dead, "swarm", "join", "--token", token, c.addr(rest[0], 2377))
	c.managers = append(c.managers, dead)
	c.role(t, dead, swarm.NodeRoleManager)
	untouched(t, now, c.running(t, "w", 8))
}

// role waits until a node is in every respect what its role says: in the cluster's view, by its certificate, in what it answers
// and on disk.
func (c *testCluster) role(t *testing.T, host string, want swarm.NodeRole) time.Duration {
	t.Helper()
	dir := filepath.Join(c.Dir(), host, "miniswarm")
	manager := want == swarm.NodeRoleManager
	return eventually(t, host+" is a "+string(want), patience, func() error {
		raw, err := os.ReadFile(filepath.Join(dir, "certificates", "swarm-node.crt"))
		if err != nil {
			return err
		}
		block, _ := pem.Decode(raw)
		if block == nil {
			return errors.New("the certificate is not PEM")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return err
		}
		if ou := cert.Subject.OrganizationalUnit; !slices.Equal(ou, []string{"swarm-" + string(want)}) {
			return fmt.Errorf("its certificate is for %v", ou)
		}
		if _, err := os.Stat(filepath.Join(dir, "raft")); manager != (err == nil) {
			return fmt.Errorf("its replica on disk: %w", err)
		}
		info, err := c.swarm(host).Info(t.Context())
		if err != nil || info.Swarm.ControlAvailable != manager {
			return fmt.Errorf("control available: %v, %w", info.Swarm.ControlAvailable, err)
		}
		asked := host
		if !manager {
			asked = c.others(host)[0]
		}
		node, _, err := c.swarm(asked).NodeInspectWithRaw(t.Context(), info.Swarm.NodeID)
		if err != nil {
			return err
		}
		if node.Spec.Role != want || node.Status.State != swarm.NodeStateReady || manager != (node.ManagerStatus != nil) ||
			manager && node.ManagerStatus.Reachability != swarm.ReachabilityReachable {
			return fmt.Errorf("node %+v, manager %+v", node.Spec, node.ManagerStatus)
		}
		return nil
	})
}
