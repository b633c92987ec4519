package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/agent"
	"github.com/miniswarm/miniswarm/agent/docker"
	"github.com/miniswarm/miniswarm/ingress"
	"github.com/miniswarm/miniswarm/ingress/names"
	"github.com/miniswarm/miniswarm/manager/identity"
)

// prepareAgent opens the engine's door and the data plane, and makes the agent over both.
func (m *member) prepareAgent() error {
	dir := filepath.Join(m.node.cfg.StateDir, agentDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create the agent's directory: %w", err)
	}
	engine, err := docker.Open(m.node.cfg.Engine)
	if err != nil {
		return fmt.Errorf("engine %s: %w", m.node.cfg.Engine, err)
	}
	m.engine = engine
	timed := m.node.metrics.Engine(engine)
	networks := docker.NewNetworks(timed, m.nodeID)
	hostname, _ := os.Hostname()
	cfg := agent.Config{NodeID: m.nodeID, StateDir: dir, Engine: timed, About: m.node.pages, Dial: m.dial, Managers: m.lookout(), Networks: networks,
		Files:    docker.NewFiles(filepath.Join(m.node.cfg.RunDir, m.nodeID), docker.MountMemory),
		DataAddr: m.state.DataAddr, Hostname: hostname, Version: m.node.cfg.Version, TLSInfo: m.tlsInfo,
		Offline: os.Getenv("DOCKER_SERVICE_PREFER_OFFLINE_IMAGE") == "1", OnManagers: m.learnManagers, Epoch: m.state.Epoch, OnEpoch: m.learnEpoch,
		OnNode: m.learnNode, OnTrust: m.learnTrust, Instance: m.node.instance, OnRefused: m.refuse, OnAlone: m.alone, Logger: m.logger}
	if m.node.cfg.DataPlane {
		mesh, err := ingress.New(ingress.Config{Logger: m.logger, StateDir: dir, Engine: networks})
		switch {
		case errors.Is(err, ingress.ErrTaken):
			m.logger.Warn("this daemon goes on without a data plane", "err", err)
		case err != nil:
			return errors.Join(fmt.Errorf("data plane: %w", err), engine.Close())
		default:
			m.mesh, cfg.Mesh, cfg.Listeners = mesh, m.node.metrics.Mesh(mesh), docker.Listeners
			m.names = names.New(names.Config{Logger: m.logger})
			cfg.Names = m.names
		}
	}
	if m.agent, err = agent.New(cfg); err != nil {
		return errors.Join(err, m.closeParts())
	}
	return nil
}

// dial opens a connection to a manager's cluster port that only a manager of this cluster can answer.
func (m *member) dial(ctx context.Context, addr string) (net.Conn, error) {
	if m.locked {
		<-m.halted // there is nothing to prove this node's identity with, and no use in trying again and again
		return nil, errLocked
	}
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout}, Config: identity.ClientTLS(m.node.credentials, identity.Manager, "", "http/1.1")}
	return d.DialContext(ctx, "tcp", m.local(addr))
}

// local gives the address at which this machine reaches its own manager if addr is what that one advertises and another machine's as
// far as this one can see: a router forwards it here, for others.
func (m *member) local(addr string) string {
	if addr != m.state.AdvertiseAddr || m.managing() == nil || m.has() {
		return addr
	}
	listen, err := netip.ParseAddrPort(m.state.ListenAddr)
	switch {
	case err != nil:
		return addr
	case !listen.Addr().IsUnspecified():
		return m.state.ListenAddr
	case listen.Addr().Is4():
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), listen.Port()).String()
	}
	return netip.AddrPortFrom(netip.IPv6Loopback(), listen.Port()).String()
}

// has says whether this machine has the address that it advertises.
func (m *member) has() bool { return !m.state.host().IsValid() || interfaceOf(m.state.host()) != "" }

func (m *member) tlsInfo() swarm.TLSInfo {
	if c := m.node.credentials.Current(); c != nil {
		return c.TLSInfo()
	}
	return swarm.TLSInfo{}
}

// closeParts lets go of the engine and of the data plane's lock, once. The kernel keeps what was put into it.
func (m *member) closeParts() error {
	var errs []error
	m.closing.Do(func() {
		if m.names != nil {
			errs = append(errs, m.names.Close())
		}
		if m.mesh != nil {
			errs = append(errs, m.mesh.Close())
		}
		if m.engine != nil {
			errs = append(errs, m.engine.Close())
		}
	})
	return errors.Join(errs...)
}

// clear takes everything of the membership off the machine: containers, engine networks and kernel state. Run must
// have ended; it may be repeated.
func (m *member) clear(ctx context.Context) error {
	errs := []error{m.agent.Leave(ctx)}
	if m.mesh != nil {
		errs = append(errs, m.mesh.Remove(ctx))
	}
	return errors.Join(errs...)
}
