package orchestrator

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// sim is a whole cluster in one goroutine: the store, the planner, and an agent on every node that is up. Nothing in it
// waits: time moves when it is told to.
type sim struct {
	t       testing.TB
	state   *cluster.State
	planner *Planner
	ids     cluster.IDs
	now     time.Time
	index   uint64

	// down has the nodes whose power is off; their agents do nothing.
	down map[string]bool
	// hung has the services whose tasks do not stop.
	hung map[string]bool
	// crashing has the images whose containers fail as soon as they run, frozen those that never get past STARTING.
	crashing, frozen map[string]bool
	// finishing has the images whose containers end with success as soon as they run.
	finishing map[string]bool
	// idle stops all agents.
	idle bool

	names   map[string]string // task id -> service.slot, with #n for the nth task of the slot
	nth     map[string]int
	log     strings.Builder
	check   func() // called after every transaction
	commits int
}

func newSim(t testing.TB) *sim {
	s := &sim{t: t, state: cluster.NewState(), planner: New(Options{}), ids: cluster.SeededIDs(1), now: time.Unix(1_700_000_000, 0).UTC(),
		down: make(map[string]bool), hung: make(map[string]bool), crashing: make(map[string]bool), frozen: make(map[string]bool), finishing: make(map[string]bool),
		names: make(map[string]string), nth: make(map[string]int)}
	c := &cluster.Cluster{}
	c.ID, c.Spec.Name = "cluster", cluster.ClusterName
	s.commit(cluster.CreateOf(c))
	s.planner.Reset(s.state.Snapshot())
	return s
}

// commit applies changes as one transaction and lets the planner see what came of it.
func (s *sim) commit(changes ...cluster.Change) {
	s.t.Helper()
	if len(changes) == 0 {
		return
	}
	s.index++
	events, err := s.state.Apply(&cluster.Txn{Time: s.now, Changes: changes}, s.index)
	if err != nil {
		s.t.Fatalf("commit: %v", err)
	}
	for _, ev := range events {
		s.note(ev)
		s.planner.Observe(ev)
	}
	s.commits++
	if s.check != nil {
		s.check()
	}
}

// plan runs one pass and commits what it wants; it gives the plan.
func (s *sim) plan() Plan {
	s.t.Helper()
	plan := s.planner.Next(s.state.Snapshot(), s.now, s.ids)
	if n := s.planner.accounts.Booked(); n != 0 {
		s.t.Fatalf("the pass left %d bookings", n)
	}
	s.commit(plan.Changes...)
	return plan
}

// settle lets managers and agents act until nobody has anything left to do at this time.
func (s *sim) settle() (wake time.Time) {
	s.t.Helper()
	for range 1000 {
		plan := s.plan()
		reports := s.agents()
		s.commit(reports...)
		if len(plan.Changes) == 0 && len(reports) == 0 {
			return plan.Wake
		}
	}
	text := s.log.String()
	s.t.Fatalf("at %s the cluster does not come to rest; the latest: ...%s\n%+v", s.now.Format("15:04:05.000"), text[max(0, len(text)-1500):], s.planner.Next(s.state.Snapshot(), s.now, s.ids))
	return time.Time{}
}

// run lets time pass.
func (s *sim) run(d time.Duration) {
	s.t.Helper()
	end := s.now.Add(d)
	for {
		wake := s.settle()
		if wake.IsZero() || wake.After(end) {
			break
		}
		if !wake.After(s.now) {
			s.t.Fatalf("the planner wants to be woken at %s, which is over", wake)
		}
		s.now = wake
		if wake.Equal(end) {
			s.settle()
			break
		}
	}
	s.now = end
}

