package orchestrator

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the expected output in testdata")

// TestScripts tells the stories in testdata: each command is followed by what the cluster did. Run with -rewrite to
// accept the present behaviour, then read the diff.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := runScript(t, string(text))
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, have := strings.Split(string(text), "\n"), strings.Split(got, "\n")
			for i := range max(len(want), len(have)) {
				if i >= len(want) || i >= len(have) || want[i] != have[i] {
					t.Fatalf("line %d differs; got:\n%s\nwant:\n%s", i+1, strings.Join(have[min(i, len(have)):min(i+8, len(have))], "\n"),
						strings.Join(want[min(i, len(want)):min(i+8, len(want))], "\n"))
				}
			}
		})
	}
}

// runScript gives the script with the output of every command renewed. A command is a line, its output what follows
// up to an empty line; lines beginning with # are for the reader.
func runScript(t *testing.T, text string) string {
	s := newSim(t)
	s.check = func() { checkAddresses(t, s.state.Snapshot()) }
	var out strings.Builder
	output := false
	for _, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		switch {
		case line == "":
			output = false
			out.WriteString("\n")
		case output:
		case strings.HasPrefix(line, "#"):
			out.WriteString(line + "\n")
		default:
			s.take()
			extra, err := s.command(strings.Fields(line))
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			out.WriteString(line + "\n" + s.take() + extra)
			output = true
		}
	}
	return out.String()
}

