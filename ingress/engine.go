package ingress

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// Networks is what the mesh asks of the container engine: networks of its bridge
// driver, one for each overlay network the node takes part in. Calls may be
// repeated. List may be called beside the others, which come one at a time. An error
// that matches context.DeadlineExceeded says that the engine hangs; the mesh leaves
// it alone then until List answers again.
type Networks interface {
	// List returns the networks Ensure made, also in a former process.
	List(ctx context.Context) ([]BridgeNetwork, error)
	// Ensure makes the network if it is not there. The bridge device must exist
	// when it returns.
	Ensure(ctx context.Context, n BridgeNetwork) error
	// Remove removes the network. One that is not there is no error; one that
	// still has containers is, a *HasContainersError.
	Remove(ctx context.Context, n BridgeNetwork) error
}

// BridgeNetwork is the engine's part of an overlay network on one node.
type BridgeNetwork struct {
	// ID and Name are those of the cluster's network.
	ID, Name string
	// Bridge is the name of the bridge device.
	Bridge string
	// Subnet is the same on all nodes, Gateway is this node's own address.
	Subnet   netip.Prefix
	Gateway  netip.Addr
	MTU      int
	Internal bool
}

// HasContainersError says that a network waits for its last containers to stop.
type HasContainersError struct{ Err error }

func (e *HasContainersError) Error() string { return e.Err.Error() }

// Unwrap is what the engine said.
func (e *HasContainersError) Unwrap() error { return e.Err }

// Waiting says whether all that err is about are networks that wait for their last
// containers to stop. Everything else is then as it should be.
func Waiting(err error) bool {
	switch e := err.(type) {
	case *HasContainersError:
		return true
	case interface{ Unwrap() error }:
		return Waiting(e.Unwrap())
	case interface{ Unwrap() []error }:
		all := e.Unwrap()
		return len(all) > 0 && !slices.ContainsFunc(all, func(err error) bool { return !Waiting(err) })
	}
	return false
}

// gatewayModeSince is the first version of the engine (28) that drops packets
// arriving for a container's address from outside its bridge, and knows the
// gateway mode that prevents it.
const gatewayModeSince = 28

// DriverOptions are the bridge driver's options for the network on an engine of
// the given version, such as "28.5.2".
func (n BridgeNetwork) DriverOptions(engineVersion string) map[string]string {
	options := map[string]string{
		"com.docker.network.bridge.name": n.Bridge,
		"com.docker.network.driver.mtu":  strconv.Itoa(n.MTU),
	}
	var major int
	if _, err := fmt.Sscanf(engineVersion, "%d.", &major); err == nil && major >= gatewayModeSince {
		// Replicas are reached at their own address, through the bridge of their
		// node. Our own rules let only connections of published ports through.
		options["com.docker.network.bridge.gateway_mode_ipv4"] = "nat-unprotected"
	}
	return options
}

func (m *Mesh) listBridges(ctx context.Context) (map[string]BridgeNetwork, error) {
	all, err := m.engine.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the engine's networks: %w", err)
	}
	bridges := map[string]BridgeNetwork{}
	for _, n := range all {
		bridges[n.ID] = n
	}
	return bridges, nil
}

// learnBridges takes over what listBridges has found.
func (m *Mesh) learnBridges(bridges map[string]BridgeNetwork, err error) {
	switch {
	case err == nil:
		m.bridges, m.hangs = bridges, nil
	case errors.Is(err, context.DeadlineExceeded):
		m.hangs = err
	}
}

// readBridges asks the engine unless it is known what it has.
func (m *Mesh) readBridges(ctx context.Context) error {
	if m.bridges != nil {
		return nil
	}
	return m.ask(func() error {
		bridges, err := m.listBridges(ctx)
		m.learnBridges(bridges, err)
		return err
	})
}

// ask asks the engine for something. One that hangs costs its time limit once: asked
// for every change, it would delay the routes of all services again and again.
func (m *Mesh) ask(call func() error) error {
	if m.hangs != nil {
		return m.hangs
	}
	err := call()
	if errors.Is(err, context.DeadlineExceeded) {
		m.hangs = err
	}
	return err
}

// bridgeOf is what the engine should have for a network, if that can be made.
func (m *Mesh) bridgeOf(n plan.Network) (BridgeNetwork, bool) {
	gw, ok := m.input.Self.Gateways[n.ID]
	return BridgeNetwork{ID: n.ID, Name: n.Name, Bridge: plan.BridgeName(n.ID), Subnet: n.Subnet.Masked(), Gateway: gw,
		MTU: cmp.Or(n.MTU, plan.DefaultMTU), Internal: n.Internal}, ok && n.Subnet.Contains(gw)
}

// withoutMissing leaves out the networks that the engine has yet to make. ok says
// that this is worth doing first: there are such, or may be, and published ports do
// not depend on them.
func (m *Mesh) withoutMissing(in plan.Input) (_ plan.Input, ok bool) {
	if m.bridges == nil {
		// The engine has to be asked. Where a former process had it make all bridges,
		// routes need not wait for the answer.
		return in, !slices.ContainsFunc(in.Networks, func(n plan.Network) bool { return !m.kernel.Has(plan.BridgeName(n.ID)) })
	}
	if !m.applied {
		return in, false
	}
	present := make([]plan.Network, 0, len(in.Networks))
	for _, n := range in.Networks {
		b, _ := m.bridgeOf(n)
		switch {
		case m.bridges[n.ID] == b:
			present = append(present, n)
		case n.Ingress:
			return in, false
		}
	}
	ok = len(present) < len(in.Networks)
	in.Networks = present
	return in, ok
}

// ensureBridges makes the networks that are missing.
func (m *Mesh) ensureBridges(ctx context.Context, in plan.Input) error {
	if err := m.readBridges(ctx); err != nil {
		return err
	}
	var errs []error
	for _, n := range in.Networks {
		b, ok := m.bridgeOf(n)
		if !ok || m.bridges[n.ID] == b {
			continue // plan says what is wrong with it
		}
		if err := m.ask(func() error { return m.engine.Ensure(ctx, b) }); err != nil {
			errs = append(errs, fmt.Errorf("network %s (%s) in the engine: %w", n.Name, n.ID, err))
			continue
		}
		m.bridges[n.ID] = b
		m.known = false // it may have replaced a bridge that devices were put into
	}
	return errors.Join(errs...)
}

// removeBridges removes the networks that are not wanted. One that still has
// containers stays until the next time.
func (m *Mesh) removeBridges(ctx context.Context, want []plan.Network) error {
	if err := m.readBridges(ctx); err != nil {
		return err
	}
	wanted := map[string]bool{}
	for _, n := range want {
		wanted[n.ID] = true
	}
	var errs []error
	for id, n := range m.bridges {
		if wanted[id] {
			continue
		}
		if err := m.ask(func() error { return m.engine.Remove(ctx, n) }); err != nil {
			errs = append(errs, fmt.Errorf("remove network %s (%s) from the engine: %w", n.Name, id, err))
			continue
		}
		delete(m.bridges, id)
	}
	return errors.Join(errs...)
}
