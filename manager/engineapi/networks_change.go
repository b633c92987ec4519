package engineapi

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"
	timetypes "github.com/docker/docker/api/types/time"

	"github.com/miniswarm/miniswarm/cluster"
)

// predefinedNetworks are the names that every engine has of itself.
var predefinedNetworks = []string{network.NetworkBridge, network.NetworkHost, network.NetworkNone, network.NetworkDefault}

// createAnyNetwork makes a network of the swarm if it is to be one, and else of the engine.
func (s *Server) createAnyNetwork(w http.ResponseWriter, r *http.Request) error {
	body, err := wholeBody(r)
	if err != nil {
		return err
	}
	again := func() *http.Request {
		r2 := r.WithContext(r.Context())
		r2.Body, r2.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		return r2
	}
	var req network.CreateRequest
	if err := readJSON(again(), &req); err != nil {
		return err
	}
	_, noManager := s.cfg.Local.Control()
	switch {
	case noManager == nil && (req.Name == network.NetworkBridge || req.Name == network.NetworkHost):
		return nameTaken(req.Name) // by the swarm's stand-in
	case slices.Contains(predefinedNetworks, req.Name):
		return errorf(http.StatusForbidden, "operation is not permitted on predefined %s network", req.Name)
	case req.Driver == driverOverlay && req.Scope == "local":
		return errorf(http.StatusForbidden, "cannot downgrade network scope for %s networks", req.Driver)
	case req.Ingress && req.Driver != driverOverlay && req.Driver != "":
		return errorf(http.StatusForbidden, "Ingress network can only be global scope network")
	}
	ours := req.Driver == driverOverlay || req.Scope == scopeSwarm || req.Ingress
	switch {
	case ours && noManager != nil:
		_, text := statusOf(noManager)
		return errorf(http.StatusForbidden, "%s", text)
	case ours:
		// The engine's networks are in the way too: services and containers name networks alike.
		if s.engineHasNetwork(r.Context(), req.Name) {
			return nameTaken(req.Name)
		}
		s.onLeader(s.createNetwork).ServeHTTP(w, again())
		return nil
	}
	if snap := s.snapshot(r.Context()); snap != nil && snap.NetworkNamed(req.Name) != nil {
		return nameTaken(req.Name)
	}
	s.toEngine(w, again())
	return nil
}

func nameTaken(name string) error {
	return errorf(http.StatusConflict, "network with name %s already exists", name)
}

// engineHasNetwork says whether the engine has a network of its own with that name.
func (s *Server) engineHasNetwork(ctx context.Context, name string) bool {
	f, err := filters.ToJSON(filters.NewArgs(filters.Arg("name", "^"+regexp.QuoteMeta(name)+"$")))
	if err != nil {
		return false
	}
	var list []network.Inspect
	if err := s.engine.get(ctx, "/networks", url.Values{"filters": {f}}, &list); err != nil {
		return false // an engine that does not answer has no say
	}
	return slices.ContainsFunc(list, func(n network.Inspect) bool { return n.Name == name && n.Labels[labelNetworkID] == "" })
}

func (s *Server) createNetwork(c Control, w http.ResponseWriter, r *http.Request) error {
	var req network.CreateRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	spec := networkOf(req)
	id := c.IDs().Next()
	_, err := c.Update(r.Context(), func(snap *cluster.Snapshot) (*cluster.Txn, error) {
		if snap.NetworkNamed(spec.Name) != nil {
			return nil, nameTaken(spec.Name)
		}
		if err := validateNetwork(snap, spec); err != nil {
			return nil, err
		}
		n := &cluster.Network{}
		n.ID, n.Spec = id, spec
		return &cluster.Txn{Time: time.Now(), Guards: []cluster.Guard{{Kind: cluster.KindNetwork, Index: snap.Modified(cluster.KindNetwork)}},
			Changes: []cluster.Change{cluster.CreateOf(n)}}, nil
	})
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusCreated, network.CreateResponse{ID: id})
	return nil
}