// command carries out one line of a script.
func (s *sim) command(f []string) (string, error) {
	switch verb, args := f[0], f[1:]; verb {
	case "node":
		return "", s.nodeCommand(args)
	case "network":
		return "", s.networkCommand(args)
	case "service":
		if args[0] == "rm" {
			s.commit(cluster.RemoveOf(s.state.Snapshot().ServiceNamed(args[1])))
			return "", nil
		}
		var err error
		s.setService(args[0], func(c *cluster.Service) { err = editService(c, args[1:]) })
		return "", err
	case "rollback":
		s.rollBack(args[0])
	case "history":
		c := *s.state.Snapshot().Cluster()
		n, err := strconv.ParseInt(args[0], 10, 64)
		if err != nil {
			return "", err
		}
		c.Spec.Orchestration.TaskHistoryRetentionLimit = &n
		s.commit(cluster.UpdateOf(&c))
	case "cluster":
		c := *s.state.Snapshot().Cluster()
		for _, a := range args {
			switch k, v, _ := strings.Cut(a, "="); k {
			case "pool":
				c.DefaultAddrPool = append(slices.Clone(c.DefaultAddrPool), v)
			case "size":
				n, err := strconv.ParseUint(v, 10, 32)
				if err != nil {
					return "", err
				}
				c.SubnetSize = uint32(n)
			}
		}
		s.commit(cluster.UpdateOf(&c))
	case "attach": // docker run --network
		t := &cluster.Task{}
		t.ID, t.NodeID = args[0], args[1]
		t.Spec.Networks = []swarm.NetworkAttachmentConfig{{Target: args[2]}}
		t.Spec.NetworkAttachmentSpec = &swarm.NetworkAttachmentSpec{ContainerID: args[0]}
		if len(args) > 3 { // --ip
			t.Spec.Networks[0].DriverOpts = map[string]string{cluster.OptionAddress: args[3]}
		}
		t.DesiredState, t.Status.State = swarm.TaskStateRunning, swarm.TaskStateNew
		s.names[t.ID] = t.ID
		s.commit(cluster.CreateOf(t))
	case "detach":
		s.commit(cluster.RemoveOf(s.state.Snapshot().Task(args[0])))
	case "ended": // the container has gone, or was disconnected
		st := s.state.Snapshot().Task(args[0]).Status
		st.State, st.Message = swarm.TaskStateComplete, "finished"
		s.commit(cluster.PatchTask(args[0], cluster.TaskPatch{Status: &st, AppliedAt: s.now}))
	case "crash", "freeze", "hang", "finish", "heal":
		for _, m := range []map[string]bool{s.crashing, s.frozen, s.hung, s.finishing} {
			delete(m, args[0])
		}
		switch verb {
		case "crash":
			s.crashing[args[0]] = true
		case "freeze":
			s.frozen[args[0]] = true
		case "hang":
			s.hung[args[0]] = true
		case "finish":
			s.finishing[args[0]] = true
		}
	case "fail", "exit":
		name, slot, _ := strings.Cut(args[0], ".")
		state, err := swarm.TaskStateComplete, ""
		if verb == "fail" {
			state, err = swarm.TaskStateFailed, "task: non-zero exit (1)"
		}
		if !s.end(name, slot, state, err) {
			return "", fmt.Errorf("no running task %s", args[0])
		}
	case "late": // a task that is not wanted any more had come to its end
		name, slot, _ := strings.Cut(args[0], ".")
		for t := range s.state.Snapshot().TasksOfService(name) {
			if t.SlotName() == slot && !t.Wanted() && t.Status.State == swarm.TaskStateRunning {
				st := t.Status
				st.State, st.Message = swarm.TaskStateComplete, "finished"
				if len(args) > 1 {
					st.State, st.Message, st.Err = swarm.TaskStateFailed, "started", "task: non-zero exit (255)"
				}
				s.commit(cluster.PatchTask(t.ID, cluster.TaskPatch{Status: &st, AppliedAt: s.now}))
				return "", nil
			}
		}
		return "", fmt.Errorf("no task of %s is on its way out", args[0])
	case "reject": // the newest task of a slot ends before it was started
		name, slot, _ := strings.Cut(args[0], ".")
		var newest *cluster.Task
		for t := range s.state.Snapshot().TasksOfService(name) {
			if t.SlotName() == slot && (newest == nil || t.CreatedAt.After(newest.CreatedAt)) {
				newest = t
			}
		}
		st := newest.Status
		st.State, st.Err = swarm.TaskStateRejected, "No such image: app:1"
		s.commit(cluster.PatchTask(newest.ID, cluster.TaskPatch{Status: &st, AppliedAt: s.now}))
	case "plan":
		var out strings.Builder
		plan := s.plan()
		for _, d := range plan.Decisions {
			fmt.Fprintf(&out, "%s (%d tasks): %s\n", d.Kind, len(d.Tasks), d.Reason)
		}
		if !plan.Wake.IsZero() {
			fmt.Fprintf(&out, "wake in %s\n", plan.Wake.Sub(s.now))
		}
		return out.String(), nil
	case "run":
		d, err := time.ParseDuration(args[0])
		if err != nil {
			return "", err
		}
		s.run(d)
	case "leader":
		s.planner = New(Options{})
		s.planner.Reset(s.state.Snapshot())
	case "tasks":
		return s.table(args...), nil
	case "nodes":
		var out strings.Builder
		for n := range s.state.Snapshot().Nodes() {
			fmt.Fprintf(&out, "%s:%s\n", n.ID, attachmentText(n))
		}
		return out.String(), nil
	default:
		return "", fmt.Errorf("unknown command")
	}
	return "", nil
}

func (s *sim) nodeCommand(args []string) error {
	if args[0] == "add" {
		for _, id := range args[1:] {
			s.addNode(id)
		}
		return nil
	}
	for _, id := range args[1:] {
		if strings.Contains(id, "=") {
			break
		}
		switch args[0] {
		case "down":
			s.down[id] = true
			s.editNode(id, func(n *cluster.Node) { n.Status.State, n.DownSince = swarm.NodeStateDown, s.now })
		case "unknown":
			s.down[id] = true
			s.editNode(id, func(n *cluster.Node) { n.Status.State = swarm.NodeStateUnknown })
		case "up":
			delete(s.down, id)
			s.editNode(id, func(n *cluster.Node) { n.Status.State, n.DownSince = swarm.NodeStateReady, time.Time{} })
		case "drain", "pause", "active":
			s.editNode(id, func(n *cluster.Node) { n.Spec.Availability = swarm.NodeAvailability(args[0]) })
		case "rm":
			s.down[id] = true
			s.removeNode(id)
		case "vanish": // the node's object goes without a word about its tasks
			s.down[id] = true
			s.commit(cluster.RemoveOf(s.state.Snapshot().Node(id)))
		case "set":
			var err error
			s.editNode(id, func(n *cluster.Node) {
				n.Spec.Labels = map[string]string{}
				for _, a := range args[2:] {
					k, v, _ := strings.Cut(a, "=")
					switch k {
					case "memory":
						n.Description.Resources.MemoryBytes, err = strconv.ParseInt(v, 10, 64)
					case "gpu":
						var value int64
						value, err = strconv.ParseInt(v, 10, 64)
						n.Description.Resources.GenericResources = []swarm.GenericResource{{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: "gpu", Value: value}}}
					case "data-plane":
						n.NoDataPlane = v == "none"
					default:
						n.Spec.Labels[k] = v
					}
				}
			})
			return err
		default:
			return fmt.Errorf("unknown node command %s", args[0])
		}
	}
	return nil
}

