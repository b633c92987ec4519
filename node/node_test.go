package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/lab/claim"
	"github.com/miniswarm/miniswarm/manager/identity"
)

// newNode gives a node that has no engine and no data plane.
func newNode(t *testing.T) *Node {
	t.Helper()
	return newLoggedNode(t, slog.New(slog.NewTextHandler(t.Output(), nil)))
}

func newLoggedNode(t *testing.T, logger *slog.Logger) *Node {
	t.Helper()
	dir := t.TempDir()
	n, err := New(Config{StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "files"), Socket: filepath.Join(dir, "run", "m.sock"), Engine: "unix://" + filepath.Join(dir, "no-engine.sock"),
		Version: "test", Logger: logger})
	must(t, err)
	return n
}

// run serves the node until the test or stop ends.
func run(t *testing.T, n *Node) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	for range 500 {
		conn, err := net.Dial("unix", n.cfg.Socket)
		if err == nil {
			conn.Close()
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	var ended bool
	var result error
	stop = func() error {
		if !ended {
			cancel()
			result, ended = <-done, true
		}
		return result
	}
	t.Cleanup(func() { _ = stop() })
	return stop
}

// freePort gives an address to listen on, which is the test's own while nodes are stopped, too.
func freePort(t *testing.T) string {
	t.Helper()
	return claim.Addr(t).String()
}

func TestSocketIsTakenOverOnlyFromTheDead(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(t *testing.T, path string)
		err     string
	}{
		{"nothing there", func(*testing.T, string) {}, ""},
		{"left by a crash", func(t *testing.T, path string) {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			must(t, err)
			l.SetUnlinkOnClose(false)
			must(t, l.Close())
		}, ""},
		{"served", func(t *testing.T, path string) {
			l, err := net.Listen("unix", path)
			must(t, err)
			t.Cleanup(func() { l.Close() })
		}, "another daemon serves it"},
		{"a file of somebody's", func(t *testing.T, path string) { must(t, os.WriteFile(path, []byte("precious"), 0o600)) }, "something else is there"},
		{"a directory", func(t *testing.T, path string) { must(t, os.Mkdir(path, 0o700)) }, "something else is there"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "m.sock")
			c.prepare(t, path)
			l, err := listenSocket(path)
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Fatalf("error %v, want %q", err, c.err)
			}
			info, serr := os.Stat(path)
			must(t, serr)
			if err == nil {
				defer l.Close()
				if info.Mode().Perm() != 0o660 {
					t.Errorf("mode %v, want 0660", info.Mode().Perm())
				}
			}
		})
	}
}

func TestTwoDaemonsCannotBeOneNode(t *testing.T) {
	first := newNode(t)
	run(t, first)
	cfg := first.cfg
	cfg.Socket = filepath.Join(t.TempDir(), "other.sock")
	second, err := New(cfg)
	must(t, err)
	if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "another daemon uses") {
		t.Errorf("a second daemon on the same state ended with %v", err)
	}
}

func TestWipeLeavesNothingAndBeginsWithTheState(t *testing.T) {
	n := newNode(t)
	dir := n.cfg.StateDir
	ca, err := identity.NewCA(identity.CAConfig{})
	must(t, err)
	_, err = identity.Found(ca, n.credentials, identity.Identity{NodeID: "n1", ClusterID: "c1", Role: identity.Manager}, 0)
	must(t, err)
	must(t, (&state{}).save(dir))
	for _, name := range []string{raftDir, agentDir} {
		must(t, os.MkdirAll(filepath.Join(dir, name, "sub"), 0o700))
	}
	must(t, os.WriteFile(filepath.Join(dir, raftKeyFile), nil, 0o600))
	must(t, n.wipe())
	left, err := os.ReadDir(dir)
	must(t, err)
	if len(left) != 0 {
		t.Errorf("left after wipe: %v", left)
	}
	must(t, n.wipe()) // again, as after a crash in between

	// What cannot be removed last leaves a machine that is part of no swarm, not a broken member.
	must(t, (&state{}).save(dir))
	must(t, os.WriteFile(filepath.Join(dir, "certificates"), nil, 0o600))
	must(t, os.Mkdir(filepath.Join(dir, "certificates.removed"), 0o700))
	_ = n.wipe()
	if st, err := loadState(dir); st != nil || err != nil {
		t.Errorf("after a wipe that was cut short: %+v, %v", st, err)
	}
}

func TestWhatPreventsResumingIsShownAndCanBeLeft(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(t *testing.T, n *Node)
		err     string
	}{
		{"damaged state", func(t *testing.T, n *Node) {
			must(t, os.WriteFile(filepath.Join(n.cfg.StateDir, stateFile), []byte("{"), 0o600))
		}, "is damaged"},
		{"no certificate", func(t *testing.T, n *Node) { must(t, (&state{}).save(n.cfg.StateDir)) }, identity.ErrNotJoined.Error()},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			c.prepare(t, n)
			stop := run(t, n)
			waitFor(t, "the error", func() bool { return n.Info().LocalNodeState == swarm.LocalNodeStateError })
			if info := n.Info(); !strings.Contains(info.Error, c.err) {
				t.Errorf("info says %q, want %q", info.Error, c.err)
			}
			if _, err := n.Control(); err == nil {
				t.Error("a node in error gives control")
			}
			if _, err := n.Init(t.Context(), swarm.InitRequest{}); err == nil || err.Error() != textInSwarm {
				t.Errorf("init of a node in error: %v", err)
			}
			must(t, n.Leave(t.Context(), true))
			if got := n.Info(); got.LocalNodeState != swarm.LocalNodeStateInactive || got.Error != "" {
				t.Errorf("after leave: %+v", got)
			}
			must(t, stop())
		})
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("no %s within 10 s", what)
}

