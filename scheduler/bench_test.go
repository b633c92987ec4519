package scheduler

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"github.com/miniswarm/miniswarm/cluster"
)

// benchNodes gives accounts of n nodes with room for everything, labels of ten zones, and two of five classes.
func benchNodes(n int) *Accounts {
	a := New()
	ids := cluster.SeededIDs(1)
	for i := range n {
		nd := newNode(ids.Next())
		nd.Spec.Labels = map[string]string{"zone": fmt.Sprint("z", i%10), "class": fmt.Sprint("c", i%5)}
		nd.Description.Resources.NanoCPUs, nd.Description.Resources.MemoryBytes = 1e15, 1<<50
		a.SetNode(nd)
	}
	return a
}

// variants are the placements of the measurements of swarmkit.
var variants = []struct {
	name  string
	shape func(t *cluster.Task, perNode int)
}{
	{"plain", func(*cluster.Task, int) {}},
	{"constraints", constrain},
	{"spread", spreadZones},
	{"reserve", reserve},
	{"max", limitReplicas},
	{"all", func(t *cluster.Task, perNode int) {
		constrain(t, perNode)
		spreadZones(t, perNode)
		reserve(t, perNode)
		limitReplicas(t, perNode*4)
	}},
}

func placementOf(t *cluster.Task) *swarm.Placement {
	if t.Spec.Placement == nil {
		t.Spec.Placement = &swarm.Placement{}
	}
	return t.Spec.Placement
}

func constrain(t *cluster.Task, _ int) {
	p := placementOf(t)
	p.Constraints = []string{"node.labels.class!=c0", "node.labels.class!=c1", "node.labels.class!=c2"}
}

func spreadZones(t *cluster.Task, _ int) {
	p := placementOf(t)
	p.Preferences = []swarm.PlacementPreference{{Spread: &swarm.SpreadOver{SpreadDescriptor: "node.labels.zone"}}}
}

func reserve(t *cluster.Task, _ int) {
	t.Spec.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{NanoCPUs: 1e6, MemoryBytes: 4 << 20}}
}

func limitReplicas(t *cluster.Task, perNode int) { placementOf(t).MaxReplicas = uint64(perNode) }

// cpuTime is the processor time this process has used, which a busy machine falsifies less than the clock.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkDecide places tasks on empty nodes, booking included: one service of all tasks, and services of 100.
func BenchmarkDecide(b *testing.B) {
	const tasks = 1_000_000
	for _, nodes := range []int{1_000, 10_000} {
		for _, size := range []int{tasks, 100} {
			for _, v := range variants {
				b.Run(fmt.Sprintf("nodes=%d/size=%d/%s", nodes, size, v.name), func(b *testing.B) {
					a := benchNodes(nodes)
					groups := make([]Group, tasks/size)
					for i := range groups {
						t := newTask(fmt.Sprintf("service%020d", i), "t", "")
						v.shape(t, (size+nodes-1)/nodes)
						groups[i] = Group{t, size}
					}
					a.Place(groups[0], t0) // builds the view, which lives on
					a.Rollback()
					b.ReportAllocs()
					var cpu time.Duration
					for b.Loop() {
						begun := cpuTime(b)
						for _, g := range groups {
							if res := a.Place(g, t0); len(res.Placements) != g.N {
								b.Fatal(res.Explanation)
							}
						}
						cpu += cpuTime(b) - begun
						b.StopTimer()
						a.Rollback()
						b.StartTimer()
					}
					b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*tasks), "ns/task")
					b.ReportMetric(float64(cpu.Nanoseconds())/float64(b.N*tasks), "cpu-ns/task")
				})
			}
		}
	}
}

// populate runs services of 100 tasks in the accounts until there are that many tasks.
func populate(a *Accounts, tasks int) []*cluster.Task {
	ids := cluster.SeededIDs(2)
	all := make([]*cluster.Task, 0, tasks)
	for s := range tasks / 100 {
		rep := newTask(fmt.Sprintf("service%020d", s), "t", "")
		for _, p := range a.Place(Group{rep, 100}, t0).Placements {
			t := newTask(rep.ServiceID, ids.Next(), p.NodeID)
			all = append(all, t)
		}
		a.Rollback()
		for _, t := range all[len(all)-100:] {
			a.SetTask(nil, t)
		}
	}
	return all
}

