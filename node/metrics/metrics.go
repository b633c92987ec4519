// Package metrics shows how a node is in the words of Prometheus.
//
// Two kinds of things are shown. What has a value at any time (raft's term, tasks by state) is read when somebody asks, so
// that nobody pays for it while nobody looks: see [View] and the table in series.go. How long things took is noted as they
// happen, in histograms: see [Metrics].
//
// Labels have few values, whatever the cluster runs: states, roles, operations, classes of reasons; never the names or ids of
// services, tasks or nodes, and never anything secret. What concerns the whole cluster is shown by the leader alone, so that
// sums over managers are true. docs/metrics.md is made from the tables here by the test of this package.
package metrics

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/miniswarm/miniswarm/agent"
	"github.com/miniswarm/miniswarm/ingress/plan"
)

// maxScrapes is how many may look at once; more are told to come later.
const maxScrapes = 4

// Metrics are one node's. All methods may be called concurrently.
type Metrics struct {
	registry *prometheus.Registry
	timings  []timing

	commit, sync, pass, changes, apply, verify prometheus.Histogram
	engine                                     *prometheus.HistogramVec
	engineErrors                               *prometheus.CounterVec
	meshErrors                                 prometheus.Counter
}

// timing describes what is noted as it happens, for the documentation.
type timing struct {
	group, name, kind, help string
	labels                  []string
}

// short are seconds from 0.1 ms to 6.5 s, for what happens in memory and on disks; long from 1 ms to 65 s for what asks
// others.
var (
	short = prometheus.ExponentialBuckets(0.0001, 2, 17)
	long  = prometheus.ExponentialBuckets(0.001, 2, 17)
)

// New gives the metrics of a node; view tells how it is.
func New(view func() *View) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	m.commit = m.histogram("Raft", "miniswarm_raft_commit_duration_seconds", "From the proposal of a transaction on this manager until it was applied here, refused ones too.", short)
	m.sync = m.histogram("Raft", "miniswarm_raft_fsync_duration_seconds", "Writing entries of the log until the disk has them.", short)
	m.pass = m.histogram("Leader", "miniswarm_leader_pass_duration_seconds", "One pass of the leader's loop: deciding and storing. Its count is the number of passes.", short)
	m.changes = m.histogram("Leader", "miniswarm_leader_pass_changes", "Changes that a pass decided on.", prometheus.ExponentialBuckets(1, 4, 10))
	m.apply = m.histogram("Data plane", "miniswarm_mesh_apply_duration_seconds", "Bringing a change of routes into the kernel.", short)
	m.verify = m.histogram("Data plane", "miniswarm_mesh_verify_duration_seconds", "Reading the data plane back on demand.", short)
	m.meshErrors = prometheus.NewCounter(prometheus.CounterOpts{Name: "miniswarm_mesh_apply_errors_total", Help: "Changes of routes that could not be applied completely, and were tried again."})
	m.note("Data plane", "miniswarm_mesh_apply_errors_total", "counter", "Changes of routes that could not be applied completely, and were tried again.")
	engine := prometheus.HistogramOpts{Name: "miniswarm_engine_request_duration_seconds", Help: "Requests of the agent to the Docker Engine, without pulls and streams.", Buckets: long}
	m.engine = prometheus.NewHistogramVec(engine, []string{"operation"})
	m.note("Engine", engine.Name, "histogram", engine.Help, "operation")
	failed := prometheus.CounterOpts{Name: "miniswarm_engine_request_errors_total", Help: "Requests to the Docker Engine that failed, by reason: unavailable (no answer), timeout, canceled, conflict, not-found, other."}
	m.engineErrors = prometheus.NewCounterVec(failed, []string{"operation", "reason"})
	m.note("Engine", failed.Name, "counter", failed.Help, "operation", "reason")
	m.registry.MustRegister(m.engine, m.engineErrors, m.meshErrors, &collector{view}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *Metrics) note(group, name, kind, help string, labels ...string) {
	m.timings = append(m.timings, timing{group, name, kind, help, labels})
}

func (m *Metrics) histogram(group, name, help string, buckets []float64) prometheus.Histogram {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
	m.registry.MustRegister(h)
	m.note(group, name, "histogram", help)
	return h
}

// Handler answers GET /metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes})
}

// Commit and Sync are raftstore's timings, Pass the manager's.
func (m *Metrics) Commit(took time.Duration) { m.commit.Observe(took.Seconds()) }

// Sync notes a write of the log.
func (m *Metrics) Sync(took time.Duration) { m.sync.Observe(took.Seconds()) }

// Pass notes a pass of the leader's loop.
func (m *Metrics) Pass(took time.Duration, changes int) {
	m.pass.Observe(took.Seconds())
	m.changes.Observe(float64(changes))
}

// Mesh gives a data plane that does what mesh does, timed.
func (m *Metrics) Mesh(mesh agent.Mesh) agent.Mesh { return timedMesh{mesh, m} }

type timedMesh struct {
	agent.Mesh
	m *Metrics
}

func (t timedMesh) Apply(ctx context.Context, in plan.Input) error {
	began := time.Now()
	err := t.Mesh.Apply(ctx, in)
	t.m.apply.Observe(time.Since(began).Seconds())
	if err != nil {
		t.m.meshErrors.Inc()
	}
	return err
}

func (t timedMesh) Verify(ctx context.Context) (bool, error) {
	began := time.Now()
	defer func() { t.m.verify.Observe(time.Since(began).Seconds()) }()
	return t.Mesh.Verify(ctx)
}
