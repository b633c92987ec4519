package node

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/raftstore"
)

// setLock changes the cluster's unlock key as the API does; nil turns autolock off.
func setLock(t *testing.T, n *Node, key identity.UnlockKey) {
	t.Helper()
	c, err := n.Control()
	must(t, err)
	_, err = c.Update(t.Context(), func(snap *cluster.Snapshot) (*cluster.Txn, error) {
		next := *snap.Cluster()
		next.UnlockKeys, next.Spec.EncryptionConfig.AutoLockManagers = key, key != nil
		return &cluster.Txn{Changes: []cluster.Change{cluster.UpdateOf(&next)}}, nil
	})
	must(t, err)
}

// sealedWith waits until a node's keys are sealed with a key and with nothing else, and the old ones are forgotten.
func sealedWith(t *testing.T, n *Node, key identity.UnlockKey) {
	t.Helper()
	waitFor(t, "keys that follow the cluster", func() bool {
		v := &vault{dir: n.cfg.StateDir}
		return v.open(key) == nil && len(v.keys) == 1 && (v.lock.key == nil) == (key == nil)
	})
	if err := (&vault{dir: n.cfg.StateDir}).open(nil); key != nil && !errors.Is(err, errLocked) {
		t.Errorf("opened without a key: %v", err)
	}
}

func refused(t *testing.T, what string, err error, status int, text string) {
	t.Helper()
	var r *requestError
	if !errors.As(err, &r) || r.status != status || r.text != text {
		t.Errorf("%s: %v, want %d %s", what, err, status, text)
	}
}

func leads(n *Node) func() bool {
	return func() bool {
		c, err := n.Control()
		if err != nil {
			return false
		}
		self, _, _ := c.Leader()
		return self
	}
}

// TestAManagerThatLocksItself goes through a life: locked from the start, restarted, unlocked, rotated, left open.
func TestAManagerThatLocksItself(t *testing.T) {
	first := newNode(t)
	stop := run(t, first)
	refused(t, "unlock without a swarm", first.Unlock(t.Context(), keyA.Text()), http.StatusServiceUnavailable, textNever)
	_, err := first.Init(t.Context(), swarm.InitRequest{ListenAddr: freePort(t), AutoLockManagers: true})
	must(t, err)
	refused(t, "unlock of what is open", first.Unlock(t.Context(), keyA.Text()), http.StatusConflict, "swarm is not locked")
	key := identity.UnlockKey(snapshot(t, first).Cluster().UnlockKeys)
	if len(key) != 32 || !snapshot(t, first).Cluster().Spec.EncryptionConfig.AutoLockManagers {
		t.Fatalf("the cluster has an unlock key of %d bytes", len(key))
	}
	sealedWith(t, first, key)
	nodeID := first.Info().NodeID
	must(t, stop())

	n, err := New(first.cfg)
	must(t, err)
	stop = run(t, n)
	waitFor(t, "a locked node", func() bool { return n.Info().LocalNodeState == swarm.LocalNodeStateLocked })
	if info := n.Info(); info.ControlAvailable || info.NodeID != "" || info.Error != textLocked || info.NodeAddr != "127.0.0.1" {
		t.Errorf("a locked node tells %+v", info)
	}
	_, err = n.Control()
	refused(t, "control of a locked node", err, http.StatusServiceUnavailable, textLocked)
	_, err = n.Init(t.Context(), swarm.InitRequest{})
	refused(t, "init of a locked node", err, http.StatusServiceUnavailable, textInSwarm)
	refused(t, "join of a locked node", n.Join(t.Context(), swarm.JoinRequest{}), http.StatusServiceUnavailable, textInSwarm)
	refused(t, "rejoin of a locked node", n.Rejoin(t.Context(), "127.0.0.1"), http.StatusServiceUnavailable, textLocked)
	refused(t, "leave of a locked node", n.Leave(t.Context(), false), http.StatusServiceUnavailable,
		"Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore this message.")
	before := files(t, n.cfg.StateDir)
	refused(t, "a key that is none", n.Unlock(t.Context(), "SWMKEY-1-?"), http.StatusBadRequest, "invalid key string")
	refused(t, "an empty key", n.Unlock(t.Context(), "SWMKEY-1-"), http.StatusUnauthorized, "swarm could not be unlocked: invalid key provided")
	refused(t, "a wrong key", n.Unlock(t.Context(), keyA.Text()), http.StatusUnauthorized, "swarm could not be unlocked: invalid key provided")
	if n.Info().LocalNodeState != swarm.LocalNodeStateLocked || files(t, n.cfg.StateDir) != before {
		t.Error("a wrong key changed something")
	}
	must(t, n.Unlock(t.Context(), " "+key.Text()+"\n"))
	waitFor(t, "a leader", leads(n))
	if info := n.Info(); info.NodeID != nodeID || info.LocalNodeState != swarm.LocalNodeStateActive {
		t.Errorf("after unlocking: %+v", info)
	}

	certificate := func() string {
		raw, err := os.ReadFile(filepath.Join(n.cfg.StateDir, "certificates", "swarm-node.crt"))
		must(t, err)
		return string(raw)
	}
	was := certificate()
	setLock(t, n, keyB)
	sealedWith(t, n, keyB)
	waitFor(t, "a new certificate", func() bool { return certificate() != was })
	must(t, stop())
	n, err = New(first.cfg)
	must(t, err)
	stop = run(t, n)
	waitFor(t, "a locked node", func() bool { return n.Info().LocalNodeState == swarm.LocalNodeStateLocked })
	refused(t, "the key before", n.Unlock(t.Context(), key.Text()), http.StatusUnauthorized, "swarm could not be unlocked: invalid key provided")
	must(t, n.Unlock(t.Context(), keyB.Text()))
	waitFor(t, "a leader", leads(n))
	setLock(t, n, nil)
	sealedWith(t, n, nil)
	must(t, stop())
	n, err = New(first.cfg)
	must(t, err)
	run(t, n)
	waitFor(t, "a leader without a key", leads(n))
}

