package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/backup"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/raftstore"
)

const (
	// readyTimeout bounds how long init waits for its own first leadership, and join for its first session.
	readyTimeout = 20 * time.Second
	// leaveTimeout bounds the stopping of containers at leave.
	leaveTimeout = 2 * time.Minute

	defaultListen = "0.0.0.0:2377"
	raftDir       = "raft"
	raftKeyFile   = "raft.key"
	lockFile      = "daemon.lock"
)

// Docker's words for requests that the node's state forbids (swarm-semantics, 10.4).
const (
	textNoSwarm = "This node is not part of a swarm"
	textInSwarm = `This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.`
	textNever   = `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`
	textWorker  = "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this command on a manager node or promote the current node to a manager."
	textLocked  = `Swarm is encrypted and needs to be unlocked before it can be used. Please use "docker swarm unlock" to unlock it.`
	textNoReady = "This node is not a swarm manager. Manager is being prepared or has trouble connecting to the cluster."
)

// textNoLog is what a worker says to who would recover from its disk, and has perhaps no manager left to go to.
const textNoLog = "This node is a worker: its disk has no log of a manager to recover from. Run this command on a manager that is left, or, if none is, give a backup: miniswarm recover --from FILE"

// Init implements engineapi.Local: this machine founds a cluster.
func (n *Node) Init(ctx context.Context, req swarm.InitRequest) (string, error) {
	n.changing.Lock()
	defer n.changing.Unlock()
	if n.inSwarm() && req.ForceNewCluster {
		if !raftstore.Exists(filepath.Join(n.cfg.StateDir, raftDir)) {
			return "", unavailable(textWorker)
		}
		// What the request says about a new cluster's settings is passed over: this one has its own.
		rep, err := n.recover(ctx, backup.RecoverRequest{ListenAddr: req.ListenAddr, AdvertiseAddr: req.AdvertiseAddr, DataPathAddr: req.DataPathAddr}, nil)
		if err != nil {
			return "", err
		}
		return rep.NodeID, nil
	}
	if n.inSwarm() {
		return "", unavailable(textInSwarm)
	}
	st, err := n.addresses(req.ListenAddr, req.AdvertiseAddr, req.DataPathAddr)
	if err != nil {
		return "", err
	}
	if err := checkPools(req.DefaultAddrPool, req.SubnetSize); err != nil {
		return "", err
	}
	if p := req.DataPathPort; p != 0 && (p < 1024 || p > 49151) {
		return "", badRequest("Datapath port number is not in valid range (1024-49151) : %d", p)
	}
	if v := req.Spec.CAConfig.NodeCertExpiry; v != 0 {
		if err := identity.CheckValidity(v); err != nil {
			return "", badRequest("%v", err)
		}
	}
	if err := identity.CheckExternalCAs(req.Spec.CAConfig.ExternalCAs); err != nil {
		return "", badRequest("%v", err)
	}
	if err := n.wipe(); err != nil {
		return "", err
	}
	n.setBecoming(true)
	defer n.setBecoming(false)
	nodeID, err := n.initialize(ctx, st, req)
	if err != nil {
		return "", errors.Join(err, n.abandon())
	}
	return nodeID, nil
}

// initialize creates the identity, the store and the first objects, and is back when they are committed.
func (n *Node) initialize(ctx context.Context, st *state, req swarm.InitRequest) (string, error) {
	authority, err := identity.NewAuthority(identity.AuthorityConfig{Store: n.credentials, Now: n.cfg.Now, Logger: n.cfg.Logger})
	if err != nil {
		return "", fmt.Errorf("init swarm: %w", err)
	}
	want := req.Spec.CAConfig
	ca, err := authority.FirstRoot(want)
	if err != nil {
		return "", fmt.Errorf("init swarm: %w", err)
	}
	var unlock identity.UnlockKey
	if req.AutoLockManagers {
		if unlock, err = identity.NewUnlockKey(nil); err != nil {
			return "", fmt.Errorf("init swarm: %w", err)
		}
		n.vault.lockFirst(unlock)
	}
	f := &founding{clusterID: n.ids.Next(), nodeID: n.ids.Next(), ca: ca, unlock: unlock, req: req, dataAddr: st.DataAddr, ids: n.ids, random: rand.Reader, now: time.Now()}
	id := identity.Identity{NodeID: f.nodeID, ClusterID: f.clusterID, Role: identity.Manager}
	if _, err := identity.Found(ca, n.credentials, id, req.Spec.CAConfig.NodeCertExpiry); err != nil {
		return "", fmt.Errorf("init swarm: %w", err)
	}
	txn, err := f.objects(func(c *cluster.Cluster) (*cluster.Cluster, error) { return authority.ConfigureFirst(ctx, c, want) })
	if err != nil {
		return "", fmt.Errorf("init swarm: %w", err)
	}
	st.Managers = []protocol.ManagerAddr{{NodeID: f.nodeID, Addr: st.AdvertiseAddr}}
	if err := n.start(st, func() *cluster.Txn { return txn }, nil); err != nil {
		return "", fmt.Errorf("init swarm: %w", err)
	}
	if err := n.current().awaitCluster(ctx); err != nil {
		return "", fmt.Errorf("init swarm: %w", err)
	}
	n.current().awaitRoot(ctx)
	// Only now is the membership remembered: a crash before leaves a machine that is part of no swarm.
	if err := st.save(n.cfg.StateDir); err != nil {
		return "", fmt.Errorf("init swarm: %w", err)
	}
	n.cfg.Logger.Info("swarm initialised", "node", f.nodeID, "addr", st.AdvertiseAddr)
	return f.nodeID, nil
}

