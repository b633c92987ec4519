package orchestrator

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

func TestPool(t *testing.T) {
	for _, tc := range []struct {
		name   string
		config swarm.IPAMConfig
		want   string // all addresses in the order they are given
	}{
		{"hosts without network, broadcast and gateway", swarm.IPAMConfig{Subnet: "10.0.0.0/29", Gateway: "10.0.0.1"}, "10.0.0.2/29 10.0.0.3/29 10.0.0.4/29 10.0.0.5/29 10.0.0.6/29"},
		{"a subnet written as one of its addresses", swarm.IPAMConfig{Subnet: "10.0.0.5/30", Gateway: "10.0.0.6"}, "10.0.0.5/30"},
		{"a range", swarm.IPAMConfig{Subnet: "10.0.0.0/24", Range: "10.0.0.128/30", Gateway: "10.0.0.129"}, "10.0.0.128/24 10.0.0.130/24 10.0.0.131/24"},
		{"a range at the end of the subnet", swarm.IPAMConfig{Subnet: "10.0.0.0/24", Range: "10.0.0.252/30"}, "10.0.0.252/24 10.0.0.253/24 10.0.0.254/24"},
		{"a range elsewhere is no range", swarm.IPAMConfig{Subnet: "10.0.0.0/30", Range: "10.1.0.0/30"}, "10.0.0.1/30 10.0.0.2/30"},
		{"two hosts", swarm.IPAMConfig{Subnet: "10.0.0.0/31"}, "10.0.0.0/31 10.0.0.1/31"},
		{"one host", swarm.IPAMConfig{Subnet: "10.0.0.9/32"}, "10.0.0.9/32"},
		{"the last subnet there is", swarm.IPAMConfig{Subnet: "255.255.255.252/30"}, "255.255.255.253/30 255.255.255.254/30"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, ok := newPool(tc.config)
			if !ok {
				t.Fatal("no pool")
			}
			var got []string
			for {
				cidr, at, ok := p.give()
				if !ok {
					break
				}
				if back, ok := p.offset(cidr); !ok || back != at {
					t.Errorf("%s is at %d, given at %d", cidr, back, at)
				}
				got = append(got, cidr)
			}
			if text := strings.Join(got, " "); text != tc.want {
				t.Errorf("got %s, want %s", text, tc.want)
			}
		})
	}
	for _, bad := range []string{"", "10.0.0.0", "fd00::/64"} {
		if _, ok := newPool(swarm.IPAMConfig{Subnet: bad}); ok {
			t.Errorf("%q makes a pool", bad)
		}
	}
}

func TestPoolGivesSeriallyAndCountsHolders(t *testing.T) {
	p, _ := newPool(swarm.IPAMConfig{Subnet: "10.0.0.0/29", Gateway: "10.0.0.1"})
	give := func(want string) uint32 {
		t.Helper()
		cidr, at, _ := p.give()
		if cidr != want {
			t.Fatalf("got %q, want %q", cidr, want)
		}
		return at
	}
	two := give("10.0.0.2/29")
	if !p.release(two) {
		t.Error("the address is still held")
	}
	three := give("10.0.0.3/29") // not the one just freed
	p.take(three)
	p.take(three)
	for range 2 {
		if p.release(three) {
			t.Error("free while somebody holds it")
		}
	}
	if !p.release(three) {
		t.Error("held after everybody left")
	}
	give("10.0.0.4/29")
	give("10.0.0.5/29")
	give("10.0.0.6/29")
	give("10.0.0.2/29") // round it goes
	p.resumeAfter(5)
	p.release(two)
	give("10.0.0.2/29")
	if _, ok := p.offset("10.1.0.2/24"); ok {
		t.Error("found an address of another subnet")
	}
	if _, ok := p.offset("nonsense"); ok {
		t.Error("found nonsense")
	}
	if at, ok := p.offset("10.0.0.4"); !ok || at != 4 {
		t.Error("an address without prefix length is not found")
	}
}

// TestAddressesContinueAfterTakeOver: a new leader does not begin with the addresses that were freed last.
func TestAddressesContinueAfterTakeOver(t *testing.T) {
	s := newSim(t)
	s.addNode("n1")
	s.addNetwork("back")
	s.setService("web", func(c *cluster.Service) {
		c.Spec.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "back"}}
	})
	for range 5 {
		s.run(time.Second)
		s.end("web", "1", swarm.TaskStateFailed, "")
		s.run(10 * time.Second)
	}
	last := ""
	for task := range s.state.Snapshot().TasksOfService("web") {
		if task.Running() {
			last = task.NetworksAttachments[0].Addresses[0]
		}
	}
	s.planner = New(Options{})
	s.planner.Reset(s.state.Snapshot())
	s.end("web", "1", swarm.TaskStateFailed, "")
	s.plan()
	for task := range s.state.Snapshot().TasksOfService("web") {
		if task.Wanted() {
			if got := task.NetworksAttachments[0].Addresses[0]; got != "10.0.1.9/24" && got <= last {
				t.Errorf("got %s after %s", got, last)
			}
		}
	}
}

