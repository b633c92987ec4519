package node

import (
	"cmp"
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/backup"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/raftstore"
)

// recovery is a new cluster of one manager, ready to be written.
type recovery struct {
	report   backup.Report
	salvaged *raftstore.Salvaged
	state    *state
	// self is this machine as a member of the new group.
	self protocol.Member
	// credentials are this machine's as a manager; nil where those it has will do.
	credentials *identity.Credentials
}

// Recover implements engineapi.Local: from a backup in body, or from this machine's own disk, it makes a cluster whose only
// manager is this machine. Services, tasks, networks, secrets, nodes, join tokens and the CA are kept; agents that still run find
// it at the addresses they know. Nothing is changed before all of the source was read, and a crash in between
// leaves the old state or the new one. Containers are not touched.
func (n *Node) Recover(ctx context.Context, req backup.RecoverRequest, body io.Reader) (*backup.Report, error) {
	if refused := n.needless(req); refused != "" && !req.DryRun {
		return nil, &requestError{http.StatusConflict, refused}
	}
	var from *restored
	if req.FromBackup {
		// A client may send as slowly as it likes: nobody else who changes the membership waits for it.
		var err error
		if from, err = restore(req, body); err != nil {
			return nil, err
		}
	}
	n.changing.Lock()
	defer n.changing.Unlock()
	refused := n.needless(req)
	if refused != "" && !req.DryRun {
		return nil, &requestError{http.StatusConflict, refused}
	}
	r, err := n.recover(ctx, req, from)
	if r != nil && refused != "" {
		r.Refused = refused
	}
	return r, err
}

// needless says why there is nothing to recover, unless that is forced.
func (n *Node) needless(req backup.RecoverRequest) string {
	if g := n.managing(); g != nil && !req.Force {
		if l := g.store.Leadership(); l.LeaderID != 0 {
			return fmt.Sprintf("this cluster has a leader (node %s at %s), so no quorum is lost: recovering would drop managers that live; "+
				"to do it all the same give --force", l.LeaderNodeID, l.LeaderAddr)
		}
	}
	return ""
}

// managing gives the running manager's parts, nil if there are none.
func (n *Node) managing() *managing {
	if m := n.current(); m != nil {
		return m.managing()
	}
	return nil
}

// recover is Recover for those who hold n.changing. from is nil for a recovery from this machine's own disk.
func (n *Node) recover(ctx context.Context, req backup.RecoverRequest, from *restored) (*backup.Report, error) {
	r, err := n.planRecovery(ctx, req, from)
	if refused, ok := errors.AsType[*requestError](err); ok {
		return nil, refused
	} else if err != nil {
		return nil, fmt.Errorf("recover: %w", err)
	}
	if req.DryRun {
		return &r.report, nil
	}
	if m := n.current(); m != nil {
		m.stop(errRecovering)
		<-m.done
		if err := m.closeParts(); err != nil {
			n.cfg.Logger.Warn("the former part in the swarm was not closed cleanly", "err", err)
		}
	}
	if !req.FromBackup {
		// Now nothing is added to it any more.
		if r, err = n.planRecovery(ctx, req, nil); err != nil {
			return nil, fmt.Errorf("recover: %w", errors.Join(err, n.startAnew()))
		}
	}
	if err := n.write(r); err != nil {
		return nil, fmt.Errorf("recover: %w", errors.Join(err, n.startAnew()))
	}
	if err := n.startAnew(); err != nil {
		return nil, fmt.Errorf("recover: the cluster is recovered on disk, but does not start: %w", err)
	}
	if err := n.current().awaitCluster(ctx); err != nil {
		return nil, fmt.Errorf("recover: the cluster is recovered on disk, but does not lead yet: %w", err)
	}
	n.cfg.Logger.Info("cluster recovered", "node", r.report.NodeID, "addr", r.report.Addr, "index", r.report.Index, "epoch", r.report.Epoch, "dropped", len(r.report.Dropped))
	return &r.report, nil
}

// errRecovering ends the member whose cluster is recovered.
var errRecovering = errors.New("the cluster is being recovered")

// startAnew starts the membership that the disk has. After an error the node is part of a swarm and says why it does not work.
func (n *Node) startAnew() error {
	n.mu.Lock()
	n.member = nil
	n.mu.Unlock()
	err := n.settleRecovery() // which may have failed half-way: old and new files must not mix
	if err == nil {
		err = n.resumeDisk()
	}
	if err != nil {
		n.fails("this node could not take up its part in the swarm after the recovery", err)
	}
	return err
}