// agents gives the reports of all agents: each of their tasks goes one step.
func (s *sim) agents() []cluster.Change {
	if s.idle {
		return nil
	}
	var reports []cluster.Change
	for n := range s.state.Snapshot().Nodes() {
		if s.down[n.ID] {
			continue
		}
		for t := range s.state.Snapshot().TasksOfNode(n.ID) {
			if status, ok := s.step(t); ok {
				status.Timestamp = s.now
				reports = append(reports, cluster.PatchTask(t.ID, cluster.TaskPatch{Status: &status, AppliedAt: s.now}))
			}
		}
	}
	return reports
}

// step is what an agent does with a task (swarm-semantics.md, 2.3).
func (s *sim) step(t *cluster.Task) (swarm.TaskStatus, bool) {
	st := t.Status
	to := func(state swarm.TaskState, message, err string) (swarm.TaskStatus, bool) {
		st.State, st.Message, st.Err = state, message, err
		return st, true
	}
	if cluster.Before(st.State, swarm.TaskStateAssigned) || cluster.Terminal(st.State) {
		return st, false
	}
	if !t.Wanted() {
		if s.hung[t.ServiceAnnotations.Name] && st.State == swarm.TaskStateRunning {
			return st, false
		}
		return to(swarm.TaskStateShutdown, "shutdown", "")
	}
	image := ""
	if c := t.Spec.ContainerSpec; c != nil {
		image = c.Image
	}
	switch st.State {
	case swarm.TaskStateAssigned:
		return to(swarm.TaskStatePreparing, "preparing", "")
	case swarm.TaskStatePreparing:
		return to(swarm.TaskStateReady, "prepared", "")
	case swarm.TaskStateReady:
		if t.DesiredState == swarm.TaskStateReady {
			return st, false
		}
		return to(swarm.TaskStateStarting, "starting", "")
	case swarm.TaskStateStarting:
		if s.frozen[image] {
			return st, false
		}
		if s.crashing[image] {
			return to(swarm.TaskStateFailed, "starting", "task: non-zero exit (1)")
		}
		return to(swarm.TaskStateRunning, "started", "")
	case swarm.TaskStateRunning:
		if s.finishing[image] {
			return to(swarm.TaskStateComplete, "finished", "")
		}
	}
	return st, false
}

func (s *sim) name(t *cluster.Task) string {
	if n := s.names[t.ID]; n != "" {
		return n
	}
	slot := t.ServiceAnnotations.Name + "." + t.SlotName()
	s.nth[slot]++
	name := slot
	if n := s.nth[slot]; n > 1 {
		name = fmt.Sprintf("%s#%d", slot, n)
	}
	s.names[t.ID] = name
	return name
}

// note writes a change as a line of the log, without what agents report on the way to RUNNING.
func (s *sim) note(ev cluster.Event) {
	line := func(format string, args ...any) {
		fmt.Fprintf(&s.log, "%6.1fs %s\n", s.now.Sub(time.Unix(1_700_000_000, 0)).Seconds(), fmt.Sprintf(format, args...))
	}
	switch ev.Kind {
	case cluster.KindTask:
		was, is := cast[*cluster.Task](ev.Old), cast[*cluster.Task](ev.New)
		switch {
		case was == nil:
			line("+ %s", s.describe(is))
		case is == nil:
			line("- %s", s.name(was))
		default:
			var parts []string
			if was.DesiredState != is.DesiredState {
				parts = append(parts, "desired "+string(is.DesiredState))
			}
			if was.NodeID != is.NodeID {
				parts = append(parts, "on "+is.NodeID+addresses(is))
			}
			quiet := cluster.Rank(is.Status.State) > cluster.Rank(swarm.TaskStateAssigned) && cluster.Before(is.Status.State, swarm.TaskStateRunning)
			if was.Status.State != is.Status.State && !quiet {
				parts = append(parts, string(is.Status.State))
			}
			if was.Status.Err != is.Status.Err {
				parts = append(parts, fmt.Sprintf("err=%q", is.Status.Err))
			}
			if len(parts) > 0 {
				line("~ %s: %s", s.name(is), strings.Join(parts, ", "))
			}
		}
	case cluster.KindService:
		was, is := cast[*cluster.Service](ev.Old), cast[*cluster.Service](ev.New)
		if was == nil || is == nil {
			return
		}
		if u := is.UpdateStatus; u != nil && (was.UpdateStatus == nil || was.UpdateStatus.State != u.State) {
			line("~ service %s: %s (%s)", is.Spec.Name, u.State, u.Message)
		}
		if ports, vips := fmt.Sprint(is.Endpoint.Ports), fmt.Sprint(is.Endpoint.VirtualIPs); ports != fmt.Sprint(was.Endpoint.Ports) || vips != fmt.Sprint(was.Endpoint.VirtualIPs) {
			line("~ service %s:%s", is.Spec.Name, endpointText(is))
		}
	case cluster.KindNetwork:
		is := cast[*cluster.Network](ev.New)
		if was := cast[*cluster.Network](ev.Old); was != nil && is != nil && was.VNI != is.VNI {
			line("~ network %s: %s gateway %s vni %d", is.Spec.Name, subnetsOf(is), is.IPAMOptions.Configs[0].Gateway, is.VNI)
		}
	case cluster.KindNode:
		was, is := cast[*cluster.Node](ev.Old), cast[*cluster.Node](ev.New)
		if was != nil && is != nil && !maps.Equal(was.Attachments, is.Attachments) {
			line("~ node %s:%s", is.ID, attachmentText(is))
		}
	}
}

