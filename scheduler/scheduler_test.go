package scheduler

import (
	"fmt"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"github.com/google/go-cmp/cmp"
	"github.com/miniswarm/miniswarm/cluster"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func newNode(id string) *cluster.Node {
	n := &cluster.Node{}
	n.ID = id
	n.Spec.Availability = swarm.NodeAvailabilityActive
	n.Status.State = swarm.NodeStateReady
	n.Description.Hostname = id
	return n
}

func newTask(service, id, node string) *cluster.Task {
	t := &cluster.Task{}
	t.ID, t.ServiceID, t.NodeID, t.Slot = id, service, node, 1
	t.ServiceAnnotations.Name = service
	t.DesiredState = swarm.TaskStateRunning
	t.Status.State = swarm.TaskStatePending
	if node != "" {
		t.Status.State = swarm.TaskStateRunning
	}
	return t
}

func perNode(ps []Placement) map[string]int {
	m := map[string]int{}
	for _, p := range ps {
		m[p.NodeID]++
	}
	return m
}

// TestVectors holds placing to the examples of Swarm's behaviour.
func TestVectors(t *testing.T) {
	labelled := func(id, dc string) *cluster.Node {
		n := newNode(id)
		n.Spec.Labels = map[string]string{"dc": dc}
		return n
	}
	spread := newTask("s", "t", "")
	spread.Spec.Placement = &swarm.Placement{Preferences: []swarm.PlacementPreference{
		{Spread: &swarm.SpreadOver{SpreadDescriptor: "node.labels.dc"}}}}
	for _, tt := range []struct {
		name  string
		nodes []*cluster.Node
		have  map[string]int
		task  *cluster.Task
		n     int
		want  map[string]int
	}{
		{"seven on three empty nodes", []*cluster.Node{newNode("a"), newNode("b"), newNode("c")}, nil,
			newTask("s", "t", ""), 7, map[string]int{"a": 3, "b": 2, "c": 2}},
		{"four on three empty nodes", []*cluster.Node{newNode("a"), newNode("b"), newNode("c")}, nil,
			newTask("s", "t", ""), 4, map[string]int{"a": 2, "b": 1, "c": 1}},
		{"five more on 0, 2, 5", []*cluster.Node{newNode("a"), newNode("b"), newNode("c")},
			map[string]int{"b": 2, "c": 5}, newTask("s", "t", ""), 5, map[string]int{"a": 3, "b": 2}},
		{"twenty more on 0, 2, 5 end uneven", []*cluster.Node{newNode("a"), newNode("b"), newNode("c")},
			map[string]int{"b": 2, "c": 5}, newTask("s", "t", ""), 20, map[string]int{"a": 7, "b": 8, "c": 5}},
		{"spread over data centers", []*cluster.Node{labelled("a", "x"), labelled("b", "x"), labelled("c", "x"), labelled("d", "y")},
			nil, spread, 6, map[string]int{"a": 1, "b": 1, "c": 1, "d": 3}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := New()
			for _, n := range tt.nodes {
				a.SetNode(n)
			}
			for node, k := range tt.have {
				for i := range k {
					a.SetTask(nil, newTask("s", fmt.Sprint(node, i), node))
				}
			}
			got := perNode(a.Place(Group{tt.task, tt.n}, t0).Placements)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error("placed differently (-want +got):\n" + diff)
			}
		})
	}
}
