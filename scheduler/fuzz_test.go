package scheduler

import (
	"testing"

	"github.com/miniswarm/miniswarm/cluster"
)

// FuzzConstraints reads placement constraints as users write them, and asks a node whether it meets them.
func FuzzConstraints(f *testing.F) {
	for _, s := range []string{"node.id==x", "node.hostname != vm*", "node.role==manager", "node.labels.a.b==c", "engine.labels.os==linux", "node.platform.os==linux", "node.ip==10.0.0.0/8", "node.ip!=::1", "==", "a==b==c", "node.labels.==", "!=!="} {
		f.Add(s)
	}
	n := &cluster.Node{}
	n.ID, n.Spec.Labels, n.Status.Addr = "x", map[string]string{"a.b": "c"}, "10.1.2.3"
	f.Fuzz(func(_ *testing.T, s string) {
		all, err := ParseConstraints([]string{s})
		if err != nil {
			return
		}
		for _, c := range all {
			_ = c.Matches(n)
		}
	})
}
