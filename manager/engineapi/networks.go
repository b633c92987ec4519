package engineapi

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// Labels by which the agent marks the engine's networks that stand for swarm networks (package agent/docker). They are not
// shown beside what they stand for.
const (
	labelNetworkID   = "miniswarm.network.id"
	labelNetworkName = "miniswarm.network.name"
)

// labelPredefined marks the swarm's own stand-ins for the engines' bridge and host networks, which lists leave out.
const labelPredefined = "com.docker.swarm.predefined"

const (
	scopeSwarm    = "swarm"
	driverOverlay = "overlay"
)

// presentNetwork gives a swarm network as clients see it.
func presentNetwork(n *cluster.Network) network.Inspect {
	out := network.Inspect{
		Name: n.Spec.Name, ID: n.ID, Created: n.CreatedAt, Scope: scopeSwarm, Driver: networkDriver(n),
		EnableIPv4: true, EnableIPv6: n.Spec.IPv6Enabled, IPAM: network.IPAM{Driver: "default", Config: []network.IPAMConfig{}},
		Internal: n.Spec.Internal, Attachable: n.Spec.Attachable, Ingress: n.Spec.Ingress,
		Containers: map[string]network.EndpointResource{}, Options: n.DriverState.Options, Labels: n.Spec.Labels,
	}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	if d := n.Spec.DriverConfiguration; out.Options == nil && d != nil {
		out.Options = d.Options
	}
	if n.Spec.ConfigFrom != nil {
		out.ConfigFrom = *n.Spec.ConfigFrom
	}
	ipam := n.IPAMOptions // what was allocated, and until then what was asked for
	if ipam == nil {
		ipam = n.Spec.IPAMOptions
	}
	if ipam != nil {
		if ipam.Driver.Name != "" {
			out.IPAM.Driver = ipam.Driver.Name
		}
		out.IPAM.Options = ipam.Driver.Options
		for _, cfg := range ipam.Configs {
			out.IPAM.Config = append(out.IPAM.Config, network.IPAMConfig{Subnet: cfg.Subnet, IPRange: cfg.Range, Gateway: cfg.Gateway})
		}
	}
	return out
}

func networkDriver(n *cluster.Network) string {
	if n.DriverState.Name != "" {
		return n.DriverState.Name
	}
	if d := n.Spec.DriverConfiguration; d != nil && d.Name != "" {
		return d.Name
	}
	return driverOverlay
}

// snapshot gives the cluster's state on any manager; nil where this node has none to give.
func (s *Server) snapshot(ctx context.Context) *cluster.Snapshot {
	c, err := s.cfg.Local.Control()
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, mergeTimeout)
	defer cancel()
	snap, err := c.Read(ctx)
	if err != nil {
		s.cfg.Logger.Debug("an answer is given without the swarm's part", "err", err)
		return nil
	}
	return snap
}

