package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/lab"
)

const lockedText = `Swarm is encrypted and needs to be unlocked before it can be used. Please use "docker swarm unlock" to unlock it.`

// TestAutolock: managers that restart are locked, their containers are not; the key that was rotated reaches everyone, those that join
// too; power failures of all; what is on disk opens nothing. The heartbeat is slow here, so that a node may be locked for
// a while before it counts as Down and its replicas move.
func TestAutolock(t *testing.T) {
	c := ownLab(t, "autolock", lab.Options{Nodes: 4})
	ctx := t.Context()
	out := c.miniswarm(t, "vm1", "init", "--autolock", "--dispatcher-heartbeat", "10s")
	key := c.unlockKey(t)
	if !strings.Contains(out, "run the `miniswarm unlock`\ncommand and provide the following key:\n\n    "+key+"\n") {
		t.Errorf("init does not tell the key:\n%s", out)
	}
	join := []string{"join", "--token", strings.TrimSpace(c.miniswarm(t, "vm1", "token", "-q", "manager")), c.addr("vm1", 2377)}
	for _, host := range []string{"vm2", "vm3"} {
		c.miniswarm(t, host, join...)
	}
	c.managers = []string{"vm1", "vm2", "vm3"}
	c.allReady(t)
	c.reachable(t, 3)
	const password = "horse-battery-staple-7"
	if _, err := c.swarm("vm1").SecretCreate(ctx, swarm.SecretSpec{Annotations: swarm.Annotations{Name: "pw"}, Data: []byte(password)}); err != nil {
		t.Fatal(err)
	}
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--mode", "global", "--name", "g", "--publish", "8080:8000", "--publish", "8081:8001", c.witness+":1")
	before := c.running(t, "g", 3)
	kept := dialTalks(t, 3, c.addr("vm1", 8081), c.addr("vm2", 8081), c.addr("vm3", 8081))

	t.Run("a manager that was killed is locked, its containers are not", func(t *testing.T) {
		c.relock(t, "vm3", c.KillDaemon)
		if out, err := c.tryDocker(t, "vm3", "service", "ls"); err == nil || !strings.Contains(err.Error(), lockedText) {
			t.Errorf("a locked manager says: %v %s", err, out)
		}
		if out, err := c.tryMiniswarm(t, "vm3", "leave"); err == nil || !strings.Contains(err.Error(), "Please unlock it first or use `--force`") {
			t.Errorf("a locked manager that is to leave says: %v %s", err, out)
		}
		for _, wrong := range []string{"SWMKEY-1-" + strings.Repeat("A", 43), "nonsense"} {
			if err := c.swarm("vm3").SwarmUnlock(ctx, swarm.UnlockRequest{UnlockKey: wrong}); err == nil {
				t.Errorf("%s opened it", wrong)
			}
		}
		if _, err := ask(ctx, c.addr("vm3", 8080)); err != nil {
			t.Errorf("the mesh of a locked manager: %v", err)
		}
		if err := kept.alive(); err != nil {
			t.Errorf("while locked: %v", err)
		}
		untouched(t, before, c.replicas(t, "g"))
		if said := c.run(ctx, t, "vm3", strings.NewReader(key+"\n"), "unlock"); said.code != 0 || said.out+said.err != "" {
			t.Errorf("unlock: %+v", said)
		}
		c.allReady(t)
		c.reachable(t, 3)
		untouched(t, before, c.running(t, "g", 3))
		if err := kept.alive(); err != nil {
			t.Errorf("after unlocking: %v", err)
		}
	})

	t.Run("one that was off while the key was rotated", func(t *testing.T) {
		if err := c.StopDaemon(ctx, "vm2"); err != nil {
			t.Fatal(err)
		}
		old := key
		if said := c.miniswarm(t, "vm1", "unlock-key", "--rotate"); !strings.Contains(said, "Successfully rotated manager unlock key.") {
			t.Errorf("rotation said: %s", said)
		}
		key = c.unlockKey(t)
		was := readFile(t, c.keyFile(t, "vm2"))
		c.lockedNow(t, "vm2", c.StartDaemon(ctx, "vm2"))
		if err := c.swarm("vm2").SwarmUnlock(ctx, swarm.UnlockRequest{UnlockKey: key}); err == nil {
			t.Error("a manager opened with a key that it could not know")
		}
		c.unlock(t, "vm2", old)
		c.reachable(t, 3)
		c.sealedAnew(t, "vm2", was)
		c.relock(t, "vm2", c.KillDaemon)
		if err := c.swarm("vm2").SwarmUnlock(ctx, swarm.UnlockRequest{UnlockKey: old}); err == nil {
			t.Error("the old key still opens it")
		}
		c.unlock(t, "vm2", key)
		untouched(t, before, c.running(t, "g", 3))
	})

	t.Run("one that joins, and leaves while it is locked", func(t *testing.T) {
		c.miniswarm(t, "vm4", join...)
		c.sealedAnew(t, "vm4", "")
		c.relock(t, "vm4", c.KillDaemon)
		c.unlock(t, "vm4", key)
		c.managers = append(c.managers, "vm4")
		c.allReady(t)
		c.running(t, "g", 4)
		c.relock(t, "vm4", c.StopDaemon)
		if said := c.miniswarm(t, "vm4", "leave", "--force"); strings.TrimSpace(said) != "Node left the swarm." {
			t.Errorf("leave said: %s", said)
		}
		if left, err := c.labelled(ctx, "vm4", true); err != nil || len(left) > 0 {
			t.Errorf("%d containers are left, %v", len(left), err)
		}
		c.managers = c.managers[:3]
	})

	t.Run("all lose their power", func(t *testing.T) {
		all(t, c.managers, func(host string) error { return c.Fail(ctx, host) })
		for _, host := range c.managers {
			h, err := c.Host(host)
			if err != nil {
				t.Fatal(err)
			}
			noPlainText(t, filepath.Join(filepath.Dir(h.DaemonLog), "miniswarm"), password, join[2], key, "PRIVATE KEY-----")
			noPlainText(t, h.DaemonLog, password, join[2], key)
		}
		all(t, c.managers, func(host string) error { return c.Start(ctx, host) })
		for _, host := range c.managers {
			c.lockedNow(t, host, nil)
			c.unlock(t, host, key)
		}
		eventually(t, "the service is back", patience, func() error {
			tasks, err := c.tasks(ctx, "g")
			if err != nil || len(tasks) < 3 {
				return fmt.Errorf("%d tasks, %w", len(tasks), err)
			}
			return within(ctx, time.Second, func() error { _, err := ask(ctx, c.addr("vm2", 8080)); return err })
		})
	})

	t.Run("without a lock again", func(t *testing.T) {
		c.miniswarm(t, "vm2", "update", "--autolock=false")
		eventually(t, "every manager opens by itself", patience, func() error {
			for _, host := range c.managers {
				if strings.Contains(readFile(t, c.keyFile(t, host)), `"Locked":true`) {
					return fmt.Errorf("%s is sealed", host)
				}
			}
			return nil
		})
		if err := c.KillDaemon(ctx, "vm3"); err != nil {
			t.Fatal(err)
		}
		if err := c.StartDaemon(ctx, "vm3"); err != nil {
			t.Fatal(err)
		}
		c.reachable(t, 3)
	})
}

