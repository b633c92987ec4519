package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/ingress"
	"github.com/miniswarm/miniswarm/ingress/plan"
)

// Labels of the engine's networks that stand for swarm networks.
const (
	LabelNetworkNode = "miniswarm.node.id"
	LabelNetworkID   = "miniswarm.network.id"
	LabelNetworkName = "miniswarm.network.name"
)

const (
	optionBridgeName = "com.docker.network.bridge.name"
	optionMTU        = "com.docker.network.driver.mtu"
	vxlanOverhead    = 50
)

// networkLimit bounds what the data plane asks of the engine: routes must not wait for an engine that hangs.
const networkLimit = 5 * time.Second

// predefined gives the engine's own network that a swarm network stands for, if it is one of those that every engine has.
func predefined(n swarm.Network) (name string, ok bool) {
	driver := n.DriverState.Name
	if n.Spec.DriverConfiguration != nil {
		driver = cmp.Or(n.Spec.DriverConfiguration.Name, driver)
	}
	switch driver {
	case network.NetworkHost, network.NetworkBridge:
		return driver, true
	case "null":
		return network.NetworkNone, true
	}
	return "", false
}

// Bridge gives the engine's part of a swarm network on a node whose own address in it is gateway, in CIDR form: a
// bridge with the network's subnet. An invalid gateway means that the node is without the data plane; the engine then
// chooses bridge and subnet itself.
func Bridge(n swarm.Network, gateway netip.Prefix) ingress.BridgeNetwork {
	b := ingress.BridgeNetwork{ID: n.ID, Name: n.Spec.Name, MTU: NetworkMTU(n), Internal: n.Spec.Internal}
	if gateway.IsValid() {
		b.Bridge, b.Subnet, b.Gateway = plan.BridgeName(n.ID), gateway.Masked(), gateway.Addr()
	}
	return b
}

// NetworkMTU is the MTU inside containers: that of the driver option less what VXLAN adds, as in Swarm.
func NetworkMTU(n swarm.Network) int {
	for _, options := range []map[string]string{driverOptions(n.Spec.DriverConfiguration), n.DriverState.Options} {
		if mtu, err := strconv.Atoi(options[optionMTU]); err == nil && mtu > vxlanOverhead {
			return mtu - vxlanOverhead
		}
	}
	return plan.DefaultMTU
}

func driverOptions(d *swarm.Driver) map[string]string {
	if d == nil {
		return nil
	}
	return d.Options
}

// networkOptions translates to the engine's words.
func networkOptions(b ingress.BridgeNetwork, nodeID, engineVersion string) network.CreateOptions {
	o := network.CreateOptions{
		Driver:   network.NetworkBridge,
		Internal: b.Internal,
		Labels:   map[string]string{LabelNetworkNode: nodeID, LabelNetworkID: b.ID, LabelNetworkName: b.Name},
		Options:  b.DriverOptions(engineVersion),
	}
	if b.Bridge == "" {
		delete(o.Options, optionBridgeName)
		return o
	}
	o.IPAM = &network.IPAM{Driver: "default", Config: []network.IPAMConfig{{Subnet: b.Subnet.String(), Gateway: b.Gateway.String()}}}
	return o
}

// bridgeOf translates back.
func bridgeOf(n network.Inspect) ingress.BridgeNetwork {
	b := ingress.BridgeNetwork{ID: n.Labels[LabelNetworkID], Name: n.Labels[LabelNetworkName], Bridge: n.Options[optionBridgeName], Internal: n.Internal}
	b.MTU, _ = strconv.Atoi(n.Options[optionMTU])
	if b.Bridge != "" && len(n.IPAM.Config) > 0 {
		b.Subnet, _ = netip.ParsePrefix(n.IPAM.Config[0].Subnet)
		b.Gateway, _ = netip.ParseAddr(n.IPAM.Config[0].Gateway)
	}
	return b
}

// Networks makes the engine's networks that stand for swarm networks on one node. Tasks being prepared use it, and the
// data plane (as ingress.Networks). It may be used concurrently.
type Networks struct {
	engine Engine
	nodeID string
	// busy is full while a network is looked for and made, so that those who need it at once make one. It is no mutex
	// because the data plane must be able to give up waiting.
	busy chan struct{}
	// needed is asked while busy is held; see Heed.
	needed atomic.Pointer[func(networkID string) bool]
}

var _ ingress.Networks = (*Networks)(nil)

