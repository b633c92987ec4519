package agent

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/ingress/names"
)

// Names is the name server of the node's containers; *names.Server is one.
type Names interface {
	// Set answers by t from now on; it is complete.
	Set(t names.Table) error
}

// nameTable has the names of the overlay networks that this node takes part in, as the leader's table gives them, for
// the containers of the node.
func nameTable(node *cluster.Node, networks []*cluster.Network, services []protocol.MeshService, clients map[netip.Addr]names.Client) names.Table {
	t := names.Table{Clients: clients}
	index := map[string]int{} // of t.Networks, by network id
	for _, n := range networks {
		own, err := netip.ParsePrefix(node.Attachments[n.ID])
		if err != nil || n.Spec.Ingress {
			continue
		}
		index[n.ID] = len(t.Networks)
		t.Networks = append(t.Networks, names.Network{ID: n.ID, Name: n.Spec.Name, Subnet: own.Masked(), Listen: own.Addr(), Internal: n.Spec.Internal})
	}
	for _, s := range services {
		for _, part := range s.Networks {
			i, ok := index[part.NetworkID]
			if !ok {
				continue
			}
			service := names.Service{Name: s.Name, Aliases: part.Aliases}
			service.VIP, _ = netip.ParseAddr(part.VIP) // none in endpoint mode dnsrr
			for _, b := range s.Backends {
				if addr := addrOn(b, part.NetworkID); addr.IsValid() && !b.Draining {
					service.Tasks = append(service.Tasks, names.Task{Names: b.Names, Addr: addr})
				}
			}
			t.Networks[i].Services = append(t.Networks[i].Services, service)
		}
	}
	return t
}

// addrOn is the replica's address on a network, invalid if it has none.
func addrOn(b protocol.Backend, networkID string) netip.Addr {
	i := slices.IndexFunc(b.Networks, func(a protocol.BackendAddr) bool { return a.NetworkID == networkID })
	if i < 0 {
		return netip.Addr{}
	}
	addr, _ := netip.ParseAddr(b.Networks[i].Addr)
	return addr
}

// clients gives the containers of this node by their addresses on overlay networks, also those that do not run yet: a
// process asks for names before it is healthy.
func (w *worker) clients() map[netip.Addr]names.Client {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := map[netip.Addr]names.Client{}
	attached := map[string][]*cluster.Task{} // by container, which may be on several networks
	for _, r := range w.tasks {
		t, st := r.current()
		if cluster.Terminal(st.State) {
			continue
		}
		if a, ok := r.ctl.(*attachment); ok {
			_, _, holder := a.part()
			attached[holder] = append(attached[holder], t)
		} else {
			addClient(all, t)
		}
	}
	for holder, tasks := range attached {
		if holder != "" {
			tasks = []*cluster.Task{together(tasks)}
		}
		for _, t := range tasks {
			addClient(all, t)
		}
	}
	return all
}

// together gives the attachments of one container as one task on all their networks.
func together(tasks []*cluster.Task) *cluster.Task {
	one := &cluster.Task{}
	slices.SortFunc(tasks, func(a, b *cluster.Task) int { return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID)) })
	for _, t := range tasks {
		one.NetworksAttachments = append(one.NetworksAttachments, t.NetworksAttachments...)
	}
	return one
}

func addClient(all map[netip.Addr]names.Client, t *cluster.Task) {
	c := names.Client{Confined: true}
	var addrs []netip.Addr
	for _, a := range t.NetworksAttachments {
		c.Confined = c.Confined && a.Network.Spec.Internal
		if a.Network.Spec.Ingress {
			continue // nobody has a name there
		}
		c.Networks = append(c.Networks, a.Network.ID)
		for _, text := range a.Addresses {
			if p, err := netip.ParsePrefix(text); err == nil {
				addrs = append(addrs, p.Addr())
			}
		}
	}
	c.Upstreams = upstreams(t.Spec.ContainerSpec)
	for _, addr := range addrs {
		all[addr] = c
	}
}

// upstreams are the name servers that the service names itself.
func upstreams(spec *swarm.ContainerSpec) (servers []netip.Addr) {
	if spec == nil || spec.DNSConfig == nil {
		return nil
	}
	for _, text := range spec.DNSConfig.Nameservers {
		if addr, err := netip.ParseAddr(text); err == nil {
			servers = append(servers, addr)
		}
	}
	return servers
}
