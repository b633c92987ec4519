package engineapi

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/orchestrator"
	"github.com/miniswarm/miniswarm/scheduler"
)

// TaskExplanation is the answer of GET /miniswarm/tasks/{id}/explain: why the task is where it is.
type TaskExplanation struct {
	Task swarm.Task
	// Service is the name of the task's service.
	Service string
	// Recorded are the decisions that made and placed the task, oldest first, as far as the leader remembers them: its
	// memory is bounded and ends with its term.
	Recorded []orchestrator.Decision
	// Now is what the scheduler would decide at present, with what every filter says of every node. The task itself is
	// taken out of the accounts.
	Now scheduler.Decision
	// Text is all of it for people.
	Text string
}

// ServiceExplanation is the answer of GET /miniswarm/services/{id}/explain.
type ServiceExplanation struct {
	Service swarm.Service
	// Tasks are the service's tasks that are wanted, by slot.
	Tasks []TaskExplanation
	// Omitted counts the wanted tasks beyond the limit (?limit=, 20 unless told).
	Omitted int
	// Next is where one replica more would go; nil for a global service, whose tasks follow the nodes, and for a job.
	Next *scheduler.Decision `json:",omitempty"`
	// Without are the nodes that a global service, or a global job, has no task on because they do not take any.
	Without []NodeLack `json:",omitempty"`
	// Text is all of it for people, or, with ?compact=1, a line for each task.
	Text string
}

// NodeLack is a node with what it lacks for a task.
type NodeLack struct{ ID, Hostname, Lacks string }

const explainLimit = 20

func (s *Server) explainTask(c Control, w http.ResponseWriter, r *http.Request) error {
	snap, err := c.Read(r.Context())
	if err != nil {
		return err
	}
	t, err := findTask(snap, r.PathValue("id"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, explain(c, snap, t))
	return nil
}

func explain(c Control, snap *cluster.Snapshot, t *cluster.Task) TaskExplanation {
	e := TaskExplanation{Task: presentTask(t), Service: t.ServiceAnnotations.Name, Recorded: c.Decisions(t.ID), Now: c.Explain(snap, t)}
	if e.Recorded == nil {
		e.Recorded = []orchestrator.Decision{}
	}
	var b strings.Builder
	writeState(&b, snap, t)
	if len(e.Recorded) == 0 {
		b.WriteString("nothing is remembered of how it came about: the leader's memory is bounded and ends with its term\n")
	}
	writeRecorded(&b, e.Recorded)
	b.WriteString("\nas of now:\n")
	b.WriteString(indent(e.Now.Text()))
	e.Text = b.String()
	return e
}

// writeRecorded writes decisions, the latest once of those that follow each other and differ in when they were made alone: a task
// that waits is decided on again with every change of the cluster.
func writeRecorded(b *strings.Builder, ds []orchestrator.Decision) {
	first := 0 // of those that are like the present one
	for i := range ds {
		if said := recordedText(&ds[i]); i+1 < len(ds) && recordedText(&ds[i+1]) == said {
			continue
		}
		d := &ds[i]
		fmt.Fprintf(b, "%s: %s\n", d.Kind, d.Reason)
		if d.Placement != nil {
			b.WriteString(indent(d.Placement.Text()))
		}
		if n := i + 1 - first; n > 1 {
			fmt.Fprintf(b, "  decided alike %d times", n)
			if p := ds[first].Placement; p != nil {
				fmt.Fprintf(b, ", since the state at index %d, %s", p.Index, p.Time.UTC().Format(time.RFC3339))
			}
			b.WriteByte('\n')
		}
		first = i + 1
	}
}

// recordedText is what is to be read of a decision apart from the state of the cluster that it was made from.
func recordedText(d *orchestrator.Decision) string {
	text := string(d.Kind) + d.Reason
	if d.Placement != nil {
		p := *d.Placement
		p.Index = 0
		text += p.Text()
	}
	return text
}

// writeState says in words what the task is and does.
func writeState(b *strings.Builder, snap *cluster.Snapshot, t *cluster.Task) {
	fmt.Fprintf(b, "task %s (%s.%s): %s, wanted %s", t.ID, t.ServiceAnnotations.Name, t.SlotName(), t.Status.State, t.DesiredState)
	if t.NodeID != "" {
		fmt.Fprintf(b, ", on %s", nodeName(snap, t.NodeID))
	}
	if t.Status.Err != "" {
		fmt.Fprintf(b, ": %s", t.Status.Err)
	} else if t.NodeID == "" && t.Status.Message != "" {
		fmt.Fprintf(b, ": %s", t.Status.Message)
	}
	b.WriteByte('\n')
}

func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) != "" {
			b.WriteString("  ")
		}
		b.WriteString(line)
	}
	return b.String()
}

