package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager"
	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/raftstore"
	"github.com/miniswarm/miniswarm/trouble"
)

// announcePause is how often a manager looks whether the group knows its address, and tries to tell it.
const announcePause = time.Second

// managing is what a machine runs beside its agent while it is a manager: its replica of the store, the manager over it and
// the cluster port. It comes and goes with the role (package role); agent, data plane and containers do not notice.
type managing struct {
	member  *member
	store   *raftstore.Store
	manager *manager.Manager
	// transport is the store's.
	transport raftstore.Transport
}

// openManaging opens the store and prepares the manager. first gives the founding objects on the machine that ran init,
// peers are the members that the answer to a join named.
func (m *member) openManaging(raftID uint64, first func() *cluster.Txn, peers []protocol.Member) (*managing, error) {
	creds := m.node.credentials.Current()
	if creds == nil {
		return nil, identity.ErrNotJoined
	}
	key, older, err := m.node.vault.dataKeys()
	if err != nil {
		return nil, err
	}
	transport := raftstore.NewHTTPTransport(raftstore.HTTPTransportConfig{
		TLS: func(nodeID string) *tls.Config {
			return identity.ClientTLS(m.node.credentials, identity.Manager, nodeID, "http/1.1")
		},
		Logger: m.logger})
	for _, a := range m.remembered() { // by sessions, which may be newer than what the log says before it is applied again
		transport.Meet(protocol.Member{NodeID: a.NodeID, Addr: a.Addr})
	}
	g := &managing{member: m, transport: transport}
	g.store, err = raftstore.Open(raftstore.Config{Dir: m.raftDir(), NodeID: m.nodeID, ClusterID: creds.Identity.ClusterID,
		RaftID: raftID, Addr: m.state.AdvertiseAddr, Bootstrap: first != nil, Peers: peers, Transport: transport, Key: key, OlderKeys: older, Logger: m.logger,
		Timings: raftstore.Timings{Commit: m.node.metrics.Commit, Sync: m.node.metrics.Sync}})
	if err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	g.manager, err = manager.New(manager.Config{NodeID: m.nodeID, Addr: m.state.AdvertiseAddr, Store: g.store, Credentials: m.node.credentials,
		Logger: m.logger, Bootstrap: first, EngineAPI: m.node.api.Cluster(), Now: m.node.cfg.Now,
		About: m.node.pages, Passed: m.node.metrics.Pass})
	if err != nil {
		return nil, errors.Join(err, g.store.Close())
	}
	return g, nil
}

func (m *member) raftDir() string { return filepath.Join(m.node.cfg.StateDir, raftDir) }

// forgetRaft deletes this machine's replica, of which the group has no more use.
func (m *member) forgetRaft() error {
	if err := os.RemoveAll(m.raftDir()); err != nil {
		return fmt.Errorf("delete this machine's former replica of the cluster: %w", err)
	}
	return nil
}

// Close lets go of a store that was never run; otherwise it does nothing.
func (g *managing) Close() error {
	if g == nil {
		return nil
	}
	return g.store.Close()
}

// Run works until ctx ends, whose cause it returns, or one of the parts fails. The store ends last, so that what was
// acknowledged is on disk.
func (g *managing) Run(ctx context.Context) error {
	listener, err := net.Listen("tcp", g.member.state.ListenAddr)
	if err != nil {
		return errors.Join(cannotListen(err), g.store.Close())
	}
	storeCtx, stopStore := context.WithCancel(context.WithoutCancel(ctx))
	defer stopStore()
	stored := make(chan error, 1)
	go func() { stored <- g.store.Run(storeCtx) }()
	parts, pctx := errgroup.WithContext(ctx)
	parts.Go(func() error { return g.serve(pctx, listener) })
	parts.Go(func() error { return g.manager.Run(pctx) })
	parts.Go(func() error { return g.followLock(pctx) })
	parts.Go(func() error { g.announce(pctx); return nil })
	parts.Go(func() error { g.look(pctx); return nil })
	parts.Go(func() error {
		select {
		case err := <-stored:
			stored <- err
			return fmt.Errorf("the store stopped: %w", err)
		case <-pctx.Done():
			return nil
		}
	})
	err = parts.Wait()
	stopStore()
	if serr := <-stored; serr != nil && !errors.Is(serr, context.Canceled) && err == nil {
		err = serr
	}
	if cause := context.Cause(ctx); cause != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return cause
	}
	return err
}

// serve answers the cluster port.
func (g *managing) serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{Handler: g.manager.Handler(), TLSConfig: identity.ServerTLS(g.member.node.credentials, "http/1.1"), ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout: 2 * time.Minute, ErrorLog: slog.NewLogLogger(g.member.logger.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the cluster port %s: %w", g.member.state.ListenAddr, err)
	}
	return nil
}

// announce tells the group where this manager is reached whenever that is not where the group looks for it, until ctx
// ends: the machine has come back with another address. What the store says of it may be older than what the group
// knows; to tell it twice changes nothing.
func (g *managing) announce(ctx context.Context) {
	m := g.member
	tick := time.NewTicker(announcePause)
	defer tick.Stop()
	var waiting trouble.Log
	for {
		all := g.store.Members()
		i := slices.IndexFunc(all, func(o protocol.Member) bool { return o.NodeID == m.nodeID })
		if i >= 0 && all[i].Addr != m.state.AdvertiseAddr {
			_, err := m.node.joinRaft(ctx, m.everywhere, m.joinRequest(false))
			switch {
			case ctx.Err() != nil:
				return
			case err != nil:
				if tell, lasting := waiting.Again(time.Now(), ""); tell {
					m.logger.Warn("the other managers could not be told of this one's new address", "since", lasting.Round(time.Second), "addr", m.state.AdvertiseAddr, "former", all[i].Addr, "err", err)
				}
			default:
				waiting.Over(time.Now())
				m.logger.Info("the other managers know this one's new address", "addr", m.state.AdvertiseAddr, "former", all[i].Addr)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look finds out which managers are at the addresses that the daemon was told to look at, until each has answered or ctx ends.
func (g *managing) look(ctx context.Context) {
	tick := time.NewTicker(announcePause)
	defer tick.Stop()
	left := g.member.hinted()
	for len(left) > 0 {
		left = slices.DeleteFunc(left, func(a protocol.ManagerAddr) bool {
			id, err := g.member.whoIsAt(ctx, a.Addr)
			if err != nil {
				g.member.logger.Debug("no manager of this swarm is where the daemon was told to look", "addr", a.Addr, "err", err)
				return false
			}
			g.transport.Meet(protocol.Member{NodeID: id, Addr: a.Addr})
			return true
		})
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// whoIsAt gives the node id of the manager at an address.
func (m *member) whoIsAt(ctx context.Context, addr string) (string, error) {
	conn, err := m.dial(ctx, addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	secured, ok := conn.(*tls.Conn)
	if !ok {
		return "", fmt.Errorf("the connection to %s is not TLS", addr)
	}
	state := secured.ConnectionState()
	id, err := m.node.credentials.ServerIdentity(&state)
	return id.NodeID, err
}
