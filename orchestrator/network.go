package orchestrator

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

const (
	overlayDriver = "overlay"
	// vniOption is Swarm's option for the VXLAN ids of a network, as a request and as the answer.
	vniOption = "com.docker.network.driver.overlay.vxlanid_list"
	firstVNI  = 4096
	lastVNI   = 1<<24 - 1

	errNoAddress = "could not find an available IP"
	errNoVIP     = "could not find an available IP while allocating VIP"
	errNoIngress = "ingress network is missing"
)

// defaultPool is what subnets are cut from unless the cluster was made with other pools.
var defaultPool = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}

const defaultSubnetBits = 24

// network is what the planner keeps about one network between passes.
type network struct {
	obj *cluster.Network
	// local networks (host, bridge, macvlan ...) are the nodes' own affair: nothing is allocated for them.
	local bool
	// pools are the subnets' addresses, empty until the network is allocated.
	pools []*pool
	// unallocated says why it could not be, "" otherwise.
	unallocated string
}

func newNetwork(obj *cluster.Network) *network {
	n := &network{obj: obj, local: obj.Local()}
	if n.local || obj.VNI == 0 || obj.IPAMOptions == nil {
		return n
	}
	for _, c := range obj.IPAMOptions.Configs {
		if p, ok := newPool(c); ok {
			n.pools = append(n.pools, p)
		}
	}
	return n
}

func (n *network) allocated() bool { return len(n.pools) > 0 }

// find gives the pool that an address belongs to.
func (n *network) find(cidr string) (*pool, uint32, bool) {
	for _, p := range n.pools {
		if at, ok := p.offset(cidr); ok {
			return p, at, true
		}
	}
	return nil, 0, false
}

// holdAddress notes or forgets one holder of an address.
func (p *Planner) holdAddress(networkID, cidr string, hold bool) {
	n := p.networks[networkID]
	if n == nil {
		return
	}
	pool, at, ok := n.find(cidr)
	switch {
	case !ok:
	case hold:
		pool.take(at)
	default:
		p.freed = pool.release(at) || p.freed
	}
}

// observeNetwork takes in one change of a network.
func (p *Planner) observeNetwork(old, new *cluster.Network) {
	id := ""
	if old != nil {
		id = old.ID
		p.reserve(old, false)
	}
	if new != nil {
		id = new.ID
		p.reserve(new, true)
	}
	was := p.networks[id]
	if new == nil {
		p.accounts.RemoveNetwork(id)
		delete(p.networks, id)
		if p.ingress == id {
			p.ingress = ""
		}
	} else {
		p.accounts.SetNetwork(new)
		n := newNetwork(new)
		if was != nil && len(was.pools) == len(n.pools) && old != nil && reflect.DeepEqual(old.IPAMOptions, new.IPAMOptions) {
			n.pools = was.pools // the addresses in use stay
		}
		p.networks[id] = n
		if new.Spec.Ingress {
			p.ingress = id
		}
	}
	// Networks are few and change rarely: everything that may depend on them is looked at again.
	p.changedNetworks = true
	for _, n := range p.nodes {
		if n.obj != nil && (new == nil || new.Spec.Ingress || n.uses[id] > 0) {
			p.changedNodes[n.id] |= nodeAttachments
		}
	}
	for _, s := range p.services {
		p.reconsider(s)
	}
	p.freed = true
}

// reserve books the subnets and the VXLAN id of an allocated network in or out.
func (p *Planner) reserve(n *cluster.Network, hold bool) {
	if n.VNI != 0 {
		if hold {
			p.vnis[n.VNI] = n.ID
			p.lastVNI = max(p.lastVNI, n.VNI)
			p.noteCut(n)
		} else if p.vnis[n.VNI] == n.ID {
			delete(p.vnis, n.VNI)
		}
	}
	if n.IPAMOptions == nil {
		return
	}
	for _, c := range n.IPAMOptions.Configs {
		prefix, err := netip.ParsePrefix(c.Subnet)
		if err != nil {
			continue
		}
		prefix = prefix.Masked()
		if hold {
			p.subnets[prefix] = n.ID
		} else if p.subnets[prefix] == n.ID {
			delete(p.subnets, prefix)
		}
	}
}