// validateNetwork checks a new network with Swarm's words (swarm-semantics, 1.10).
func validateNetwork(snap *cluster.Snapshot, spec swarm.NetworkSpec) error {
	if spec.Ingress && spec.Attachable {
		return rpcErrorf(invalidArgument, "ingress network cannot be attachable")
	}
	if err := validateName(spec.Name); err != nil {
		return err
	}
	if _, ok := spec.Labels[labelPredefined]; ok {
		return rpcErrorf(permissionDenied, "label %s is for internally created predefined networks and cannot be applied by users", labelPredefined)
	}
	if d := spec.DriverConfiguration; d.Name != driverOverlay {
		return rpcErrorf(unimplemented, "network %s: driver %q is not supported for networks of the swarm; use overlay", spec.Name, d.Name)
	}
	if v, ok := spec.DriverConfiguration.Options["encrypted"]; ok && v != "false" {
		return rpcErrorf(unimplemented, "network %s: encrypted overlay networks are not supported; "+
			"leave the option out to create a network without encryption", spec.Name)
	}
	if spec.IPv6Enabled {
		return rpcErrorf(unimplemented, "network %s: IPv6 is not supported on overlay networks; leave --ipv6 out", spec.Name)
	}
	if spec.Ingress {
		for n := range snap.Networks() {
			if n.Spec.Ingress {
				return rpcErrorf(alreadyExists, "ingress network (%s) is already present", n.ID)
			}
		}
	}
	return validateIPAM(snap, spec.IPAMOptions)
}

func validateIPAM(snap *cluster.Snapshot, ipam *swarm.IPAMOptions) error {
	if ipam == nil {
		return nil
	}
	if ipam.Driver.Name != "default" {
		return rpcErrorf(invalidArgument, "error during lookup of plugin %s", ipam.Driver.Name)
	}
	for _, cfg := range ipam.Configs {
		subnet, err := netip.ParsePrefix(cfg.Subnet)
		switch {
		case err != nil:
			return rpcErrorf(invalidArgument, "ipam configuration: invalid subnet %s", cfg.Subnet)
		case !subnet.Addr().Is4():
			return rpcErrorf(unimplemented, "ipam configuration: subnet %s: only IPv4 is supported on overlay networks", cfg.Subnet)
		}
		if cfg.Range != "" {
			within, err := netip.ParsePrefix(cfg.Range)
			if err != nil {
				return rpcErrorf(invalidArgument, "ipam configuration: invalid range %s", cfg.Range)
			}
			if !subnet.Contains(within.Addr()) {
				return rpcErrorf(invalidArgument, "ipam configuration: subnet %s does not contain range %s", cfg.Subnet, cfg.Range)
			}
		}
		if cfg.Gateway != "" {
			gateway, err := netip.ParseAddr(cfg.Gateway)
			if err != nil {
				return rpcErrorf(invalidArgument, "ipam configuration: invalid gateway %s", cfg.Gateway)
			}
			if !subnet.Contains(gateway) {
				return rpcErrorf(invalidArgument, "ipam configuration: subnet %s does not contain gateway %s", cfg.Subnet, cfg.Gateway)
			}
		}
		// Swarm finds out only when it allocates, and then the network's tasks wait for ever without a word.
		if other := overlapping(snap, subnet); other != "" {
			return rpcErrorf(invalidArgument, "ipam configuration: subnet %s overlaps with network %s", cfg.Subnet, other)
		}
	}
	if len(ipam.Configs) > 1 {
		// A network is one bridge on each node, and an engine's bridge has one subnet.
		return rpcErrorf(unimplemented, "ipam configuration: a network of several subnets is not supported; use one that is large enough")
	}
	return nil
}

// overlapping names a network that has addresses of the subnet.
func overlapping(snap *cluster.Snapshot, subnet netip.Prefix) string {
	for n := range snap.Networks() {
		for _, ipam := range []*swarm.IPAMOptions{n.IPAMOptions, n.Spec.IPAMOptions} {
			if ipam == nil {
				continue
			}
			for _, cfg := range ipam.Configs {
				if have, err := netip.ParsePrefix(cfg.Subnet); err == nil && have.Overlaps(subnet) {
					return n.Spec.Name
				}
			}
		}
	}
	return ""
}

