package engineapi

import (
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

func (s *Server) listTasks(c Control, w http.ResponseWriter, r *http.Request) error {
	args, err := listFilters(r, "name", "id", "label", "service", "node", "desired-state", "runtime", "_up-to-date")
	if err != nil {
		return err
	}
	for _, state := range args.Get("desired-state") {
		if state != "" && !cluster.ValidState(swarm.TaskState(strings.ToLower(state))) {
			return errorf(http.StatusInternalServerError, "Invalid desired-state filter: '%s'", state)
		}
	}
	snap, err := c.Read(r.Context())
	if err != nil {
		return err
	}
	services, err := resolveRefs(snap, cluster.KindService, args.Get("service"))
	if err != nil {
		return err
	}
	nodes, err := resolveRefs(snap, cluster.KindNode, args.Get("node"))
	if err != nil {
		return err
	}
	out := []swarm.Task{}
	onlyWanted := args.Contains("desired-state")
	keep := func(t *cluster.Task) {
		if onlyWanted && t.ServiceID != "" && snap.Service(t.ServiceID) == nil {
			return // on its way out, though that is not stored yet; clients that list what is wanted look up the service
		}
		if !taskPasses(args, t) || len(services) > 0 && !services[t.ServiceID] || len(nodes) > 0 && !nodes[t.NodeID] {
			return
		}
		if args.Contains("_up-to-date") { // whatever its value is, as in Docker
			if svc := snap.Service(t.ServiceID); svc == nil || !upToDate(snap, svc, t) {
				return
			}
		}
		out = append(out, presentTask(t))
	}
	switch { // the narrowest index there is
	case len(services) > 0:
		for _, id := range slices.Sorted(maps.Keys(services)) {
			for t := range snap.TasksOfService(id) {
				keep(t)
			}
		}
	case len(nodes) > 0:
		for _, id := range slices.Sorted(maps.Keys(nodes)) {
			for t := range snap.TasksOfNode(id) {
				keep(t)
			}
		}
	default:
		for t := range snap.Tasks() {
			keep(t)
		}
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// presentTask gives a task as clients see it. One that has a node has a container's status, if an empty one: visualizers
// look into it without asking.
func presentTask(t *cluster.Task) swarm.Task {
	out := t.Task
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	if out.Spec.Runtime == swarm.RuntimeContainer {
		out.Spec.Runtime = "" // Docker names it in services only
	}
	if out.Status.ContainerStatus == nil && out.NodeID != "" {
		out.Status.ContainerStatus = &swarm.ContainerStatus{}
	}
	return out
}

func taskPasses(args filters.Args, t *cluster.Task) bool {
	return prefixed(args, "id", t.ID) && prefixed(args, "name", t.FullName()) && labelled(args, "label", t.ServiceAnnotations.Labels) &&
		(!args.Contains("desired-state") || hasFold(args.Get("desired-state"), string(t.DesiredState))) &&
		runtimePasses(args, t)
}

// runtimePasses leaves out, as in Docker, the tasks that stand for attached containers, unless they are asked for: clients
// look up the service of every task that they are shown.
func runtimePasses(args filters.Args, t *cluster.Task) bool {
	if t.Attachment() {
		return args.Contains("runtime") && args.ExactMatch("runtime", string(swarm.RuntimeNetworkAttachment))
	}
	return !args.Contains("runtime") || args.ExactMatch("runtime", string(swarm.RuntimeContainer))
}

// hasFold says whether list has text, letter case aside; empty entries stand for nothing.
func hasFold(list []string, text string) bool {
	return slices.ContainsFunc(list, func(v string) bool { return strings.EqualFold(v, text) }) || !slices.ContainsFunc(list, func(v string) bool { return v != "" })
}

// resolveRefs turns what users call objects into a set of ids; each must be known.
func resolveRefs(snap *cluster.Snapshot, k cluster.Kind, refs []string) (map[string]bool, error) {
	if len(refs) == 0 {
		return nil, nil
	}
	ids := make(map[string]bool, len(refs))
	for _, ref := range refs {
		o, err := find[cluster.Object](snap, k, ref)
		if err != nil {
			return nil, err
		}
		ids[o.ObjectID()] = true
	}
	return ids, nil
}

func (s *Server) inspectTask(c Control, w http.ResponseWriter, r *http.Request) error {
	snap, err := c.Read(r.Context())
	if err != nil {
		return err
	}
	t, err := findTask(snap, r.PathValue("id"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, presentTask(t))
	return nil
}

// findTask gives the task that ref means: its id, its full name (service.slot.id) or the beginning of its id.
func findTask(snap *cluster.Snapshot, ref string) (*cluster.Task, error) {
	if dot := strings.LastIndexByte(ref, '.'); dot >= 0 {
		if t := snap.Task(ref[dot+1:]); t != nil && t.FullName() == ref {
			return t, nil
		}
	}
	return find[*cluster.Task](snap, cluster.KindTask, ref)
}