// noteCut remembers the subnet of a network that asked for none.
func (p *Planner) noteCut(n *cluster.Network) {
	asked := n.Spec.IPAMOptions
	if n.VNI < p.lastCutVNI || n.IPAMOptions == nil || asked != nil && len(asked.Configs) > 0 && asked.Configs[0].Subnet != "" {
		return
	}
	if s, err := netip.ParsePrefix(n.IPAMOptions.Configs[0].Subnet); err == nil {
		p.lastCut, p.lastCutVNI = s.Masked(), n.VNI
	}
}

// networkOf finds a network by what an attachment names it: its id, or its name.
func (x *pass) networkOf(target string) *network {
	if n := x.networks[target]; n != nil {
		return n
	}
	if obj := x.snap.NetworkNamed(target); obj != nil {
		return x.networks[obj.ID]
	}
	return nil
}

// allocateNetworks gives subnets and VXLAN ids to the networks that have none, ingress first (swarm-semantics.md, 5.1
// and 5.4).
func (x *pass) allocateNetworks() {
	if !x.changedNetworks {
		return
	}
	x.changedNetworks = false
	var todo []*network
	for _, n := range x.networks {
		if !n.local && !n.allocated() {
			todo = append(todo, n)
		}
	}
	slices.SortFunc(todo, func(a, b *network) int {
		if a.obj.Spec.Ingress != b.obj.Spec.Ingress {
			if a.obj.Spec.Ingress {
				return -1
			}
			return 1
		}
		return cmp.Or(a.obj.CreatedAt.Compare(b.obj.CreatedAt), cmp.Compare(a.obj.Version.Index, b.obj.Version.Index), cmp.Compare(a.obj.ID, b.obj.ID))
	})
	for _, n := range todo {
		obj, err := x.allocatedNetwork(n.obj)
		if err != "" {
			if n.unallocated != err {
				x.decide(Decision{Kind: Allocation, Reason: fmt.Sprintf("network %s: %s", n.obj.Spec.Name, err)})
			}
			n.unallocated = err
			continue
		}
		x.changedNetworks = true // until the store has it
		x.networkChanges = append(x.networkChanges, cluster.UpdateOf(obj))
		x.decide(Decision{Kind: Allocation, Reason: fmt.Sprintf("network %s: subnet %s, VXLAN id %d", obj.Spec.Name, subnetsOf(obj), obj.VNI)})
		// The rest of this pass works with the network as it will be.
		cut, cutVNI := x.lastCut, x.lastCutVNI
		x.networks[obj.ID] = newNetwork(obj)
		x.reserve(obj, true)
		x.undo = append(x.undo, func() {
			x.reserve(obj, false)
			x.lastCut, x.lastCutVNI = cut, cutVNI
			x.networks[obj.ID] = n
		})
	}
}

// allocatedNetwork gives a copy of the network with everything it needs, or says what cannot be had.
func (x *pass) allocatedNetwork(from *cluster.Network) (*cluster.Network, string) {
	obj := *from
	ipam := swarm.IPAMOptions{Driver: swarm.Driver{Name: "default"}}
	if o := from.Spec.IPAMOptions; o != nil {
		ipam.Configs = slices.Clone(o.Configs)
		if o.Driver.Name != "" {
			ipam.Driver = o.Driver
		}
	}
	if len(ipam.Configs) == 0 {
		ipam.Configs = make([]swarm.IPAMConfig, 1)
	}
	usable := false
	for i := range ipam.Configs {
		c := &ipam.Configs[i]
		if c.Subnet == "" {
			prefix, ok := x.freeSubnet()
			if !ok {
				return nil, "could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network"
			}
			c.Subnet = prefix.String()
		} else if other := x.overlapping(c.Subnet, from.ID); other != "" {
			return nil, fmt.Sprintf("subnet %s overlaps with network %s", c.Subnet, other)
		}
		if c.Gateway == "" {
			if pool, ok := newPool(*c); ok {
				c.Gateway = pool.address(pool.first)
			}
		}
		_, ok := newPool(*c)
		usable = usable || ok
	}
	if !usable {
		return nil, "no IPv4 subnet: addresses of tasks are IPv4"
	}
	vni, err := x.freeVNI(from)
	if err != "" {
		return nil, err
	}
	obj.IPAMOptions, obj.VNI = &ipam, vni
	obj.DriverState = swarm.Driver{Name: overlayDriver, Options: map[string]string{}}
	if d := from.Spec.DriverConfiguration; d != nil {
		for k, v := range d.Options {
			obj.DriverState.Options[k] = v
		}
	}
	obj.DriverState.Options[vniOption] = strconv.FormatUint(uint64(vni), 10)
	return &obj, ""
}