// planRecovery reads this machine's disk, unless from is given, and works out what becomes of it. A dry run asks nobody else.
func (n *Node) planRecovery(ctx context.Context, req backup.RecoverRequest, from *restored) (*recovery, error) {
	former, err := loadState(n.cfg.StateDir)
	if err != nil {
		return nil, err
	}
	if former != nil && exists(n.vault.path()) {
		if _, _, err := n.diskKeys(); err != nil { // which seal the credentials as well
			return nil, err
		}
	}
	own, err := n.ownCredentials()
	if err != nil && !errors.Is(err, identity.ErrNotJoined) && from == nil {
		return nil, err
	}
	r := &recovery{report: backup.Report{DryRun: req.DryRun}}
	if err := n.readSource(r, from, former); err != nil {
		return nil, err
	}
	snap := r.salvaged.State.Snapshot()
	c := snap.Cluster()
	if c == nil {
		return nil, badRequest("there is no cluster in it: this manager never heard of one before the others were lost")
	}
	if former != nil && own != nil && own.Identity.ClusterID != c.ID {
		return nil, unavailable("this machine is part of cluster %s, and the backup is of cluster %s: 'miniswarm leave --force' first, or recover on another machine", own.Identity.ClusterID, c.ID)
	}
	if former == nil {
		own = nil // left by a membership that has ended
	}
	if r.state, err = n.recoveredAddresses(req, former); err != nil {
		return nil, err
	}
	if !here(r.state.AdvertiseAddr) {
		r.report.Warnings = append(r.report.Warnings, fmt.Sprintf(textElsewhere, r.state.AdvertiseAddr))
	}
	r.report.ClusterID = c.ID
	if own != nil {
		r.report.NodeID = own.Identity.NodeID
	} else {
		r.report.NodeID, r.report.NewNode = n.ids.Next(), true
	}
	r.self = raftstore.NewMember(r.report.NodeID, r.state.AdvertiseAddr)
	uncertified := own == nil || own.Identity.Role != identity.Manager || own.CheckTime(n.cfg.Now()) != nil
	if uncertified {
		if r.report.ExternalCAs = identity.SigningURLs(c); len(r.report.ExternalCAs) > 0 {
			r.report.HasKey = identity.HasKey(c)
		}
	}
	if uncertified && !(req.DryRun && len(r.report.ExternalCAs) > 0) {
		id := identity.Identity{NodeID: r.report.NodeID, ClusterID: c.ID, Role: identity.Manager}
		if r.credentials, err = n.certify(ctx, c, id, &r.report); err != nil {
			return nil, fmt.Errorf("make a certificate for this manager: %w", err)
		}
	}
	if err := n.edit(r, former, snap); err != nil {
		return nil, err
	}
	cramped, err := n.cramped(r)
	if cramped != "" && !req.DryRun {
		return nil, &requestError{http.StatusInsufficientStorage, "recover: " + cramped}
	}
	r.report.Refused = cramped
	return r, err
}

// certify issues a certificate for this machine as the cluster's managers would, or with the root's key if the external CA that they
// ask does not sign: it may be as lost as the managers are.
func (n *Node) certify(ctx context.Context, c *cluster.Cluster, id identity.Identity, report *backup.Report) (*identity.Credentials, error) {
	authority, err := identity.NewAuthority(identity.AuthorityConfig{Store: n.credentials, Now: n.cfg.Now, Logger: n.cfg.Logger})
	if err != nil {
		return nil, err
	}
	keyPEM, csrPEM, err := identity.NewRequest()
	if err != nil {
		return nil, err
	}
	certPEM, err := authority.Sign(ctx, c, csrPEM, id)
	switch external := len(report.ExternalCAs) > 0; {
	case err != nil && external && report.HasKey:
		report.NotSigned = err.Error()
		n.cfg.Logger.Warn("the external CA does not sign this manager's certificate, which is signed with the key of the root CA", "err", err)
		certPEM, err = authority.SignHere(c, csrPEM, id)
	case err != nil && external:
		return nil, fmt.Errorf("%w; nobody else has the key of the root CA: bring the external CA back and have it let this machine in, or recover on a manager whose certificate is still valid", err)
	}
	if err != nil {
		return nil, err
	}
	return identity.ParseCredentials(c.RootCA, certPEM, keyPEM)
}

// ownCredentials reads this machine's, expired or not.
func (n *Node) ownCredentials() (*identity.Credentials, error) {
	store, err := identity.NewStore(identity.StoreConfig{Dir: n.cfg.StateDir, AllowExpired: true, Sealer: n.vault})
	if err != nil {
		return nil, err
	}
	return store.Load()
}

