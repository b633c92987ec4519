package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/manager/backup"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/raftstore"
)

// town is a cluster of nodes without engines.
type town struct {
	t     *testing.T
	nodes []*Node
	stops []func() error
}

// newTown makes a cluster of managers, the first of which leads at first, and workers after them.
func newTown(t *testing.T, managers, workers int) *town {
	t.Helper()
	w := &town{t: t}
	first := w.add()
	_, err := first.Init(t.Context(), swarm.InitRequest{ListenAddr: freePort(t)})
	must(t, err)
	tokens := snapshot(t, first).Cluster().JoinTokens
	for i := 1; i < managers+workers; i++ {
		token := tokens.Manager
		if i >= managers {
			token = tokens.Worker
		}
		must(t, w.add().Join(t.Context(), swarm.JoinRequest{ListenAddr: freePort(t), RemoteAddrs: []string{first.current().state.AdvertiseAddr}, JoinToken: token}))
	}
	waitFor(t, "voters that all know each other", func() bool {
		for _, n := range w.nodes[:managers] {
			if voters(n.managing().store.Members()) != managers {
				return false
			}
		}
		return len(w.nodes[managers+workers-1].Info().RemoteManagers) == managers
	})
	return w
}

func (w *town) add() *Node {
	n := newNode(w.t)
	w.nodes = append(w.nodes, n)
	w.stops = append(w.stops, run(w.t, n))
	return n
}

// stop ends a node's daemon.
func (w *town) stop(i int) { w.t.Helper(); must(w.t, w.stops[i]()) }

// again starts the daemon of a node that was stopped.
func (w *town) again(i int) *Node {
	w.t.Helper()
	n, err := New(w.nodes[i].cfg)
	must(w.t, err)
	w.nodes[i], w.stops[i] = n, run(w.t, n)
	return n
}

func write(t *testing.T, n *Node, id string) {
	t.Helper()
	c := &cluster.Config{}
	c.ID, c.Spec.Name = id, id
	waitFor(t, "a write", func() bool {
		ctl, err := n.Control()
		if err != nil {
			return false
		}
		_, err = ctl.Update(t.Context(), func(*cluster.Snapshot) (*cluster.Txn, error) {
			return &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.CreateOf(c)}}, nil
		})
		return err == nil || errors.Is(err, cluster.ErrExists)
	})
}

// ready waits until the cluster of n has a session with the other node.
func ready(t *testing.T, n, other *Node) {
	t.Helper()
	waitFor(t, "session of the cluster with the node", func() bool {
		g, id := n.managing(), other.Info().NodeID // which a daemon that was just started has yet to read
		if g == nil || id == "" {
			return false
		}
		d := g.manager.Dispatcher()
		return d != nil && d.NodeConnected(id)
	})
}