// Join implements engineapi.Local.
func (n *Node) Join(ctx context.Context, req swarm.JoinRequest) error {
	n.changing.Lock()
	defer n.changing.Unlock()
	if n.inSwarm() {
		return unavailable(textInSwarm)
	}
	st, err := n.addresses(req.ListenAddr, req.AdvertiseAddr, req.DataPathAddr)
	if err != nil {
		return err
	}
	if err := n.wipe(); err != nil {
		return err
	}
	if err := n.enrol(ctx, st, req); err != nil {
		return errors.Join(err, n.abandon())
	}
	return nil
}

// enrol gets an identity from a manager and starts what its role asks for.
func (n *Node) enrol(ctx context.Context, st *state, req swarm.JoinRequest) error {
	id, err := identity.Join(ctx, identity.JoinConfig{Addrs: req.RemoteAddrs, Token: req.JoinToken, Availability: req.Availability,
		Store: n.credentials, Logger: n.cfg.Logger})
	if err != nil {
		return err
	}
	for _, a := range req.RemoteAddrs {
		addr, err := identity.ParseAddr(a)
		if err != nil {
			return badRequest("%v", err)
		}
		st.Managers = append(st.Managers, protocol.ManagerAddr{Addr: addr})
	}
	var peers []protocol.Member
	if id.Role == identity.Manager {
		n.setBecoming(true)
		defer n.setBecoming(false)
		// A manager that nobody can reach must not become a member of the raft group first.
		if err := probePort(st.ListenAddr); err != nil {
			return fmt.Errorf("join swarm as a manager: %w", err)
		}
		answer, err := n.joinRaft(ctx, func() []protocol.ManagerAddr { return st.Managers }, protocol.JoinRequest{Addr: st.AdvertiseAddr, Fresh: true, Instance: n.instance})
		if err != nil {
			return fmt.Errorf("join swarm as a manager: %w", err)
		}
		if _, err := n.vault.follow(answer.UnlockKey, answer.LockVersion); err != nil {
			return fmt.Errorf("join swarm as a manager: %w", err)
		}
		st.RaftID, peers = answer.RaftID, answer.Members
	}
	if err := st.save(n.cfg.StateDir); err != nil {
		return fmt.Errorf("join swarm: %w", err)
	}
	if err := n.start(st, nil, peers); err != nil {
		return fmt.Errorf("join swarm: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	m := n.current()
	select {
	case <-m.joined():
	case <-m.done:
		return fmt.Errorf("join swarm: %w", m.failure())
	case <-ctx.Done():
		// As in Swarm the attempt goes on: the cluster may be without a leader for the moment.
		return nil
	}
	n.cfg.Logger.Info("joined a swarm", "node", id.NodeID, "role", id.Role)
	return nil
}

// Leave implements engineapi.Local.
func (n *Node) Leave(ctx context.Context, force bool) error {
	n.changing.Lock()
	defer n.changing.Unlock()
	if !n.inSwarm() {
		return unavailable(textNoSwarm)
	}
	m := n.current()
	if m != nil && m.locked && !force {
		return unavailable("Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore this message.")
	}
	if m != nil && !force {
		if g := m.managing(); g != nil {
			return unavailable("%s", g.leaveWarning(ctx))
		}
	}
	// A client that hangs up does not stop it, the end of the daemon does.
	ctx, cancel := context.WithTimeout(n.lifetime(), leaveTimeout)
	defer cancel()
	var errs []error
	if m != nil {
		// Who is a copy of another machine has nothing to resign from: that one is the manager.
		if g := m.managing(); g != nil && m.refusal() == "" {
			if err := g.resign(ctx); err != nil {
				n.cfg.Logger.Warn("this manager leaves without having been demoted; demote and remove it on another one", "node", m.nodeID, "err", err)
			}
		}
		m.stop(errLeaving)
		<-m.done
		errs = append(errs, m.clear(ctx))
	} else {
		errs = append(errs, n.clearRemains(ctx))
	}
	if n.ending() {
		// What is left must not be forgotten: the node is a member until it has left for good.
		return fmt.Errorf("leave swarm: the daemon stops; leave again when it is back: %w", errors.Join(errs...))
	}
	errs = append(errs, n.abandon())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("leave swarm: the node left, but not everything was cleaned up: %w", err)
	}
	n.cfg.Logger.Info("left the swarm")
	return nil
}

// clearRemains takes off this machine what is left of a part in a swarm that could not be taken up. A machine that does not know any
// more which node it was has nothing to look for.
func (n *Node) clearRemains(ctx context.Context) error {
	st, err := loadState(n.cfg.StateDir)
	if err != nil || st == nil {
		return nil
	}
	id, err := n.credentials.Identity()
	if err != nil {
		return nil
	}
	m := blankMember(n, st, id.NodeID)
	if err := m.prepareAgent(); err != nil {
		return err
	}
	return errors.Join(m.clear(ctx), m.closeParts())
}

// lifetime is the context of Run.
func (n *Node) lifetime() context.Context {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.root
}

// errLeaving ends the member at leave.
var errLeaving = errors.New("the node leaves the swarm")

// setBecoming notes that this machine is about to be a manager, or that it is one or is not to be.
func (n *Node) setBecoming(soon bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.becoming = soon
}

func (n *Node) inSwarm() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.local != swarm.LocalNodeStateInactive
}