// files gives the names and contents of the node's own files.
func files(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	for _, name := range []string{raftKeyFile, stateFile, "certificates/swarm-node.key", "certificates/swarm-node.crt"} {
		raw, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		b.WriteString(name)
		b.Write(raw)
	}
	return b.String()
}

// emptyEngine serves an engine that has nothing.
func emptyEngine(t *testing.T, n *Node) {
	t.Helper()
	l, err := net.Listen("unix", strings.TrimPrefix(n.cfg.Engine, "unix://"))
	must(t, err)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Api-Version", "1.41")
		switch path.Base(r.URL.Path) {
		case "json", "networks":
			_, _ = io.WriteString(w, "[]")
		case "events":
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		default:
			_, _ = io.WriteString(w, "{}")
		}
	}))
	s.Listener = l
	s.Start()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
}

func TestALockedManagerCanLeave(t *testing.T) {
	n := newNode(t)
	emptyEngine(t, n)
	stop := run(t, n)
	_, err := n.Init(t.Context(), swarm.InitRequest{ListenAddr: freePort(t), AutoLockManagers: true})
	must(t, err)
	must(t, stop())
	n, err = New(n.cfg)
	must(t, err)
	run(t, n)
	waitFor(t, "a locked node", func() bool { return n.Info().LocalNodeState == swarm.LocalNodeStateLocked })
	must(t, n.Leave(t.Context(), true))
	if n.Info().LocalNodeState != swarm.LocalNodeStateInactive {
		t.Errorf("after leaving: %+v", n.Info())
	}
	if _, err := os.Stat(filepath.Join(n.cfg.StateDir, raftKeyFile)); err == nil {
		t.Error("the keys are still there")
	}
}

// TestACrashWhileTheKeysChange cuts in after each step of a change, and finds the manager whole with the new key.
func TestACrashWhileTheKeysChange(t *testing.T) {
	for cut, after := range []string{"the file", "the log", "the key of the certificate"} {
		t.Run(after, func(t *testing.T) {
			n := newNode(t)
			stop := run(t, n)
			nodeID, err := n.Init(t.Context(), swarm.InitRequest{ListenAddr: freePort(t)})
			must(t, err)
			must(t, stop())

			v := &vault{dir: n.cfg.StateDir}
			must(t, v.open(nil))
			_, err = v.follow(keyA, 1<<40)
			must(t, err)
			if cut >= 1 {
				rekeyed(t, v, nodeID)
			}
			if cut >= 2 {
				creds, err := identity.NewStore(identity.StoreConfig{Dir: v.dir, Sealer: v})
				must(t, err)
				_, err = creds.Load()
				must(t, err)
				must(t, creds.Reseal())
			}

			n, err = New(n.cfg)
			must(t, err)
			run(t, n)
			waitFor(t, "a locked node", func() bool { return n.Info().LocalNodeState == swarm.LocalNodeStateLocked })
			must(t, n.Unlock(t.Context(), keyA.Text()))
			waitFor(t, "a leader", leads(n))
			sealedWith(t, n, keyA)
			if snap := snapshot(t, n); snap == nil || snap.Node(nodeID) == nil {
				t.Error("the cluster is gone")
			}
		})
	}
}

