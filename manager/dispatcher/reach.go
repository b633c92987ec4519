package dispatcher

import (
	"net/netip"
	"strings"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// By which ports, names and addresses services and tasks are reached, read from their objects.

func ingressPorts(ports []swarm.PortConfig) []swarm.PortConfig {
	var out []swarm.PortConfig
	for _, p := range ports {
		if p.PublishMode != swarm.PortConfigPublishModeHost && p.PublishedPort != 0 {
			out = append(out, p)
		}
	}
	return out
}

// meshNetworks gives the overlay networks that the service is on, with its virtual addresses and its aliases there.
func meshNetworks(snap *cluster.Snapshot, s *cluster.Service) []protocol.MeshNetwork {
	var out []protocol.MeshNetwork
	attached := s.Spec.TaskTemplate.Networks
	if len(attached) == 0 {
		attached = s.Spec.Networks //lint:ignore SA1019 old clients still send it, and it has to work
	}
	for _, a := range attached {
		n := snap.Network(a.Target)
		if n == nil {
			n = snap.NetworkNamed(a.Target)
		}
		if n == nil || n.VNI == 0 || n.Spec.Ingress {
			continue // the nodes' own, or not ready
		}
		part := protocol.MeshNetwork{NetworkID: n.ID, Aliases: a.Aliases}
		for _, v := range s.Endpoint.VirtualIPs {
			if v.NetworkID == n.ID {
				part.VIP = withoutPrefix(v.Addr)
			}
		}
		out = append(out, part)
	}
	return out
}

// taskAddrs gives the task's address on the ingress network, and those on other overlay networks.
func taskAddrs(t *cluster.Task) (ingress string, others []protocol.BackendAddr) {
	for _, a := range t.NetworksAttachments {
		if len(a.Addresses) == 0 {
			continue
		}
		addr := withoutPrefix(a.Addresses[0])
		switch {
		case addr == "":
		case a.Network.Spec.Ingress:
			ingress = addr
		default:
			others = append(others, protocol.BackendAddr{NetworkID: a.Network.ID, Addr: addr})
		}
	}
	return ingress, others
}

// withoutPrefix is the address of a CIDR, "" if it is none.
func withoutPrefix(cidr string) string {
	p, err := netip.ParsePrefix(cidr)
	if err != nil {
		return ""
	}
	return p.Addr().String()
}

// shortID is how long the ids are that engines give to containers as names and host names.
const shortID = 12

// taskNames gives the names of a task: of its container, its short id, and its host name where that is no template, which
// only its node can expand.
func taskNames(t *cluster.Task) []string {
	names := []string{t.FullName()}
	if c := t.Status.ContainerStatus; c != nil && len(c.ContainerID) >= shortID {
		names = append(names, c.ContainerID[:shortID])
	}
	if c := t.Spec.ContainerSpec; c != nil && c.Hostname != "" && !strings.Contains(c.Hostname, "{{") {
		names = append(names, c.Hostname)
	}
	return names
}

// reachable says whether others may be sending traffic to the task while it runs.
func reachable(t *cluster.Task) bool {
	ingress, others := taskAddrs(t)
	return ingress != "" || len(others) > 0
}

// setAttachment makes a container that a person put on networks known there by its names, as a service of one replica
// without a virtual address would be. It may go at any time and nobody replaces it, so that no traffic is led to it.
func (m *meshTable) setAttachment(taskID string, snap *cluster.Snapshot) {
	t := snap.Task(taskID)
	if t == nil || !t.Attachment() || t.Status.State != swarm.TaskStateRunning || !t.Wanted() {
		m.removeService(taskID)
		return
	}
	b := protocol.Backend{TaskID: t.ID, NodeID: t.NodeID}
	_, b.Networks = taskAddrs(t)
	s := protocol.MeshService{ServiceID: t.ID, Backends: []protocol.Backend{b}}
	for _, to := range t.Spec.Networks {
		if len(to.Aliases) > 0 {
			s.Name = to.Aliases[0]
			s.Networks = append(s.Networks, protocol.MeshNetwork{NetworkID: to.Target, Aliases: to.Aliases[1:]})
			s.Backends[0].Names = to.Aliases[:1] // what the address is shown as
		}
	}
	if cur := m.services[t.ID]; len(s.Networks) == 0 || cur != nil {
		return // nobody asks for it, or as it was: it does not change while it runs
	}
	m.seq++
	m.services[t.ID] = &meshService{s, m.seq}
	delete(m.removed, t.ID)
}