// removeAnyNetwork removes the swarm's network of that name or id, or else the engine's.
func (s *Server) removeAnyNetwork(w http.ResponseWriter, r *http.Request) error {
	ref := r.PathValue("id")
	if snap := s.snapshot(r.Context()); snap != nil && len(snap.Matches(cluster.KindNetwork, ref)) > 0 {
		s.onLeader(s.removeNetwork).ServeHTTP(w, r)
		return nil
	}
	var n network.Inspect
	err := s.engine.get(r.Context(), "/networks/"+url.PathEscape(ref), nil, &n)
	if of := n.Labels[labelNetworkName]; err == nil && of != "" {
		if _, err := s.cfg.Local.Control(); err != nil {
			return err
		}
		return errorf(http.StatusForbidden, "network %s is this node's part of the swarm network %s and goes with it", ref, of)
	}
	s.toEngine(w, r)
	return nil
}

func (s *Server) removeNetwork(c Control, w http.ResponseWriter, r *http.Request) error {
	_, err := c.Update(r.Context(), func(snap *cluster.Snapshot) (*cluster.Txn, error) {
		n, err := find[*cluster.Network](snap, cluster.KindNetwork, r.PathValue("id"))
		if err != nil {
			return nil, err
		}
		if err := removable(snap, n); err != nil {
			return nil, err
		}
		// A service that begins to use it while this commits must win, or it would be on nothing.
		return &cluster.Txn{Time: time.Now(), Guards: []cluster.Guard{{Kind: cluster.KindService, Index: snap.Modified(cluster.KindService)}},
			Changes: []cluster.Change{cluster.RemoveSeen(n)}}, nil
	})
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// removable refuses to remove a network that is in use (swarm-semantics, 1.10).
func removable(snap *cluster.Snapshot, n *cluster.Network) error {
	if n.Spec.Labels[labelPredefined] == "true" {
		return rpcErrorf(failedPrecondition, "network %s (%s) is a swarm predefined network and cannot be removed", n.Spec.Name, n.ID)
	}
	targets := func(nets []swarm.NetworkAttachmentConfig) bool {
		return slices.ContainsFunc(nets, func(a swarm.NetworkAttachmentConfig) bool { return a.Target == n.ID })
	}
	for svc := range snap.Services() {
		if n.Spec.Ingress && publishesOnIngress(svc) {
			return rpcErrorf(failedPrecondition, "ingress network cannot be removed because service %s depends on it", svc.ID)
		}
		if targets(svc.Spec.TaskTemplate.Networks) {
			return rpcErrorf(failedPrecondition, "network %s is in use by service %s", n.ID, svc.ID)
		}
	}
	if n.Spec.Ingress {
		return nil
	}
	for t := range snap.Tasks() {
		if t.ServiceID != "" && snap.Service(t.ServiceID) == nil {
			continue // on its way out; Swarm lets such a task fail "stack rm" if it is quick enough
		}
		if t.Wanted() && !cluster.Terminal(t.Status.State) && targets(t.Spec.Networks) {
			return rpcErrorf(failedPrecondition, "network %s is in use by task %s (%s)", n.ID, t.ID, belongsTo(snap, t))
		}
	}
	return nil
}

// belongsTo says whose task it is, in words that lead to it.
func belongsTo(snap *cluster.Snapshot, t *cluster.Task) string {
	node := t.NodeID
	if n := snap.Node(node); n != nil && n.Description.Hostname != "" {
		node = n.Description.Hostname
	}
	if t.Attachment() {
		id := t.Spec.NetworkAttachmentSpec.ContainerID
		if c := t.Status.ContainerStatus; id == "" && c != nil {
			id = c.ContainerID
		}
		if id == "" { // the place was taken before there was a container
			return "a container on node " + node
		}
		return fmt.Sprintf("container %.12s on node %s", id, node)
	}
	return fmt.Sprintf("of service %s on node %s", t.ServiceAnnotations.Name, node)
}

func publishesOnIngress(svc *cluster.Service) bool {
	e := svc.Spec.EndpointSpec
	return e != nil && slices.ContainsFunc(e.Ports, func(p swarm.PortConfig) bool { return p.PublishMode != swarm.PortConfigPublishModeHost })
}

// pruneNetworks removes the networks of the swarm and of the engine that nobody uses. The engine's own prune is not asked,
// because it would take this node's parts of swarm networks along.
func (s *Server) pruneNetworks(w http.ResponseWriter, r *http.Request) error {
	args, err := listFilters(r, "label", "label!", "until")
	if err != nil {
		return err
	}
	until, err := untilFilter(args, time.Now())
	if err != nil {
		return err
	}
	matches := func(created time.Time, labels map[string]string) bool {
		return (until.IsZero() || !created.After(until)) && args.MatchKVList("label", labels) && !(args.Contains("label!") && args.MatchKVList("label!", labels))
	}
	report := network.PruneReport{}
	if snap := s.snapshot(r.Context()); snap != nil {
		for n := range snap.Networks() {
			if !n.Spec.Ingress && n.Spec.Labels[labelPredefined] != "true" && matches(n.CreatedAt, n.Spec.Labels) && removable(snap, n) == nil &&
				s.ask(r, http.MethodDelete, "/networks/"+n.ID) == http.StatusNoContent {
				report.NetworksDeleted = append(report.NetworksDeleted, n.Spec.Name)
			}
		}
	}
	var local []network.Inspect
	if err := s.engine.get(r.Context(), "/networks", nil, &local); err != nil {
		return err
	}
	for _, n := range local {
		if slices.Contains(predefinedNetworks, n.Name) || n.Scope == scopeSwarm || n.ConfigOnly || n.Labels[labelNetworkID] != "" || !matches(n.Created, n.Labels) {
			continue
		}
		resp, err := s.engine.open(r.Context(), http.MethodDelete, "/networks/"+url.PathEscape(n.ID), nil, nil)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusNoContent { // one that has containers is refused
			report.NetworksDeleted = append(report.NetworksDeleted, n.Name)
		}
	}
	writeJSON(w, http.StatusOK, report)
	return nil
}

// untilFilter reads the until filter of a prune.
func untilFilter(args filters.Args, now time.Time) (time.Time, error) {
	values := args.Get("until")
	switch {
	case len(values) == 0:
		return time.Time{}, nil
	case len(values) > 1:
		return time.Time{}, errorf(http.StatusBadRequest, "more than one until filter specified")
	}
	stamp, err := timetypes.GetTimestamp(values[0], now)
	if err != nil {
		return time.Time{}, errorf(http.StatusBadRequest, "%v", err)
	}
	sec, nano, err := timetypes.ParseTimestamps(stamp, 0)
	if err != nil {
		return time.Time{}, errorf(http.StatusBadRequest, "%v", err)
	}
	return time.Unix(sec, nano), nil
}

// ask carries out a request of the swarm part on the leader, in the name of another request, and gives the status.
func (s *Server) ask(r *http.Request, method, path string) int {
	req, err := http.NewRequestWithContext(r.Context(), method, path, nil)
	if err != nil {
		return http.StatusInternalServerError
	}
	w := &statusOnly{header: http.Header{}, status: http.StatusOK}
	s.Cluster().ServeHTTP(w, req)
	return w.status
}

// statusOnly is a ResponseWriter for those who want to know whether it worked.
type statusOnly struct {
	header http.Header
	status int
}

func (w *statusOnly) Header() http.Header         { return w.header }
func (w *statusOnly) Write(p []byte) (int, error) { return len(p), nil }
func (w *statusOnly) WriteHeader(status int)      { w.status = status }

// hostPart takes the prefix length off an address.
func hostPart(cidr string) string {
	host, _, _ := strings.Cut(cidr, "/")
	return host
}