// NewNetworks gives the networks of a node on an engine.
func NewNetworks(e Engine, nodeID string) *Networks {
	return &Networks{engine: e, nodeID: nodeID, busy: make(chan struct{}, 1)}
}

// Heed has Remove leave the networks alone that needed names. The data plane removes by a table that may have been overtaken
// while it was applied: the network may have been promised to a container since, and engines remove a network under
// containers that are being made or were never started. needed is called at the moment of removal, from any goroutine, and must not
// call ns.
func (ns *Networks) Heed(needed func(networkID string) bool) { ns.needed.Store(&needed) }

// alone waits for its turn; call done when it is over.
func (ns *Networks) alone(ctx context.Context) (done func(), err error) {
	select {
	case ns.busy <- struct{}{}:
		return func() { <-ns.busy }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the engine's networks: %w", context.Cause(ctx))
	}
}

// List implements ingress.Networks.
func (ns *Networks) List(ctx context.Context) ([]ingress.BridgeNetwork, error) {
	ctx, cancel := context.WithTimeout(ctx, networkLimit)
	defer cancel()
	list, err := ns.engine.Networks(ctx, LabelNetworkNode, ns.nodeID)
	if err != nil {
		return nil, fmt.Errorf("list networks of this node: %w", err)
	}
	var out []ingress.BridgeNetwork
	for _, n := range list {
		out = append(out, bridgeOf(n))
	}
	return out, nil
}

// Ensure implements ingress.Networks.
func (ns *Networks) Ensure(ctx context.Context, b ingress.BridgeNetwork) error {
	ctx, cancel := context.WithTimeout(ctx, networkLimit)
	defer cancel()
	_, err := ns.Make(ctx, b)
	return err
}

// Make makes the engine network if it is not there, and gives the engine's name of it. The name is the swarm network's; where
// the engine has another network of that name already, a part of the id is added. A network that differs from what is
// wanted is replaced: a node that left and joined again has other addresses, and containers must not be attached to
// what remained of its former life. So is what a former node of this machine has left with addresses of the network.
func (ns *Networks) Make(ctx context.Context, b ingress.BridgeNetwork) (name string, err error) {
	done, err := ns.alone(ctx)
	if err != nil {
		return "", err
	}
	defer done()
	list, err := ns.engine.Networks(ctx, LabelNetworkNode, "")
	if err != nil {
		return "", fmt.Errorf("look for network %s: %w", b.Name, err)
	}
	for _, have := range list {
		was := bridgeOf(have)
		switch owner := have.Labels[LabelNetworkNode]; {
		case owner != ns.nodeID && b.Subnet.IsValid() && was.Subnet.Overlaps(b.Subnet):
			// One engine has one data plane, so this machine was that node once: before a cluster was recovered on it, say.
			if err := ns.engine.RemoveNetwork(ctx, have.ID); err != nil {
				return "", fmt.Errorf("network %s is left from when this machine was node %s, and has addresses of network %s; remove it with the containers on it: %w", have.Name, owner, b.Name, ns.occupied(ctx, have.Name, err))
			}
		case owner != ns.nodeID:
		case was.ID != b.ID && b.Subnet.IsValid() && was.Subnet.Overlaps(b.Subnet):
			// The cluster has given its addresses to another network, so this one is on its way out.
			if err := ns.engine.RemoveNetwork(ctx, have.ID); err != nil {
				return "", fmt.Errorf("network %s, which had addresses of network %s before, is not removed yet: %w", have.Name, b.Name, ns.occupied(ctx, have.Name, err))
			}
		case was.ID != b.ID:
		case b.Bridge != "" && was == b, b.Bridge == "" && have.Options[optionBridgeName] == "":
			return have.Name, nil
		default:
			if err := ns.engine.RemoveNetwork(ctx, have.ID); err != nil {
				return "", fmt.Errorf("replace network %s, which has other addresses than the swarm gave this node: %w", have.Name, ns.occupied(ctx, have.Name, err))
			}
		}
	}
	info, err := ns.engine.Info(ctx)
	if err != nil {
		return "", fmt.Errorf("create network %s: %w", b.Name, err)
	}
	want := networkOptions(b, ns.nodeID, info.ServerVersion)
	name = b.Name
	if slices.Contains([]string{network.NetworkDefault, network.NetworkHost, network.NetworkNone, network.NetworkBridge}, name) {
		name = distinctName(b)
	}
	_, err = ns.engine.CreateNetwork(ctx, name, want)
	if cerrdefs.IsConflict(err) && name == b.Name {
		name = distinctName(b)
		_, err = ns.engine.CreateNetwork(ctx, name, want)
	}
	if err != nil {
		return "", fmt.Errorf("create network %s: %w", name, err)
	}
	return name, nil
}

