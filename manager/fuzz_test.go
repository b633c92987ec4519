package manager

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/orchestrator"
)

// FuzzWhatNodesSay stores what a node may say of itself and of its tasks, as the dispatcher does, and lets the leader plan
// with it: a node that talks nonsense must not bring down the managers.
func FuzzWhatNodesSay(f *testing.F) {
	for _, s := range []string{
		`{"Hello":{"Description":{"Hostname":"a","Platform":{"Architecture":"x86_64","OS":"linux"},"Resources":{"NanoCPUs":4000000000,"MemoryBytes":1073741824,"GenericResources":[{"DiscreteResourceSpec":{"Kind":"ssd","Value":2}},{"NamedResourceSpec":{"Kind":"gpu","Value":"a"}}]},"Engine":{"EngineVersion":"28","Labels":{"a":"b"},"Plugins":[{"Type":"Network","Name":"overlay"}]}},"DataAddr":"10.0.0.1","DataPlane":true}}`,
		`{"Hello":{"Description":{"Resources":{"NanoCPUs":-1,"MemoryBytes":-9223372036854775808,"GenericResources":[{},{"DiscreteResourceSpec":{"Kind":"","Value":-5}},{"NamedResourceSpec":null}]}}}}`,
		`{"Status":{"Seq":1,"Tasks":[{"ID":"task1","Status":{"State":"running","ContainerStatus":{"ContainerID":"x"},"PortStatus":{"Ports":[{"PublishMode":"host"}]}}},{"ID":"task2","Status":{"State":"failed","Err":"e","Timestamp":"9999-12-31T23:59:59Z"}},{"ID":"task3","Status":{"State":"nonsense"}}]}}`,
	} {
		f.Add(s)
	}
	now := time.Unix(1_700_000_000, 0).UTC()
	f.Fuzz(func(t *testing.T, text string) {
		var m protocol.FromAgent
		if json.Unmarshal([]byte(text), &m) != nil {
			return
		}
		state := cluster.NewState()
		commit := func(changes ...cluster.Change) {
			if _, err := state.Apply(&cluster.Txn{Time: now, Changes: changes}, state.Index()+1); err != nil {
				t.Fatalf("%s: %v", text, err)
			}
		}
		c := &cluster.Cluster{}
		c.DefaultAddrPool, c.SubnetSize = []string{"10.0.0.0/8"}, 24
		c.ID, c.Spec.Name = "cluster", cluster.ClusterName
		commit(cluster.CreateOf(c), cluster.CreateOf(newNode("n1", "worker", "", "10.0.0.1")), cluster.CreateOf(newNode("n2", "worker", "", "10.0.0.2")))
		replicas := uint64(3)
		svc := &cluster.Service{}
		svc.ID, svc.Spec.Name = "svc", "web"
		svc.Spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "web:1"}
		svc.Spec.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{NanoCPUs: 1e9, GenericResources: []swarm.GenericResource{{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: "ssd", Value: 1}}}}}
		svc.Spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: &replicas}
		commit(cluster.CreateOf(svc))
		ready := &swarm.NodeStatus{State: swarm.NodeStateReady}
		commit(cluster.PatchNode("n2", cluster.NodePatch{Status: ready, Description: &swarm.NodeDescription{Resources: swarm.Resources{NanoCPUs: 1e9}}}))
		if m.Hello != nil {
			commit(cluster.PatchNode("n1", cluster.NodePatch{Status: ready, Description: &m.Hello.Description, DataAddr: m.Hello.DataAddr}))
		}
		ids := cluster.SeededIDs(1)
		for i := range 4 {
			plan := orchestrator.Next(state.Snapshot(), now.Add(time.Duration(i)*time.Minute), ids)
			commit(plan.Changes...)
			if m.Status == nil {
				continue
			}
			n := 0
			for task := range state.Snapshot().Tasks() {
				if n < len(m.Status.Tasks) {
					commit(cluster.PatchTask(task.ID, cluster.TaskPatch{Status: &m.Status.Tasks[n].Status, AppliedAt: now}))
				}
				n++
			}
		}
		if _, err := state.Snapshot().Digest(); err != nil {
			t.Fatal(err)
		}
	})
}
