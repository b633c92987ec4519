package ingress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"github.com/miniswarm/miniswarm/ingress/conntrack"
	"github.com/miniswarm/miniswarm/ingress/nft"
	"github.com/miniswarm/miniswarm/ingress/overlay"
	"github.com/miniswarm/miniswarm/ingress/plan"
	"github.com/miniswarm/miniswarm/ingress/ports"
)

// ErrTaken is returned by New when another process has the data plane of this
// network namespace. The node works without: its control plane and containers do
// not need one.
var ErrTaken = errors.New("the data plane of this machine is taken by another miniswarm daemon: published ports and overlay networks are its alone")

// lockName is the abstract socket address that stands for the data plane.
const lockName = "miniswarm-dataplane"

// Config is what a Mesh is made of.
type Config struct {
	// Logger is told about repairs and connections dropped; nil means silence.
	Logger *slog.Logger
	// StateDir keeps the values of kernel settings from before they were changed.
	// It must exist. Empty means that Remove restores only what this process changed.
	StateDir string
	// Engine makes the networks that containers are attached to.
	Engine Networks
	// AlwaysVXLAN leaves plain ways between neighbours unused.
	AlwaysVXLAN bool
}

// Mesh keeps the network of one node as the cluster wants it. See the package
// comment for who may call what.
type Mesh struct {
	log         *slog.Logger
	engine      Networks
	unlock      func() error
	alwaysVXLAN bool
	stats       stats

	mu       sync.Mutex // guards all below
	kernel   *overlay.Kernel
	table    dataPlane
	tracked  *conntrack.Conn
	firewall firewall
	reserved map[plan.PortKey]*ports.Reservation
	inUse    map[plan.PortKey]*ports.InUseError // who has ports that are not reserved, as of the last Verify
	bridges  map[string]BridgeNetwork           // the engine's networks, by id; nil if not known
	hangs    error                              // why the engine is not asked; nil if it may be
	input    plan.Input
	want     plan.State             // what the last Apply asked for
	have     plan.State             // what the kernel holds apart from the table
	known    bool                   // whether have is true
	applied  bool                   // whether there was an Apply in this process
	direct   map[string]plan.Direct // neighbours, by node id
	dead     map[netip.Addr]bool    // suspect peers whose machines do not answer
	stale    bool                   // whether connections may be left that were to be forgotten
}

// dataPlane holds the rules that translate connections. Apply changes what
// differs from the last Apply, Verify what differs from what is really there.
type dataPlane interface {
	Apply(ctx context.Context, want plan.Table) error
	Verify(ctx context.Context, want plan.Table) (repaired bool, err error)
	// Disturbed says whether anybody else changed any rules since it was last known
	// what they are. It is cheap.
	Disturbed() (bool, error)
	// Installed says whether the table is there, put there by this process or a former one.
	Installed(ctx context.Context) (bool, error)
	// Recall reads the peers that are known, also to a former process.
	Recall(ctx context.Context) ([]plan.PeerMark, error)
	Remove(ctx context.Context) error
	Close() error
}

var (
	_ dataPlane = (*nft.Table)(nil)
	_ dataPlane = (*nft.Fake)(nil)
)

// New takes the data plane of the calling thread's network namespace. It changes
// nothing yet. It returns ErrTaken if another process has it.
func New(c Config) (*Mesh, error) {
	if c.Engine == nil {
		return nil, errors.New("ingress: no engine to make networks with")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	unlock, err := ports.Lock(context.Background(), lockName)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, ErrTaken
	}
	if err != nil {
		return nil, fmt.Errorf("take the data plane: %w", err)
	}
	m := &Mesh{log: c.Logger, engine: c.Engine, unlock: unlock, alwaysVXLAN: c.AlwaysVXLAN, reserved: map[plan.PortKey]*ports.Reservation{}, inUse: map[plan.PortKey]*ports.InUseError{}}
	if err := m.open(c.StateDir); err != nil {
		return nil, errors.Join(err, unlock())
	}
	return m, nil
}

// open connects to the parts of the kernel.
func (m *Mesh) open(stateDir string) (err error) {
	if m.tracked, err = conntrack.Open(); err != nil {
		return err
	}
	if m.kernel, err = overlay.Open(stateDir); err != nil {
		return errors.Join(err, m.tracked.Close())
	}
	table, err := nft.Open()
	if err != nil {
		m.kernel.Close()
		return errors.Join(err, m.tracked.Close())
	}
	m.table = table
	if !table.KeepsARP() {
		m.log.Warn("the kernel has no nftables of family bridge (module nf_tables_bridge): connections to virtual addresses may take a detour over another node; everything else works")
	}
	if !table.KeepsEntriesApart() {
		m.log.Warn("the kernel has no zones of tracked connections (CONFIG_NF_CONNTRACK_ZONES): of two connections from one port of a client to one replica through two nodes one is lost; everything else works")
	}
	return nil
}