// readSource fills in r.salvaged and what the report says of it.
func (n *Node) readSource(r *recovery, from *restored, former *state) error {
	if from != nil {
		r.report.Backup, r.salvaged = from.manifest, from.salvaged
		r.report.MayMiss = "everything that was written after the backup was taken, at " + r.report.Backup.Taken.Local().Format(time.RFC3339)
	} else {
		dir := filepath.Join(n.cfg.StateDir, raftDir)
		switch {
		case former == nil:
			return unavailable("%s: there is nothing on this disk to recover from. Give a backup: miniswarm recover --from FILE", textNoSwarm)
		case !raftstore.Exists(dir):
			return unavailable(textNoLog)
		}
		key, older, err := n.diskKeys()
		if err != nil {
			return err
		}
		if r.salvaged, err = raftstore.Salvage(dir, key, n.cfg.Logger, older...); err != nil {
			return err
		}
		if voters(r.salvaged.Members) > 1 {
			r.report.MayMiss = "what the lost managers acknowledged and this one had not received: its log ends at index " + fmt.Sprint(r.salvaged.Index) + ", and nobody knows how far theirs went"
		}
	}
	s := r.salvaged
	r.report.Term, r.report.Index, r.report.Committed, r.report.LastChange = s.Term, s.Index, s.Committed, s.LastChange()
	return nil
}

// diskKeys gives the keys that seal this machine's log; one that has none gets them. A locked machine must be unlocked first.
func (n *Node) diskKeys() (newest []byte, older [][]byte, err error) {
	if !n.vault.isOpen() {
		err = n.vault.open(nil)
	}
	if err == nil {
		newest, older, err = n.vault.dataKeys()
	}
	if errors.Is(err, errLocked) {
		return nil, nil, unavailable(textLocked)
	}
	return newest, older, err
}

func voters(members []protocol.Member) (n int) {
	for _, m := range members {
		if !m.Learner {
			n++
		}
	}
	return n
}

// edit makes the tables those of a cluster whose only manager is this machine. The nodes of the other managers stay, as workers:
// when they come back their agents are told what to run, as those of all nodes that were away.
func (n *Node) edit(r *recovery, former *state, snap *cluster.Snapshot) error {
	rep, st := &r.report, r.state
	c := *snap.Cluster()
	var tie [2]byte
	crand.Read(tie[:])
	seen := c.Epoch
	if former != nil {
		seen = max(seen, former.Epoch)
	}
	c.Epoch = cluster.NextEpoch(seen, n.cfg.Now(), binary.BigEndian.Uint16(tie[:]))
	changes := []cluster.Change{cluster.UpdateOf(&c)}
	for o := range snap.Nodes() {
		if o.ID == rep.NodeID || o.Role != swarm.NodeRoleManager && o.Spec.Role != swarm.NodeRoleManager && o.RaftID == 0 {
			continue
		}
		lost := *o
		lost.Role, lost.Spec.Role, lost.RaftID, lost.ManagerAddr = swarm.NodeRoleWorker, swarm.NodeRoleWorker, 0, ""
		changes = append(changes, cluster.UpdateOf(&lost))
		rep.Dropped = append(rep.Dropped, backup.DroppedManager{NodeID: o.ID, Hostname: o.Description.Hostname, Addr: o.ManagerAddr})
	}
	for _, m := range r.salvaged.Members {
		if m.NodeID != rep.NodeID && !slices.ContainsFunc(rep.Dropped, func(d backup.DroppedManager) bool { return d.NodeID == m.NodeID }) {
			rep.Dropped = append(rep.Dropped, backup.DroppedManager{NodeID: m.NodeID, Addr: m.Addr})
		}
		rep.Known = append(rep.Known, m.Addr)
	}
	slices.SortFunc(rep.Dropped, func(a, b backup.DroppedManager) int {
		return cmp.Or(cmp.Compare(a.Hostname, b.Hostname), cmp.Compare(a.NodeID, b.NodeID))
	})
	slices.Sort(rep.Known)
	if old := snap.Node(rep.NodeID); old != nil {
		self := *old
		self.Role, self.Spec.Role, self.RaftID, self.ManagerAddr, self.DataAddr = swarm.NodeRoleManager, swarm.NodeRoleManager, r.self.RaftID, st.AdvertiseAddr, st.DataAddr
		changes = append(changes, cluster.UpdateOf(&self))
	} else {
		changes = append(changes, cluster.CreateOf(newManagerNode(r.self, st)))
	}
	if _, err := r.salvaged.State.Apply(&cluster.Txn{Time: n.cfg.Now(), Changes: changes}, r.salvaged.Index+1); err != nil {
		return fmt.Errorf("make this machine the only manager: %w", err)
	}
	rep.Addr, rep.Epoch, rep.Objects = st.AdvertiseAddr, c.Epoch, backup.Count(r.salvaged.State.Snapshot())
	st.RaftID, st.Epoch = r.self.RaftID, c.Epoch
	st.Managers = []protocol.ManagerAddr{{NodeID: rep.NodeID, Addr: st.AdvertiseAddr}}
	return nil
}

