package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"
	dockerclient "github.com/docker/docker/client"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/node/doctor"
	"github.com/miniswarm/miniswarm/raftstore"
)

// nodes are the daemons of one cluster in this process.
type nodes struct {
	t   *testing.T
	all []*Node
	// stop ends the daemon of each.
	stop map[*Node]func() error
}

// newNodes founds a cluster of so many managers and workers, all of which are caught up and ready.
func newNodes(t *testing.T, managers, workers int) *nodes {
	t.Helper()
	c := &nodes{t: t, stop: map[*Node]func() error{}}
	for i := range managers + workers {
		n := newNode(t)
		c.stop[n] = run(t, n)
		if i == 0 {
			_, err := n.Init(t.Context(), swarm.InitRequest{ListenAddr: freePort(t)})
			must(t, err)
		} else {
			tokens := snapshot(t, c.all[0]).Cluster().JoinTokens
			token := tokens.Manager
			if i >= managers {
				token = tokens.Worker
			}
			must(t, n.Join(t.Context(), swarm.JoinRequest{ListenAddr: freePort(t), RemoteAddrs: []string{c.all[0].current().state.AdvertiseAddr}, JoinToken: token}))
		}
		c.all = append(c.all, n)
	}
	c.voters(managers)
	waitFor(t, "ready nodes", func() bool {
		ready := 0
		if snap := snapshot(t, c.all[0]); snap != nil {
			for n := range snap.Nodes() {
				if n.Status.State == swarm.NodeStateReady {
					ready++
				}
			}
		}
		return ready == managers+workers
	})
	return c
}

// leader waits for the node that leads.
func (c *nodes) leader() (leader *Node) {
	c.t.Helper()
	waitFor(c.t, "leader", func() bool {
		for _, n := range c.all {
			if g := parts(n); g != nil && g.manager.Dispatcher() != nil {
				leader = n
				return true
			}
		}
		return false
	})
	return leader
}

func parts(n *Node) *managing {
	if m := n.current(); m != nil {
		return m.managing()
	}
	return nil
}

// voters waits until the group has so many members and all of them vote.
func (c *nodes) voters(want int) {
	c.t.Helper()
	waitFor(c.t, fmt.Sprintf("group of %d voters", want), func() bool {
		all := parts(c.leader())
		if all == nil {
			return false
		}
		n := 0
		for _, m := range all.store.Members() {
			if !m.Learner {
				n++
			}
		}
		return n == want && len(all.store.Members()) == want
	})
}

// setRole asks the leader for another role of a node, by the id, through the code that serves the API.
func (c *nodes) setRole(id string, role swarm.NodeRole) error {
	return nodeUpdate(c.t, c.leader(), id, func(s *swarm.NodeSpec) { s.Role = role })
}

func (c *nodes) must(id string, role swarm.NodeRole) {
	c.t.Helper()
	must(c.t, c.setRole(id, role))
}

// is waits until a daemon is what its role says: certificate, parts, node object.
func (c *nodes) is(n *Node, role identity.Role) {
	c.t.Helper()
	waitFor(c.t, "node that is a "+string(role), func() bool {
		info, creds := n.Info(), n.credentials.Current()
		if creds == nil || creds.Identity.Role != role || info.ControlAvailable != (role == identity.Manager) {
			return false
		}
		snap := snapshot(c.t, c.leader())
		if snap == nil {
			return false
		}
		obj := snap.Node(creds.Identity.NodeID)
		return obj != nil && obj.Role == role && (obj.RaftID != 0) == (role == identity.Manager) && (obj.ManagerAddr != "") == (role == identity.Manager)
	})
}

func TestAWorkerIsPromotedAndDemoted(t *testing.T) {
	c := newNodes(t, 1, 1)
	worker := c.all[1]
	id, part := worker.Info().NodeID, worker.current()
	for round := range 2 { // what the first time left must not be in the way of the second
		c.must(id, swarm.NodeRoleManager)
		c.is(worker, identity.Manager)
		c.voters(2)
		if snap := snapshot(t, worker); snap == nil || snap.Node(id) == nil {
			t.Fatalf("round %d: the new manager does not read the cluster", round)
		}
		if onDisk, err := worker.credentials.Identity(); err != nil || onDisk.Role != identity.Manager {
			t.Errorf("on disk: %+v, %v", onDisk, err)
		}
		c.must(id, swarm.NodeRoleWorker)
		c.is(worker, identity.Worker)
		c.voters(1)
		waitFor(t, "worker without a replica, whose demotion is no loss in a later recovery", func() bool {
			st, err := loadState(worker.cfg.StateDir)
			return err == nil && st.RaftID == 0 && st.Managed == nil && !raftstore.Exists(part.raftDir()) && gone(part.raftDir())
		})
		if _, err := worker.Control(); err == nil || err.Error() != textWorker {
			t.Errorf("control of a worker: %v", err)
		}
	}
	if worker.current() != part {
		t.Error("the node's other parts were restarted")
	}
}