func attachmentText(n *cluster.Node) string {
	text := ""
	for _, id := range slices.Sorted(maps.Keys(n.Attachments)) {
		text += " " + id + "=" + n.Attachments[id]
	}
	if text == "" {
		return " no networks"
	}
	return text
}

func endpointText(s *cluster.Service) string {
	text := ""
	for _, p := range s.Endpoint.Ports {
		text += fmt.Sprintf(" %d->%d/%s", p.PublishedPort, p.TargetPort, p.Protocol)
	}
	for _, v := range s.Endpoint.VirtualIPs {
		text += " vip " + v.Addr
	}
	if text == "" {
		return " nothing allocated"
	}
	return text
}

func addresses(t *cluster.Task) string {
	text := ""
	for _, a := range t.NetworksAttachments {
		if len(a.Addresses) == 0 {
			text += " (" + a.Network.Spec.Name + ")"
		}
		for _, addr := range a.Addresses {
			text += " " + addr
		}
	}
	return text
}

func (s *sim) describe(t *cluster.Task) string {
	text := fmt.Sprintf("%s %s/%s", s.name(t), t.Status.State, t.DesiredState)
	if t.NodeID != "" {
		text += " on " + t.NodeID + addresses(t)
	}
	if t.Spec.ContainerSpec != nil {
		text += " image=" + t.Spec.ContainerSpec.Image
	}
	if t.Replaces != "" {
		text += " replaces=" + cmp.Or(s.names[t.Replaces], "gone")
	}
	if !t.StartAfter.IsZero() && t.StartAfter.After(s.now) {
		text += " in " + t.StartAfter.Sub(s.now).String()
	}
	if t.Status.Err != "" {
		text += fmt.Sprintf(" err=%q", t.Status.Err)
	}
	return text
}

// take gives what was logged since the last call.
func (s *sim) take() string {
	text := s.log.String()
	s.log.Reset()
	return text
}

// node adds a node.
func (s *sim) addNode(id string, edit ...func(*cluster.Node)) {
	n := &cluster.Node{}
	n.ID = id
	n.Spec.Availability, n.Spec.Role, n.Role = swarm.NodeAvailabilityActive, swarm.NodeRoleWorker, swarm.NodeRoleWorker
	n.Spec.Labels = map[string]string{}
	n.Status.State = swarm.NodeStateReady
	n.Description.Hostname = id
	n.Description.Resources = swarm.Resources{NanoCPUs: 64e9, MemoryBytes: 64 << 30}
	for _, f := range edit {
		f(n)
	}
	s.commit(cluster.CreateOf(n))
}

