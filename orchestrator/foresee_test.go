package orchestrator

import (
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// What is foreseen comes to rest with the replicas asked for, of the newest spec, and time goes on by itself.
func TestForesee(t *testing.T) {
	st := cluster.NewState()
	put := func(o cluster.Object) {
		t.Helper()
		if _, err := st.Apply(&cluster.Txn{Time: time.Unix(100, 0), Changes: []cluster.Change{cluster.CreateOf(o)}}, st.Index()+1); err != nil {
			t.Fatal(err)
		}
	}
	cl := &cluster.Cluster{}
	cl.ID = "cluster"
	put(cl)
	for _, id := range []string{"n1", "n2"} {
		n := &cluster.Node{}
		n.ID, n.Status.State, n.Spec.Availability = id, swarm.NodeStateReady, swarm.NodeAvailabilityActive
		put(n)
	}
	three := uint64(3)
	svc := &cluster.Service{}
	svc.ID, svc.Spec.Name = "s1", "web"
	svc.Spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: &three}
	svc.Spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "web:1"}
	svc.Spec.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, Delay: time.Hour}
	put(svc)

	first := Foresee(st, time.Unix(200, 0), cluster.SeededIDs(1), passes(100))
	if !first.Settled || running(first.Snapshot, "web:1") != 3 {
		t.Fatalf("settled %v, %d run", first.Settled, running(first.Snapshot, "web:1"))
	}
	next := *first.Snapshot.Service("s1")
	next.Spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "web:2"}
	next.SpecVersion.Index = next.Version.Index
	if _, err := st.Apply(&cluster.Txn{Time: time.Unix(300, 0), Changes: []cluster.Change{cluster.UpdateOf(&next)}}, st.Index()+1); err != nil {
		t.Fatal(err)
	}
	second := Foresee(st, time.Unix(300, 0), cluster.SeededIDs(2), passes(500))
	if !second.Settled || running(second.Snapshot, "web:2") != 3 || running(second.Snapshot, "web:1") != 0 {
		t.Errorf("settled %v, %d of the new, %d of the old run", second.Settled, running(second.Snapshot, "web:2"), running(second.Snapshot, "web:1"))
	}
	if cut := Foresee(st, time.Unix(400, 0), cluster.SeededIDs(3), passes(0)); cut.Settled {
		t.Error("settled without a pass")
	}
}

func running(snap *cluster.Snapshot, image string) int {
	n := 0
	for t := range snap.Tasks() {
		if t.Status.State == swarm.TaskStateRunning && t.Wanted() && t.Spec.ContainerSpec.Image == image {
			n++
		}
	}
	return n
}

// passes allows so many.
func passes(n int) func() bool {
	return func() bool {
		n--
		return n >= 0
	}
}