// mergedNetworks lists the swarm's networks and the engine's.
func (s *Server) mergedNetworks(w http.ResponseWriter, r *http.Request) error {
	args, err := listFilters(r, "driver", "id", "name", "label", "scope", "type", "dangling")
	if err != nil {
		return err
	}
	own, used, err := s.swarmNetworks(r)
	if err != nil {
		return err
	}
	out := []any{}
	for _, n := range own {
		pass, err := networkPasses(args, n, used[n.ID])
		if err != nil {
			return err
		}
		if pass {
			out = append(out, n)
		}
	}
	var local []json.RawMessage
	ctx, cancel := context.WithTimeout(r.Context(), engineTimeout)
	defer cancel()
	err = s.engine.get(ctx, versionedPath(r, "/networks"), r.URL.Query(), &local)
	if err != nil && (own == nil || !isUnreachable(err)) {
		return err // without the engine the swarm's networks are still worth showing
	}
	for _, raw := range local {
		var n struct{ Labels map[string]string }
		if err := json.Unmarshal(raw, &n); err != nil {
			return errorf(http.StatusBadGateway, "read the networks of the Docker Engine: %v", err)
		}
		if _, hidden := n.Labels[labelNetworkID]; !hidden {
			out = append(out, raw)
		}
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// swarmNetworks gives the swarm's networks, and which of them are in use. A worker knows those that it has containers on.
func (s *Server) swarmNetworks(r *http.Request) (nets []network.Inspect, used map[string]bool, err error) {
	if snap := s.snapshot(r.Context()); snap != nil {
		nets = []network.Inspect{}
		for n := range snap.Networks() {
			if n.Spec.Labels[labelPredefined] != "true" {
				nets = append(nets, presentNetwork(n))
			}
		}
		return nets, networksInUse(snap), nil
	}
	stand, err := s.standIns(r.Context(), "")
	if err != nil && !isUnreachable(err) {
		return nil, nil, err
	}
	used = map[string]bool{}
	for _, n := range stand {
		used[n.ID] = true
		nets = append(nets, n)
	}
	return nets, used, nil
}

// standIns gives the swarm networks that the engine has a network for, dressed as what they stand for; with an id only
// that one.
func (s *Server) standIns(ctx context.Context, id string) ([]network.Inspect, error) {
	label := labelNetworkID
	if id != "" {
		label += "=" + id
	}
	var list []network.Inspect
	f, err := filters.ToJSON(filters.NewArgs(filters.Arg("label", label)))
	if err != nil {
		return nil, err
	}
	if err := s.engine.get(ctx, "/networks", url.Values{"filters": {f}}, &list); err != nil {
		return nil, err
	}
	for i := range list {
		n := &list[i]
		n.Name, n.ID, n.Scope, n.Driver = n.Labels[labelNetworkName], n.Labels[labelNetworkID], scopeSwarm, driverOverlay
		n.Labels = map[string]string{}
	}
	return list, nil
}

// networksInUse gives the ids of the networks that services or tasks are on.
func networksInUse(snap *cluster.Snapshot) map[string]bool {
	used := map[string]bool{}
	for svc := range snap.Services() {
		for _, a := range svc.Spec.TaskTemplate.Networks {
			used[a.Target] = true
		}
	}
	for t := range snap.Tasks() {
		for _, a := range t.NetworksAttachments {
			used[a.Network.ID] = true
		}
	}
	for n := range snap.Networks() {
		if n.Spec.Ingress {
			used[n.ID] = true
		}
	}
	return used
}

// networkPasses judges a swarm network by a list's filters, with Docker's words for those that make no sense.
func networkPasses(args filters.Args, n network.Inspect, used bool) (bool, error) {
	for _, kind := range args.Get("type") {
		if kind != "custom" && kind != "builtin" {
			return false, errorf(http.StatusInternalServerError, "invalid filter: 'type'='%s'", kind)
		}
	}
	switch values := args.Get("dangling"); {
	case len(values) > 1:
		return false, errorf(http.StatusBadRequest, `got more than one value for filter key "dangling"`)
	case len(values) == 1:
		switch values[0] {
		case "1", "true":
			if used {
				return false, nil
			}
		case "0", "false":
			if !used {
				return false, nil
			}
		default:
			return false, errorf(http.StatusBadRequest, `invalid value for filter 'dangling', must be "true" (or "1"), or "false" (or "0")`)
		}
	}
	return (!args.Contains("type") || args.ExactMatch("type", "custom")) && args.ExactMatch("driver", n.Driver) && args.ExactMatch("scope", n.Scope) &&
		args.Match("name", n.Name) && args.Match("id", n.ID) && args.MatchKVList("label", n.Labels), nil
}

// anyNetwork shows one network: the swarm's, or else the engine's.
func (s *Server) anyNetwork(w http.ResponseWriter, r *http.Request) error {
	verbose, err := boolParam(r, "verbose")
	if err != nil {
		return err
	}
	ref, scope := r.PathValue("id"), r.URL.Query().Get("scope")
	if scope == "" || scope == scopeSwarm {
		n, err := s.findSwarmNetwork(r.Context(), ref, scope, verbose)
		if err != nil || n != nil {
			if err == nil {
				writeJSON(w, http.StatusOK, n)
			}
			return err
		}
	}
	if scope == scopeSwarm {
		return networkNotFound(ref)
	}
	s.toEngine(w, r)
	return nil
}

func networkNotFound(ref string) error {
	return errorf(http.StatusNotFound, "network %s not found", ref)
}

// findSwarmNetwork gives the swarm network that ref means, with the containers that this node has on it; nil if there is
// none.
func (s *Server) findSwarmNetwork(ctx context.Context, ref, scope string, verbose bool) (*network.Inspect, error) {
	snap := s.snapshot(ctx)
	if snap == nil {
		stand, err := s.standIns(ctx, "")
		if err != nil && !isUnreachable(err) {
			return nil, err
		}
		for i := range stand {
			if stand[i].ID == ref || stand[i].Name == ref {
				s.addContainers(ctx, &stand[i])
				return &stand[i], nil
			}
		}
		return nil, nil
	}
	if ref == network.NetworkHost || ref == network.NetworkBridge {
		if scope != scopeSwarm {
			return nil, nil // the engine's own
		}
		// What services can be put on, whether or not one already is: see resolveSpec.
		n := presentNetwork(predefinedNetwork(ref))
		n.ID = ref
		return &n, nil
	}
	found := snap.Matches(cluster.KindNetwork, ref)
	switch len(found) {
	case 0:
		return nil, nil
	case 1:
	default:
		return nil, errorf(http.StatusBadRequest, "network %s is ambiguous (%d matches found)", ref, len(found))
	}
	n := presentNetwork(found[0].(*cluster.Network))
	s.addContainers(ctx, &n)
	addPeers(snap, &n)
	if verbose {
		addServices(snap, &n)
	}
	return &n, nil
}

// addContainers adds what the engine of this node has on the network. Without the engine there is nothing to add.
func (s *Server) addContainers(ctx context.Context, n *network.Inspect) {
	f, err := filters.ToJSON(filters.NewArgs(filters.Arg("label", labelNetworkID+"="+n.ID)))
	if err != nil {
		return
	}
	var stand []struct{ ID string }
	if err := s.engine.get(ctx, "/networks", url.Values{"filters": {f}}, &stand); err != nil {
		return
	}
	for _, have := range stand {
		var full network.Inspect
		if err := s.engine.get(ctx, "/networks/"+url.PathEscape(have.ID), nil, &full); err == nil && full.Containers != nil {
			if n.Containers == nil {
				n.Containers = map[string]network.EndpointResource{}
			}
			maps.Copy(n.Containers, full.Containers)
		}
	}
}

// addPeers adds the nodes that take part in the network.
func addPeers(snap *cluster.Snapshot, n *network.Inspect) {
	for node := range snap.Nodes() {
		if _, ok := node.Attachments[n.ID]; ok {
			n.Peers = append(n.Peers, network.PeerInfo{Name: node.ID, IP: cmp.Or(node.DataAddr, node.Status.Addr)})
		}
	}
}

// addServices adds the services on the network with their tasks, which clients ask for with verbose.
func addServices(snap *cluster.Snapshot, n *network.Inspect) {
	n.Services = map[string]network.ServiceInfo{}
	for svc := range snap.Services() {
		info := network.ServiceInfo{Ports: []string{}, Tasks: []network.Task{}}
		on := false
		for _, vip := range svc.Endpoint.VirtualIPs {
			if vip.NetworkID == n.ID {
				info.VIP, on = hostPart(vip.Addr), true
			}
		}
		for t := range snap.TasksOfService(svc.ID) {
			if !t.Running() {
				continue
			}
			for _, a := range t.NetworksAttachments {
				if a.Network.ID != n.ID || len(a.Addresses) == 0 {
					continue
				}
				on = true
				task := network.Task{Name: t.FullName(), EndpointID: "", EndpointIP: hostPart(a.Addresses[0])}
				if host := snap.Node(t.NodeID); host != nil {
					task.Info = map[string]string{"Host IP": cmp.Or(host.DataAddr, host.Status.Addr)}
				}
				info.Tasks = append(info.Tasks, task)
			}
		}
		if on {
			n.Services[svc.Spec.Name] = info
		}
	}
}

// networkOf is what a create request asks the swarm for.
func networkOf(req network.CreateRequest) swarm.NetworkSpec {
	spec := swarm.NetworkSpec{
		Annotations: swarm.Annotations{Name: req.Name, Labels: req.Labels}, Internal: req.Internal, Attachable: req.Attachable, Ingress: req.Ingress,
		DriverConfiguration: &swarm.Driver{Name: req.Driver, Options: req.Options}, ConfigFrom: req.ConfigFrom, Scope: scopeSwarm,
	}
	if spec.Labels == nil {
		spec.Labels = map[string]string{}
	}
	if spec.DriverConfiguration.Name == "" {
		spec.DriverConfiguration.Name = driverOverlay
	}
	if req.EnableIPv6 != nil {
		spec.IPv6Enabled = *req.EnableIPv6
	}
	if req.IPAM != nil && (len(req.IPAM.Config) > 0 || len(req.IPAM.Options) > 0 || req.IPAM.Driver != "") {
		ipam := swarm.IPAMOptions{Driver: swarm.Driver{Name: cmp.Or(req.IPAM.Driver, "default"), Options: req.IPAM.Options}}
		for _, cfg := range req.IPAM.Config {
			ipam.Configs = append(ipam.Configs, swarm.IPAMConfig{Subnet: cfg.Subnet, Range: cfg.IPRange, Gateway: cfg.Gateway})
		}
		spec.IPAMOptions = &ipam
	}
	return spec
}
