package metrics

import (
	"flag"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/miniswarm/miniswarm/agent"
	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/ingress"
	"github.com/miniswarm/miniswarm/manager/dispatcher"
	"github.com/miniswarm/miniswarm/raftstore"
)

var update = flag.Bool("update", false, "write docs/metrics.md anew")

// described is every metric of miniswarm's, in the order of the documentation.
func described() []timing {
	m := New(func() *View { return &View{} })
	var all []timing
	for i := range table {
		s := &table[i]
		all = append(all, timing{s.group, s.name, s.kind(), s.help, s.labels})
	}
	return append(all, m.timings...)
}

// docs/metrics.md is what the tables say.
func TestDocsHaveEveryMetric(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "metrics.md")
	var b strings.Builder
	b.WriteString("# Metrics\n\nWhat `/metrics` of every node shows, in Prometheus' words. Made by `go test ./node/metrics -run TestDocs -update`.\n\n" +
		"How to scrape it: [operations](operations.md#monitoring). The metrics of Go's runtime (`go_...`) and of the process (`process_...`)\n" +
		"come with these. Those of \"Raft\" are a manager's; those of \"Leader\" and \"Cluster\" come from the leader alone, except totals, so that\n" +
		"sums are true. Labels have few values: no names or ids of services, tasks or nodes.\n")
	all := described()
	for _, group := range []string{"Node", "Agent", "Engine", "Data plane", "Raft", "Leader", "Cluster"} {
		fmt.Fprintf(&b, "\n## %s\n\n| metric | type | labels | what |\n| --- | --- | --- | --- |\n", group)
		for _, m := range all {
			if m.group == group {
				fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.name, m.kind, strings.Join(m.labels, ", "), m.help)
			}
		}
	}
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != b.String() {
		t.Errorf("%s is stale: go test ./node/metrics -run TestDocs -update", path)
	}
	for _, m := range all {
		if n := strings.Count(string(text), "`"+m.name+"`"); n != 1 {
			t.Errorf("%s is documented %d times", m.name, n)
		}
	}
}

// The example's alerts ask for metrics that there are.
func TestTheExamplesAlertsAskForWhatThereIs(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "examples", "monitoring", "alerts.yml"))
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, d := range described() {
		known[d.name] = true
	}
	names := regexp.MustCompile(`miniswarm_\w+`).FindAllString(string(text), -1)
	for _, name := range names {
		if !known[name] && !known[strings.TrimSuffix(name, "_bucket")] {
			t.Errorf("there is no %s", name)
		}
	}
	if len(names) < 10 {
		t.Errorf("only %v", names)
	}
}

const secretID = "secret0000000000000000000"

// busy is a leader with something of everything.
func busy(t *testing.T) *View {
	t.Helper()
	state := cluster.NewState()
	replicas := uint64(3)
	var changes []cluster.Change
	for i, name := range []string{"a", "b"} {
		n := &cluster.Node{Node: swarm.Node{ID: secretID + name}}
		n.Spec.Role, n.Spec.Availability, n.Status.State = swarm.NodeRoleManager, swarm.NodeAvailabilityActive, swarm.NodeStateReady
		if i > 0 {
			n.Status.State = swarm.NodeStateDown
		}
		changes = append(changes, cluster.CreateOf(n))
	}
	s := &cluster.Service{Service: swarm.Service{ID: secretID + "s", UpdateStatus: &swarm.UpdateStatus{State: swarm.UpdateStatePaused}}}
	s.Spec.Name, s.Spec.Mode.Replicated = "private-name", &swarm.ReplicatedService{Replicas: &replicas}
	changes = append(changes, cluster.CreateOf(s))
	for i, why := range []string{"no suitable node (insufficient resources on 2 nodes; scheduling constraints not satisfied on 1 node)", "no suitable node (insufficient resources on 3 nodes)", ""} {
		task := &cluster.Task{Task: swarm.Task{ID: fmt.Sprint(secretID, i), ServiceID: s.ID, Slot: i + 1, DesiredState: swarm.TaskStateRunning}}
		task.Status.State, task.Status.Err = swarm.TaskStatePending, why
		changes = append(changes, cluster.CreateOf(task))
	}
	if _, err := state.Apply(&cluster.Txn{Time: time.Unix(1_700_000_000, 0), Changes: changes}, 7); err != nil {
		t.Fatal(err)
	}
	counters := &dispatcher.Counters{}
	counters.Heartbeats.Add(42)
	return &View{Version: "1", State: swarm.LocalNodeStateActive, Certificate: time.Unix(1_800_000_000, 0), Root: time.Unix(2_000_000_000, 0),
		Agent:     &agent.Status{Leader: "10.0.0.1:2377", Heard: time.Unix(1_700_000_100, 0), Sessions: 2, Tasks: map[swarm.TaskState]int{swarm.TaskStateRunning: 3}},
		DataPlane: &ingress.Stats{Ports: 1, Backends: 2, Networks: 3, Peers: map[string]int{ingress.WayPlain: 1}, Repairs: 4},
		Raft: &raftstore.Status{RaftID: 1, Term: 5, Leader: 1, IsLeader: true, Applied: 7, Committed: 8, LogBytes: 10, SnapshotBytes: 20,
			Members: []protocol.Member{{RaftID: 1}, {RaftID: 2}, {RaftID: 3}, {RaftID: 4, Learner: true}}, Reachable: map[uint64]bool{1: true, 2: true}},
		Counters: counters, Leader: &Leader{Snapshot: state.Snapshot(), Sessions: 2, Clocks: map[string]time.Duration{"a": -3 * time.Second, "b": time.Second}}}
}