// Apply makes the node's network what in says. It takes the complete desired
// state each time, does nothing for what is so already, and returns when the
// kernel has the new rules. The error joins everything that could not be done; all
// else is done, and the next Apply or Verify tries again. An *ports.InUseError in
// it names a process of the node that holds a published port.
func (m *Mesh) Apply(ctx context.Context, in plan.Input) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.input = in
	_, err := m.reconcile(ctx)
	return err
}

// Installed says whether the machine routes by a table of ours, put there by this process or by a former one. It does
// not after a boot.
func (m *Mesh) Installed(ctx context.Context) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	installed, err := m.table.Installed(ctx)
	if err != nil {
		return false, fmt.Errorf("look for the data plane of a former process: %w", err)
	}
	return installed, nil
}

// Verify reads back what the kernel and the engine hold, and repairs what differs
// from the last Apply. Repaired says that there was something. Before the first
// Apply it does nothing.
func (m *Mesh) Verify(ctx context.Context) (repaired bool, err error) {
	bridges, err := m.listBridges(ctx)
	return m.verify(ctx, bridges, err)
}

// verify is Verify when the engine has been asked for its networks: one that hangs,
// and others who are changing firewall rules, must not keep anybody from changing
// routes.
func (m *Mesh) verify(ctx context.Context, bridges map[string]BridgeNetwork, engineErr error) (repaired bool, err error) {
	if !m.begun() {
		return false, nil
	}
	firewallErr := m.firewall.check(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.applied {
		return false, nil // removed meanwhile
	}
	m.learnBridges(bridges, engineErr)
	clear(m.inUse)
	m.known = false
	repaired, err = m.reconcile(ctx)
	if repaired {
		m.stats.repaired()
		m.log.Warn("data plane differed from what was applied and is repaired")
	}
	return repaired, errors.Join(engineErr, firewallErr, err, m.hairpin())
}

// begun says whether there was an Apply.
func (m *Mesh) begun() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.applied
}

// reconcile goes the steps of the package comment. Where the engine has to make a
// network first, everything that does not depend on it goes before, since engines
// can be slow.
func (m *Mesh) reconcile(ctx context.Context) (changed bool, err error) {
	var errs []error
	if err := m.recall(ctx); err != nil {
		errs = append(errs, err)
	}
	in := m.input
	in.Peers = m.withoutDead(m.withDirect(in.Peers))
	in.Ports = m.reserve(in.Ports, &errs)
	if rest, ok := m.withoutMissing(in); ok {
		changed, _, err = m.converge(ctx, rest)
		errs = append(errs, err)
	}
	if err := m.ensureBridges(ctx, in); err != nil {
		errs = append(errs, err)
	}
	also, ruled, err := m.converge(ctx, in)
	errs = append(errs, err)
	if ruled {
		errs = append(errs, m.removeBridges(ctx, m.input.Networks))
	}
	return changed || also, errors.Join(errs...)
}

// converge makes the kernel agree with in. It reads back first unless the kernel's
// content is known. Ruled says that the table has its new rules, so that nothing
// leads to what in does not contain.
func (m *Mesh) converge(ctx context.Context, in plan.Input) (changed, ruled bool, err error) {
	var errs []error
	var prev *plan.State
	if m.applied {
		prev = &m.want
	}
	want, err := plan.Build(in, prev)
	if err != nil {
		errs = append(errs, err)
		if len(want.Sysctls) == 0 {
			return false, false, err // nothing could be planned at all
		}
	}
	verify := !m.known
	if verify {
		if m.have, err = m.kernel.Read(ctx, want); err != nil {
			return false, false, errors.Join(append(errs, err)...)
		}
	}
	if err := m.firewall.assert(ctx); err != nil {
		errs = append(errs, err)
	}
	m.known = false // until all of it has worked
	d := plan.Compare(m.have, withoutTable(want))
	changed = !d.Empty()
	var kernelErr error
	if len(d.Overlays.Add) > 0 {
		kernelErr = m.kernel.AddDevices(ctx, d.Overlays.Add)
		if m.have, err = m.kernel.Read(ctx, want); err != nil {
			return changed, false, errors.Join(append(errs, kernelErr, err)...)
		}
		d = plan.Compare(m.have, withoutTable(want))
	}
	kernelErr = errors.Join(kernelErr, m.kernel.Add(ctx, d))
	var tableErr error
	tableChanged := false
	if verify {
		tableChanged, tableErr = m.table.Verify(ctx, want.Table)
	} else {
		tableErr = m.table.Apply(ctx, want.Table)
	}
	if tableErr == nil {
		// Only now nothing leads to what is to be removed.
		kernelErr = errors.Join(kernelErr, m.kernel.Delete(ctx, d))
	}
	errs = append(errs, kernelErr, tableErr, m.forget(ctx, want))
	newBackends := prev == nil || lacks(prev.Backends, want.Backends)
	m.want, m.have, m.applied = want, withoutTable(want), true
	m.known = kernelErr == nil && tableErr == nil
	m.stats.converged(want, in)
	if newBackends {
		errs = append(errs, m.hairpin()) // a local one has a new port on the bridge
	}
	return changed || tableChanged, tableErr == nil, errors.Join(errs...)
}

