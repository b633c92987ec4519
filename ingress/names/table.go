package names

import (
	"net/netip"
	"slices"
	"strings"
)

// Table is everything the server knows. It is not changed once it has been given to a
// Server.
type Table struct {
	// Networks are the overlay networks that the node takes part in, without ingress, where nobody has a name.
	Networks []Network
	// Clients are the node's own containers, by each of their addresses on overlay networks.
	Clients map[netip.Addr]Client
}

// Network is one overlay network with those who have names on it.
type Network struct {
	ID, Name string
	Subnet   netip.Prefix
	// Listen is the node's own address, where the network's containers ask.
	Listen netip.Addr
	// Internal networks have no way out to the world, not for questions either.
	Internal bool
	Services []Service
}

// Service is a service on a network.
type Service struct {
	Name    string
	Aliases []string
	// VIP is what the name stands for; without one (dnsrr) it stands for the tasks.
	VIP   netip.Addr
	Tasks []Task
}

// Task is one replica that may be sent traffic.
type Task struct {
	// Names are its own. The first is what its address is shown as.
	Names []string
	Addr  netip.Addr
}

// Client is a container that asks.
type Client struct {
	// Networks are the ids of its overlay networks; where a name is on several, the first counts.
	Networks []string
	// Upstreams are asked what the table does not know; none means the node's own name servers.
	Upstreams []netip.Addr
	// Confined clients are not answered what the table does not know: all their networks are internal.
	Confined bool
}

// index is a Table made for looking up.
type index struct {
	zones   map[string]*zone // by network id
	clients map[netip.Addr]Client
	listen  map[netip.Addr]string // network id
}

// zone is the names of one network, in lower case.
type zone struct {
	suffix   string // "." and the network's name
	subnet   netip.Prefix
	internal bool
	hosts    map[string][]netip.Addr
	reverse  map[netip.Addr]string
}

func newIndex(t Table) *index {
	x := &index{zones: map[string]*zone{}, clients: t.Clients, listen: map[netip.Addr]string{}}
	for _, n := range t.Networks {
		z := &zone{suffix: "." + strings.ToLower(n.Name), subnet: n.Subnet, internal: n.Internal,
			hosts: map[string][]netip.Addr{}, reverse: map[netip.Addr]string{}}
		x.zones[n.ID], x.listen[n.Listen] = z, n.ID
		for _, s := range n.Services {
			z.addService(s)
		}
	}
	return x
}

func (z *zone) addService(s Service) {
	for _, name := range append([]string{s.Name}, s.Aliases...) {
		z.add("tasks." + name)
		z.add(name)
		if s.VIP.IsValid() {
			z.add(name, s.VIP)
		}
		for _, t := range s.Tasks {
			z.add("tasks."+name, t.Addr)
			if !s.VIP.IsValid() {
				z.add(name, t.Addr)
			}
		}
	}
	if s.VIP.IsValid() {
		z.reverse[s.VIP] = s.Name + z.suffix
	}
	for _, t := range s.Tasks {
		for i, name := range t.Names {
			z.add(name, t.Addr)
			if i == 0 {
				z.reverse[t.Addr] = name + z.suffix
			}
		}
	}
}

// add makes a name known, with what it stands for. Two services may share an alias.
func (z *zone) add(name string, addrs ...netip.Addr) {
	name = strings.ToLower(name)
	have := z.hosts[name]
	for _, a := range addrs {
		if !slices.Contains(have, a) {
			have = append(have, a)
		}
	}
	z.hosts[name] = have
}

// client finds out who asks: a container of this node, or else somebody on the network that the question came by, such
// as a container that a person attached or this node itself. Others are told nothing.
func (x *index) client(from, listen netip.Addr) Client {
	if c, ok := x.clients[from]; ok {
		return c
	}
	id, ok := x.listen[listen]
	if !ok || !x.zones[id].subnet.Contains(from) {
		return Client{Confined: true}
	}
	return Client{Networks: []string{id}, Confined: x.zones[id].internal}
}

// lookup gives the addresses of a name, in lower case without a dot at its end. known is
// true for one that exists but has no address at present.
func (x *index) lookup(c Client, name string) (addrs []netip.Addr, known bool) {
	for _, id := range c.Networks {
		z := x.zones[id]
		if z == nil {
			continue
		}
		if addrs, known = z.hosts[name]; known {
			return addrs, true
		}
		if short, ok := strings.CutSuffix(name, z.suffix); ok {
			if addrs, known = z.hosts[short]; known {
				return addrs, true
			}
		}
	}
	return nil, false
}

// name gives the name of an address. ours is true for one of the client's networks, which nobody else can name.
func (x *index) name(c Client, a netip.Addr) (name string, ours bool) {
	for _, id := range c.Networks {
		if z := x.zones[id]; z != nil && z.subnet.Contains(a) {
			return z.reverse[a], true
		}
	}
	return "", false
}
