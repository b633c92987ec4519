package engineapi

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/orchestrator"
	"github.com/miniswarm/miniswarm/scheduler"
)

// PlanRequest is the body of POST /miniswarm/plan: what somebody is about to write. Nothing of it is stored.
type PlanRequest struct {
	// Networks, Secrets and Configs are created before the services.
	Networks []network.CreateRequest
	Secrets  []PlannedObject
	Configs  []PlannedObject
	// Services are created, or updated where they have an id.
	Services []PlannedService
	// Remove has ids or names of services.
	Remove []string
}

// PlannedObject is a secret or config by the id under which services refer to it.
type PlannedObject struct{ ID, Name string }

// PlannedService is the service's new specification. Rollback takes its previous one instead.
type PlannedService struct {
	ID       string
	Rollback bool
	Spec     swarm.ServiceSpec
}

// PlanAnswer is the answer of POST /miniswarm/plan.
type PlanAnswer struct {
	// Networks, Secrets and Configs are the names of those that would be created, before the services.
	Networks, Secrets, Configs []string `json:",omitempty"`
	Services                   []ServicePlan
	// Settled says that the plan was followed to its end; otherwise it was too long.
	Settled bool
	// Text is all of it for people.
	Text string
}

// ServicePlan is what becomes of one service if every task does as it is told.
type ServicePlan struct {
	ID, Name string
	// Action is create, update, remove, or none for an update that changes nothing.
	Action string
	// Changes are the fields of the specification that change.
	Changes []FieldChange
	// Start and Stop are the tasks that start and stop, in order; Keep counts those that are left alone.
	Start []PlannedTask
	Stop  []PlannedTask
	Keep  int
	// Waiting counts tasks that find no place; Lacking says per node why.
	Waiting int
	Lacking []string
}

// PlannedTask is a task with its place and the reason.
type PlannedTask struct {
	ID        string `json:",omitempty"`
	Name      string
	NodeID    string
	Node      string
	Container string `json:",omitempty"`
	Why       string `json:",omitempty"`

	at, slot int // when it happens, counted in steps, and which of those at that time comes first
}

// sooner compares tasks by when they start or stop.
func sooner(a, b PlannedTask) int {
	return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.slot, b.slot), cmp.Compare(a.Name, b.Name))
}

const (
	// planPasses bounds how far ahead a plan looks.
	planPasses = 5000
	// maxPlan bounds the tasks of a cluster that is planned for, with those that the plan may add: all of it is gone through.
	maxPlan = 500_000
)

func (s *Server) plan(c Control, w http.ResponseWriter, r *http.Request) error {
	var req PlanRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	for i := range req.Services {
		if req.Services[i].Spec.Name == "" {
			req.Services[i].Spec.Name = randomName()
		}
		if err := normalizeSpec(&req.Services[i].Spec, apiVersion(r)); err != nil {
			return err
		}
	}
	done, err := s.beginPlan(r.Context())
	if err != nil {
		return err
	}
	defer done()
	snap, err := c.Read(r.Context())
	if err != nil {
		return err
	}
	if n := uint64(snap.Len(cluster.KindTask)) + req.tasks(snap.Len(cluster.KindNode)); n > maxPlan {
		return errorf(http.StatusServiceUnavailable, "a dry run goes through all tasks, and there would be %d: more than %d take too long", n, maxPlan)
	}
	p, err := newPlanning(snap, time.Now())
	if err != nil {
		return err
	}
	if err := p.write(&req); err != nil {
		return s.explainNetwork(r.Context(), err)
	}
	passes := 0
	a := p.answer(func() bool {
		passes++
		return passes <= planPasses && r.Context().Err() == nil
	})
	if err := r.Context().Err(); err != nil {
		return fmt.Errorf("plan, after %d steps: %w", passes, err)
	}
	writeJSON(w, http.StatusOK, a)
	return nil
}

// tasks is how many tasks the services may have at a time. Their specifications are normalized.
func (r *PlanRequest) tasks(nodes int) (n uint64) {
	for i := range r.Services {
		switch m := r.Services[i].Spec.Mode; {
		case m.Replicated != nil:
			n += *m.Replicated.Replicas
		case m.ReplicatedJob != nil:
			n += *m.ReplicatedJob.TotalCompletions
		default:
			n += uint64(nodes)
		}
	}
	return n
}

// planning is a cluster of its own, in which what is asked has happened.
type planning struct {
	before *cluster.Snapshot
	state  *cluster.State
	ids    cluster.IDs
	now    time.Time
	made   PlanAnswer // what is created besides services
	plans  []ServicePlan
}