func (c *testCluster) unlockKey(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(c.miniswarm(t, "vm1", "unlock-key", "-q"))
}

// relock ends a manager's daemon in some way and starts it again, locked.
func (c *testCluster) relock(t *testing.T, host string, end func(context.Context, string) error) {
	t.Helper()
	if err := end(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	c.lockedNow(t, host, c.StartDaemon(t.Context(), host))
}

// lockedNow waits until a daemon that was started, with that error, says that it is locked.
func (c *testCluster) lockedNow(t *testing.T, host string, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, host+" is locked", patience, func() error {
		info, err := c.swarm(host).Info(t.Context())
		if err != nil || info.Swarm.LocalNodeState != swarm.LocalNodeStateLocked {
			return fmt.Errorf("it is %q, %w", info.Swarm.LocalNodeState, err)
		}
		if info.Swarm.ControlAvailable || info.Swarm.Error != lockedText {
			return fmt.Errorf("it says %+v", info.Swarm)
		}
		return nil
	})
}

func (c *testCluster) unlock(t *testing.T, host, key string) {
	t.Helper()
	if err := c.swarm(host).SwarmUnlock(t.Context(), swarm.UnlockRequest{UnlockKey: key}); err != nil {
		t.Fatalf("unlock %s: %v", host, err)
	}
}

func (c *testCluster) keyFile(t *testing.T, host string) string {
	t.Helper()
	h, err := c.Host(host)
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(filepath.Dir(h.DaemonLog), "miniswarm", "raft.key")
}

// sealedAnew waits until a manager has sealed its keys as the cluster says: the file is another one than it was, is locked, and
// holds one data key of 32 bytes, the older ones being forgotten.
func (c *testCluster) sealedAnew(t *testing.T, host, was string) {
	t.Helper()
	eventually(t, host+" has sealed its keys", patience, func() error {
		now := readFile(t, c.keyFile(t, host))
		if now == was || !strings.Contains(now, `"Locked":true`) || len(between(now, `"Keys":"`, `"`)) > 100 {
			return fmt.Errorf("%s", now)
		}
		return nil
	})
}