func gone(path string) bool {
	_, err := os.Stat(path)
	return os.IsNotExist(err)
}

func TestThreeManagersBecomeFiveAndOne(t *testing.T) {
	c := newNodes(t, 3, 2)
	for _, n := range c.all[3:] {
		c.must(n.Info().NodeID, swarm.NodeRoleManager)
	}
	c.voters(5)
	// The leader first: it hands over, and its successor completes.
	for want := 4; want > 0; want-- {
		leader := c.leader()
		c.must(leader.Info().NodeID, swarm.NodeRoleWorker)
		c.is(leader, identity.Worker)
		c.voters(want)
	}
	last := c.leader().Info().NodeID
	if err := c.setRole(last, swarm.NodeRoleWorker); err == nil || !strings.Contains(err.Error(), "attempting to demote the last manager of the swarm") {
		t.Errorf("the last manager: %v", err)
	}
	waitFor(t, "ready nodes", func() bool {
		for n := range snapshot(t, c.leader()).Nodes() {
			if n.Status.State != swarm.NodeStateReady {
				return false
			}
		}
		return true
	})
}

func TestTwoDemotionsAtOnce(t *testing.T) {
	c := newNodes(t, 3, 0)
	leader := c.leader()
	var others []*Node
	for _, n := range c.all {
		if n != leader {
			others = append(others, n)
		}
	}
	failures := make(chan error, 2)
	for _, n := range others {
		id := n.Info().NodeID
		go func() {
			failures <- nodeUpdate(t, leader, id, func(s *swarm.NodeSpec) { s.Role = swarm.NodeRoleWorker })
		}()
	}
	for range others {
		if err := <-failures; err != nil {
			t.Error(err) // two of three may go while all are there
		}
	}
	for _, n := range others {
		c.is(n, identity.Worker)
	}
	c.voters(1)
	if snapshot(t, leader) == nil {
		t.Error("the manager that is left cannot be used")
	}
}

func TestAQuorumIsNotGivenAway(t *testing.T) {
	c := newNodes(t, 3, 0)
	leader := c.leader()
	i := slices.IndexFunc(c.all, func(n *Node) bool { return n != leader })
	dead := c.all[i]
	deadID := dead.Info().NodeID
	must(t, c.stop[dead]())
	waitFor(t, "manager that cannot be reached", func() bool {
		g := parts(c.leader())
		return g != nil && g.manager.Reachability(deadID) == swarm.ReachabilityUnreachable && g.manager.Dispatcher() != nil
	})
	leader = c.leader()
	warning := parts(leader).leaveWarning(t.Context())
	if !strings.Contains(warning, "Removing this node leaves 1 managers out of 3. Without a Raft quorum") {
		t.Errorf("leave: %s", warning)
	}
	for _, n := range c.all {
		if n != leader && n != dead {
			if got := parts(n).leaveWarning(t.Context()); got != warning {
				t.Errorf("leave of a follower: %s", got)
			}
			err := c.setRole(n.Info().NodeID, swarm.NodeRoleWorker)
			if err == nil || !strings.Contains(err.Error(), "loss of quorum: of 2 managers that would remain 1 can be reached, and 2 are needed") {
				t.Errorf("demotion of one of the two that are left: %v", err)
			}
		}
	}
	// The dead one may go, and then the group is one of two.
	c.must(deadID, swarm.NodeRoleWorker)
	c.voters(2)
	waitFor(t, "demoted node", func() bool {
		snap := snapshot(t, leader)
		return snap != nil && snap.Node(deadID).Role == swarm.NodeRoleWorker
	})
	// Back again it finds out, though it starts as the manager that it was.
	again, err := New(dead.cfg)
	must(t, err)
	c.stop[again] = run(t, again)
	c.all[i] = again
	c.is(again, identity.Worker)
}

