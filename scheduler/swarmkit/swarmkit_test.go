package swarmkit

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/docker/docker/api/types/swarm"
	"github.com/moby/swarmkit/v2/api"
	skscheduler "github.com/moby/swarmkit/v2/manager/scheduler"
	"github.com/moby/swarmkit/v2/manager/state/store"
	"github.com/sirupsen/logrus"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/scheduler"
)

var (
	seeds    = flag.Int("seeds", 3000, "number of random scenarios")
	fromSeed = flag.Uint64("seed", 1, "first seed of the random scenarios")
)

// chances is how often swarmkit is asked for the answer of miniswarm where it leaves the choice to chance; patience, after
// how many times the rules are asked which answers ties allow.
const (
	chances  = 300
	patience = 30
)

// answer is what became of a group of tasks.
type answer struct {
	perNode map[string]int
	why     string // for the tasks that fit nowhere
}

// TestPlacesAsSwarmkit holds the number of tasks that every node gets, and the words for those that fit nowhere, to
// swarmkit's, over every filter, preference and history of failures.
func TestPlacesAsSwarmkit(t *testing.T) {
	var tied atomic.Int64
	logrus.SetLevel(logrus.ErrorLevel) // it warns of each node that it puts last
	for i := range uint64(*seeds) {
		seed := *fromSeed + i
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			t.Parallel()
			s := newScenario(seed)
			ours := s.miniswarm()
			var theirs answer
			var allowed map[string]bool
			for i := range chances {
				theirs = s.swarmkit(t)
				if s.canonical(theirs) == s.canonical(ours) {
					return
				}
				if i < patience {
					continue
				}
				if allowed == nil {
					allowed = s.allowed(t)
				}
				if allowed[s.canonical(ours)] && allowed[s.canonical(theirs)] {
					tied.Add(1)
					return
				}
			}
			t.Errorf("%d tasks of %+v\nminiswarm %v %q\nswarmkit  %v %q, and in %d attempts never as miniswarm\n%s", s.n, s.group.Spec, ours.perNode, ours.why, theirs.perNode, theirs.why, chances, s)
		})
	}
	t.Cleanup(func() {
		if n := tied.Load(); n > int64(1+*seeds/500) {
			t.Errorf("in %d of %d scenarios nodes that tie were chosen otherwise; that is no chance", n, *seeds)
		}
	})
}

// miniswarm places the group with the scheduler under test.
func (s *scenario) miniswarm() answer {
	a, now := scheduler.New(), time.Now()
	for _, n := range s.nodes {
		a.SetNode(n)
	}
	for _, t := range append(slices.Clone(s.running), s.failing...) {
		a.SetTask(nil, t)
	}
	for _, t := range s.failing {
		failed := *t
		failed.Status.State, failed.Status.Timestamp = swarm.TaskStateFailed, now
		a.SetTask(t, &failed)
	}
	res := a.Place(scheduler.Group{Task: s.group, N: s.n}, now)
	out := answer{perNode: map[string]int{}, why: res.Explanation}
	for _, p := range res.Placements {
		out.perNode[p.NodeID]++
	}
	return out
}

// swarmkit places the group with swarmkit's scheduler, which learns of everything through its store.
func (s *scenario) swarmkit(t *testing.T) answer {
	t.Helper()
	st := store.NewMemoryStore(nil)
	defer st.Close()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// A task that nobody may run tells, by its being refused, that the scheduler listens.
	const probe = "probe"
	must(st.Update(func(tx store.Tx) error {
		for _, id := range []string{s.group.ServiceID, probe} {
			must(store.CreateService(tx, &api.Service{ID: id, Spec: api.ServiceSpec{Annotations: api.Annotations{Name: id}}, SpecVersion: &api.Version{Index: s.group.SpecVersion.Index}}))
		}
		for _, n := range s.nodes {
			must(store.CreateNode(tx, nodeOf(n)))
		}
		for _, o := range append(slices.Clone(s.running), s.failing...) {
			must(store.CreateTask(tx, taskOf(o)))
		}
		nobody := *s.group
		nobody.ID, nobody.ServiceID, nobody.Spec.Placement = probe, probe, &swarm.Placement{Constraints: []string{"node.id==nobody"}}
		return store.CreateTask(tx, taskOf(&nobody))
	}))
	sched := newScheduler(st)
	go func() { _ = sched.Run(context.Background()) }()
	defer sched.Stop() // which waits for its end
	await(t, st, probe)

	ids := make([]string, s.n)
	must(st.Update(func(tx store.Tx) error {
		for _, o := range s.failing {
			failed := store.GetTask(tx, o.ID)
			failed.Status.State = api.TaskStateFailed
			must(store.UpdateTask(tx, failed))
		}
		for i := range ids {
			one := *s.group
			one.ID, one.Slot = fmt.Sprintf("new%03d", i), 1000+i
			ids[i] = one.ID
			must(store.CreateTask(tx, taskOf(&one)))
		}
		return nil
	}))
	out := answer{perNode: map[string]int{}}
	for _, o := range await(t, st, ids...) {
		if o.NodeID != "" {
			out.perNode[o.NodeID]++
		} else {
			out.why = o.Status.Err
		}
	}
	return out
}