// addresses gives the state of a new membership with addresses from the request, or else from the daemon's flags.
func (n *Node) addresses(listen, advertise, data string) (*state, error) {
	fallback := n.cfg.ListenAddr
	if fallback == "" {
		fallback = defaultListen
	}
	if listen == defaultListen {
		listen = "" // what clients send that know no better
	}
	l, err := resolveListen(listen, fallback)
	if err != nil {
		return nil, err
	}
	if advertise == "" {
		advertise = n.cfg.AdvertiseAddr
	}
	a, err := resolveAdvertise(advertise, l)
	if err != nil {
		return nil, err
	}
	if data == "" {
		data = n.cfg.DataPathAddr
	}
	d, err := resolveData(data, a)
	if err != nil {
		return nil, err
	}
	st := &state{ListenAddr: l, AdvertiseAddr: a, DataAddr: d, Flags: n.cfg.flags()}
	if st.Interface = interfaceOf(st.host()); st.Interface == "" {
		n.cfg.Logger.Warn("this machine does not have the address that it advertises: the other nodes reach it only if a router forwards that address here", "addr", a)
	}
	return st, nil
}

// wipe removes what an earlier membership or a crashed attempt left, so that a new one starts clean. The state goes
// first: from then on the machine is part of no swarm, wherever a crash cuts in.
func (n *Node) wipe() error {
	if err := removeDurably(filepath.Join(n.cfg.StateDir, stateFile)); err != nil {
		return fmt.Errorf("clear this node's former state: %w", err)
	}
	n.vault.forget()
	errs := []error{n.credentials.Clear()}
	for _, name := range []string{raftDir, raftKeyFile, raftDir + formerSuffix, recoveryDir, recoveryDir + ".new", agentDir} {
		errs = append(errs, os.RemoveAll(filepath.Join(n.cfg.StateDir, name)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clear this node's former state: %w", err)
	}
	return nil
}

// abandon stops what a membership started and forgets it.
func (n *Node) abandon() error {
	n.mu.Lock()
	m := n.member
	n.mu.Unlock()
	var errs []error
	if m != nil {
		m.stop(errLeaving)
		<-m.done
		errs = append(errs, m.closeParts())
	}
	n.mu.Lock()
	n.member, n.local, n.failed = nil, swarm.LocalNodeStateInactive, nil
	n.mu.Unlock()
	return errors.Join(append(errs, n.wipe())...)
}