// withoutTable is the part that package overlay looks after.
func withoutTable(s plan.State) plan.State {
	s.Table = plan.Table{}
	return s
}

// reserve holds exactly the ports that are published and can be had, and returns
// those.
func (m *Mesh) reserve(published []plan.PublishedPort, errs *[]error) []plan.PublishedPort {
	var free []plan.PublishedPort
	wanted := map[plan.PortKey]bool{}
	for _, p := range published {
		k := plan.PortKey{Protocol: p.Protocol, Port: p.Published}
		if p.Published == 0 || wanted[k] {
			free = append(free, p) // plan says what is wrong with it
			continue
		}
		if m.reserved[k] == nil {
			r, err := ports.Reserve(k, m.inUse[k])
			if err != nil {
				if e, ok := errors.AsType[*ports.InUseError](err); ok {
					m.inUse[k] = e
				}
				*errs = append(*errs, fmt.Errorf("service %s is not reachable through this node: %w", p.Name, err))
				continue
			}
			m.reserved[k] = r
			delete(m.inUse, k)
		}
		wanted[k] = true
		free = append(free, p)
	}
	for k, r := range m.reserved {
		if !wanted[k] {
			*errs = append(*errs, r.Close())
			delete(m.reserved, k)
		}
	}
	return free
}

// forget drops connections whose backend is gone, and UDP flows from before their
// port was served. What fails is done the next time.
func (m *Mesh) forget(ctx context.Context, want plan.State) error {
	var errs []error
	if !m.applied || m.stale || lacks(want.Backends, m.want.Backends) {
		n, err := m.tracked.Retain(ctx, want.Backends)
		if err != nil {
			errs = append(errs, err)
		}
		if n > 0 {
			m.log.Info("dropped connections to backends that are gone", "connections", n)
		}
	}
	served := map[plan.PortKey]bool{}
	for _, p := range m.want.Table.Ports {
		served[p.PortKey] = len(p.Backends) > 0 && !m.stale
	}
	var fresh []uint16
	for _, p := range want.Table.Ports {
		if p.Protocol == plan.UDP && len(p.Backends) > 0 && !served[p.PortKey] {
			fresh = append(fresh, p.Port)
		}
	}
	if len(fresh) > 0 {
		if _, err := m.tracked.ForgetUntranslated(ctx, fresh); err != nil {
			errs = append(errs, err)
		}
	}
	m.stale = len(errs) > 0
	return errors.Join(errs...)
}

// lacks says whether one of some is not among sorted backends.
func lacks(sorted, some []netip.Addr) bool {
	return slices.ContainsFunc(some, func(b netip.Addr) bool {
		_, ok := slices.BinarySearchFunc(sorted, b, netip.Addr.Compare)
		return !ok
	})
}

func (m *Mesh) hairpin() error {
	var errs []error
	for _, o := range m.want.Overlays {
		errs = append(errs, m.kernel.Hairpin(o.Bridge))
	}
	return errors.Join(errs...)
}

// Remove takes everything away that any Mesh made in this network namespace. The
// Mesh can be used again afterwards.
func (m *Mesh) Remove(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	errs = append(errs, m.table.Remove(ctx), m.kernel.Remove(ctx), m.firewall.remove(ctx), m.tracked.ForgetOurs(ctx), m.removeBridges(ctx, nil))
	for _, k := range slices.Collect(maps.Keys(m.reserved)) {
		errs = append(errs, m.reserved[k].Close())
		delete(m.reserved, k)
	}
	m.input, m.want, m.have, m.known, m.applied, m.bridges, m.direct = plan.Input{}, plan.State{}, plan.State{}, false, false, nil, nil
	m.hangs, m.dead, m.stale = nil, nil, false
	return errors.Join(errs...)
}

// Close gives the data plane to whoever asks next, and leaves it at work.
// Published ports stay translated but are no longer reserved. Run must have ended,
// and the Mesh must not be used afterwards. Who looks at it just then finds nothing to
// verify: what it reserved now nobody would ever give back.
func (m *Mesh) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.applied = false
	errs := []error{m.table.Close(), m.tracked.Close()}
	m.kernel.Close()
	for k, r := range m.reserved {
		errs = append(errs, r.Close())
		delete(m.reserved, k)
	}
	return errors.Join(append(errs, m.unlock())...)
}
