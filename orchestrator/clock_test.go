package orchestrator

import (
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// TestAClockThatWasAheadHoldsNothingUp: a leader whose clock was an hour ahead schedules a restart and an update, and another
// one goes on with them.
func TestAClockThatWasAheadHoldsNothingUp(t *testing.T) {
	s := newSim(t)
	s.addNode("n1")
	delay := 5 * time.Second
	s.setService("web", func(c *cluster.Service) {
		two := uint64(2)
		c.Spec.Mode.Replicated.Replicas = &two
		c.Spec.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Condition: swarm.RestartPolicyConditionAny, Delay: &delay}
		c.Spec.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, Delay: 2 * time.Second, Monitor: time.Second}
	})
	s.run(time.Second)
	right := s.now
	s.now = s.now.Add(time.Hour)
	if !s.end("web", "1", swarm.TaskStateFailed, "it ends") {
		t.Fatal("nothing ran")
	}
	s.settle()
	s.setService("web", func(c *cluster.Service) { c.Spec.TaskTemplate.ContainerSpec.Image = "app:2" })
	s.settle()

	s.now = right
	s.planner.Reset(s.state.Snapshot())
	s.run(30 * time.Second)
	n := 0
	for task := range s.state.Snapshot().TasksOfService("web") {
		if task.Running() && task.Spec.ContainerSpec.Image == "app:2" {
			n++
		}
	}
	if u := s.state.Snapshot().ServiceNamed("web").UpdateStatus; n != 2 || u == nil || u.State != swarm.UpdateStateCompleted {
		t.Errorf("%d of 2 replicas run after half a minute, the update is %+v\n%s", n, u, s.take())
	}
}

// TestAWaitThatBeganDoesNotBeginAgain: not even when the time that lay in the future comes.
func TestAWaitThatBeganDoesNotBeginAgain(t *testing.T) {
	begin := time.Unix(1000, 0)
	x := &pass{Planner: New(Options{}), now: begin}
	ahead := begin.Add(5 * time.Second)
	for _, later := range []time.Duration{0, time.Second, 5 * time.Second, time.Hour} {
		x.now = begin.Add(later)
		if got := x.past(ahead); !got.Equal(begin) {
			t.Errorf("%v later a wait is counted from %v, want %v", later, got, begin)
		}
	}
	if got := x.past(begin.Add(-time.Second)); !got.Equal(begin.Add(-time.Second)) {
		t.Errorf("what is past is counted from %v", got)
	}
}
