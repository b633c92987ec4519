package scheduler

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/go-units"
	"github.com/google/go-cmp/cmp"
	"github.com/miniswarm/miniswarm/cluster"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the outputs in testdata/*.txt")

// TestScripts runs the stories in testdata: lines that begin with "> " are commands, what follows is their output.
// With -rewrite the outputs are written anew, to be read as a diff.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("find scripts: %v, %d found", err, len(files))
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := newScript(t).run(string(text))
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(text), got); diff != "" {
				t.Errorf("the story changed; if that is right, run with -rewrite (-file +now):\n%s", diff)
			}
		})
	}
}

type script struct {
	t        *testing.T
	a        *Accounts
	now      time.Time
	nodes    map[string]*cluster.Node
	services map[string]*cluster.Task
	tasks    map[string]*cluster.Task
	booked   []*cluster.Task
	slots    map[string]int
}

func newScript(t *testing.T) *script {
	return &script{t: t, a: New(), now: t0, nodes: map[string]*cluster.Node{}, services: map[string]*cluster.Task{},
		tasks: map[string]*cluster.Task{}, slots: map[string]int{}}
}

func (s *script) run(text string) string {
	var out strings.Builder
	inComment := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "#"):
			if !inComment && out.Len() > 0 {
				out.WriteByte('\n')
			}
			fmt.Fprintln(&out, line)
			inComment = true
		case strings.HasPrefix(line, "> "):
			inComment = false
			fmt.Fprintf(&out, "%s\n%s", line, s.command(strings.Fields(line[2:])))
		}
	}
	return out.String()
}

func (s *script) command(args []string) string {
	verb, args := args[0], args[1:]
	switch verb {
	case "node":
		return s.node(args)
	case "network":
		s.a.SetNetwork(&cluster.Network{Network: swarm.Network{ID: args[0], Spec: swarm.NetworkSpec{DriverConfiguration: &swarm.Driver{Name: args[1]}}}})
	case "rmnetwork":
		s.a.RemoveNetwork(args[0])
	case "rmnode":
		s.a.RemoveNode(args[0])
		delete(s.nodes, args[0])
	case "service":
		s.service(args)
	case "index":
		s.a.SetIndex(uint64(s.number(args[0])))
	case "wait":
		d, err := time.ParseDuration(args[0])
		if err != nil {
			s.t.Fatal(err)
		}
		s.now = s.now.Add(d)
	case "place":
		return s.place(s.services[args[0]], int(s.number(args[1])))
	case "check":
		return s.check(args[0], args[1])
	case "commit":
		s.a.Rollback()
		for _, t := range s.booked {
			s.observe(t.ID, t)
		}
		s.booked = nil
	case "rollback":
		s.a.Rollback()
		for _, t := range s.booked {
			s.slots[t.ServiceID]--
		}
		s.booked = nil
	case "fail", "reject", "stop", "end", "remove":
		for _, id := range args {
			s.change(verb, id)
		}
	case "explain":
		return s.explain(args[0]).Text()
	case "json":
		b, err := json.MarshalIndent(s.explain(args[0]), "", "  ")
		if err != nil {
			s.t.Fatal(err)
		}
		return string(b) + "\n"
	case "accounts":
		return s.a.dump()
	default:
		s.t.Fatalf("unknown command %q", verb)
	}
	return ""
}

func (s *script) explain(name string) *Decision {
	t := s.tasks[name]
	if t == nil {
		t = s.services[name]
	}
	d := s.a.Explain(t, s.now)
	return &d
}

func (s *script) number(text string) int64 {
	n, err := units.RAMInBytes(text)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// pairs splits key=value words; words without = come first.
func pairs(args []string) (words []string, kv [][2]string) {
	for _, a := range args {
		if k, v, ok := strings.Cut(a, "="); ok {
			kv = append(kv, [2]string{k, v})
		} else {
			words = append(words, a)
		}
	}
	return words, kv
}

func (s *script) node(args []string) string {
	ids, kv := pairs(args)
	for _, id := range ids {
		n := newNode(id)
		if old := s.nodes[id]; old != nil {
			c := *old
			n = &c
		}
		labels := map[string]string{}
		for k, v := range n.Spec.Labels {
			labels[k] = v
		}
		n.Spec.Labels = labels
		d := &n.Description
		for _, p := range kv {
			k, v := p[0], p[1]
			switch {
			case k == "cpu":
				d.Resources.NanoCPUs = s.number(v) * 1e9
			case k == "mem":
				d.Resources.MemoryBytes = s.number(v)
			case k == "state":
				n.Status.State = swarm.NodeState(v)
			case k == "availability":
				n.Spec.Availability = swarm.NodeAvailability(v)
			case k == "platform":
				d.Platform.OS, d.Platform.Architecture, _ = strings.Cut(v, "/")
			case k == "plugins":
				d.Engine.Plugins = nil
				for _, name := range strings.Split(v, ",") {
					kind, name, _ := strings.Cut(name, ":")
					d.Engine.Plugins = append(d.Engine.Plugins, swarm.PluginDescription{Type: kind, Name: name})
				}
			case k == "data-plane":
				n.NoDataPlane = v == "none"
			case k == "allow":
				n.Spec.Labels[cluster.LabelAllow] = v
			case strings.HasPrefix(k, "label."):
				n.Spec.Labels[k[6:]] = v
			case strings.HasPrefix(k, "generic."):
				d.Resources.GenericResources = nil
				if count, err := strconv.ParseInt(v, 10, 64); err == nil {
					d.Resources.GenericResources = []swarm.GenericResource{{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: k[8:], Value: count}}}
					break
				}
				for _, name := range strings.Split(v, ",") {
					d.Resources.GenericResources = append(d.Resources.GenericResources,
						swarm.GenericResource{NamedResourceSpec: &swarm.NamedGenericResource{Kind: k[8:], Value: name}})
				}
			default:
				s.t.Fatalf("unknown node option %q", k)
			}
		}
		s.nodes[id] = n
		s.a.SetNode(n)
	}
	return ""
}

func (s *script) service(args []string) {
	name := args[0]
	t := newTask(name, "task-of-"+name, "")
	t.Spec.Placement = &swarm.Placement{}
	t.Spec.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{}}
	p, r := t.Spec.Placement, t.Spec.Resources.Reservations
	for _, arg := range args[1:] {
		k, v, _ := strings.Cut(arg, "=")
		switch {
		case k == "version":
			t.SpecVersion.Index = uint64(s.number(v))
		case k == "cpu":
			r.NanoCPUs = s.number(v) * 1e9
		case k == "mem":
			r.MemoryBytes = s.number(v)
		case strings.HasPrefix(k, "generic."):
			r.GenericResources = append(r.GenericResources,
				swarm.GenericResource{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: k[8:], Value: s.number(v)}})
		case k == "constraint":
			p.Constraints = append(p.Constraints, v)
		case k == "spread":
			p.Preferences = append(p.Preferences, swarm.PlacementPreference{Spread: &swarm.SpreadOver{SpreadDescriptor: v}})
		case k == "max":
			p.MaxReplicas = uint64(s.number(v))
		case k == "platform":
			os, arch, _ := strings.Cut(v, "/")
			p.Platforms = append(p.Platforms, swarm.Platform{OS: os, Architecture: arch})
		case k == "privileged", k == "devices", k == "gpus":
			t.Spec.ContainerSpec = &swarm.ContainerSpec{Labels: map[string]string{"miniswarm." + k: v}}
		case k == "log":
			t.Spec.LogDriver = &swarm.Driver{Name: v}
		case k == "volume":
			t.Spec.ContainerSpec = &swarm.ContainerSpec{Mounts: []mount.Mount{{Type: mount.TypeVolume, Target: "/data",
				VolumeOptions: &mount.VolumeOptions{DriverConfig: &mount.Driver{Name: v}}}}}
		case k == "net":
			t.Spec.Networks = append(t.Spec.Networks, swarm.NetworkAttachmentConfig{Target: v})
		case k == "port", k == "meshport":
			if t.Endpoint == nil {
				t.Endpoint = &swarm.Endpoint{}
			}
			mode := swarm.PortConfigPublishModeHost
			if k == "meshport" {
				mode = swarm.PortConfigPublishModeIngress
			}
			t.Endpoint.Ports = append(t.Endpoint.Ports, swarm.PortConfig{PublishMode: mode, Protocol: swarm.PortConfigProtocolTCP,
				PublishedPort: uint32(s.number(v)), TargetPort: 80})
		default:
			s.t.Fatalf("unknown service option %q", k)
		}
	}
	s.services[name] = t
}

// make gives the task for a placement of a service.
func (s *script) make(t *cluster.Task, p Placement) *cluster.Task {
	s.slots[t.ServiceID]++
	c := *t
	c.Slot = s.slots[t.ServiceID]
	c.ID = fmt.Sprintf("%s.%d", t.ServiceID, c.Slot)
	c.NodeID, c.GenericResources, c.Status.State = p.NodeID, p.GenericResources, swarm.TaskStateRunning
	return &c
}

func (s *script) place(t *cluster.Task, n int) string {
	res := s.a.Place(Group{t, n}, s.now)
	var b strings.Builder
	for _, p := range res.Placements {
		c := s.make(t, p)
		s.booked = append(s.booked, c)
		fmt.Fprintf(&b, "%s -> %s%s\n", c.ID, p.NodeID, claimsText(p.GenericResources))
	}
	return b.String() + res.Decision.Text()
}

func claimsText(claims []swarm.GenericResource) string {
	var parts []string
	for _, g := range claims {
		if n := g.NamedResourceSpec; n != nil {
			parts = append(parts, n.Kind+"="+n.Value)
		} else {
			parts = append(parts, fmt.Sprint(g.DiscreteResourceSpec.Kind, "=", g.DiscreteResourceSpec.Value))
		}
	}
	if parts == nil {
		return ""
	}
	return " with " + strings.Join(parts, " ")
}

func (s *script) check(service, node string) string {
	p, why := s.a.Check(s.services[service], node, s.now)
	if why != "" {
		return why + "\n"
	}
	c := s.make(s.services[service], p)
	s.booked = append(s.booked, c)
	return fmt.Sprintf("%s fits on %s%s\n", c.ID, p.NodeID, claimsText(p.GenericResources))
}

func (s *script) observe(id string, new *cluster.Task) {
	s.a.SetTask(s.tasks[id], new)
	if new == nil {
		delete(s.tasks, id)
		return
	}
	s.tasks[id] = new
}

func (s *script) change(verb, id string) {
	if s.tasks[id] == nil {
		s.t.Fatalf("no task %s among %v", id, slices.Sorted(func(yield func(string) bool) {
			for k := range s.tasks {
				if !yield(k) {
					return
				}
			}
		}))
	}
	c := *s.tasks[id]
	c.Status.Timestamp = s.now
	switch verb {
	case "fail":
		c.Status.State = swarm.TaskStateFailed
	case "reject":
		c.Status.State = swarm.TaskStateRejected
	case "stop":
		c.DesiredState = swarm.TaskStateShutdown
	case "end":
		c.Status.State = swarm.TaskStateShutdown
	case "remove":
		s.observe(id, nil)
		return
	}
	s.observe(id, &c)
}