func TestRecoverFromASurvivorsDisk(t *testing.T) {
	w := newTown(t, 3, 1)
	survivor, worker := w.nodes[2], w.nodes[3]
	write(t, w.nodes[0], "kept")
	before := snapshot(t, w.nodes[0])
	if _, err := survivor.Recover(t.Context(), backup.RecoverRequest{}, nil); err == nil || !strings.Contains(err.Error(), "has a leader") {
		t.Errorf("recovering a cluster that works: %v", err)
	}
	if _, err := worker.Recover(t.Context(), backup.RecoverRequest{}, nil); err == nil || err.Error() != textNoLog {
		t.Errorf("recovering on a worker: %v", err)
	}
	waitFor(t, "the survivor has everything", func() bool { return survivor.managing().store.Snapshot().Config("kept") != nil })
	w.stop(0)
	w.stop(1)
	quiet := 0 // whoever stops hands leadership over first, and between two leaders there is none
	waitFor(t, "no leader for a while", func() bool {
		if quiet++; survivor.managing().store.Leadership().LeaderID != 0 {
			quiet = 0
		}
		return quiet > 50
	})

	plan, err := survivor.Recover(t.Context(), backup.RecoverRequest{DryRun: true}, nil)
	must(t, err)
	if !plan.DryRun || plan.NewNode || len(plan.Dropped) != 2 || plan.Objects["config"] != 1 || plan.Objects["node"] != 4 || plan.MayMiss == "" || plan.Index == 0 || plan.LastChange.IsZero() || len(plan.Known) != 3 {
		t.Errorf("dry run: %+v", plan)
	}
	if survivor.managing().store.Status().RaftID != survivor.current().state.RaftID || exists(filepath.Join(survivor.cfg.StateDir, recoveryDir)) {
		t.Error("a dry run did something")
	}
	rep, err := survivor.Recover(t.Context(), backup.RecoverRequest{}, nil)
	must(t, err)
	if rep.NodeID != plan.NodeID || rep.Addr != plan.Addr || rep.Index < plan.Index || rep.Epoch <= 0 {
		t.Errorf("recovered %+v, said before %+v", rep, plan)
	}
	write(t, survivor, "new")
	after := snapshot(t, survivor)
	switch c := after.Cluster(); {
	case after.Config("kept") == nil || c.ID != before.Cluster().ID || c.JoinTokens != before.Cluster().JoinTokens || !bytes.Equal(c.RootCAKey, before.Cluster().RootCAKey):
		t.Error("something of the cluster is lost")
	case after.Config("new").Version.Index <= before.Config("kept").Version.Index || c.Version.Index <= before.Cluster().Version.Index:
		t.Error("versions went back")
	case len(survivor.managing().store.Members()) != 1 || after.Node(rep.NodeID).ManagerAddr != rep.Addr, after.Node(rep.NodeID).RaftID != survivor.managing().store.Members()[0].RaftID:
		t.Errorf("members %v", survivor.managing().store.Members())
	}
	ready(t, survivor, worker)

	// The lost ones are a majority of the cluster that was. They are refused, go on as workers, and remember.
	for _, i := range []int{0, 1} {
		w.again(i)
	}
	for _, i := range []int{0, 1} {
		n := w.nodes[i]
		waitFor(t, "a lost manager is refused", func() bool { return strings.Contains(n.Info().Error, "was recovered without this manager") })
		if info := n.Info(); info.ControlAvailable || info.LocalNodeState != swarm.LocalNodeStateActive {
			t.Errorf("a lost manager is %+v", info)
		}
		if _, err := n.Control(); err == nil || !strings.Contains(err.Error(), "node promote") {
			t.Errorf("it says %v", err)
		}
		ready(t, survivor, n)
		if o := snapshot(t, survivor).Node(n.Info().NodeID); o.Spec.Role != swarm.NodeRoleWorker || o.ManagerAddr != "" {
			t.Errorf("its node is %+v", o)
		}
		waitFor(t, "its log is not there for the next start", func() bool { return !raftstore.Exists(filepath.Join(n.cfg.StateDir, raftDir)) })
	}
	w.stop(0)
	n := w.again(0)
	ready(t, survivor, n)
	if n.managing() != nil || n.Info().Error == "" {
		t.Error("it has forgotten that it was refused")
	}
	if members := survivor.managing().store.Members(); len(members) != 1 {
		t.Errorf("members %v", members)
	}
	// Another recovery is later than the first.
	second, err := survivor.Recover(t.Context(), backup.RecoverRequest{Force: true}, nil)
	must(t, err)
	if second.Epoch <= rep.Epoch || second.NodeID != rep.NodeID {
		t.Errorf("a second recovery: %+v", second)
	}
	ready(t, survivor, worker)
}

func backedUp(t *testing.T, n *Node, secret backup.Secret) []byte {
	t.Helper()
	var b bytes.Buffer
	must(t, n.Backup(t.Context(), secret.Text(), &b))
	return b.Bytes()
}

