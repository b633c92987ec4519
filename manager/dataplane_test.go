package manager

import (
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// A node says in each of its sessions whether it runs a data plane, and is given what the mesh reaches accordingly.
func TestWhatTheMeshReachesGoesWhereADataPlaneIs(t *testing.T) {
	s := newSolo(t)
	worker := s.join(t)
	s.agent(s.creds)
	s.agentAs(worker, &protocol.Hello{})
	workers := ""
	s.await("two ready nodes", func(snap *cluster.Snapshot) bool {
		ready := 0
		for n := range snap.Nodes() {
			if n.Status.State == swarm.NodeStateReady {
				ready++
			}
			if n.ID != soloNode {
				workers = n.ID
			}
		}
		return ready == 2
	})
	soon, replicas := time.Duration(0), uint64(4)
	create := func(id string, published uint32, mode swarm.PortConfigPublishMode, constraints ...string) {
		svc := &cluster.Service{}
		svc.ID, svc.Spec.Name = id, id
		svc.Spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "web:1"}
		svc.Spec.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Condition: swarm.RestartPolicyConditionAny, Delay: &soon}
		svc.Spec.TaskTemplate.Placement = &swarm.Placement{Constraints: constraints}
		svc.Spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: &replicas}
		if published != 0 {
			svc.Spec.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{Protocol: swarm.PortConfigProtocolTCP, TargetPort: 80, PublishedPort: published, PublishMode: mode}}}
		}
		if _, err := s.store.Propose(t.Context(), &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.CreateOf(svc)}}); err != nil {
			t.Fatal(err)
		}
	}
	// spread awaits all four replicas of a service, so many of them on the worker.
	spread := func(when, service string, there int) {
		t.Helper()
		s.await(service+" "+when, func(snap *cluster.Snapshot) bool {
			n := 0
			for task := range snap.TasksOfService(service) {
				if task.Running() && task.NodeID == workers {
					n++
				}
			}
			return running(snap, service) == int(replicas) && n == there
		})
	}
	create("web", 80, swarm.PortConfigPublishModeIngress)
	create("plain", 0, "")
	spread("on the manager alone", "web", 0)
	spread("on both", "plain", 2)
	create("there", 81, swarm.PortConfigPublishModeIngress, "node.role==worker")
	s.await("words about what has no place", func(snap *cluster.Snapshot) bool {
		for task := range snap.TasksOfService("there") {
			if task.Status.Err == "no suitable node (scheduling constraints not satisfied on 1 node; no data plane on 1 node)" {
				return true
			}
		}
		return false
	})

	s.agent(worker) // the daemon begins anew, with a data plane
	spread("on the worker as soon as that has a data plane", "there", 4)
	create("late", 82, swarm.PortConfigPublishModeIngress)
	spread("on both", "late", 2)

	s.agentAs(worker, &protocol.Hello{})
	spread("where it was", "web", 0)
	spread("gone from the worker, where nobody would reach it", "late", 0)
	spread("as before", "plain", 2)
	s.await("a service that may be nowhere else has stopped", func(snap *cluster.Snapshot) bool { return running(snap, "there") == 0 })
}
