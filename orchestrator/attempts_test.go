package orchestrator

import (
	"strings"
	"testing"
	"time"

	"github.com/miniswarm/miniswarm/cluster"
)

// However many restarts are allowed, a slot keeps a bounded number of tasks (I11), and the limit holds all the same. The service
// crashes once a second for ten minutes.
func TestManyAttemptsKeepFewTasks(t *testing.T) {
	const all = 600
	for _, c := range []struct {
		name, service string
		// started is how many tasks of it were started, all for one each second; kept how many may be there at a time.
		started, kept int
	}{
		{"counted in the tasks", "replicas=1 attempts=100", 101, 101},
		{"carried on", "replicas=1 attempts=101", 102, 7},
		{"more than anybody lives for", "replicas=1 attempts=9000000000000000000", all, 7},
		{"a window that is never full", "replicas=1 attempts=150 window=1m", all, 7},
		{"a window that is", "replicas=1 attempts=150 window=9m", 151, 7},
		{"a job", "job=1/1 attempts=101", 102, 7},
		{"a job without an end", "job=1/1 attempts=5000", all, 7},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSim(t)
			most := 0
			s.check = func() { most = max(most, s.state.Snapshot().Len(cluster.KindTask)) }
			for _, line := range []string{"node add n1", "crash app:1", "service w restart-delay=1s " + c.service} {
				if _, err := s.command(strings.Fields(line)); err != nil {
					t.Fatalf("%s: %v", line, err)
				}
			}
			s.run(10 * time.Minute)
			if started := strings.Count(s.take(), " + w."); started != c.started && !(c.started == all && started > all-10) {
				t.Errorf("%d tasks were started, want %d", started, c.started)
			}
			if most > c.kept {
				t.Errorf("%d tasks were there at a time, want %d at most", most, c.kept)
			}
		})
	}
}