func (s *Server) explainService(c Control, w http.ResponseWriter, r *http.Request) error {
	limit := explainLimit
	if raw := r.URL.Query().Get("limit"); raw != "" {
		n, err := strconv.Atoi(raw)
		if err != nil || n < 0 {
			return errorf(http.StatusBadRequest, "invalid value for limit: %s: give a number of tasks", raw)
		}
		limit = n
	}
	compact, err := boolParam(r, "compact")
	if err != nil {
		return err
	}
	snap, svc, err := read[*cluster.Service](r.Context(), c, cluster.KindService, r.PathValue("id"))
	if err != nil {
		return err
	}
	e := ServiceExplanation{Service: presentService(svc), Tasks: []TaskExplanation{}}
	var b strings.Builder
	if isJob(svc.Spec.Mode) {
		writeJob(&b, snap, svc)
		b.WriteByte('\n')
	}
	for t := range snap.TasksOfService(svc.ID) {
		// What has failed is what people ask about: between two attempts there may be nothing else.
		failed := t.Status.State == swarm.TaskStateFailed || t.Status.State == swarm.TaskStateRejected
		if !t.Wanted() || cluster.Terminal(t.Status.State) && !failed {
			continue
		}
		if len(e.Tasks) == limit {
			e.Omitted++
			continue
		}
		e.Tasks = append(e.Tasks, explain(c, snap, t))
	}
	for i := range e.Tasks {
		b.WriteString(e.Tasks[i].Text)
		b.WriteByte('\n')
	}
	if e.Omitted > 0 {
		fmt.Fprintf(&b, "%d more tasks are left out; raise the limit, or ask for one task\n\n", e.Omitted)
	}
	if svc.Spec.Mode.Replicated != nil {
		next := c.Explain(snap, hypothetical(snap, svc))
		next.TaskID = ""
		e.Next = &next
		b.WriteString("one replica more:\n")
		b.WriteString(indent(next.Text()))
	}
	if m := svc.Spec.Mode; m.Global != nil || m.GlobalJob != nil {
		e.Without = without(c, snap, svc)
		writeWithout(&b, e.Without)
	}
	e.Text = b.String()
	if compact {
		e.Text = compactText(snap, svc, &e)
	}
	writeJSON(w, http.StatusOK, e)
	return nil
}

// without gives the nodes that have no task of a global service, and what they lack.
func without(c Control, snap *cluster.Snapshot, svc *cluster.Service) (out []NodeLack) {
	has := make(map[string]bool)
	for t := range snap.TasksOfService(svc.ID) {
		has[t.NodeID] = has[t.NodeID] || t.Wanted()
	}
	d := c.Explain(snap, hypothetical(snap, svc))
	for i := range d.Table {
		if row := &d.Table[i]; !row.Fits && !has[row.NodeID] {
			out = append(out, NodeLack{row.NodeID, row.Hostname, row.Lacks()})
		}
	}
	return out
}

func writeWithout(b *strings.Builder, nodes []NodeLack) {
	for _, n := range nodes {
		fmt.Fprintf(b, "  not on %s: %s\n", n.Hostname, n.Lacks)
	}
}

// hypothetical is the task that one replica more would be.
func hypothetical(snap *cluster.Snapshot, svc *cluster.Service) *cluster.Task {
	slot := 1 // the first that is free; tasks come in the order of their slots
	for t := range snap.TasksOfService(svc.ID) {
		if t.Wanted() && t.Slot == slot {
			slot++
		}
	}
	t := &cluster.Task{SpecVersion: svc.SpecVersion, ServiceAnnotations: svc.Spec.Annotations, Endpoint: &svc.Endpoint}
	t.ServiceID, t.Slot, t.Spec = svc.ID, slot, svc.Spec.TaskTemplate
	t.Status.State, t.DesiredState = swarm.TaskStatePending, swarm.TaskStateRunning
	return t
}

// compactText says in a line where each task is and why, and where one more would go.
func compactText(snap *cluster.Snapshot, svc *cluster.Service, e *ServiceExplanation) string {
	var b strings.Builder
	fmt.Fprintf(&b, "service %s: %s, %s wanted\n", svc.Spec.Name, modeName(svc.Spec.Mode), count(len(e.Tasks)+e.Omitted, "task"))
	if isJob(svc.Spec.Mode) {
		writeJob(&b, snap, svc)
	}
	width := 0
	for i := range e.Tasks {
		width = max(width, len(e.Tasks[i].slotted(snap)))
	}
	for i := range e.Tasks {
		e.Tasks[i].writeLine(&b, snap, width)
	}
	if e.Omitted > 0 {
		fmt.Fprintf(&b, "  and %d more\n", e.Omitted)
	}
	writeWithout(&b, e.Without)
	if e.Next == nil {
		return b.String()
	}
	if len(e.Next.Winners) > 0 {
		w := e.Next.Winners[0]
		fmt.Fprintf(&b, "one replica more would go to %s: %s\n", nodeName(snap, w.NodeID), e.Next.Why)
	} else {
		fmt.Fprintf(&b, "one replica more would find no place: %s\n", e.Next.Why)
	}
	writeLacks(&b, e.Next)
	return b.String()
}

// slotted is the task's name as "service ps" shows it.
func (e *TaskExplanation) slotted(snap *cluster.Snapshot) string {
	return e.Service + "." + snap.Task(e.Task.ID).SlotName()
}

func (e *TaskExplanation) writeLine(b *strings.Builder, snap *cluster.Snapshot, width int) {
	t := snap.Task(e.Task.ID)
	fmt.Fprintf(b, "  %-*s  %s", width, e.slotted(snap), t.Status.State)
	if t.NodeID == "" {
		fmt.Fprintf(b, ", without a node: %s\n", t.Status.Err)
		writeLacks(b, &e.Now)
		return
	}
	fmt.Fprintf(b, " on %s", nodeName(snap, t.NodeID))
	for i := range e.Recorded {
		if d := &e.Recorded[i]; d.Placement != nil {
			if why := placedBecause(d.Placement, t.NodeID); why != "" {
				fmt.Fprintf(b, ": %s", why)
			}
		}
	}
	if t.Status.Err != "" {
		fmt.Fprintf(b, "; %s", t.Status.Err)
	}
	b.WriteByte('\n')
}

// writeLacks says of each node that is ruled out why.
func writeLacks(b *strings.Builder, d *scheduler.Decision) {
	for i := range d.Table {
		if row := &d.Table[i]; !row.Fits {
			fmt.Fprintf(b, "    not %s: %s\n", row.Hostname, row.Lacks())
		}
	}
}