// newScheduler is one of swarmkit's schedulers, with filters of its own. Those that it comes with are variables of the package
// and remember the task that they are to look at: schedulers side by side would see each other's.
func newScheduler(st *store.MemoryStore) *skscheduler.Scheduler {
	sched := skscheduler.New(st)
	filters := reflect.ValueOf(sched).Elem().FieldByName("pipeline").Elem().FieldByName("checklist")
	for i := range filters.Len() {
		f := filters.Index(i).FieldByName("f")
		own := reflect.New(f.Elem().Type().Elem())
		reflect.NewAt(f.Type(), unsafe.Pointer(f.UnsafeAddr())).Elem().Set(own)
	}
	return sched
}

// await gives the tasks when the scheduler has decided about each of them.
func await(t *testing.T, st *store.MemoryStore, ids ...string) []*api.Task {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		var tasks []*api.Task
		st.View(func(tx store.ReadTx) {
			for _, id := range ids {
				if o := store.GetTask(tx, id); o.NodeID != "" || o.Status.Err != "" {
					tasks = append(tasks, o)
				}
			}
		})
		if len(tasks) == len(ids) {
			return tasks
		}
		if time.Now().After(deadline) {
			t.Fatalf("swarmkit has decided about %d of %d tasks", len(tasks), len(ids))
		}
		time.Sleep(2 * time.Millisecond) // between two looks at the store
	}
}

// canonical writes an answer so that nodes of one branch that had as many tasks and got as many have no names. Words for
// tasks that fit nowhere are compared when that is all of them, for otherwise they count the nodes that were looked at last.
func (s *scenario) canonical(a answer) string {
	branches := map[string][]string{}
	for _, n := range s.nodes {
		had, failed := s.had(n.ID)
		key := strings.Join(s.path(n), "/")
		branches[key] = append(branches[key], fmt.Sprintf("%d+%d after %d", had, a.perNode[n.ID], failed))
	}
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(branches)) {
		slices.Sort(branches[key])
		fmt.Fprintln(&b, key, branches[key])
	}
	if len(a.perNode) == 0 {
		b.WriteString(a.why)
	}
	return b.String()
}

// path is the branch of a node: its values of the labels to spread over.
func (s *scenario) path(n *cluster.Node) (path []string) {
	if p := s.group.Spec.Placement; p != nil {
		for _, q := range p.Preferences {
			scope, label, _ := strings.Cut(q.Spread.SpreadDescriptor, ".labels.")
			path = append(path, map[string]map[string]string{"node": n.Spec.Labels, "engine": n.Description.Engine.Labels}[scope][label])
		}
	}
	return path
}

// had counts what a node runs and what has failed on it, of the group's service.
func (s *scenario) had(node string) (running, failed int) {
	count := func(tasks []*cluster.Task) (n int) {
		for _, t := range tasks {
			if t.NodeID == node && t.ServiceID == s.group.ServiceID && t.DesiredState == swarm.TaskStateRunning {
				n++
			}
		}
		return n
	}
	return count(s.running), count(s.failing)
}

// String describes the nodes of a scenario for whoever has to find out why it failed.
func (s *scenario) String() string {
	var b strings.Builder
	for _, n := range slices.SortedFunc(slices.Values(s.nodes), func(x, y *cluster.Node) int { return cmp.Compare(x.ID, y.ID) }) {
		running, failed := s.had(n.ID)
		fmt.Fprintf(&b, "%s %s %s %s labels %v %v runs %d, failed %d, %+v %+v\n", n.ID, n.Role, n.Spec.Availability, n.Status.State, n.Spec.Labels, n.Description.Engine.Labels, running, failed, n.Description.Resources, n.Description.Platform)
	}
	return b.String()
}
