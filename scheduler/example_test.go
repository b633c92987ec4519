package scheduler_test

import (
	"fmt"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/scheduler"
)

// A pass decides, takes its bookings back, and sees the committed tasks again as changes.
func Example() {
	accounts := scheduler.New()
	for _, id := range []string{"vm1", "vm2", "vm3"} {
		n := &cluster.Node{}
		n.ID, n.Description.Hostname, n.Status.State = id, id, swarm.NodeStateReady
		n.Description.Resources.MemoryBytes = 1 << 30
		accounts.SetNode(n)
	}
	web := &cluster.Task{ServiceAnnotations: swarm.Annotations{Name: "web"}}
	web.ServiceID = "web"
	web.Spec.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{MemoryBytes: 512 << 20}}

	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	result := accounts.Place(scheduler.Group{Task: web, N: 7}, now)
	accounts.Rollback()
	for i, p := range result.Placements {
		t := *web
		t.ID, t.Slot, t.NodeID = fmt.Sprint("task", i+1), i+1, p.NodeID
		t.Status.State = swarm.TaskStateAssigned
		accounts.SetTask(nil, &t)
		fmt.Println(t.ID, "on", t.NodeID)
	}
	fmt.Println(result.Explanation)
	decision := accounts.Explain(web, now)
	fmt.Print(decision.Text())
	// Output:
	// task1 on vm1
	// task2 on vm2
	// task3 on vm3
	// task4 on vm1
	// task5 on vm2
	// task6 on vm3
	// no suitable node (insufficient resources on 3 nodes)
	// service web: 0 of 1 placed
	// no suitable node (insufficient resources on 3 nodes)
	// 3 nodes, 3 examined; ruled out: resource 3
	// no node passes all filters
	//
	// RANK   NODE   FAILURES   SERVICE TASKS   ALL TASKS
	// -      vm1    0          2               2
	// -      vm2    0          2               2
	// -      vm3    0          2               2
	//
	// NODE   FILTER             DETAIL
	// vm1    ready      ok      state ready, availability active
	//        resource   FAILS   needs 512 MiB, 0 B free
	// vm2    ready      ok      state ready, availability active
	//        resource   FAILS   needs 512 MiB, 0 B free
	// vm3    ready      ok      state ready, availability active
	//        resource   FAILS   needs 512 MiB, 0 B free
}