// TestNext is the contract for those who know nothing about the cluster: the plan has all changes, in an order of which
// every beginning is safe, and the reasons.
func TestNext(t *testing.T) {
	s := newSim(t)
	s.addNode("n1")
	s.addNetwork("ingress", func(n *cluster.Network) { n.Spec.Ingress = true })
	s.setService("web", func(c *cluster.Service) {
		c.Spec.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 8000}}}
		c.RegistryAuth = "auth"
	})
	snap := s.state.Snapshot()
	plan := Next(snap, s.now, cluster.SeededIDs(7))
	var kinds []string
	for _, c := range plan.Changes {
		kinds = append(kinds, fmt.Sprintf("%s %s", c.Action, c.Kind))
	}
	if got, want := strings.Join(kinds, ", "), "update network, patch node, update service, create task"; got != want {
		t.Fatalf("got %s, want %s", got, want)
	}
	task := plan.Changes[3].Object.(*cluster.Task)
	svc := plan.Changes[2].Object.(*cluster.Service)
	if task.Endpoint != &svc.Endpoint || task.RegistryAuth != "auth" || task.Endpoint.Ports[0].PublishedPort != 30000 {
		t.Errorf("the task does not share the service's endpoint: %+v", task.Endpoint)
	}
	i := slices.IndexFunc(plan.Decisions, func(d Decision) bool { return d.Kind == Place })
	if i < 0 || plan.Decisions[i].Placement == nil || !slices.Contains(plan.Decisions[i].Tasks, task.ID) {
		t.Errorf("no reason for the placement: %+v", plan.Decisions)
	}
	if again := Next(snap, s.now, cluster.SeededIDs(7)); planText(again, false) != planText(plan, false) || again.Changes[3].ID != task.ID {
		t.Error("the same inputs gave another plan")
	}
	s.run(time.Second)
	for task := range s.state.Snapshot().Tasks() {
		if d := s.planner.Explain(task, s.now); len(d.Table) != 1 {
			t.Errorf("explanation of %d nodes, want 1", len(d.Table))
		}
	}
	if plan := Next(s.state.Snapshot(), s.now, cluster.SeededIDs(7)); len(plan.Changes) != 0 {
		t.Errorf("a converged cluster wants %s", planText(plan, false))
	}
}

// TestStopTimeout: how long a successor waits is an option.
func TestStopTimeout(t *testing.T) {
	s := newSim(t)
	s.planner = New(Options{StopTimeout: 3 * time.Second})
	s.planner.Reset(s.state.Snapshot())
	s.addNode("n1")
	s.addNode("n2")
	s.setService("web", func(*cluster.Service) {})
	s.run(time.Second)
	s.hung["web"] = true
	s.editNode("n1", func(n *cluster.Node) { n.Spec.Availability = swarm.NodeAvailabilityDrain })
	plan := s.plan()
	if want := s.now.Add(3 * time.Second); !plan.Wake.Equal(want) {
		t.Errorf("wakes at %s, want %s", plan.Wake, want)
	}
	s.run(4 * time.Second)
	running := 0
	for task := range s.state.Snapshot().Tasks() {
		if task.Running() {
			running++
		}
	}
	if running != 1 {
		t.Errorf("%d tasks run, want the successor", running)
	}
}