func (s *sim) networkCommand(args []string) error {
	if args[0] == "rm" {
		s.commit(cluster.RemoveOf(s.state.Snapshot().NetworkNamed(args[1])))
		return nil
	}
	s.addNetwork(args[1], func(n *cluster.Network) {
		for _, a := range args[2:] {
			switch k, v, _ := strings.Cut(a, "="); k {
			case "ingress":
				n.Spec.Ingress = true
			case "driver":
				n.Spec.DriverConfiguration = &swarm.Driver{Name: v}
			case "subnet":
				n.Spec.IPAMOptions = &swarm.IPAMOptions{Configs: []swarm.IPAMConfig{{Subnet: v}}}
			case "vni":
				n.Spec.DriverConfiguration = &swarm.Driver{Name: "overlay", Options: map[string]string{vniOption: v}}
			}
		}
	})
	return nil
}

// editService sets a service's spec from words like replicas=3.
func editService(c *cluster.Service, args []string) error {
	spec := &c.Spec
	tmpl := &spec.TaskTemplate
	restart := func() *swarm.RestartPolicy {
		p := swarm.RestartPolicy{}
		if tmpl.RestartPolicy != nil {
			p = *tmpl.RestartPolicy
		}
		tmpl.RestartPolicy = &p
		return &p
	}
	update := func(p **swarm.UpdateConfig) *swarm.UpdateConfig {
		u := swarm.UpdateConfig{Parallelism: 1}
		if *p != nil {
			u = **p
		}
		*p = &u
		return &u
	}
	placement := func() *swarm.Placement {
		p := swarm.Placement{}
		if tmpl.Placement != nil {
			p = *tmpl.Placement
		}
		tmpl.Placement = &p
		return &p
	}
	endpoint := func() *swarm.EndpointSpec {
		e := swarm.EndpointSpec{Mode: swarm.ResolutionModeVIP}
		if spec.EndpointSpec != nil {
			e = *spec.EndpointSpec
			e.Ports = slices.Clone(e.Ports)
		}
		spec.EndpointSpec = &e
		return &e
	}
	reserve := func() *swarm.Resources {
		r := swarm.Resources{}
		if tmpl.Resources != nil && tmpl.Resources.Reservations != nil {
			r = *tmpl.Resources.Reservations
		}
		tmpl.Resources = &swarm.ResourceRequirements{Reservations: &r}
		return &r
	}
	for _, a := range args {
		k, v, _ := strings.Cut(a, "=")
		n, numErr := strconv.ParseInt(v, 10, 64)
		d, durErr := time.ParseDuration(v)
		u := uint64(n)
		var bad error
		switch k {
		case "replicas":
			spec.Mode.Replicated, bad = &swarm.ReplicatedService{Replicas: &u}, numErr
		case "global":
			spec.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}}
		case "job": // =total/concurrent
			j := &swarm.ReplicatedJob{}
			if v != "" {
				var total, concurrent uint64
				_, bad = fmt.Sscanf(v, "%d/%d", &total, &concurrent)
				j.TotalCompletions, j.MaxConcurrent = &total, &concurrent
			}
			spec.Mode = swarm.ServiceMode{ReplicatedJob: j}
		case "global-job":
			spec.Mode = swarm.ServiceMode{GlobalJob: &swarm.GlobalJob{}}
		case "image":
			tmpl.ContainerSpec = &swarm.ContainerSpec{Image: v}
		case "privileged":
			c := *tmpl.ContainerSpec
			c.Labels = map[string]string{cluster.LabelPrivileged: v}
			tmpl.ContainerSpec = &c
		case "auth":
			c.RegistryAuth = v
		case "restart":
			restart().Condition = swarm.RestartPolicyCondition(v)
		case "restart-delay":
			restart().Delay, bad = &d, durErr
		case "attempts":
			restart().MaxAttempts, bad = &u, numErr
		case "window":
			restart().Window, bad = &d, durErr
		case "parallelism":
			update(&spec.UpdateConfig).Parallelism, bad = u, numErr
		case "delay":
			update(&spec.UpdateConfig).Delay, bad = d, durErr
		case "monitor":
			update(&spec.UpdateConfig).Monitor, bad = d, durErr
		case "order":
			update(&spec.UpdateConfig).Order = v
		case "failure":
			update(&spec.UpdateConfig).FailureAction = v
		case "rollback-failure":
			update(&spec.RollbackConfig).FailureAction = v
		case "rollback-monitor":
			update(&spec.RollbackConfig).Monitor, bad = d, durErr
		case "ratio":
			var ratio float64
			ratio, bad = strconv.ParseFloat(v, 32)
			update(&spec.UpdateConfig).MaxFailureRatio = float32(ratio)
		case "rollback-parallelism":
			update(&spec.RollbackConfig).Parallelism, bad = u, numErr
		case "constraint":
			p := placement()
			p.Constraints = []string{v}
			if v == "" {
				p.Constraints = nil
			}
		case "max-per-node":
			placement().MaxReplicas, bad = u, numErr
		case "memory":
			reserve().MemoryBytes, bad = n, numErr
		case "gpu":
			reserve().GenericResources, bad = []swarm.GenericResource{{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: "gpu", Value: n}}}, numErr
		case "mode":
			endpoint().Mode = swarm.ResolutionMode(v)
		case "ports":
			endpoint().Ports = nil
		case "port", "hostport":
			var published, target uint32
			if _, bad = fmt.Sscanf(v, "%d:%d", &published, &target); bad != nil {
				break
			}
			mode := swarm.PortConfigPublishModeIngress
			if k == "hostport" {
				mode = swarm.PortConfigPublishModeHost
			}
			e := endpoint()
			e.Ports = append(e.Ports, swarm.PortConfig{Protocol: "tcp", TargetPort: target, PublishedPort: published, PublishMode: mode})
		case "net":
			tmpl.Networks = nil
			for _, target := range strings.Split(v, ",") {
				tmpl.Networks = append(tmpl.Networks, swarm.NetworkAttachmentConfig{Target: target})
			}
		case "label":
			spec.Labels = map[string]string{"label": v}
		default:
			bad = fmt.Errorf("unknown word")
		}
		if bad != nil {
			return fmt.Errorf("%s: %w", a, bad)
		}
	}
	return nil
}