func TestARemovedManagerHearsHowToComeBack(t *testing.T) {
	c := newNodes(t, 3, 0)
	leader := c.leader()
	i := slices.IndexFunc(c.all, func(n *Node) bool { return n != leader })
	lost := c.all[i]
	id := lost.Info().NodeID
	must(t, c.stop[lost]())
	if err := nodeRemove(t, c.leader(), id, true); err == nil || !strings.Contains(err.Error(), "It must be demoted to worker before removal") {
		t.Errorf("removal of a manager: %v", err)
	}
	c.must(id, swarm.NodeRoleWorker)
	must(t, nodeRemove(t, c.leader(), id, true))
	c.voters(2)
	again, err := New(lost.cfg)
	must(t, err)
	run(t, again)
	waitFor(t, "refusal", func() bool { return again.Info().LocalNodeState == swarm.LocalNodeStateError })
	_, cerr := again.Control()
	for what, text := range map[string]string{"info": again.Info().Error, "API": fmt.Sprint(cerr)} {
		if !strings.Contains(text, "it was removed") || !strings.Contains(text, `"docker swarm leave --force"`) || !strings.Contains(text, `"docker swarm join --token TOKEN 127.0.0.1:`) {
			t.Errorf("%s: %s", what, text)
		}
	}
	r := again.checkup(t.Context())
	if !has(r.Findings, "swarm", doctor.Failure, "it was removed") || slices.ContainsFunc(r.Findings, func(f doctor.Finding) bool {
		return f.Check == "session" || strings.Contains(f.Says, "context canceled")
	}) {
		t.Errorf("doctor: %+v", r.Findings)
	}
}

// TestManagersThatLeaveDoNotCount: by and by all managers but one leave by force, the leader among them.
func TestManagersThatLeaveDoNotCount(t *testing.T) {
	c := newNodes(t, 3, 0)
	for want := 2; want > 0; want-- {
		leaves := c.leader()
		g := parts(leaves)
		must(t, g.resign(t.Context()))
		c.is(leaves, identity.Worker)
		c.voters(want)
	}
	must(t, parts(c.leader()).resign(t.Context())) // the last one has nobody to leave the swarm to
	if c.leader().Info().ControlAvailable != true {
		t.Error("the last manager has resigned")
	}
}

// nodeUpdate changes a node's spec as a client of that daemon does.
func nodeUpdate(t *testing.T, n *Node, id string, change func(*swarm.NodeSpec)) error {
	t.Helper()
	api := client(t, n)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		node, _, err := api.NodeInspectWithRaw(ctx, id)
		if err != nil {
			return err
		}
		change(&node.Spec)
		err = api.NodeUpdate(ctx, node.ID, node.Version, node.Spec)
		if err == nil || !strings.Contains(err.Error(), "update out of sequence") {
			return err
		}
	}
}

func nodeRemove(t *testing.T, n *Node, id string, force bool) error {
	t.Helper()
	return client(t, n).NodeRemove(t.Context(), id, swarm.NodeRemoveOptions{Force: force})
}

// client speaks to a daemon's socket.
func client(t *testing.T, n *Node) *dockerclient.Client {
	t.Helper()
	api, err := dockerclient.NewClientWithOpts(dockerclient.WithHost("unix://"+n.cfg.Socket), dockerclient.WithAPIVersionNegotiation())
	must(t, err)
	t.Cleanup(func() { _ = api.Close() })
	return api
}

// TestACopiedMachineIsRefused: the disk of a node was copied, state directory and all, and both run.
func TestACopiedMachineIsRefused(t *testing.T) {
	c := newNodes(t, 3, 1)
	for _, original := range []*Node{c.all[3], c.all[slices.IndexFunc(c.all, func(n *Node) bool { return n != c.leader() })]} {
		id := original.Info().NodeID
		copied := newNode(t)
		must(t, os.RemoveAll(copied.cfg.StateDir))
		must(t, os.CopyFS(copied.cfg.StateDir, os.DirFS(original.cfg.StateDir)))
		cfg := copied.cfg
		cfg.ListenAddr = freePort(t) // in this process only one can have the cluster port
		n, err := New(cfg)
		must(t, err)
		stop := run(t, n)
		waitFor(t, "copy that knows it", func() bool {
			info := n.Info()
			return strings.Contains(info.Error, "in session with another machine") && strings.Contains(info.Error, `"docker swarm leave --force"`)
		})
		// A copied manager has no majority either, which is not the reason.
		var info struct{ Swarm swarm.Info }
		must(t, ask(t, n, http.MethodGet, "/info", nil, &info))
		if r := n.checkup(t.Context()); !strings.Contains(info.Swarm.Error, "another machine") || !has(r.Findings, "session", doctor.Failure, "in session with another machine") {
			t.Errorf("the copy does not say what it is: %s\n%+v", info.Swarm.Error, r.Findings)
		}
		g := parts(c.leader())
		if d := g.manager.Dispatcher(); d == nil || !d.NodeConnected(id) {
			t.Error("the original has no session")
		}
		if got := snapshot(t, c.leader()).Node(id); got.ManagerAddr != "" && got.ManagerAddr != original.current().state.AdvertiseAddr {
			t.Errorf("the copy has taken the manager's place at %s", got.ManagerAddr)
		}
		if why := original.Info().Error; why != "" {
			t.Errorf("the original says: %s", why)
		}
		must(t, stop())
	}
	c.voters(3)
}

