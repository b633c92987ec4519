package raftstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/server/v3/storage/wal"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

func TestMain(m *testing.M) {
	wal.SegmentSizeBytes = 256 << 10 // so that tests fill several
	if os.Getenv(childEnv) != "" {
		childMain()
	}
	os.Exit(m.Run())
}

var testKey = []byte("0123456789abcdef0123456789abcdef")

// group is some members in one process on one network.
type group struct {
	t       testing.TB
	net     *Network // nil when members talk over TLS
	certs   *testCA  // set then
	members []*member
	tune    func(*Config)
}

type member struct {
	*Store
	g      *group
	dir    string
	cfg    Config
	server *http.Server // over TLS
	cancel context.CancelCauseFunc
	ended  chan error
}

func newGroup(t testing.TB, seed uint64, tune func(*Config)) *group {
	g := &group{t: t, net: NewNetwork(seed), tune: tune}
	t.Cleanup(g.end)
	return g
}

func (g *group) config(node, dir string) Config {
	cfg := Config{Dir: dir, NodeID: node, Addr: node + ":2377", Transport: g.transport(node), Key: testKey}
	if g.certs != nil {
		cfg.Addr = freeAddr(g.t)
	}
	if testing.Verbose() && os.Getenv("RAFTSTORE_LOG") != "" {
		cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", node)
	}
	if g.tune != nil {
		g.tune(&cfg)
	}
	return cfg
}

func (g *group) transport(node string) Transport {
	if g.certs != nil {
		return g.certs.transport(node)
	}
	return g.net.Transport()
}

// grow makes a group of n voters.
func (g *group) grow(n int) {
	g.t.Helper()
	cfg := g.config("n1", g.t.TempDir())
	cfg.Bootstrap = true
	g.start(cfg)
	g.leader()
	for len(g.members) < n {
		g.join(fmt.Sprint("n", len(g.members)+1))
	}
	g.settle()
}

// join adds a member and waits until it votes.
func (g *group) join(node string) *member {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), time.Minute)
	defer cancel()
	cfg := g.config(node, g.t.TempDir())
	leader := g.leader()
	m, err := leader.AddMember(ctx, protocol.Member{NodeID: node, Addr: cfg.Addr})
	if err != nil {
		g.t.Fatal(err)
	}
	cfg.RaftID, cfg.Peers = m.RaftID, leader.Status().Members
	n := g.start(cfg)
	g.wait("a new voter", func() bool {
		me, ok := n.view.membership().member(m.RaftID)
		return ok && !me.Learner
	})
	return n
}

func (g *group) start(cfg Config) *member {
	g.t.Helper()
	m := &member{g: g, dir: cfg.Dir, cfg: cfg, ended: make(chan error, 1)}
	cfg.Hooks.Crashed = func() {
		m.dir = g.t.TempDir()
		if err := os.CopyFS(m.dir, os.DirFS(cfg.Dir)); err != nil {
			g.t.Error(err)
		}
	}
	s, err := Open(cfg)
	if err != nil {
		g.t.Fatal(err)
	}
	m.Store = s
	ctx, cancel := context.WithCancelCause(context.Background())
	m.cancel = cancel
	if g.certs != nil {
		m.server = g.certs.serve(cfg.NodeID, cfg.Addr, s.Handler())
	}
	go func() { m.ended <- s.Run(ctx) }()
	g.members = append(g.members, m)
	return m
}

// stop ends a member in an orderly way.
func (m *member) stop() error {
	m.cancel(context.Canceled)
	return m.gone()
}

func (m *member) gone() error {
	if m.server != nil {
		m.server.Close()
	}
	err := <-m.ended
	for i, o := range m.g.members {
		if o == m {
			m.g.members = append(m.g.members[:i:i], m.g.members[i+1:]...)
		}
	}
	return err
}

// kill ends a member as SIGKILL would, except that its process lives: nothing is flushed, nobody is told. What the disk holds at
// that moment is copied, and the copy is what restart uses.
func (m *member) kill() {
	m.g.t.Helper()
	m.cancel(ErrCrash)
	if err := m.gone(); !errors.Is(err, ErrCrash) {
		m.g.t.Fatalf("killed member ended with %v", err)
	}
}

func (m *member) restart() *member {
	m.g.t.Helper()
	cfg := m.cfg
	cfg.Dir, cfg.Bootstrap = m.dir, false
	cfg.Transport = m.g.transport(cfg.NodeID)
	return m.g.start(cfg)
}

// wait waits for a condition in small steps of (virtual) time.
func (g *group) wait(what string, ok func() bool) {
	g.t.Helper()
	for range 3000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	g.t.Fatalf("%s: not within 30 s", what)
}

func (g *group) leader() *member {
	g.t.Helper()
	var leader *member
	g.wait("a leader", func() bool {
		for _, m := range g.members {
			if m.Leadership().Leader {
				leader = m
			}
		}
		return leader != nil
	})
	return leader
}

func (g *group) follower() *member {
	g.t.Helper()
	leader := g.leader()
	for _, m := range g.members {
		if m != leader {
			return m
		}
	}
	g.t.Fatal("there is no follower")
	return nil
}