// BenchmarkScale4To12 scales one service of four tasks up by eight in a cluster that runs 100,000 others: deciding,
// taking back, and observing the commit.
func BenchmarkScale4To12(b *testing.B) {
	for _, nodes := range []int{1_000, 10_000} {
		for _, v := range variants {
			b.Run(fmt.Sprintf("nodes=%d/%s", nodes, v.name), func(b *testing.B) {
				a := benchNodes(nodes)
				populate(a, 100_000)
				rep := newTask("theservice", "rep", "")
				v.shape(rep, 2)
				for i, p := range a.Place(Group{rep, 4}, t0).Placements {
					t := *rep
					t.ID, t.NodeID, t.Status.State = fmt.Sprint("four", i), p.NodeID, swarm.TaskStateRunning
					a.Rollback()
					a.SetTask(nil, &t)
				}
				b.ReportAllocs()
				for b.Loop() {
					res := a.Place(Group{rep, 8}, t0)
					if len(res.Placements) != 8 {
						b.Fatal(res.Explanation)
					}
					a.Rollback()
					var placed [8]cluster.Task
					for i, p := range res.Placements {
						placed[i] = *rep
						placed[i].NodeID, placed[i].Status.State = p.NodeID, swarm.TaskStateAssigned
						a.SetTask(nil, &placed[i])
					}
					b.StopTimer()
					for i := range placed {
						a.SetTask(&placed[i], nil)
					}
					b.StartTimer()
				}
			})
		}
	}
}

// BenchmarkReplace replaces one task of a large, level service: the case in which no node is without its tasks.
func BenchmarkReplace(b *testing.B) {
	for _, nodes := range []int{1_000, 10_000} {
		b.Run(fmt.Sprintf("nodes=%d", nodes), func(b *testing.B) {
			a := benchNodes(nodes)
			rep := newTask("big", "rep", "")
			res := a.Place(Group{rep, 5 * nodes}, t0)
			a.Rollback()
			for _, p := range res.Placements {
				a.SetTask(nil, newTask("big", "t", p.NodeID))
			}
			b.ReportAllocs()
			for b.Loop() {
				a.Place(Group{rep, 1}, t0)
				a.Rollback()
			}
		})
	}
}

// BenchmarkPending asks again for a group that fits nowhere, while single tasks elsewhere come and go.
func BenchmarkPending(b *testing.B) {
	for _, nodes := range []int{1_000, 10_000} {
		b.Run(fmt.Sprintf("nodes=%d", nodes), func(b *testing.B) {
			a := benchNodes(nodes)
			all := populate(a, 100_000)
			rep := newTask("pending", "rep", "")
			rep.Spec.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{NanoCPUs: 2e15}}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				t := all[i%len(all)]
				a.SetTask(t, nil)
				if res := a.Place(Group{rep, 8}, t0); res.Explanation == "" {
					b.Fatal("it fits")
				}
				a.Rollback()
				a.SetTask(nil, t)
			}
		})
	}
}

// BenchmarkMemory loads a million running tasks in services of 100 on 10,000 nodes and says what the accounts hold.
func BenchmarkMemory(b *testing.B) {
	const tasks = 1_000_000
	for b.Loop() {
		a := benchNodes(10_000)
		before := heap()
		task := newTask("", "t", "")
		for s := range tasks / 100 {
			rep := newTask(fmt.Sprintf("service%020d", s), "t", "")
			placements := a.Place(Group{rep, 100}, t0).Placements
			a.Rollback()
			for _, p := range placements {
				*task = *rep
				task.NodeID, task.Status.State = p.NodeID, swarm.TaskStateRunning
				a.SetTask(nil, task)
			}
		}
		b.ReportMetric(float64(heap()-before)/tasks, "heap-B/task")
		runtime.KeepAlive(a)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkSetTask observes the life of tasks: created, placed, running, told to stop, gone.
func BenchmarkSetTask(b *testing.B) {
	for _, nodes := range []int{1_000, 10_000} {
		b.Run(fmt.Sprintf("nodes=%d", nodes), func(b *testing.B) {
			a := benchNodes(nodes)
			all := populate(a, 100_000)
			a.Place(Group{func() *cluster.Task { t := newTask("x", "t", ""); spreadZones(t, 0); return t }(), 1}, t0)
			a.Rollback()
			r := rand.New(rand.NewPCG(1, 1))
			b.ReportAllocs()
			for b.Loop() {
				pending := *all[r.IntN(len(all))]
				assigned := pending
				pending.NodeID, pending.Status.State = "", swarm.TaskStatePending
				assigned.Status.State = swarm.TaskStateAssigned
				running, stopping, gone := assigned, assigned, assigned
				running.Status.State, stopping.Status.State = swarm.TaskStateRunning, swarm.TaskStateRunning
				stopping.DesiredState, gone.DesiredState = swarm.TaskStateShutdown, swarm.TaskStateShutdown
				gone.Status.State = swarm.TaskStateShutdown
				a.SetTask(nil, &pending)
				a.SetTask(&pending, &assigned)
				a.SetTask(&assigned, &running)
				a.SetTask(&running, &stopping)
				a.SetTask(&stopping, &gone)
				a.SetTask(&gone, nil)
			}
		})
	}
}