// TestAPromotedManagerIsLocked: on a swarm that locks its managers the keys of one that was promoted are sealed like those of
// the others, and go when it is demoted.
func TestAPromotedManagerIsLocked(t *testing.T) {
	c := &nodes{t: t, stop: map[*Node]func() error{}}
	for range 2 {
		n := newNode(t)
		c.stop[n] = run(t, n)
		c.all = append(c.all, n)
	}
	_, err := c.all[0].Init(t.Context(), swarm.InitRequest{ListenAddr: freePort(t), AutoLockManagers: true})
	must(t, err)
	worker := c.all[1]
	must(t, worker.Join(t.Context(), swarm.JoinRequest{ListenAddr: freePort(t), RemoteAddrs: []string{c.all[0].current().state.AdvertiseAddr},
		JoinToken: snapshot(t, c.all[0]).Cluster().JoinTokens.Worker}))
	id := worker.Info().NodeID
	c.must(id, swarm.NodeRoleManager)
	c.is(worker, identity.Manager)
	waitFor(t, "key file that is locked", func() bool {
		var f keyFile
		raw, err := os.ReadFile(worker.vault.path())
		bare, berr := worker.credentials.Bare()
		return err == nil && berr == nil && json.Unmarshal(raw, &f) == nil && f.Locked && !bare
	})
	c.must(id, swarm.NodeRoleWorker)
	c.is(worker, identity.Worker)
	waitFor(t, "worker without a key file", func() bool { return gone(worker.vault.path()) })
	must(t, c.stop[worker]())
	again, err := New(worker.cfg)
	must(t, err)
	run(t, again)
	waitFor(t, "worker that is not locked", func() bool { return again.Info().LocalNodeState == swarm.LocalNodeStateActive })
}

// TestAManagerThatEndsBeforeItBegins: another part of the node fails at once, and the replica that was opened is closed.
func TestAManagerThatEndsBeforeItBegins(t *testing.T) {
	n := newNode(t)
	stop := run(t, n)
	_, err := n.Init(t.Context(), swarm.InitRequest{ListenAddr: freePort(t)})
	must(t, err)
	must(t, stop())
	n, err = New(n.cfg)
	must(t, err)
	must(t, n.openVault())
	_, err = n.credentials.Load()
	must(t, err)
	st, err := loadState(n.cfg.StateDir)
	must(t, err)
	m, err := newMember(n, st, nil, nil)
	must(t, err)
	first := m.managing()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.roles.Run(ctx); !errors.Is(err, context.Canceled) || m.managing() != nil {
		t.Errorf("it ends with %v and parts %v", err, m.managing())
	}
	if err := first.store.Run(ctx); err == nil || !strings.Contains(err.Error(), "has run") {
		t.Errorf("its replica is still open: %v", err)
	}
	must(t, m.closeParts())
}

// A worker that was promoted a moment ago does not say that it is to be promoted.
func TestAPromotionThatIsUnderWay(t *testing.T) {
	n := newNode(t)
	m := blankMember(n, &state{}, "n1")
	must(t, m.prepareRenewer())
	n.member, n.local = m, swarm.LocalNodeStateActive
	for _, c := range []struct {
		role swarm.NodeRole
		want string
	}{{swarm.NodeRoleWorker, textWorker}, {swarm.NodeRoleManager, textNoReady}, {swarm.NodeRoleWorker, textWorker}} {
		m.learnNode(&cluster.Node{Role: c.role})
		if _, err := n.Control(); err == nil || err.Error() != c.want {
			t.Errorf("as a %s to be: %v", c.role, err)
		}
	}
}
