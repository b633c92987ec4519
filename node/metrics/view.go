package metrics

import (
	"runtime"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/miniswarm/miniswarm/agent"
	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/ingress"
	"github.com/miniswarm/miniswarm/manager/dispatcher"
	"github.com/miniswarm/miniswarm/raftstore"
)

// View is how a node is at a moment. The parts that it does not have are nil.
type View struct {
	Version string
	State   swarm.LocalNodeState
	// Certificate and Root are when the node's certificate and the root it trusts expire; zero on a node of no swarm.
	Certificate, Root time.Time
	Agent             *agent.Status
	DataPlane         *ingress.Stats
	// Raft and Counters are a manager's.
	Raft     *raftstore.Status
	Counters *dispatcher.Counters
	// Leader is what only the leader knows.
	Leader *Leader
}

// Leader is what only the leader knows.
type Leader struct {
	Snapshot *cluster.Snapshot
	// Sessions are open, Holds the tasks that wait for all nodes to route around them before they stop.
	Sessions, Holds int
	// Passing is for how long the loop has been at its present pass.
	Passing time.Duration
	// Clocks are the differences between the nodes' clocks and this one, by node id; nil where nobody measures them.
	Clocks map[string]time.Duration
}

// emit gives a value, with the values of the series' labels.
type emit func(value float64, labels ...string)

// series is one name, whose values are read when somebody asks.
type series struct {
	group, name, help string
	counter           bool
	labels            []string
	read              func(v *View, emit emit)
}

func (s *series) kind() string {
	if s.counter {
		return "counter"
	}
	return "gauge"
}

// collector reads the table of series.
type collector struct{ view func() *View }

// Describe implements prometheus.Collector. Saying nothing makes it unchecked: which series there are depends on the view.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	v := c.view()
	for i := range table {
		s := &table[i]
		desc := prometheus.NewDesc(s.name, s.help, s.labels, nil)
		kind := prometheus.GaugeValue
		if s.counter {
			kind = prometheus.CounterValue
		}
		s.read(v, func(value float64, labels ...string) {
			out <- prometheus.MustNewConstMetric(desc, kind, value, labels...)
		})
	}
}

func indicator(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// seconds gives a moment in Prometheus' words.
func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

var goVersion = runtime.Version()