// table shows the tasks of services, as docker service ps would.
func (s *sim) table(services ...string) string {
	var out strings.Builder
	snap := s.state.Snapshot()
	for svc := range snap.Services() {
		if len(services) > 0 && !slices.Contains(services, svc.ID) {
			continue
		}
		for t := range snap.TasksOfService(svc.ID) {
			fmt.Fprintf(&out, "%s\n", s.describe(t))
		}
	}
	return out.String()
}

// checkAddresses fails if two holders share an address (I9).
func checkAddresses(t testing.TB, snap *cluster.Snapshot) {
	t.Helper()
	held := make(map[string]string)
	hold := func(network, addr, who string) {
		key := network + " " + addr
		if other, taken := held[key]; taken {
			t.Errorf("address %s on %s is held by %s and by %s", addr, network, other, who)
		}
		held[key] = who
	}
	for n := range snap.Nodes() {
		for network, addr := range n.Attachments {
			hold(network, addr, "node "+n.ID)
		}
	}
	for s := range snap.Services() {
		for _, v := range s.Endpoint.VirtualIPs {
			hold(v.NetworkID, v.Addr, "service "+s.ID)
		}
	}
	for task := range snap.Tasks() {
		if cluster.Terminal(task.Status.State) {
			continue
		}
		for _, a := range task.NetworksAttachments {
			for _, addr := range a.Addresses {
				hold(a.Network.ID, addr, "task "+task.ID)
			}
		}
	}
}