func TestRecoverFromABackupOnAFreshMachine(t *testing.T) {
	w := newTown(t, 3, 1)
	worker, key := w.nodes[3], backup.NewRecoveryKey()
	write(t, w.nodes[0], "kept")
	data := backedUp(t, w.nodes[1], key) // any manager will do
	m, err := CheckBackup(bytes.NewReader(data), key)
	must(t, err)
	if m.NodeID != w.nodes[1].Info().NodeID || len(m.Members) != 3 || m.Objects["config"] != 1 {
		t.Errorf("the backup is of %+v", m)
	}
	if err := w.nodes[3].Backup(t.Context(), key.Text(), io.Discard); err == nil || err.Error() != textWorker {
		t.Errorf("a backup on a worker: %v", err)
	}
	write(t, w.nodes[0], "later")

	fresh := w.add()
	req := backup.RecoverRequest{FromBackup: true, Secret: key.Text(), AdvertiseAddr: "127.0.0.1", ListenAddr: freePort(t)}
	plan := req
	plan.DryRun = true
	rep, err := fresh.Recover(t.Context(), plan, bytes.NewReader(data))
	must(t, err)
	if fresh.Info().LocalNodeState != swarm.LocalNodeStateInactive || !rep.NewNode || len(rep.Dropped) != 3 || rep.Backup.Index != m.Index {
		t.Errorf("dry run %+v", rep)
	}
	rep, err = fresh.Recover(t.Context(), req, bytes.NewReader(data))
	must(t, err)
	snap := snapshot(t, fresh)
	if snap.Config("kept") == nil || snap.Config("later") != nil || snap.Len(cluster.KindNode) != 5 || !rep.NewNode || snap.Node(rep.NodeID).RaftID != fresh.managing().store.Members()[0].RaftID {
		t.Errorf("recovered %+v", rep)
	}
	// Whoever is told where it is follows it, and those it was recovered from no more, although all of them are there.
	must(t, worker.Rejoin(t.Context(), fresh.current().state.AdvertiseAddr))
	ready(t, fresh, worker)
	w.stops[4]()
	time.Sleep(2 * time.Second) // in which it asks the old managers again and again
	again := w.again(4)
	ready(t, again, worker)
	w.stop(3)
	worker = w.again(3)
	ready(t, again, worker)
	leader := w.nodes[0]
	for _, n := range w.nodes[:3] {
		if n.managing().manager.Dispatcher() != nil {
			leader = n
		}
	}
	if leader.managing().manager.Dispatcher().NodeConnected(worker.Info().NodeID) {
		t.Error("the worker has a session with the cluster that was recovered")
	}
	// Managers of the old cluster give way when they are told to, and not the other way round.
	if err := again.Rejoin(t.Context(), leader.current().state.AdvertiseAddr); err == nil || !strings.Contains(err.Error(), "no later recovery") {
		t.Errorf("the recovered cluster is told to give way: %v", err)
	}
	must(t, leader.Rejoin(t.Context(), rep.Addr))
	ready(t, again, leader)
	if info := leader.Info(); info.ControlAvailable || !strings.Contains(info.Error, "was recovered without this manager") || len(again.managing().store.Members()) != 1 {
		t.Errorf("a manager that gave way is %+v", info)
	}
	// A member of another cluster is not overwritten.
	other := newTown(t, 1, 1).nodes[0]
	if _, err := other.Recover(t.Context(), backup.RecoverRequest{FromBackup: true, Secret: key.Text(), Force: true}, bytes.NewReader(data)); err == nil || !strings.Contains(err.Error(), "leave --force") {
		t.Errorf("recovering on a machine of another cluster: %v", err)
	}
}

// A manager that was lost takes part again with its identity; its newer log is put aside, not thrown away.
func TestRecoverFromABackupOverALostManager(t *testing.T) {
	w := newTown(t, 1, 1)
	n, worker, key := w.nodes[0], w.nodes[1], backup.NewRecoveryKey()
	write(t, n, "kept")
	data, id := backedUp(t, n, key), n.Info().NodeID
	write(t, n, "later")
	rep, err := n.Recover(t.Context(), backup.RecoverRequest{FromBackup: true, Secret: key.Text(), Force: true}, bytes.NewReader(data))
	must(t, err)
	snap := snapshot(t, n)
	if rep.NodeID != id || rep.NewNode || snap.Config("later") != nil || snap.Config("kept") == nil {
		t.Errorf("recovered %+v", rep)
	}
	ready(t, n, worker)
	logKey, older, err := n.diskKeys()
	must(t, err)
	s, err := raftstore.Salvage(filepath.Join(n.cfg.StateDir, raftDir+formerSuffix), logKey, nil, older...)
	must(t, err)
	if s.State.Snapshot().Config("later") == nil {
		t.Error("the former log is not what it was")
	}
	// The next one puts the log of this one aside, in place of the other.
	write(t, n, "last")
	_, err = n.Recover(t.Context(), backup.RecoverRequest{FromBackup: true, Secret: key.Text(), Force: true}, bytes.NewReader(data))
	must(t, err)
	logKey, older, err = n.diskKeys()
	must(t, err)
	s, err = raftstore.Salvage(filepath.Join(n.cfg.StateDir, raftDir+formerSuffix), logKey, nil, older...)
	must(t, err)
	if now := s.State.Snapshot(); now.Config("last") == nil || now.Config("later") != nil {
		t.Error("the former log is not the latest")
	}
	dirs, err := filepath.Glob(filepath.Join(n.cfg.StateDir, raftDir+"*"))
	must(t, err)
	if len(dirs) != 3 { // the log, the former one, raft.key
		t.Errorf("logs pile up: %v", dirs)
	}
}

