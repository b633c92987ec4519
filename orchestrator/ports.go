package orchestrator

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// The published ports that are given where none is asked for (swarm-semantics.md, 5.2).
const (
	firstDynamicPort = 30000
	lastDynamicPort  = 32767
)

// port is one port of the routing mesh; each protocol has its own space.
type port struct {
	protocol swarm.PortConfigProtocol
	number   uint32
}

func portOf(c swarm.PortConfig) port {
	return port{cmp.Or(c.Protocol, swarm.PortConfigProtocolTCP), c.PublishedPort}
}

// onMesh says whether the port is published by every node; the others are a matter of the task's node alone.
func onMesh(c swarm.PortConfig) bool {
	return cmp.Or(c.PublishMode, swarm.PortConfigPublishModeIngress) == swarm.PortConfigPublishModeIngress
}

// usesMesh says whether any of the ports is on the mesh, and so whether tasks need an address on the ingress network.
func usesMesh(ports []swarm.PortConfig) bool { return slices.ContainsFunc(ports, onMesh) }

// holdEndpoint books the ports and virtual IPs of a stored service: those of new in, those of old that new does not
// have out. Either may be nil.
func (p *Planner) holdEndpoint(old, new *cluster.Service) {
	if old != nil && new != nil && reflect.DeepEqual(old.Endpoint, new.Endpoint) {
		return
	}
	if new != nil { // first, so that what stays is not free in between
		for _, v := range new.Endpoint.VirtualIPs {
			p.holdAddress(v.NetworkID, v.Addr, true)
		}
	}
	if old != nil {
		for _, v := range old.Endpoint.VirtualIPs {
			p.holdAddress(v.NetworkID, v.Addr, false)
		}
		for _, c := range old.Endpoint.Ports {
			if onMesh(c) && p.ports[portOf(c)] == old.ID {
				delete(p.ports, portOf(c))
				p.freed = true
			}
		}
	}
	if new == nil {
		return
	}
	for _, c := range new.Endpoint.Ports {
		if _, taken := p.ports[portOf(c)]; onMesh(c) && c.PublishedPort != 0 && !taken {
			p.ports[portOf(c)] = new.ID
		}
	}
}

// allocateService gives the service its ports and virtual IPs (swarm-semantics.md, 5.2 and 5.3). What it has already
// it keeps. Where something cannot be had the service stays as it is, and its new tasks say why.
func (x *pass) allocateService(s *service) {
	s.reallocate = false
	want, err := x.endpointOf(s)
	if err != s.unallocated {
		s.unallocated = err
		if err != "" {
			x.decide(Decision{Kind: Allocation, ServiceID: s.id, Reason: err})
		}
		if len(s.pending) > 0 {
			x.tryPlacing(s)
		}
	}
	if err != "" {
		x.unserved[s] = struct{}{}
		return
	}
	delete(x.unserved, s)
	if !reflect.DeepEqual(want, s.obj.Endpoint) {
		s.reallocate = true // until the store has it
		x.edit(s).Endpoint = want
	}
}

func (x *pass) endpointOf(s *service) (swarm.Endpoint, string) {
	var ep swarm.Endpoint
	if spec := s.obj.Spec.EndpointSpec; spec != nil {
		ep.Spec = *spec
	}
	old := s.obj.Endpoint
	if len(ep.Spec.Ports) > 0 {
		ep.Ports = slices.Clone(ep.Spec.Ports)
	}
	var used []int // of old.Ports, each keeps one port of the new ones
	for i := range ep.Ports {
		c := &ep.Ports[i]
		if !onMesh(*c) || c.PublishedPort == 0 {
			continue
		}
		if other, taken := x.ports[portOf(*c)]; taken && other != s.id {
			return ep, fmt.Sprintf("port '%d' is already in use by service '%s' (%s) as an ingress port", c.PublishedPort, x.serviceName(other), other)
		}
		x.bookPort(portOf(*c), s.id)
	}
	for i := range ep.Ports {
		c := &ep.Ports[i]
		if !onMesh(*c) || c.PublishedPort != 0 {
			continue
		}
		if k := slices.IndexFunc(old.Ports, func(o swarm.PortConfig) bool {
			return onMesh(o) && o.Name == c.Name && o.Protocol == c.Protocol && o.TargetPort == c.TargetPort &&
				!slices.ContainsFunc(ep.Ports, func(have swarm.PortConfig) bool { return onMesh(have) && portOf(have) == portOf(o) }) &&
				x.ports[portOf(o)] == s.id
		}); k >= 0 && !slices.Contains(used, k) {
			used = append(used, k)
			c.PublishedPort = old.Ports[k].PublishedPort
			continue
		}
		for n := uint32(firstDynamicPort); n <= lastDynamicPort && c.PublishedPort == 0; n++ {
			if key := (port{portOf(*c).protocol, n}); x.ports[key] == "" {
				c.PublishedPort = n
				x.bookPort(key, s.id)
			}
		}
		if c.PublishedPort == 0 {
			return ep, fmt.Sprintf("no published port is left between %d and %d", firstDynamicPort, lastDynamicPort)
		}
	}
	return x.virtualIPs(s, ep)
}

// virtualIPs completes ep with one address for each of the service's networks, ingress first.
func (x *pass) virtualIPs(s *service, ep swarm.Endpoint) (swarm.Endpoint, string) {
	var nets []*network
	if usesMesh(ep.Spec.Ports) {
		n := x.networks[x.ingress]
		if n == nil {
			return ep, errNoIngress
		}
		nets = append(nets, n)
	}
	for _, a := range networks(&s.obj.Spec.TaskTemplate, s.obj) {
		if n := x.networkOf(a.Target); n != nil && !n.local && !slices.Contains(nets, n) {
			nets = append(nets, n)
		}
	}
	for _, n := range nets {
		if !n.allocated() {
			return ep, fmt.Sprintf("network %s is not allocated: %s", n.obj.Spec.Name, cmp.Or(n.unallocated, "it was only just created"))
		}
		if ep.Spec.Mode == swarm.ResolutionModeDNSRR {
			continue
		}
		addr := ""
		for _, v := range s.obj.Endpoint.VirtualIPs {
			if v.NetworkID == n.obj.ID {
				addr = v.Addr
			}
		}
		if _, _, ours := n.find(addr); !ours {
			if addr = x.bookAddress(n); addr == "" {
				return ep, errNoVIP
			}
		}
		ep.VirtualIPs = append(ep.VirtualIPs, swarm.EndpointVirtualIP{NetworkID: n.obj.ID, Addr: addr})
	}
	return ep, ""
}

// bookPort takes a port for the rest of this pass, until the store says so.
func (x *pass) bookPort(key port, service string) {
	if _, taken := x.ports[key]; taken {
		return
	}
	x.ports[key] = service
	x.undo = append(x.undo, func() { delete(x.ports, key) })
}

// bookAddress takes an address for the rest of this pass, until the store says so; "" if none is left.
func (x *pass) bookAddress(n *network) string {
	for _, p := range n.pools {
		if cidr, at, ok := p.give(); ok {
			x.booked = append(x.booked, booking{p, at})
			return cidr
		}
	}
	return ""
}

// booking is an address taken by a plan that is not committed yet.
type booking struct {
	pool *pool
	at   uint32
}

func (p *Planner) serviceName(id string) string {
	if s := p.services[id]; s != nil && s.obj != nil {
		return s.obj.Spec.Name
	}
	return id
}