// rekeyed has the store below a vault sealed with its newest key alone.
func rekeyed(t *testing.T, v *vault, nodeID string) {
	t.Helper()
	key, older, err := v.dataKeys()
	must(t, err)
	store, err := raftstore.Open(raftstore.Config{Dir: filepath.Join(v.dir, raftDir), NodeID: nodeID, Addr: "192.0.2.1:2377", Transport: raftstore.Alone(), Key: key, OlderKeys: older})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- store.Run(ctx) }()
	must(t, store.Rekey(t.Context(), key))
	cancel()
	must(t, <-done)
}

// TestKeysThatLieBareAreSealed: after a promotion or a recovery the key of a manager's certificate may be as it was made.
func TestKeysThatLieBareAreSealed(t *testing.T) {
	n := newNode(t)
	stop := run(t, n)
	_, err := n.Init(t.Context(), swarm.InitRequest{ListenAddr: freePort(t)})
	must(t, err)
	must(t, stop())
	keyFile := filepath.Join(n.cfg.StateDir, "certificates", "swarm-node.key")
	sealed, err := os.ReadFile(keyFile)
	must(t, err)
	plain, err := n.vault.Open(sealed)
	must(t, err)
	must(t, os.WriteFile(keyFile, plain, 0o600))
	n, err = New(n.cfg)
	must(t, err)
	run(t, n)
	waitFor(t, "a key that is sealed", func() bool {
		now, err := os.ReadFile(keyFile)
		return err == nil && strings.Contains(string(now), pemSealed)
	})
}

// TestAWorkerHasNoLock: what is left of a manager's keys on a machine that was demoted keeps nobody out.
func TestAWorkerHasNoLock(t *testing.T) {
	n := newNode(t)
	ca, err := identity.NewCA(identity.CAConfig{})
	must(t, err)
	_, err = identity.Found(ca, n.credentials, identity.Identity{NodeID: "n1", ClusterID: "c1", Role: identity.Worker}, 0)
	must(t, err)
	must(t, (&state{ListenAddr: freePort(t), AdvertiseAddr: freePort(t)}).save(n.cfg.StateDir))
	v := &vault{dir: n.cfg.StateDir}
	v.lockFirst(keyA)
	newest(t, v)
	run(t, n)
	waitFor(t, "an active worker", func() bool { return n.Info().LocalNodeState == swarm.LocalNodeStateActive })
	if _, err := os.Stat(v.path()); err == nil {
		t.Error("the keys are still there")
	}
}