// Whatever byte of a backup is damaged, and wherever it ends: an error, and a machine that is as it was.
func TestADamagedBackupRecoversNothing(t *testing.T) {
	w := newTown(t, 1, 1)
	key := backup.NewRecoveryKey()
	data := backedUp(t, w.nodes[0], key)
	fresh := newNode(t)
	run(t, fresh)
	try := func(what string, data []byte) {
		t.Helper()
		_, err := fresh.Recover(t.Context(), backup.RecoverRequest{FromBackup: true, Secret: key.Text(), AdvertiseAddr: "127.0.0.1"}, bytes.NewReader(data))
		if err == nil || !strings.Contains(err.Error(), "offset") {
			t.Fatalf("%s: %v", what, err)
		}
		if fresh.Info().LocalNodeState != swarm.LocalNodeStateInactive || exists(filepath.Join(fresh.cfg.StateDir, stateFile)) || exists(filepath.Join(fresh.cfg.StateDir, raftDir)) {
			t.Fatalf("%s: half of it was restored", what)
		}
	}
	for i := range data {
		bad := bytes.Clone(data)
		bad[i] ^= 1 << (i % 8)
		try(fmt.Sprintf("byte %d of %d changed", i, len(data)), bad)
	}
	for i := 0; i < len(data); i += 97 {
		try(fmt.Sprintf("cut off after %d of %d bytes", i, len(data)), data[:i])
	}
}

// A crash at any step of taking over the recovered cluster's files leaves the old cluster or the new one, whole; the next start decides.
func TestACrashDuringRecovery(t *testing.T) {
	w := newTown(t, 1, 1)
	n, key := w.nodes[0], backup.NewRecoveryKey()
	write(t, n, "kept")
	data := backedUp(t, n, key)
	w.stop(0)
	req := backup.RecoverRequest{FromBackup: true, Secret: key.Text()}
	from, err := restore(req, bytes.NewReader(data))
	must(t, err)
	r, err := n.planRecovery(t.Context(), req, from)
	must(t, err)
	staged, err := n.stageRecovery()
	must(t, err)
	must(t, n.stage(r, staged))
	old, err := loadState(n.cfg.StateDir)
	must(t, err)
	for step := -1; step <= 2*len(replaced); step++ {
		t.Run(fmt.Sprint("step ", step), func(t *testing.T) {
			crashed := newNode(t)
			dir := crashed.cfg.StateDir
			must(t, os.CopyFS(dir, os.DirFS(n.cfg.StateDir)))
			for range 2 { // the second time there is nothing left to do
				if step >= 0 && exists(filepath.Join(dir, recoveryDir+".new")) {
					must(t, os.Rename(filepath.Join(dir, recoveryDir+".new"), filepath.Join(dir, recoveryDir)))
					for _, name := range replaced[:min(step/2, len(replaced))] {
						must(t, crashed.replace(filepath.Join(dir, recoveryDir), name))
					}
					if step%2 == 1 && exists(filepath.Join(dir, recoveryDir, replaced[step/2])) {
						must(t, putAside(filepath.Join(dir, replaced[step/2]))) // and the crash comes before the rename
					}
				}
				must(t, crashed.settleRecovery())
				st, err := loadState(dir)
				must(t, err)
				logKey, older, err := crashed.diskKeys()
				must(t, err)
				_, err = crashed.credentials.Load()
				must(t, err)
				s, err := raftstore.Salvage(filepath.Join(dir, raftDir), logKey, nil, older...)
				must(t, err)
				if recovered := st.Epoch != 0; recovered != (step >= 0) || s.RaftID != st.RaftID && recovered || !recovered && st.Epoch != old.Epoch || s.State.Snapshot().Cluster().Epoch != st.Epoch || s.State.Snapshot().Config("kept") == nil {
					t.Errorf("state %+v with the log of member %x", st, s.RaftID)
				}
				if exists(filepath.Join(dir, recoveryDir)) || exists(filepath.Join(dir, recoveryDir+".new")) {
					t.Error("something is left")
				}
			}
		})
	}
}