// settle waits until all members have applied the same and agree on its digest (invariant I3).
func (g *group) settle() {
	g.t.Helper()
	g.wait("the same index everywhere", func() bool {
		for _, m := range g.members {
			if m.Status().Applied != g.members[0].Status().Applied {
				return false
			}
		}
		return true
	})
	want := digest(g.t, g.members[0].Snapshot())
	for _, m := range g.members[1:] {
		if got := digest(g.t, m.Snapshot()); got != want {
			g.t.Errorf("%s and %s differ at index %d", m.cfg.NodeID, g.members[0].cfg.NodeID, m.Snapshot().Index())
		}
	}
}

func (g *group) end() {
	g.t.Helper()
	for len(g.members) > 0 {
		if err := g.members[0].stop(); err != nil {
			g.t.Error(err)
		}
	}
}

func digest(t testing.TB, s *cluster.Snapshot) string {
	t.Helper()
	d, err := s.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func config(id string, size int) *cluster.Config {
	c := &cluster.Config{}
	c.ID, c.Spec.Name, c.Spec.Data = id, id, make([]byte, size)
	return c
}

// put creates the config with that id.
func (m *member) put(id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_, err := m.Propose(ctx, &cluster.Txn{Changes: []cluster.Change{cluster.CreateOf(config(id, 100))}})
	return err
}

func (m *member) mustPut(ids ...string) {
	m.g.t.Helper()
	for _, id := range ids {
		if err := m.put(id); err != nil {
			m.g.t.Fatalf("put %s: %v", id, err)
		}
	}
}

func TestOneMemberKeepsWhatItAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, nil)
		g.grow(1)
		m := g.leader()
		m.mustPut("a", "b")
		index, err := m.Update(t.Context(), func(s *cluster.Snapshot) (*cluster.Txn, error) {
			c := *s.Config("a")
			c.Spec.Labels = map[string]string{"x": "y"}
			return &cluster.Txn{Changes: []cluster.Change{cluster.UpdateOf(&c)}}, nil
		})
		if err != nil || m.Snapshot().Config("a").Version.Index != index {
			t.Fatalf("update at index %d: %v", index, err)
		}
		want := digest(t, m.Snapshot())
		m.kill()
		m = m.restart()
		g.leader()
		if got := digest(t, m.Snapshot()); got != want {
			t.Error("the state is not the same after a crash")
		}
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
		m = m.restart()
		g.leader()
		m.mustPut("c")
		if m.Snapshot().Len(cluster.KindConfig) != 3 {
			t.Error("the state is not the same after an orderly stop")
		}
	})
}

func TestThreeMembersSurviveTheLossOfTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, nil)
		g.grow(3)
		old := g.leader()
		for i := range 50 {
			old.mustPut(fmt.Sprint("a", i))
		}
		old.kill()
		begin := time.Now()
		leader := g.leader()
		leader.mustPut("after")
		// The election timeout is 1 to 2 s; where both survivors stand at once a runoff follows, within 0.7 s.
		if took := time.Since(begin); took > 2900*time.Millisecond {
			t.Errorf("the next write took %v after the leader's end", took)
		}
		if got := leader.Snapshot().Len(cluster.KindConfig); got != 51 {
			t.Errorf("the new leader has %d objects, want 51", got)
		}
		back := old.restart()
		g.settle()
		if back.Snapshot().Config("after") == nil {
			t.Error("the member that came back lacks what was written meanwhile")
		}
	})
}

func TestOpenChecks(t *testing.T) {
	dir := t.TempDir()
	good := Config{Dir: dir, NodeID: "n1", Addr: "a:1", Transport: Alone(), Key: testKey}
	for name, change := range map[string]func(*Config){
		"no key":       func(c *Config) { c.Key = nil },
		"short key":    func(c *Config) { c.Key = testKey[:31] },
		"no directory": func(c *Config) { c.Dir = "" },
		"no transport": func(c *Config) { c.Transport = nil },
		"no node":      func(c *Config) { c.NodeID = "" },
		"no store":     func(*Config) {},
		"odd ticks":    func(c *Config) { c.ElectionTicks, c.HeartbeatTicks = 1, 1 },
	} {
		cfg := good
		change(&cfg)
		if s, err := Open(cfg); err == nil {
			s.Close()
			t.Errorf("%s: opened", name)
		}
	}
	if Exists(dir) {
		t.Error("a failed open left a store")
	}
	good.Bootstrap = true
	s, err := Open(good)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(good); err == nil {
		t.Error("one directory was opened twice at once")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if !Exists(dir) {
		t.Error("there is no store")
	}
	for name, change := range map[string]func(*Config){
		"another node":   func(c *Config) { c.NodeID = "n2" },
		"another member": func(c *Config) { c.RaftID = 77 },
		"another key":    func(c *Config) { c.Key = append([]byte("x"), testKey[1:]...) },
	} {
		cfg := good
		change(&cfg)
		if s, err := Open(cfg); err == nil {
			s.Close()
			t.Errorf("%s: opened", name)
		} else {
			t.Log(err)
		}
	}
	if names, _ := filepath.Glob(filepath.Join(dir, "snap", "*.snap")); len(names) != 1 {
		t.Errorf("snapshots: %v", names)
	}
}