func newManagerNode(m protocol.Member, st *state) *cluster.Node {
	n := &cluster.Node{Role: swarm.NodeRoleManager, RaftID: m.RaftID, DataAddr: st.DataAddr, ManagerAddr: m.Addr}
	n.ID = m.NodeID
	n.Spec.Role, n.Spec.Availability, n.Spec.Labels = swarm.NodeRoleManager, swarm.NodeAvailabilityActive, map[string]string{}
	n.Status = swarm.NodeStatus{State: swarm.NodeStateUnknown, Addr: st.DataAddr}
	return n
}

// write puts the recovered cluster on disk, all of it or nothing. The former member must have ended.
func (n *Node) write(r *recovery) error {
	former, err := loadState(n.cfg.StateDir)
	if err != nil {
		return err
	}
	if former == nil {
		if err := n.wipe(); err != nil {
			return err
		}
	}
	staged, err := n.stageRecovery()
	if err != nil {
		return err
	}
	if err := n.stage(r, staged); err != nil {
		return err
	}
	return n.commitRecovery(staged)
}

// stage makes the files of the recovered cluster in a directory of their own.
func (n *Node) stage(r *recovery, staged string) (err error) {
	first := !exists(n.vault.path())
	key, _, err := n.diskKeys()
	if err == nil && r.report.Backup != nil {
		err = n.vault.rewind()
	}
	if c := r.salvaged.State.Snapshot().Cluster(); err == nil && first {
		// What is sealed from here on is sealed with a key that never lay open where the cluster locks its managers.
		if _, err = n.vault.follow(c.UnlockKeys, c.Version.Index); err == nil {
			key, _, err = n.diskKeys()
		}
	}
	if err != nil {
		return err
	}
	rep := &r.report
	if err := raftstore.Found(filepath.Join(staged, raftDir), key, rep.ClusterID, r.self, r.salvaged, n.cfg.Logger); err != nil {
		return err
	}
	if r.credentials != nil {
		store, err := identity.NewStore(identity.StoreConfig{Dir: staged, Sealer: n.vault})
		if err == nil {
			err = store.Save(r.credentials)
		}
		if err != nil {
			return err
		}
	}
	return r.state.save(staged)
}

// textElsewhere is said where others are to look for a manager at an address that its machine does not have.
const textElsewhere = "no interface of this machine has the address %s that it advertises: the other nodes reach it only if a router forwards that address here, or once the machine has it"

// recoveredAddresses gives the addresses that are asked for; else those that were, where this machine still has them; else those
// that a new cluster would have.
func (n *Node) recoveredAddresses(req backup.RecoverRequest, former *state) (*state, error) {
	listen, advertise, data := req.ListenAddr, req.AdvertiseAddr, req.DataPathAddr
	if listen == defaultListen {
		listen = "" // what clients send that know no better
	}
	if former != nil {
		if listen == "" && here(former.ListenAddr) {
			listen = former.ListenAddr
		}
		// An address that others reach this machine at need not be on one of its interfaces. It has not changed if the other one has not.
		if advertise == "" && (here(former.AdvertiseAddr) || here(former.DataAddr)) {
			advertise = former.AdvertiseAddr
		}
		if data == "" && here(former.DataAddr) {
			data = former.DataAddr
		}
	}
	st, err := n.addresses(listen, advertise, data)
	if err == nil && !here(st.ListenAddr) {
		return nil, badRequest("recover: this machine does not have the address %s to listen on: give it the address, or choose one that it has with --listen-addr", st.ListenAddr)
	}
	return st, err
}

// here says whether an address, with or without port, is one of this machine's, or any.
func here(addr string) bool {
	if host, _, err := net.SplitHostPort(addr); err == nil {
		addr = host
	}
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return false
	}
	if ip.IsUnspecified() || ip.IsLoopback() {
		return true
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(all, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err == nil && p.Addr() == ip.Unmap().WithZone("")
	})
}