// TestTheLockReachesEveryManager: those that are there at once, one that joins, and one that was off while the key was rotated:
// it opens with the key that it knew, and takes up the new one.
func TestTheLockReachesEveryManager(t *testing.T) {
	first := newNode(t)
	run(t, first)
	_, err := first.Init(t.Context(), swarm.InitRequest{ListenAddr: freePort(t)})
	must(t, err)
	join := swarm.JoinRequest{RemoteAddrs: []string{first.current().state.AdvertiseAddr}, JoinToken: snapshot(t, first).Cluster().JoinTokens.Manager}
	more := func() (*Node, func() error) {
		n := newNode(t)
		stop := run(t, n)
		join.ListenAddr = freePort(t)
		must(t, n.Join(t.Context(), join))
		return n, stop
	}
	second, stopSecond := more()
	setLock(t, first, keyA)
	third, _ := more()
	if err := (&vault{dir: third.cfg.StateDir}).open(nil); !errors.Is(err, errLocked) {
		t.Errorf("a manager has joined whose keys open without the unlock key: %v", err)
	}
	for _, n := range []*Node{first, second, third} {
		sealedWith(t, n, keyA)
	}
	waitFor(t, "three voters", func() bool {
		voters := 0
		for _, m := range first.current().managing().store.Status().Members {
			if !m.Learner {
				voters++
			}
		}
		return voters == 3
	})
	must(t, stopSecond())
	setLock(t, first, keyB)
	sealedWith(t, first, keyB)
	sealedWith(t, third, keyB)
	second, err = New(second.cfg)
	must(t, err)
	run(t, second)
	waitFor(t, "a locked node", func() bool { return second.Info().LocalNodeState == swarm.LocalNodeStateLocked })
	refused(t, "the new key before the manager knows it", second.Unlock(t.Context(), keyB.Text()), http.StatusUnauthorized, "swarm could not be unlocked: invalid key provided")
	said, unlocked := make(chan map[string]bool), make(chan struct{})
	go func() {
		texts := map[string]bool{}
		for {
			if _, err := second.Control(); err != nil {
				texts[err.Error()] = true
			}
			select {
			case <-unlocked:
				said <- texts
				return
			default:
			}
		}
	}()
	must(t, second.Unlock(t.Context(), keyA.Text()))
	sealedWith(t, second, keyB)
	close(unlocked)
	for text := range <-said {
		if text != textLocked && text != textNoReady {
			t.Errorf("while a manager is unlocked it says %q", text)
		}
	}
}

// TestTheLockFollowsTheRole: a node that is promoted in a swarm that locks its managers is locked from then on, and as a worker it
// has nothing that could be.
func TestTheLockFollowsTheRole(t *testing.T) {
	c := newNodes(t, 1, 1)
	first, n := c.all[0], c.all[1]
	setLock(t, first, keyA)
	sealedWith(t, first, keyA)
	c.must(n.Info().NodeID, swarm.NodeRoleManager)
	c.is(n, identity.Manager)
	if err := (&vault{dir: n.cfg.StateDir}).open(nil); !errors.Is(err, errLocked) {
		t.Errorf("a worker has become a manager whose keys open without the unlock key: %v", err)
	}
	c.voters(2)
	sealedWith(t, n, keyA)
	key := func() string {
		raw, err := os.ReadFile(filepath.Join(n.cfg.StateDir, "certificates", "swarm-node.key"))
		must(t, err)
		return string(raw)
	}
	if !strings.Contains(key(), pemSealed) {
		t.Error("the key of the certificate of a manager lies bare")
	}
	restart := func(local swarm.LocalNodeState) {
		must(t, c.stop[n]())
		again, err := New(n.cfg)
		must(t, err)
		n, c.all[1] = again, again
		c.stop[n] = run(t, n)
		waitFor(t, "a node that is "+string(local), func() bool { return n.Info().LocalNodeState == local })
	}
	restart(swarm.LocalNodeStateLocked)
	must(t, n.Unlock(t.Context(), keyA.Text()))
	c.is(n, identity.Manager)
	c.voters(2)
	c.must(n.Info().NodeID, swarm.NodeRoleWorker)
	c.is(n, identity.Worker)
	waitFor(t, "a worker without a manager's keys", func() bool {
		return gone(filepath.Join(n.cfg.StateDir, raftKeyFile)) && !strings.Contains(key(), pemSealed)
	})
	restart(swarm.LocalNodeStateActive)
	c.is(n, identity.Worker)
}

// TestANodeThatCannotResumeLeavesNothing: the keys of a manager are damaged, so that no part of it runs, and leaving takes what is its off
// the machine all the same.
func TestANodeThatCannotResumeLeavesNothing(t *testing.T) {
	n := newNode(t)
	emptyEngine(t, n)
	stop := run(t, n)
	_, err := n.Init(t.Context(), swarm.InitRequest{ListenAddr: freePort(t)})
	must(t, err)
	secrets := filepath.Join(n.cfg.RunDir, n.Info().NodeID)
	must(t, stop())
	must(t, os.MkdirAll(filepath.Join(secrets, "task"), 0o700))
	must(t, os.WriteFile(n.vault.path(), []byte("{"), 0o600))
	n, err = New(n.cfg)
	must(t, err)
	run(t, n)
	waitFor(t, "the error", func() bool { return strings.Contains(n.Info().Error, "is damaged") })
	must(t, n.Leave(t.Context(), true))
	if !gone(secrets) {
		t.Error("secrets are left")
	}
}
