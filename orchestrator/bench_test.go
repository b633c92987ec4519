package orchestrator

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// stage is a cluster of a size for benchmarks: nodes, and services of so many replicas each, all running.
type stage struct {
	tb      testing.TB
	state   *cluster.State
	planner *Planner
	ids     cluster.IDs
	now     time.Time
	index   uint64
}

func newStage(tb testing.TB, nodes int) *stage {
	s := &stage{tb: tb, state: cluster.NewState(), planner: New(Options{}), ids: cluster.SeededIDs(1), now: time.Unix(1_700_000_000, 0)}
	var changes []cluster.Change
	for i := range nodes {
		n := &cluster.Node{}
		n.ID = fmt.Sprintf("node%05d", i)
		n.Spec.Availability, n.Status.State = swarm.NodeAvailabilityActive, swarm.NodeStateReady
		n.Description.Hostname = n.ID
		n.Description.Resources = swarm.Resources{NanoCPUs: 64e9, MemoryBytes: 64 << 30}
		changes = append(changes, cluster.CreateOf(n))
	}
	s.planner.Reset(s.state.Snapshot())
	s.commit(changes)
	s.commit(s.next().Changes)
	return s
}

func (s *stage) next() Plan { return s.planner.Next(s.state.Snapshot(), s.now, s.ids) }

func (s *stage) commit(changes []cluster.Change) {
	s.index++
	events, err := s.state.Apply(&cluster.Txn{Time: s.now, Changes: changes}, s.index)
	if err != nil {
		s.tb.Fatal(err)
	}
	for _, ev := range events {
		s.planner.Observe(ev)
	}
}

func (s *stage) service(name string, replicas uint64) cluster.Change {
	c := &cluster.Service{}
	c.ID, c.Spec.Name = name, name
	c.Spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "app:1"}
	c.Spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: &replicas}
	return cluster.CreateOf(c)
}

func (s *stage) scale(name string, replicas uint64) {
	c := *s.state.Snapshot().ServiceNamed(name)
	c.Spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: &replicas}
	c.SpecVersion = c.Version
	s.commit([]cluster.Change{cluster.UpdateOf(&c)})
}

// run makes everything planned come true, without agents: tasks stay ASSIGNED.
func (s *stage) run() {
	for {
		plan := s.next()
		if len(plan.Changes) == 0 {
			return
		}
		s.commit(plan.Changes)
	}
}

// BenchmarkMillion decides 1,000,000 tasks in one pass: nodes, addresses aside, and their objects.
//
//	go test -run - -bench Million -benchtime 1x ./orchestrator
func BenchmarkMillion(b *testing.B) {
	const total = 1_000_000
	for _, size := range []struct{ nodes, services int }{{1000, 1}, {1000, 1000}, {10000, 1}} {
		b.Run(fmt.Sprintf("nodes=%d/services=%d", size.nodes, size.services), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				s := newStage(b, size.nodes)
				var changes []cluster.Change
				for i := range size.services {
					changes = append(changes, s.service(fmt.Sprintf("svc%04d", i), uint64(total/size.services)))
				}
				s.commit(changes)
				snap := s.state.Snapshot()
				runtime.GC()
				b.StartTimer()
				plan := s.planner.Next(snap, s.now, s.ids)
				b.StopTimer()
				tasks := 0
				for _, c := range plan.Changes {
					if t, ok := c.Object.(*cluster.Task); ok && t.Status.State == swarm.TaskStateAssigned {
						tasks++
					}
				}
				if tasks != total {
					b.Fatalf("%d tasks are assigned, want %d", tasks, total)
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*total), "ns/task")
		})
	}
}

// BenchmarkTakeOver is a new leader in a cluster of 1,000,000 tasks in which nothing is to be done.
func BenchmarkTakeOver(b *testing.B) {
	s := newStage(b, 1000)
	s.commit([]cluster.Change{s.service("big", 1_000_000)})
	s.run()
	snap := s.state.Snapshot()
	for _, step := range []string{"reset", "reset+next"} {
		b.Run(step, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p := New(Options{})
				p.Reset(snap)
				if step == "reset" {
					continue
				}
				if plan := p.Next(snap, s.now, s.ids); len(plan.Changes) != 0 {
					b.Fatalf("%d changes, want none", len(plan.Changes))
				}
			}
		})
	}
}

// BenchmarkScale is 4 -> 12 in a cluster of 10,000 nodes and 100,000 tasks, in the passes of the leader: the plan, its
// events, and the pass that finds nothing more to do. extra says where the other tasks are.
func BenchmarkScale(b *testing.B) {
	for _, base := range []uint64{4, 90_000} {
		b.Run(fmt.Sprintf("service=%d/to=+8", base), func(b *testing.B) {
			s := newStage(b, 10_000)
			s.commit([]cluster.Change{s.service("web", base)})
			var changes []cluster.Change
			for i := range 100 {
				changes = append(changes, s.service(fmt.Sprintf("other%03d", i), (100_000-base)/100))
			}
			s.commit(changes)
			s.run()
			if n := s.state.Snapshot().Len(cluster.KindTask); n < 99_000 {
				b.Fatalf("%d tasks", n)
			}
			var plan, observe time.Duration
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				s.scale("web", base+8)
				snap := s.state.Snapshot()
				b.StartTimer()
				t0 := time.Now()
				p := s.planner.Next(snap, s.now, s.ids)
				plan += time.Since(t0)
				b.StopTimer()
				if len(p.Changes) != 8 {
					b.Fatalf("%d changes, want 8", len(p.Changes))
				}
				s.index++
				events, err := s.state.Apply(&cluster.Txn{Time: s.now, Changes: p.Changes}, s.index)
				if err != nil {
					b.Fatal(err)
				}
				snap = s.state.Snapshot()
				b.StartTimer()
				t0 = time.Now()
				for _, ev := range events {
					s.planner.Observe(ev)
				}
				if p := s.planner.Next(snap, s.now, s.ids); len(p.Changes) != 0 {
					b.Fatal("the cluster does not come to rest")
				}
				observe += time.Since(t0)
				b.StopTimer()
				s.scale("web", base)
				s.run()
				b.StartTimer()
			}
			b.ReportMetric(float64(plan.Microseconds())/float64(b.N), "us/plan")
			b.ReportMetric(float64(observe.Microseconds())/float64(b.N), "us/follow-up")
		})
	}
}

// BenchmarkNodeDown moves the 100 tasks of one of 1,000 nodes.
func BenchmarkNodeDown(b *testing.B) {
	s := newStage(b, 1000)
	s.commit([]cluster.Change{s.service("web", 100_000)})
	s.run()
	set := func(state swarm.NodeState) {
		n := *s.state.Snapshot().Node("node00007")
		n.Status.State = state
		s.commit([]cluster.Change{cluster.UpdateOf(&n)})
	}
	for b.Loop() {
		b.StopTimer()
		set(swarm.NodeStateDown)
		snap := s.state.Snapshot()
		b.StartTimer()
		plan := s.planner.Next(snap, s.now, s.ids)
		b.StopTimer()
		if len(plan.Changes) != 200 {
			b.Fatalf("%d changes, want 100 tasks ended and 100 made", len(plan.Changes))
		}
		set(swarm.NodeStateReady)
		if plan := s.next(); len(plan.Changes) != 0 {
			b.Fatalf("%d changes", len(plan.Changes))
		}
		b.StartTimer()
	}
}