// What a busy leader shows keeps Prometheus' conventions, has all that is documented and nothing else, and names nobody.
func TestALeaderShowsEverything(t *testing.T) {
	v := busy(t)
	m := New(func() *View { return v })
	m.Commit(time.Millisecond)
	m.Sync(time.Millisecond)
	m.Pass(time.Millisecond, 3)
	m.engine.WithLabelValues("info").Observe(1)
	m.engineErrors.WithLabelValues("info", "other").Inc()
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "miniswarm_") {
			got = append(got, f.GetName())
		}
	}
	for _, d := range described() {
		want = append(want, d.name)
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("shown\n%v\ndescribed\n%v", got, want)
	}
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	for _, line := range []string{
		`miniswarm_cluster_tasks_pending{reason="resource"} 2`, `miniswarm_cluster_tasks_pending{reason="constraint"} 1`, `miniswarm_cluster_tasks_pending{reason="other"} 1`,
		`miniswarm_raft_quorum_margin 0`, `miniswarm_raft_members{kind="voter"} 3`, `miniswarm_raft_members{kind="learner"} 1`, `miniswarm_raft_role{role="leader"} 1`,
		`miniswarm_leader_clock_difference_seconds 3`, `miniswarm_dispatcher_messages_total{kind="heartbeat"} 42`, `miniswarm_cluster_oldest_pending_timestamp_seconds 1.7e+09`,
		`miniswarm_cluster_nodes{availability="active",role="manager",state="down"} 1`, `miniswarm_cluster_updates{state="paused"} 1`,
	} {
		if !strings.Contains(w.Body.String(), line+"\n") {
			t.Errorf("not shown: %s", line)
		}
	}
	for _, private := range []string{secretID, "private-name", "10.0.0.1"} {
		if strings.Contains(w.Body.String(), private) {
			t.Errorf("%q is shown", private)
		}
	}
}

// The number of series does not grow with the cluster.
func TestSeriesAreFewInALargeCluster(t *testing.T) {
	state := cluster.NewState()
	var changes []cluster.Change
	for i := range 2000 {
		task := &cluster.Task{Task: swarm.Task{ID: fmt.Sprintf("task%d", i), ServiceID: "s", Slot: i, DesiredState: swarm.TaskStateRunning}}
		task.Status.State, task.Status.Err = swarm.TaskStatePending, fmt.Sprintf("no suitable node (insufficient resources on %d nodes)", i)
		changes = append(changes, cluster.CreateOf(task))
	}
	if _, err := state.Apply(&cluster.Txn{Time: time.Unix(1_700_000_000, 0), Changes: changes}, 1); err != nil {
		t.Fatal(err)
	}
	m := New(func() *View { return &View{Leader: &Leader{Snapshot: state.Snapshot()}} })
	n, err := testutil.GatherAndCount(m.registry)
	if err != nil || n > 200 {
		t.Errorf("%d series, %v", n, err)
	}
}

// A machine of no swarm has little to show, and shows it.
func TestAnIdleMachineShowsItself(t *testing.T) {
	m := New(func() *View { return &View{Version: "1", State: swarm.LocalNodeStateInactive} })
	n, err := testutil.GatherAndCount(m.registry, "miniswarm_build_info", "miniswarm_node_state", "miniswarm_raft_term")
	if err != nil || n != 6 {
		t.Errorf("%d, %v", n, err)
	}
}