// editNode changes a node as the API or the dispatcher would.
func (s *sim) editNode(id string, edit func(*cluster.Node)) {
	n := *s.state.Snapshot().Node(id)
	edit(&n)
	s.commit(cluster.UpdateOf(&n))
}

// removeNode does what the API does when a node is removed.
func (s *sim) removeNode(id string) {
	snap := s.state.Snapshot()
	var changes []cluster.Change
	for t := range snap.TasksOfNode(id) {
		if !cluster.Terminal(t.Status.State) {
			st := t.Status
			st.State, st.Message = swarm.TaskStateOrphaned, "Task belonged to a node that has been deleted"
			changes = append(changes, cluster.PatchTask(t.ID, cluster.TaskPatch{Status: &st}))
		}
	}
	s.commit(append(changes, cluster.RemoveOf(snap.Node(id)))...)
}

// addService creates or updates a service as the API would.
func (s *sim) setService(name string, edit func(*cluster.Service)) {
	snap := s.state.Snapshot()
	if old := snap.ServiceNamed(name); old != nil {
		c := *old
		c.Spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: old.Spec.TaskTemplate.ContainerSpec.Image}
		edit(&c)
		previous := old.Spec
		c.PreviousSpec, c.PreviousSpecVersion, c.SpecVersion = &previous, old.SpecVersion, swarm.Version{Index: old.Version.Index}
		c.PreviousRegistryAuth = old.RegistryAuth
		c.UpdateStatus = nil
		s.runJob(&c)
		s.commit(cluster.UpdateOf(&c))
		return
	}
	c := &cluster.Service{}
	c.ID, c.Spec.Name = name, name
	c.Spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "app:1"}
	c.Spec.Mode.Replicated = &swarm.ReplicatedService{}
	edit(c)
	s.runJob(c)
	s.commit(cluster.CreateOf(c))
}

// runJob begins another run of a job, as the API does with every change.
func (s *sim) runJob(c *cluster.Service) {
	if !modeOf(c).job() {
		return
	}
	// Names are ids here: a job that has the name of one that was removed must not take its tasks for its own.
	c.JobStatus = &swarm.JobStatus{JobIteration: swarm.Version{Index: s.index + 1}, LastExecution: s.now}
}

// rollBack does what the API does for a manual rollback.
func (s *sim) rollBack(name string) {
	c := *s.state.Snapshot().ServiceNamed(name)
	spec := c.Spec
	c.Spec, c.PreviousSpec = *c.PreviousSpec, &spec
	c.SpecVersion, c.PreviousSpecVersion = c.PreviousSpecVersion, c.SpecVersion
	c.RegistryAuth, c.PreviousRegistryAuth = c.PreviousRegistryAuth, c.RegistryAuth
	at := s.now
	c.UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateStateRollbackStarted, StartedAt: &at, Message: "manually requested rollback"}
	if s.runJob(&c); c.JobStatus != nil {
		c.UpdateStatus = nil
	}
	s.commit(cluster.UpdateOf(&c))
}

func (s *sim) addNetwork(name string, edit ...func(*cluster.Network)) {
	n := &cluster.Network{}
	n.ID, n.Spec.Name, n.Spec.Scope = name, name, "swarm"
	for _, f := range edit {
		f(n)
	}
	s.commit(cluster.CreateOf(n))
}

// end makes the running task of a slot end.
func (s *sim) end(name, slot string, state swarm.TaskState, err string) bool {
	snap := s.state.Snapshot()
	for t := range snap.TasksOfService(name) {
		if t.SlotName() == slot && t.Running() {
			st := t.Status
			st.State, st.Err, st.Timestamp = state, err, s.now
			s.commit(cluster.PatchTask(t.ID, cluster.TaskPatch{Status: &st, AppliedAt: s.now}))
			return true
		}
	}
	return false
}