// address is the address at an offset, without prefix length.
func (p *pool) address(at uint32) string {
	host, _, _ := strings.Cut(p.cidr(at), "/")
	return host
}

func subnetsOf(n *cluster.Network) string {
	var list []string
	for _, c := range n.IPAMOptions.Configs {
		list = append(list, c.Subnet)
	}
	return strings.Join(list, ", ")
}

// overlapping names a network whose subnet overlaps with the one given.
func (p *Planner) overlapping(subnet, self string) string {
	prefix, err := netip.ParsePrefix(subnet)
	if err != nil {
		return ""
	}
	found := ""
	for other, id := range p.subnets {
		if id != self && other.Overlaps(prefix) {
			if name := p.networkName(id); found == "" || name < found {
				found = name
			}
		}
	}
	return found
}

func (p *Planner) networkName(id string) string {
	if n := p.networks[id]; n != nil {
		return n.obj.Spec.Name
	}
	return id
}

// freeSubnet cuts a free subnet from the cluster's pools: the first behind the one allocated last, or else the first.
func (p *Planner) freeSubnet() (found netip.Prefix, ok bool) {
	// Subnets that were cut like this one are found in the map; the others have to be compared.
	var odd []netip.Prefix
	for s := range p.subnets {
		if s.Bits() != p.subnetBits {
			odd = append(odd, s)
		}
	}
	behind := !p.lastCut.IsValid()
	for _, pool := range p.addressPools {
		if !pool.Addr().Is4() || pool.Bits() > p.subnetBits {
			continue
		}
		base, step := uint64(number(pool.Addr())), uint64(1)<<(32-p.subnetBits)
		for at := base; at < base+uint64(1)<<(32-pool.Bits()); at += step {
			var b [4]byte
			binary.BigEndian.PutUint32(b[:], uint32(at))
			s := netip.PrefixFrom(netip.AddrFrom4(b), p.subnetBits)
			if ok && !behind && s != p.lastCut {
				continue
			}
			_, taken := p.subnets[s]
			switch free := !taken && !slices.ContainsFunc(odd, s.Overlaps); {
			case free && behind:
				return s, true
			case free && !ok:
				found, ok = s, true
			}
			behind = behind || s == p.lastCut
		}
	}
	return found, ok
}

// freeVNI gives the network's VXLAN id: the one it asks for, else the next one never used.
func (p *Planner) freeVNI(n *cluster.Network) (uint32, string) {
	if d := n.Spec.DriverConfiguration; d != nil && d.Options[vniOption] != "" {
		first, _, _ := strings.Cut(d.Options[vniOption], ",")
		v, err := strconv.ParseUint(strings.TrimSpace(first), 10, 32)
		if err != nil || v == 0 || v > lastVNI {
			return 0, fmt.Sprintf("invalid VXLAN id %q", first)
		}
		if other, taken := p.vnis[uint32(v)]; taken && other != n.ID {
			return 0, fmt.Sprintf("VXLAN id %d is already used by network %s", v, p.networkName(other))
		}
		return uint32(v), ""
	}
	if v := max(p.lastVNI+1, firstVNI); v <= lastVNI {
		return v, ""
	}
	for v := uint32(firstVNI); v <= lastVNI; v++ {
		if _, taken := p.vnis[v]; !taken {
			return v, ""
		}
	}
	return 0, "no VXLAN id is left"
}

// observeCluster takes in the settings that a pass works with.
func (p *Planner) observeCluster(c *cluster.Cluster) {
	p.historyLimit, p.addressPools, p.subnetBits = defaultHistory, defaultPool, defaultSubnetBits
	if c != nil {
		if limit := c.Spec.Orchestration.TaskHistoryRetentionLimit; limit != nil {
			p.historyLimit = int(*limit)
		}
		var pools []netip.Prefix
		for _, s := range c.DefaultAddrPool {
			if prefix, err := netip.ParsePrefix(s); err == nil {
				pools = append(pools, prefix.Masked())
			}
		}
		if len(pools) > 0 {
			p.addressPools = pools
		}
		if c.SubnetSize != 0 {
			p.subnetBits = int(c.SubnetSize)
		}
	}
	p.changedNetworks = true
}