// newPlanning copies the cluster: snapshots are shared, and their trees must not be written to.
func newPlanning(snap *cluster.Snapshot, now time.Time) (*planning, error) {
	st := cluster.NewState()
	modified := make(map[cluster.Kind]uint64)
	for _, k := range cluster.Kinds() {
		modified[k] = snap.Modified(k)
		for o := range snap.Objects(k) {
			st.Restore(o)
		}
	}
	st.RestoreIndex(snap.Index(), modified)
	return &planning{before: snap, state: st, ids: cluster.SeededIDs(snap.Index()), now: now}, nil
}

func (p *planning) commit(changes ...cluster.Change) error {
	_, err := p.state.Apply(&cluster.Txn{Time: p.now, Changes: changes}, p.state.Index()+1)
	return err
}

// write does what the requests of the Engine API would do, with the same checks.
func (p *planning) write(req *PlanRequest) error {
	for _, n := range req.Networks {
		spec := networkOf(n)
		if p.state.Snapshot().NetworkNamed(spec.Name) != nil {
			return nameTaken(spec.Name)
		}
		if err := validateNetwork(p.state.Snapshot(), spec); err != nil {
			return err
		}
		o := &cluster.Network{}
		o.ID, o.Spec = p.ids.Next(), spec
		p.made.Networks = append(p.made.Networks, spec.Name)
		if err := p.commit(cluster.CreateOf(o)); err != nil {
			return err
		}
	}
	for _, x := range req.Secrets {
		o := &cluster.Secret{}
		o.ID, o.Spec.Name = x.ID, x.Name
		p.made.Secrets = append(p.made.Secrets, x.Name)
		if err := p.commit(cluster.CreateOf(o)); err != nil {
			return err
		}
	}
	for _, x := range req.Configs {
		o := &cluster.Config{}
		o.ID, o.Spec.Name = x.ID, x.Name
		p.made.Configs = append(p.made.Configs, x.Name)
		if err := p.commit(cluster.CreateOf(o)); err != nil {
			return err
		}
	}
	for _, ref := range req.Remove {
		svc, err := find[*cluster.Service](p.state.Snapshot(), cluster.KindService, ref)
		if err != nil {
			return err
		}
		p.plans = append(p.plans, ServicePlan{ID: svc.ID, Name: svc.Spec.Name, Action: "remove"})
		if err := p.commit(cluster.RemoveOf(svc)); err != nil {
			return err
		}
	}
	for _, s := range req.Services {
		if err := p.service(s); err != nil {
			return err
		}
	}
	return nil
}

// service creates or updates one service.
func (p *planning) service(s PlannedService) error {
	snap := p.state.Snapshot()
	var old *cluster.Service
	if s.ID != "" {
		var err error
		if old, err = find[*cluster.Service](snap, cluster.KindService, s.ID); err != nil {
			return err
		}
		keepDigest(&s.Spec, old.Spec)
	}
	spec, changes, err := resolveSpec(snap, s.Spec, p.ids)
	if err != nil {
		return err
	}
	if err := validateSpec(snap, spec, old); err != nil {
		return err
	}
	if old == nil {
		if snap.ServiceNamed(spec.Name) != nil {
			return rpcErrorf(alreadyExists, "name conflicts with an existing object: service %s already exists", spec.Name)
		}
		svc := &cluster.Service{}
		svc.ID, svc.Spec = p.ids.Next(), spec
		if spec.EndpointSpec != nil {
			svc.Endpoint.Spec = *spec.EndpointSpec
		}
		p.plans = append(p.plans, ServicePlan{ID: svc.ID, Name: spec.Name, Action: "create"})
		return p.commit(append(changes, cluster.CreateOf(svc))...)
	}
	if err := checkImmutable(old, spec); err != nil {
		return err
	}
	next := *old
	if s.Rollback {
		err = rollBack(&next)
	} else {
		err = replaceSpec(&next, spec, old.Version.Index, "", "")
	}
	if err != nil {
		return err
	}
	plan := ServicePlan{ID: old.ID, Name: spec.Name, Action: "update", Changes: fieldChanges(old.Spec, next.Spec)}
	if len(plan.Changes) == 0 {
		plan.Action = "none"
	}
	p.plans = append(p.plans, plan)
	return p.commit(append(changes, cluster.UpdateOf(&next))...)
}