func TestForceNewCluster(t *testing.T) {
	w := newTown(t, 2, 1)
	n, worker := w.nodes[1], w.nodes[2]
	write(t, w.nodes[0], "kept")
	waitFor(t, "everything everywhere", func() bool { return n.managing().store.Snapshot().Config("kept") != nil })
	if _, err := worker.Init(t.Context(), swarm.InitRequest{ForceNewCluster: true}); err == nil || err.Error() != textWorker {
		t.Errorf("on a worker: %v", err)
	}
	w.stop(0)
	id, addr := n.Info().NodeID, freePort(t)
	got, err := n.Init(t.Context(), swarm.InitRequest{ForceNewCluster: true, ListenAddr: addr, AdvertiseAddr: addr})
	must(t, err)
	if snap := snapshot(t, n); got != id || snap == nil || snap.Config("kept") == nil || snap.Node(id).ManagerAddr != addr || n.current().state.AdvertiseAddr != addr {
		t.Errorf("node %s of a new cluster, was %s", got, id)
	}
	must(t, worker.Rejoin(t.Context(), addr))
	ready(t, n, worker)

	// Without addresses it keeps those it had, whatever the client says that knows no better.
	c := snapshot(t, n).Cluster()
	w.stop(1)
	n = w.again(1)
	if got, err = n.Init(t.Context(), swarm.InitRequest{ForceNewCluster: true, ListenAddr: "0.0.0.0:2377"}); err != nil || got != id {
		t.Fatalf("node %s: %v", got, err)
	}
	if snap := snapshot(t, n); snap.Config("kept") == nil || n.current().state.AdvertiseAddr != addr {
		t.Errorf("the address is %s, want %s as before", n.current().state.AdvertiseAddr, addr)
	}
	ready(t, n, worker)

	// On a machine without a cluster it is an ordinary init, as with Docker.
	fresh := newNode(t)
	run(t, fresh)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := fresh.Init(ctx, swarm.InitRequest{ForceNewCluster: true, ListenAddr: freePort(t)}); err != nil || snapshot(t, fresh).Cluster().ID == c.ID {
		t.Errorf("on a fresh machine: %v", err)
	}
}

// A locked manager's disk is as closed to a recovery as to anything else. Afterwards its keys are sealed as the recovered cluster wants it, which
// may be an older wish than the one before.
func TestRecoverLockedManagers(t *testing.T) {
	w := newTown(t, 1, 1)
	n, secret := w.nodes[0], backup.NewRecoveryKey()
	open := backedUp(t, n, secret)
	key, err := identity.NewUnlockKey(nil)
	must(t, err)
	setLock(t, n, key)
	sealedWith(t, n, key)
	locked := backedUp(t, n, secret)
	from := backup.RecoverRequest{FromBackup: true, Force: true, Secret: secret.Text()}

	w.stop(0)
	n = w.again(0)
	waitFor(t, "a locked manager", func() bool { return n.Info().LocalNodeState == swarm.LocalNodeStateLocked })
	_, err = n.Recover(t.Context(), backup.RecoverRequest{DryRun: true}, nil)
	refused(t, "a recovery from a locked disk", err, http.StatusServiceUnavailable, textLocked)
	_, err = n.Recover(t.Context(), from, bytes.NewReader(open))
	refused(t, "a recovery over a locked disk", err, http.StatusServiceUnavailable, textLocked)
	must(t, n.Unlock(t.Context(), key.Text()))
	_, err = n.Recover(t.Context(), backup.RecoverRequest{Force: true}, nil)
	must(t, err)
	sealedWith(t, n, key)
	_, err = n.Recover(t.Context(), from, bytes.NewReader(open))
	must(t, err)
	sealedWith(t, n, nil)
	ready(t, n, w.nodes[1])

	fresh := w.add()
	from.AdvertiseAddr, from.ListenAddr = "127.0.0.1", freePort(t)
	_, err = fresh.Recover(t.Context(), from, bytes.NewReader(locked))
	must(t, err)
	if err := (&vault{dir: fresh.cfg.StateDir}).open(nil); !errors.Is(err, errLocked) {
		t.Errorf("the recovered keys open without the unlock key: %v", err)
	}
	sealedWith(t, fresh, key)
}