func TestVerdict(t *testing.T) {
	base := func() *cluster.Service {
		s := &cluster.Service{}
		s.SpecVersion.Index = 2
		s.Spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "a"}
		return s
	}
	for _, tc := range []struct {
		name string
		edit func(*cluster.Service)
		want verdict
	}{
		{"nothing", func(*cluster.Service) {}, verdict{}},
		{"to say the default", func(s *cluster.Service) { s.Spec.EndpointSpec = &swarm.EndpointSpec{Mode: swarm.ResolutionModeVIP} }, verdict{}},
		{"image", func(s *cluster.Service) { s.Spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "b"} }, verdict{different: true}},
		{"force", func(s *cluster.Service) { s.Spec.TaskTemplate.ForceUpdate++ }, verdict{different: true}},
		{"mode", func(s *cluster.Service) {
			s.Spec.EndpointSpec = &swarm.EndpointSpec{Mode: swarm.ResolutionModeDNSRR}
		}, verdict{different: true}},
		{"port", func(s *cluster.Service) {
			s.Spec.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 1}}}
		}, verdict{different: true}},
		{"credentials", func(s *cluster.Service) { s.RegistryAuth = "x" }, verdict{credentials: true}},
		{"placement", func(s *cluster.Service) { s.Spec.TaskTemplate.Placement = &swarm.Placement{MaxReplicas: 1} }, verdict{placement: true}},
		{"placement and image", func(s *cluster.Service) {
			s.Spec.TaskTemplate.Placement = &swarm.Placement{}
			s.Spec.TaskTemplate.ContainerSpec = nil
		}, verdict{different: true}},
		{"labels and replicas", func(s *cluster.Service) {
			s.Spec.Labels = map[string]string{"a": "b"}
			s.Spec.Mode.Replicated = &swarm.ReplicatedService{}
		}, verdict{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			task := &cluster.Task{}
			task.Spec = base().Spec.TaskTemplate
			task.SpecVersion.Index = 1
			s := base()
			tc.edit(s)
			if got := compare(task, s); got != tc.want {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestUpdateConfig(t *testing.T) {
	s := newService("s")
	s.obj = &cluster.Service{}
	if c := updateConfig(s); c.Parallelism != 1 || c.Monitor != defaultMonitor {
		t.Errorf("the default is %+v", c)
	}
	s.obj.Spec.UpdateConfig = &swarm.UpdateConfig{Parallelism: 0, Delay: time.Second}
	s.obj.Spec.RollbackConfig = &swarm.UpdateConfig{Parallelism: 7, Monitor: time.Minute}
	if c := updateConfig(s); c.Parallelism != 0 || c.Monitor != defaultMonitor || c.Delay != time.Second {
		t.Errorf("the update's is %+v", c)
	}
	s.obj.UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateStateRollbackStarted}
	if c := updateConfig(s); c.Parallelism != 7 || c.Monitor != time.Minute {
		t.Errorf("the rollback's is %+v", c)
	}
}

// TestPaused: a paused update does nothing more, but supervision goes on.
func TestPaused(t *testing.T) {
	s := newSim(t)
	s.addNode("n1")
	two := uint64(2)
	s.setService("web", func(c *cluster.Service) { c.Spec.Mode.Replicated.Replicas = &two })
	s.run(time.Second)
	s.setService("web", func(c *cluster.Service) {
		c.Spec.TaskTemplate.ForceUpdate++
	})
	c := *s.state.Snapshot().ServiceNamed("web")
	c.UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateStatePaused}
	s.commit(cluster.UpdateOf(&c))
	s.run(time.Minute)
	for task := range s.state.Snapshot().Tasks() {
		if !task.Running() || task.Spec.ForceUpdate != 0 {
			t.Errorf("a paused update touched %s", s.describe(task))
		}
	}
	s.end("web", "1", swarm.TaskStateFailed, "")
	s.run(time.Minute)
	forced := 0
	for task := range s.state.Snapshot().Tasks() {
		if task.Running() && task.Spec.ForceUpdate == 1 {
			forced++
		}
	}
	if forced != 1 {
		t.Errorf("%d tasks of the new spec run, want the one that was restarted", forced)
	}
}

// TestPrefixesAreSafe commits every beginning of a large plan, loses the leader, and lets a new one finish.
func TestPrefixesAreSafe(t *testing.T) {
	for cut := 0; ; cut++ {
		c := newChaos(t, 1)
		for _, line := range []string{"service web replicas=3 port=80:8000", "run 10s", "service web image=app:2 parallelism=2", "service api replicas=2 net=back", "node down n1"} {
			if _, err := c.command(strings.Fields(line)); err != nil {
				t.Fatal(err)
			}
		}
		plan := c.planner.Next(c.state.Snapshot(), c.now, c.ids)
		if len(plan.Changes) < 10 {
			t.Fatalf("a plan of %d changes is not much of a test", len(plan.Changes))
		}
		if cut > len(plan.Changes) {
			return
		}
		c.commit(plan.Changes[:cut]...)
		c.planner = New(Options{})
		c.planner.Reset(c.state.Snapshot())
		c.run(time.Minute)
		delete(c.down, "n1")
		c.editNode("n1", func(n *cluster.Node) { n.Status.State = swarm.NodeStateReady })
		c.run(time.Minute)
		c.converged()
	}
}

// TestNumbersThatNoMachineCountsTo are as good as no limit.
func TestNumbersThatNoMachineCountsTo(t *testing.T) {
	s := newSim(t)
	for _, line := range []string{"node add n1", "service web replicas=2 attempts=1 restart-delay=1s"} {
		if _, err := s.command(strings.Fields(line)); err != nil {
			t.Fatal(err)
		}
	}
	s.run(time.Second)
	s.setService("web", func(svc *cluster.Service) {
		most := uint64(math.MaxUint64)
		policy := *svc.Spec.TaskTemplate.RestartPolicy
		policy.MaxAttempts = &most
		svc.Spec.TaskTemplate.RestartPolicy = &policy
		svc.Spec.UpdateConfig = &swarm.UpdateConfig{Parallelism: most}
	})
	s.run(time.Minute)
	s.end("web", "1", swarm.TaskStateFailed, "task: non-zero exit (1)")
	s.run(time.Minute)
	svc := s.state.Snapshot().ServiceNamed("web")
	for n := range 2 {
		slot := n + 1
		ok := false
		for task := range s.state.Snapshot().TasksOfSlot(svc.ID, slot) {
			ok = ok || task.Running() && task.SpecVersion == svc.SpecVersion
		}
		if !ok {
			t.Errorf("slot %d has not been updated, or not been restarted:\n%s", slot, s.table())
		}
	}
}