// beginPlan waits until no other plan is being made: each is a copy of the whole state. Call done when this one is.
func (s *Server) beginPlan(ctx context.Context) (done func(), err error) {
	done = func() { <-s.planning }
	select {
	case s.planning <- struct{}{}:
		return done, nil
	default:
	}
	select {
	case s.planning <- struct{}{}:
		return done, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// keepDigest keeps the digest of an image that is asked for by the same name as before, and the platforms of any: they are
// looked up again when the change is really made, which a plan does not.
func keepDigest(spec *swarm.ServiceSpec, old swarm.ServiceSpec) {
	if old.TaskTemplate.ContainerSpec == nil || spec.TaskTemplate.ContainerSpec == nil {
		return
	}
	pinned := old.TaskTemplate.ContainerSpec.Image
	bare, _, found := strings.Cut(pinned, "@")
	if found && sameImage(bare, spec.TaskTemplate.ContainerSpec.Image) {
		spec.TaskTemplate.ContainerSpec.Image = pinned
	}
	if was, now := old.TaskTemplate.Placement, spec.TaskTemplate.Placement; found && was != nil && now != nil && len(now.Platforms) == 0 {
		placement := *now
		placement.Platforms = was.Platforms
		spec.TaskTemplate.Placement = &placement
	}
}

func sameImage(a, b string) bool {
	x, err := reference.ParseNormalizedNamed(a)
	if err != nil {
		return a == b
	}
	y, err := reference.ParseNormalizedNamed(b)
	return err == nil && reference.TagNameOnly(x).String() == reference.TagNameOnly(y).String()
}

// answer plays the plan to its end, or until there is to be no more, and tells what happened to the services.
func (p *planning) answer(more func() bool) PlanAnswer {
	seen := orchestrator.Foresee(p.state, p.now, p.ids, more)
	why := make(map[string]string)
	for i := range seen.Decisions {
		d := &seen.Decisions[i]
		for _, id := range d.Tasks {
			switch {
			case d.Placement != nil && d.Kind == orchestrator.Place:
				if t := seen.Snapshot.Task(id); t != nil {
					why[id] = placedBecause(d.Placement, t.NodeID)
				}
			case why[id] == "":
				why[id] = d.Reason
			}
		}
	}
	for i := range p.plans {
		p.fill(&p.plans[i], &seen, why)
	}
	a := p.made
	a.Services, a.Settled = p.plans, seen.Settled
	a.Text = planText(&a)
	return a
}

// fill tells of one service which tasks start, stop and stay.
func (p *planning) fill(plan *ServicePlan, seen *orchestrator.Foreseen, why map[string]string) {
	after := seen.Snapshot
	describe := func(t *cluster.Task) PlannedTask {
		out := PlannedTask{ID: t.ID, Name: plan.Name + "." + t.SlotName(), NodeID: t.NodeID, Node: nodeName(p.before, t.NodeID), Why: why[t.ID], slot: t.Slot}
		if t.Status.ContainerStatus != nil {
			out.Container = t.Status.ContainerStatus.ContainerID
		}
		return out
	}
	for t := range p.before.TasksOfService(plan.ID) {
		if !t.Wanted() || cluster.Terminal(t.Status.State) {
			continue
		}
		if now := after.Task(t.ID); now != nil && now.Wanted() && !cluster.Terminal(now.Status.State) {
			if t.NodeID != "" || now.NodeID == "" {
				plan.Keep++
			}
			continue
		}
		gone := describe(t)
		gone.Why, gone.at = "", seen.Ended[t.ID]
		plan.Stop = append(plan.Stop, gone)
	}
	var waiting *cluster.Task
	for t := range after.TasksOfService(plan.ID) {
		if cluster.Terminal(t.Status.State) && t.Status.State != swarm.TaskStateComplete || !t.Wanted() && t.Status.State != swarm.TaskStateComplete {
			continue
		}
		old := p.before.Task(t.ID)
		switch {
		case t.NodeID == "":
			plan.Waiting++
			waiting = t
		case old == nil || old.NodeID == "":
			start := describe(t)
			start.at = seen.Started[t.ID]
			if old == nil {
				start.ID = ""
			}
			plan.Start = append(plan.Start, start)
		}
	}
	slices.SortFunc(plan.Stop, sooner)
	slices.SortFunc(plan.Start, sooner)
	if waiting != nil {
		plan.Lacking = lacking(after, waiting, p.now)
	}
}

// placedBecause words what ranked the node that a task got.
func placedBecause(d *scheduler.Decision, nodeID string) string {
	for _, w := range d.Winners {
		if w.NodeID == nodeID {
			return fmt.Sprintf("%d of the service's and %d of all tasks were there before", w.ServiceTasks, w.ActiveTasks)
		}
	}
	return ""
}

// lacking says of each node why it has no place for a task.
func lacking(snap *cluster.Snapshot, t *cluster.Task, now time.Time) []string {
	accounts := scheduler.New()
	for n := range snap.Nodes() {
		accounts.SetNode(n)
	}
	for n := range snap.Networks() {
		accounts.SetNetwork(n)
	}
	for other := range snap.Tasks() {
		if other.ID != t.ID {
			accounts.SetTask(nil, other)
		}
	}
	d := accounts.Explain(t, now)
	var out []string
	for i := range d.Table {
		if row := &d.Table[i]; !row.Fits {
			out = append(out, row.Hostname+": "+row.Lacks())
		}
	}
	return out
}