// ErrOccupied is matched by errors that say that a network is in the way and waits for its last containers to stop. Repeat
// the step.
var ErrOccupied = errors.New("containers are still on it")

// occupied tells this of the engine's refusals to remove a network, and names who has to go: nobody takes off the network what a
// person put there by the engine itself, and the engine names containers by ids in some of its versions only.
func (ns *Networks) occupied(ctx context.Context, name string, err error) error {
	if !cerrdefs.IsPermissionDenied(err) {
		return err
	}
	err = fmt.Errorf("%w: %w", ErrOccupied, err)
	all, listErr := ns.engine.Endpoints(ctx)
	if listErr != nil {
		return err // it is asked again with the next attempt
	}
	for _, e := range all {
		if e.Network != name {
			continue
		}
		c, lookErr := ns.engine.Inspect(ctx, e.ContainerID)
		if lookErr != nil || c.ContainerJSONBase == nil || c.State == nil || !c.State.Running || c.Config == nil || c.Config.Labels[LabelNodeID] != "" {
			continue // it has gone, or does so with its task
		}
		who := strings.TrimPrefix(c.Name, "/")
		if e.Address == "" { // the swarm gives every container its address
			err = fmt.Errorf("%w; container %s was put on it past miniswarm: remove it with docker rm -f %s", err, who, who)
		} else {
			err = fmt.Errorf("%w; container %s is on it: if it stays, remove it with docker rm -f %s", err, who, who)
		}
	}
	return err
}

func distinctName(b ingress.BridgeNetwork) string { return b.Name + "-" + b.ID[:min(len(b.ID), 10)] }

// Remove implements ingress.Networks. A network that is needed again stays, like one with containers (see Heed).
func (ns *Networks) Remove(ctx context.Context, b ingress.BridgeNetwork) error {
	ctx, cancel := context.WithTimeout(ctx, networkLimit)
	defer cancel()
	var again error
	err := ns.Keep(ctx, func(id string) bool {
		if id != b.ID {
			return true
		}
		if needed := ns.needed.Load(); needed != nil && (*needed)(id) {
			again = &ingress.HasContainersError{Err: fmt.Errorf("remove network %s: this node takes part in it again", b.Name)}
			return true
		}
		return false
	})
	return errors.Join(err, again)
}

// Keep removes the engine networks of this node whose swarm networks keep refuses. Networks that are in use
// stay, and the error names them; call it again when their containers are gone.
func (ns *Networks) Keep(ctx context.Context, keep func(networkID string) bool) error {
	done, err := ns.alone(ctx)
	if err != nil {
		return err
	}
	defer done()
	list, err := ns.engine.Networks(ctx, LabelNetworkNode, ns.nodeID)
	if err != nil {
		return fmt.Errorf("list networks of this node: %w", err)
	}
	var errs []error
	for _, n := range list {
		if keep(n.Labels[LabelNetworkID]) {
			continue
		}
		if err := ns.engine.RemoveNetwork(ctx, n.ID); cerrdefs.IsPermissionDenied(err) {
			errs = append(errs, &ingress.HasContainersError{Err: fmt.Errorf("remove network %s: %w", n.Name, err)})
		} else if err != nil {
			errs = append(errs, fmt.Errorf("remove network %s: %w", n.Name, err))
		}
	}
	return errors.Join(errs...)
}

// resolver is where a container on these networks asks for names, given the node's own address on each: the first network that
// leads somewhere, or else the first.
func resolver(attachments []swarm.NetworkAttachment, gateways map[string]netip.Addr) netip.Addr {
	var found netip.Addr
	for _, a := range attachments {
		gateway, ok := gateways[a.Network.ID]
		switch {
		case !ok || a.Network.Spec.Ingress: // nobody has a name there
		case !a.Network.Spec.Internal:
			return gateway
		case !found.IsValid():
			found = gateway
		}
	}
	return found
}

// networksOf gives the swarm networks that a task needs the engine to have, without predefined ones.
func networksOf(attachments []swarm.NetworkAttachment) []swarm.Network {
	byID := map[string]swarm.Network{}
	for _, a := range attachments {
		if _, ok := predefined(a.Network); !ok {
			byID[a.Network.ID] = a.Network
		}
	}
	var out []swarm.Network
	for _, id := range slices.Sorted(maps.Keys(byID)) {
		out = append(out, byID[id])
	}
	return out
}