// TestInitStopStart goes through the life of a manager whose engine is away: it is still a manager.
func TestInitStopStart(t *testing.T) {
	n := newNode(t)
	stop := run(t, n)
	addr := freePort(t)
	if err := n.Leave(t.Context(), false); err == nil || err.Error() != textNoSwarm {
		t.Errorf("leave before init: %v", err)
	}
	id, err := n.Init(t.Context(), swarm.InitRequest{ListenAddr: addr})
	must(t, err)
	if _, err := n.Init(t.Context(), swarm.InitRequest{}); err == nil || err.Error() != textInSwarm {
		t.Errorf("a second init: %v", err)
	}
	c, err := n.Control()
	must(t, err)
	snap, err := c.Read(t.Context())
	must(t, err)
	node := snap.Node(id)
	if node == nil || node.RaftID == 0 || node.ManagerAddr != addr || snap.Cluster() == nil {
		t.Fatalf("the store holds node %+v", node)
	}
	must(t, stop())

	again, err := New(n.cfg)
	must(t, err)
	stop = run(t, again)
	waitFor(t, "manager with a leader", func() bool {
		c, err := again.Control()
		if err != nil {
			return false
		}
		self, _, _ := c.Leader()
		return self
	})
	if info := again.Info(); info.NodeID != id || !info.ControlAvailable || info.LocalNodeState != swarm.LocalNodeStateActive {
		t.Errorf("after a restart: %+v, want node %s", info, id)
	}
	if err := again.Leave(t.Context(), false); err == nil || !strings.Contains(err.Error(), "last manager erases all current state") {
		t.Errorf("the last manager left without force: %v", err)
	}
	must(t, stop())
	if st, err := loadState(n.cfg.StateDir); st == nil || err != nil {
		t.Errorf("stopping the daemon forgot the swarm: %v, %v", st, err)
	}
}

// From the first moment at which a daemon answers it knows that it has a part in a swarm, even if it has yet to take it up.
func TestNobodyIsToldToInitAManager(t *testing.T) {
	n := newNode(t)
	stop := run(t, n)
	_, err := n.Init(t.Context(), swarm.InitRequest{ListenAddr: freePort(t)})
	must(t, err)
	must(t, stop())
	again, err := New(n.cfg)
	must(t, err)
	served := make(chan struct{})
	go func() { // not run: it waits too long between its looks
		defer close(served)
		for {
			if conn, err := net.Dial("unix", n.cfg.Socket); err == nil {
				conn.Close()
				return
			}
			if t.Context().Err() != nil {
				return
			}
		}
	}()
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { ended <- again.Run(ctx) }()
	<-served
	waitFor(t, "its part in the swarm", func() bool {
		for range 1000 {
			_, err := again.Control()
			if err == nil {
				return true
			}
			if err.Error() != textNoReady {
				t.Fatal(err)
			}
		}
		return false
	})
	cancel()
	must(t, <-ended)
}

// Whoever asks a machine that is about to be a manager is not told to make it one.
func TestAMachineThatIsAboutToBeAManager(t *testing.T) {
	n := newNode(t)
	run(t, n)
	for _, c := range []struct {
		soon bool
		want string
	}{{false, textNever}, {true, textNoReady}, {false, textNever}} {
		n.setBecoming(c.soon)
		if _, err := n.Control(); err == nil || err.Error() != c.want {
			t.Errorf("about to be one %v: %v", c.soon, err)
		}
	}
}

func TestAFailedInitLeavesNothing(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer taken.Close()
	n := newNode(t)
	run(t, n)
	for range 2 { // the second attempt must fail for the same reason, not for what the first left
		_, err := n.Init(t.Context(), swarm.InitRequest{ListenAddr: taken.Addr().String()})
		if err == nil || !strings.Contains(err.Error(), "another process may have it") {
			t.Fatalf("init on a port that is taken: %v", err)
		}
	}
	if got := n.Info(); got.LocalNodeState != swarm.LocalNodeStateInactive {
		t.Errorf("after the failure: %+v", got)
	}
	left, err := os.ReadDir(n.cfg.StateDir)
	must(t, err)
	if len(left) != 1 || left[0].Name() != lockFile {
		t.Errorf("left on disk: %v", left)
	}
	taken.Close()
	_, err = n.Init(t.Context(), swarm.InitRequest{ListenAddr: taken.Addr().String()})
	must(t, err)
}

func TestAStoppedDaemonStartsNothing(t *testing.T) {
	n := newNode(t)
	if err := n.start(&state{}, nil, nil); err == nil {
		t.Error("started before Run")
	}
	must(t, run(t, n)())
	if _, err := n.Init(t.Context(), swarm.InitRequest{ListenAddr: freePort(t)}); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("init after the end: %v", err)
	}
}
