package engineapi

import (
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// A plan tells what a change comes to, with places and reasons, and stores nothing.
func TestPlan(t *testing.T) {
	w := newWorld(t)
	svc := aService("svc1", "web", 2)
	svc.Spec.TaskTemplate.ContainerSpec.Isolation = "default" // as the API stores it
	w.control.put(t, aNode("node1", "vm1"), aNode("node2", "vm2"), svc)
	w.control.orchestrate(t)
	index := w.control.snapshot().Index()
	plan := func(req PlanRequest) PlanAnswer {
		t.Helper()
		a := must[PlanAnswer](w, 200, "POST", "/miniswarm/plan", req)
		if !a.Settled {
			t.Errorf("the plan does not come to its end: %s", a.Text)
		}
		return a
	}
	has := func(a PlanAnswer, texts ...string) {
		t.Helper()
		for _, text := range texts {
			if !strings.Contains(a.Text, text) {
				t.Errorf("%q is not in:\n%s", text, a.Text)
			}
		}
	}

	present := func() swarm.ServiceSpec { return *copySpec(t, w.control.snapshot().Service("svc1").Spec) }
	up := present()
	*up.Mode.Replicated.Replicas = 5
	a := plan(PlanRequest{Services: []PlannedService{{ID: "svc1", Spec: up}}})
	if s := a.Services[0]; s.Action != "update" || s.Keep != 2 || len(s.Start) != 3 || len(s.Stop) != 0 {
		t.Errorf("scale up: %+v", s)
	}
	has(a, "~ Mode.Replicated.Replicas: 2 -> 5", "start  web.3 on vm", "tasks were there before", "2 tasks unchanged")

	down := present()
	*down.Mode.Replicated.Replicas = 1
	if s := plan(PlanRequest{Services: []PlannedService{{ID: "web", Spec: down}}}).Services[0]; s.Keep != 1 || len(s.Stop) != 1 || s.Stop[0].Node == "" {
		t.Errorf("scale down: %+v", s)
	}

	image := present()
	image.TaskTemplate.ContainerSpec.Image = "web:2"
	a = plan(PlanRequest{Services: []PlannedService{{ID: "svc1", Spec: image}}})
	if s := a.Services[0]; len(s.Start) != 2 || len(s.Stop) != 2 || s.Keep != 0 {
		t.Errorf("update: %+v", s)
	}
	has(a, "TaskTemplate.ContainerSpec.Image", "-> web:2")
	if got, want := moves(a), "stop web.1, start web.1, stop web.2, start web.2"; got != want {
		t.Errorf("an update goes %s", got)
	}
	image.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, Order: swarm.UpdateOrderStartFirst}
	a = plan(PlanRequest{Services: []PlannedService{{ID: "svc1", Spec: image}}})
	if got, want := moves(a), "start web.1, stop web.1, start web.2, stop web.2"; got != want {
		t.Errorf("an update that starts first goes %s", got)
	}

	if s := plan(PlanRequest{Services: []PlannedService{{ID: "svc1", Spec: present()}}}).Services[0]; s.Action != "none" || s.Keep != 2 || len(s.Start)+len(s.Stop) > 0 {
		t.Errorf("no change: %+v", s)
	}

	big := aService("", "big", 1).Spec
	big.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{MemoryBytes: 1 << 50}}
	big.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "back"}}
	a = plan(PlanRequest{Networks: []network.CreateRequest{{Name: "back", CreateOptions: network.CreateOptions{Driver: "overlay"}}}, Services: []PlannedService{{Spec: big}}})
	has(a, "network back would be created", "service big would be created", "1 task would wait for a place", "vm1: needs 1024 TiB, 2 GiB free")

	if s := plan(PlanRequest{Remove: []string{"web"}}).Services[0]; s.Action != "remove" || len(s.Stop) != 2 {
		t.Errorf("remove: %+v", s)
	}
	w.refused("POST", "/miniswarm/plan", PlanRequest{Remove: []string{"nothing"}}, 404, "service nothing not found")
	many := aService("", "many", maxReplicas).Spec
	w.refused("POST", "/miniswarm/plan", PlanRequest{Services: []PlannedService{{Spec: many}}}, 503, "a dry run goes through all tasks, and there would be 1000002: more than 500000 take too long")
	if now := w.control.snapshot(); now.Index() != index || now.ServiceNamed("big") != nil || now.Len(cluster.KindService) != 1 {
		t.Error("the plan changed the cluster")
	}
}

// A plan that nobody waits for any more is not gone on with.
func TestPlanEndsWithItsRequest(t *testing.T) {
	w := newWorld(t)
	w.control.put(t, aNode("node1", "vm1"))
	ctx, leave := context.WithCancel(t.Context())
	leave()
	r := httptest.NewRequestWithContext(ctx, "POST", "/miniswarm/plan", nil)
	if err := w.api.plan(w.control, httptest.NewRecorder(), r); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "after 1 steps") {
		t.Errorf("it ended with %v", err)
	}
}

// moves are the starts and stops of a plan, in order.
func moves(a PlanAnswer) string {
	var out []string
	for line := range strings.Lines(a.Text) {
		if f := strings.Fields(line); len(f) > 2 && (f[0] == "stop" || f[0] == "start") {
			out = append(out, f[0]+" "+f[1])
		}
	}
	return strings.Join(out, ", ")
}

func copySpec(t *testing.T, spec swarm.ServiceSpec) *swarm.ServiceSpec {
	t.Helper()
	r := *spec.Mode.Replicated
	n := *r.Replicas
	r.Replicas = &n
	spec.Mode.Replicated = &r
	c := *spec.TaskTemplate.ContainerSpec
	spec.TaskTemplate.ContainerSpec = &c
	return &spec
}

func TestPlanKeepsTheDigestOfTheSameImage(t *testing.T) {
	for _, c := range []struct{ pinned, asked, want string }{
		{"web:1@sha256:ab", "web:1", "web:1@sha256:ab"},
		{"web:1@sha256:ab", "docker.io/library/web:1", "web:1@sha256:ab"},
		{"web:1@sha256:ab", "web:2", "web:2"},
		{"web:1", "web:1", "web:1"},
	} {
		old := swarm.ServiceSpec{TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: c.pinned}}}
		spec := swarm.ServiceSpec{TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: c.asked}}}
		if keepDigest(&spec, old); spec.TaskTemplate.ContainerSpec.Image != c.want {
			t.Errorf("%s asked for as %s: %s", c.pinned, c.asked, spec.TaskTemplate.ContainerSpec.Image)
		}
	}
}
