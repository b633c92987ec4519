package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/agent/docker"
	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/lab"
)

// node is an agent on a real engine in a lab of one host, with a manager in memory.
type node struct {
	*world
	lab    *lab.Lab
	engine *docker.Adapter
	image  string
}

// probeReport is what testdata/probe tells first.
type probeReport struct {
	UID                             int
	Dir, Hostname                   string
	Env, Args, Addrs                []string
	NoFile                          uint64
	Hosts, Resolv, CapEff, Somaxcon string
	Groups                          []int
	Writable                        map[string]bool
}

func newNode(t *testing.T) *node {
	l := lab.ForTest(t, lab.Options{Nodes: 1, NoDaemon: true})
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "probe"), "./testdata/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build probe: %v\n%s", err, out)
	}
	dockerfile := "FROM scratch\nCOPY probe /probe\nENTRYPOINT [\"/probe\"]\nCMD [\"serve\"]\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		t.Fatal(err)
	}
	image, err := l.BuildImage(t.Context(), "vm1", dir, "probe:1")
	if err != nil {
		t.Fatal(err)
	}
	host, err := l.Host("vm1")
	if err != nil {
		t.Fatal(err)
	}
	engine, err := docker.Open("unix://" + host.EngineSocket)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, life: t.Context(), mesh: &fakeMesh{}, dir: dir, managers: map[string]*manager{}, settle: func() {}}
	w.manager("a").leads()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.config = Config{NodeID: nodeID, StateDir: dir, Logger: log, Engine: engine, Dial: w.dial, Mesh: w.mesh, Version: "test",
		Managers: []protocol.ManagerAddr{{Addr: "a"}}}
	n := &node{world: w, lab: l, engine: engine, image: image}
	n.start()
	t.Cleanup(func() {
		_ = n.stop()
		w.manager("a").die()
		_ = engine.Close()
	})
	n.connected(1)
	return n
}

// eventually waits for something that must come true.
func (n *node) eventually(what string, ok func() bool) {
	n.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			n.Fatalf("waited in vain: %s; tasks:\n%s", what, n.manager("a").tasks())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (n *node) connected(sessions int) {
	n.Helper()
	n.eventually("session with the leader", func() bool { return n.manager("a").heard().sessions >= sessions })
}

func (n *node) reaches(id string, state swarm.TaskState) swarm.TaskStatus {
	n.Helper()
	n.eventually(fmt.Sprintf("task %s %s", id, state), func() bool { return n.manager("a").heard().state[id].State == state })
	return n.manager("a").heard().state[id]
}

func (n *node) probe(id string, args ...string) *cluster.Task {
	t := n.task(id, running)
	t.Spec.ContainerSpec.Image, t.Spec.ContainerSpec.Args = n.image, args
	return t
}

func (n *node) assignMore(tasks ...*cluster.Task) {
	n.Helper()
	n.manager("a").assign(protocol.Assignments{Tasks: tasks})
}

// end removes a task and waits until its container is gone.
func (n *node) end(ids ...string) {
	n.Helper()
	n.manager("a").assign(protocol.Assignments{RemoveTasks: ids})
	n.eventually("containers gone", func() bool {
		list, err := n.engine.List(n.Context(), docker.LabelNodeID, nodeID)
		return err == nil && !slices.ContainsFunc(list, func(c container.Summary) bool { return slices.Contains(ids, c.Labels[docker.LabelTaskID]) })
	})
}

func (n *node) inspect(taskID string) container.InspectResponse {
	n.Helper()
	c, err := n.engine.Inspect(n.Context(), n.manager("a").heard().state[taskID].ContainerStatus.ContainerID)
	if err != nil {
		n.Fatal(err)
	}
	return c
}

// report waits for what the probe tells first; from then on it handles signals.
func (n *node) report(taskID string) probeReport {
	n.Helper()
	var r probeReport
	id := n.inspect(taskID).ID
	n.eventually("report of the probe in "+taskID, func() bool {
		first, _, whole := strings.Cut(n.onHost("docker", "logs", id)+"\n", "\n")
		return whole && json.Unmarshal([]byte(first), &r) == nil
	})
	return r
}

func (n *node) onHost(argv ...string) string {
	n.Helper()
	out, err := n.lab.Output(n.Context(), "vm1", argv...)
	if err != nil {
		n.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// TestOnAnEngine runs tasks on a real Docker Engine. The parts share one host and run one after the other.
func TestOnAnEngine(t *testing.T) {
	n := newNode(t)
	m := n.manager("a")
	m.complete()
	part := func(name string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			outer := n.world.T
			n.world.T = t
			defer func() { n.world.T = outer }()
			f(t)
		})
	}

	part("the spec reaches the process", func(t *testing.T) {
		bind := t.TempDir()
		task := n.probe("spec", "serve", "0")
		s := task.Spec.ContainerSpec
		s.Hostname, s.Env, s.User, s.Dir, s.Groups = "{{.Service.Name}}-{{.Task.Slot}}", []string{"NODE={{.Node.Hostname}}", "A=b"}, "1000", "/bind", []string{"77"}
		s.Labels, s.ReadOnly, s.Hosts = map[string]string{"own": "1"}, true, []string{"192.0.2.9 db"}
		init := true
		s.Init, s.StopSignal = &init, "SIGINT"
		s.DNSConfig = &swarm.DNSConfig{Nameservers: []string{"192.0.2.53"}, Search: []string{"lan"}}
		s.Sysctls = map[string]string{"net.core.somaxconn": "99"}
		s.Ulimits = []*container.Ulimit{{Name: "nofile", Soft: 55, Hard: 66}}
		s.CapabilityDrop = []string{"ALL"}
		s.Mounts = []mount.Mount{
			{Type: mount.TypeBind, Source: bind, Target: "/bindro", ReadOnly: true},
			{Type: mount.TypeBind, Source: bind, Target: "/bind"},
			{Type: mount.TypeVolume, Source: "named", Target: "/named", VolumeOptions: &mount.VolumeOptions{Labels: map[string]string{"task": "{{.Task.ID}}"}}},
			{Type: mount.TypeVolume, Target: "/vol"},
			{Type: mount.TypeTmpfs, Target: "/scratch", TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 1 << 20, Mode: 0o777}},
		}
		if err := os.Chmod(bind, 0o777); err != nil {
			t.Fatal(err)
		}
		task.Spec.Resources = &swarm.ResourceRequirements{Limits: &swarm.Limit{NanoCPUs: 5e8, MemoryBytes: 64 << 20, Pids: 50},
			Reservations: &swarm.Resources{MemoryBytes: 32 << 20}}
		task.Spec.LogDriver = &swarm.Driver{Name: "json-file", Options: map[string]string{"max-size": "1m"}}
		n.assignMore(task)
		n.reaches("spec", running)
		r := n.report("spec")
		if r.UID != 1000 || r.Dir != "/bind" || r.Hostname != "web-1" || !slices.Contains(r.Env, "NODE=vm1") || !slices.Contains(r.Env, "A=b") ||
			!slices.Contains(r.Groups, 77) || r.NoFile != 66 || r.Somaxcon != "99" || r.CapEff != "0000000000000000" {
			t.Errorf("the process sees %+v", r)
		}
		if !strings.Contains(r.Hosts, "192.0.2.9\tdb") || !strings.Contains(r.Resolv, "nameserver 192.0.2.53") || !strings.Contains(r.Resolv, "search lan") {
			t.Errorf("hosts %q\nresolv.conf %q", r.Hosts, r.Resolv)
		}
		if r.Writable["/"] || r.Writable["/bindro"] || !r.Writable["/bind"] || !r.Writable["/scratch"] {
			t.Errorf("writable: %v", r.Writable)
		}
		c := n.inspect("spec")
		h := c.HostConfig
		if h.NanoCPUs != 5e8 || h.Memory != 64<<20 || *h.PidsLimit != 50 || h.MemoryReservation != 0 || !h.RestartPolicy.IsNone() || h.LogConfig.Config["max-size"] != "1m" {
			t.Errorf("host config %+v", h)
		}
		if c.Name != "/web.1.spec" || c.Config.Labels[docker.LabelTaskName] != "web.1.spec" || c.Config.Labels["own"] != "1" {
			t.Errorf("name %s, labels %v", c.Name, c.Config.Labels)
		}
		if got := n.onHost("docker", "volume", "inspect", "named", "--format", "{{.Labels.task}}"); got != "spec" {
			t.Errorf("label of the volume: %q", got)
		}
		n.end("spec")
		if got := n.onHost("docker", "volume", "ls", "-q"); got != "named" {
			t.Errorf("volumes left: %q", got)
		}
	})

	part("ends are noticed", func(t *testing.T) {
		for _, tt := range []struct{ args, state, err string }{
			{"exit 0 100ms", "complete", ""},
			{"exit 3 100ms", "failed", "task: non-zero exit (3)"},
			{"exit 0", "complete", ""},
		} {
			n.assignMore(n.probe("e", strings.Fields(tt.args)...))
			if st := n.reaches("e", swarm.TaskState(tt.state)); st.Err != tt.err {
				t.Errorf("%s: %q", tt.args, st.Err)
			}
			n.end("e")
			m.set(func() { delete(m.record.state, "e") })
		}
		n.assignMore(n.probe("k", "serve"))
		n.reaches("k", running)
		n.onHost("docker", "kill", n.inspect("k").ID)
		began := time.Now()
		if st := n.reaches("k", swarm.TaskStateFailed); st.Err != "task: non-zero exit (137)" || st.ContainerStatus.ExitCode != 137 {
			t.Errorf("killed: %+v", st)
		}
		t.Logf("a kill was reported %s after `docker kill` returned", time.Since(began).Round(time.Millisecond))
		n.assignMore(n.probe("r", "serve"))
		n.reaches("r", running)
		n.onHost("docker", "rm", "-f", n.inspect("r").ID)
		n.reaches("r", swarm.TaskStateFailed)
		n.assignMore(n.probe("no"))
		n.reaches("no", running)
		bad := n.probe("bad")
		bad.Spec.ContainerSpec.Command = []string{"/none"}
		n.assignMore(bad)
		if st := n.reaches("bad", swarm.TaskStateFailed); !strings.HasPrefix(st.Err, "starting container failed: ") {
			t.Errorf("cannot start: %q", st.Err)
		}
		source := n.probe("source")
		source.Spec.ContainerSpec.Mounts = []mount.Mount{{Type: mount.TypeBind, Source: "/does/not/exist", Target: "/x"}}
		n.assignMore(source)
		if st := n.reaches("source", swarm.TaskStateRejected); !strings.Contains(st.Err, "bind source path does not exist: /does/not/exist") {
			t.Errorf("no bind source: %q", st.Err)
		}
		n.end("k", "r", "no", "bad", "source")
	})

	part("pulls", func(t *testing.T) {
		// A registry that never answers: packets to 192.0.2.0/24 lead nowhere.
		n.onHost("docker", "tag", n.image, "192.0.2.1:5000/probe:1")
		local := n.probe("local")
		local.Spec.ContainerSpec.Image = "192.0.2.1:5000/probe:1"
		began := time.Now()
		n.assignMore(local)
		n.reaches("local", running)
		if d := time.Since(began); d > 4*time.Second {
			t.Errorf("a silent registry delayed a task by %s", d)
		}
		missing := n.probe("missing")
		missing.Spec.ContainerSpec.Image = n.lab.Registry() + "/none:1"
		n.assignMore(missing)
		if st := n.reaches("missing", swarm.TaskStateRejected); !strings.HasPrefix(st.Err, "No such image: "+missing.Spec.ContainerSpec.Image) {
			t.Errorf("missing image: %q", st.Err)
		}
		n.end("local", "missing")
		// Removed locally, it comes from the registry, once for both tasks.
		n.onHost("docker", "rmi", "-f", n.image, "192.0.2.1:5000/probe:1")
		n.assignMore(n.probe("p1"), n.probe("p2"))
		n.reaches("p1", running)
		n.reaches("p2", running)
		n.end("p1", "p2")
	})

	part("health gates the start", func(t *testing.T) {
		dir := t.TempDir()
		healthy := func(id string) *cluster.Task {
			task := n.probe(id, "serve")
			task.Spec.ContainerSpec.Mounts = []mount.Mount{{Type: mount.TypeBind, Source: dir, Target: "/bind"}}
			task.Spec.ContainerSpec.Healthcheck = &container.HealthConfig{Test: []string{"CMD", "/probe", "stat", "/bind/ok"},
				Interval: 200 * time.Millisecond, Timeout: 5 * time.Second, Retries: 20, StartInterval: time.Second}
			return task
		}
		n.assignMore(healthy("h1"))
		n.reaches("h1", swarm.TaskStateStarting)
		time.Sleep(500 * time.Millisecond) // it must still be starting after some checks
		if st := m.heard().state["h1"]; st.State != swarm.TaskStateStarting {
			t.Errorf("not healthy yet: %+v", st)
		}
		if err := os.WriteFile(filepath.Join(dir, "ok"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		n.reaches("h1", running)
		if err := os.Remove(filepath.Join(dir, "ok")); err != nil {
			t.Fatal(err)
		}
		if st := n.reaches("h1", swarm.TaskStateFailed); st.Err != "task: non-zero exit (0): dockerexec: unhealthy container" {
			t.Errorf("unhealthy: %q", st.Err)
		}
		n.end("h1")
	})

	part("stopping", func(t *testing.T) {
		grace := time.Second
		deaf := n.probe("deaf", "deaf")
		deaf.Spec.ContainerSpec.StopGracePeriod = &grace
		polite := n.probe("polite", "serve", "5")
		polite.Spec.ContainerSpec.StopSignal = "SIGINT"
		n.assignMore(deaf, polite)
		for _, id := range []string{"deaf", "polite"} {
			n.reaches(id, running)
			n.report(id)
		}
		for _, task := range []*cluster.Task{deaf, polite} {
			stop := *task
			stop.DesiredState = shutdown
			began := time.Now()
			n.assignMore(&stop)
			st := n.reaches(task.ID, shutdown)
			d := time.Since(began)
			switch task.ID {
			case "deaf":
				if d < grace || d > 4*grace || st.ContainerStatus.ExitCode != 137 {
					t.Errorf("deaf: stopped after %s with %+v", d, st.ContainerStatus)
				}
			case "polite":
				if d > 2*time.Second || st.ContainerStatus.ExitCode != 5 || !strings.Contains(n.onHost("sh", "-c", "docker logs "+st.ContainerStatus.ContainerID+" 2>&1"), "got interrupt") {
					t.Errorf("polite: stopped after %s with %+v", d, st.ContainerStatus)
				}
			}
		}
		n.end("deaf", "polite")
	})

	part("ports of the host", func(t *testing.T) {
		task := n.probe("port", "serve")
		task.Endpoint = &swarm.Endpoint{Ports: []swarm.PortConfig{
			{TargetPort: 80, PublishedPort: 8080, Protocol: "tcp", PublishMode: swarm.PortConfigPublishModeHost},
			{TargetPort: 53, Protocol: "udp", PublishMode: swarm.PortConfigPublishModeHost}}}
		n.assignMore(task)
		st := n.reaches("port", running)
		if p := st.PortStatus.Ports; len(p) != 2 || p[0].PublishedPort != 8080 || p[1].PublishedPort == 0 {
			t.Errorf("port status %+v", p)
		}
		n.end("port")
	})

	part("networks", func(t *testing.T) {
		ingress, app := &cluster.Network{VNI: 4096, Network: swarm.Network{ID: "aaaaaaaaaaaaaaaaaaaaaaaaa"}}, &cluster.Network{VNI: 4097, Network: swarm.Network{ID: "bbbbbbbbbbbbbbbbbbbbbbbbb"}}
		ingress.Spec.Name, ingress.Spec.Ingress, app.Spec.Name = "ingress", true, "app_default"
		task := n.probe("net", "serve")
		task.NetworksAttachments = []swarm.NetworkAttachment{{Network: ingress.Network, Addresses: []string{"10.64.0.44/24"}}, {Network: app.Network, Addresses: []string{"10.64.1.44/24"}}}
		task.Spec.Networks = []swarm.NetworkAttachmentConfig{{Target: app.ID, Aliases: []string{"api"}}}
		n.onHost("docker", "network", "create", "app_default") // somebody else's of the same name
		m.assign(protocol.Assignments{Tasks: []*cluster.Task{task}, Networks: []*cluster.Network{ingress, app}})
		time.Sleep(200 * time.Millisecond) // it waits for the node's own addresses
		m.assign(protocol.Assignments{Node: &cluster.Node{Node: swarm.Node{ID: nodeID}, DataAddr: "192.0.2.1",
			Attachments: map[string]string{ingress.ID: "10.64.0.2/24", app.ID: "10.64.1.2/24"}}})
		n.reaches("net", running)
		nets := n.inspect("net").NetworkSettings.Networks
		in, ap := nets["ingress"], nets["app_default-bbbbbbbbbb"]
		if in == nil || in.IPAddress != "10.64.0.44" || in.Gateway != "10.64.0.2" || ap == nil || ap.IPAddress != "10.64.1.44" || !slices.Contains(ap.Aliases, "api") {
			t.Errorf("networks %+v %+v", in, ap)
		}
		if got := n.onHost("ip", "-o", "-4", "addr", "show", "dev", "msb-aaaaaaaaaa"); !strings.Contains(got, "10.64.0.2/24") {
			t.Errorf("bridge: %s", got)
		}
		if got := n.report("net").Addrs; !slices.Contains(got, "10.64.0.44/24") || !slices.Contains(got, "10.64.1.44/24") {
			t.Errorf("the process sees addresses %v", got)
		}
		n.end("net")
		n.onHost("docker", "network", "rm", "app_default")
	})

	part("logs", func(t *testing.T) {
		tty := n.probe("tty", "serve")
		tty.Spec.ContainerSpec.TTY = true
		n.assignMore(n.probe("plain", "serve"), tty)
		for _, id := range []string{"plain", "tty"} {
			n.reaches(id, running)
			n.report(id)
			m.send(protocol.ToAgent{LogRequest: &protocol.LogRequest{ID: id, TaskID: id, Stdout: true, Stderr: true, Follow: true, Tail: "all"}})
		}
		stop := func(id string) {
			task := n.probe(id, "serve")
			task.DesiredState = shutdown
			n.assignMore(task)
		}
		stop("plain")
		stop("tty")
		n.eventually("both logs end", func() bool { return len(m.heard().logEnds) == 2 })
		all := strings.Join(m.heard().logLines, "")
		if strings.Count(all, `"Hostname"`) != 2 || strings.Count(all, "stderr: got terminated\n") != 1 || strings.Count(all, "stdout: got terminated\r\n") != 1 {
			t.Errorf("log lines:\n%s", all)
		}
		n.end("plain", "tty")
	})

	part("the agent restarts", func(t *testing.T) {
		n.assignMore(n.probe("t1"), n.probe("t2"))
		n.reaches("t1", running)
		n.reaches("t2", running)
		before := n.inspect("t1")
		_ = n.stop()
		m.hangUp()
		m.set(func() { clear(m.record.state) })
		n.onHost("docker", "kill", n.onHost("docker", "ps", "-q", "--filter", "name=web.1.t2"))
		n.start()
		n.connected(2)
		n.reaches("t1", running)
		n.reaches("t2", swarm.TaskStateFailed)
		after := n.inspect("t1")
		if after.ID != before.ID || after.State.StartedAt != before.State.StartedAt || after.RestartCount != 0 {
			t.Errorf("container %s of %s became %s of %s", before.ID, before.State.StartedAt, after.ID, after.State.StartedAt)
		}
		m.complete(n.probe("t1"))
		n.eventually("t2 gone", func() bool { return n.onHost("docker", "ps", "-aq", "--filter", "name=web.1.t2") == "" })
	})

	for _, how := range []struct {
		name string
		end  func(context.Context, string) error
	}{{"the engine stops", n.lab.StopEngine}, {"the engine is killed", n.lab.KillEngine}} {
		part(how.name, func(t *testing.T) {
			m.complete(n.probe("s1", "serve", "0"), n.probe("s2", "serve", "4"))
			for _, id := range []string{"s1", "s2"} {
				n.reaches(id, running)
				n.report(id)
			}
			sessions := m.heard().sessions
			if err := how.end(t.Context(), "vm1"); err != nil {
				t.Fatal(err)
			}
			n.assignMore(n.probe("s3"))
			time.Sleep(time.Second) // the agent has its chance to do something foolish
			if err := n.lab.StartEngine(t.Context(), "vm1"); err != nil {
				t.Fatal(err)
			}
			n.reaches("s3", running)
			for _, id := range []string{"s1", "s2"} {
				st := n.reaches(id, swarm.TaskStateFailed)
				t.Logf("%s: %s", id, st.Err)
			}
			if got := m.heard().sessions; got != sessions {
				t.Errorf("%d new sessions", got-sessions)
			}
			m.complete()
			n.eventually("all gone", func() bool { return n.onHost("docker", "ps", "-aq") == "" })
			m.set(func() { clear(m.record.state) })
		})
	}

	part("eight at once", func(t *testing.T) {
		var tasks []*cluster.Task
		for i := range 8 {
			tasks = append(tasks, n.probe(fmt.Sprintf("w%d", i), "serve"))
		}
		began := time.Now()
		n.assignMore(tasks...)
		for _, task := range tasks {
			n.reaches(task.ID, running)
		}
		ours := time.Since(began)
		m.complete()
		n.eventually("all gone", func() bool { return n.onHost("docker", "ps", "-aq") == "" })
		began = time.Now()
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { _, _ = n.lab.Output(t.Context(), "vm1", "docker", "run", "-d", n.image, "serve") })
		}
		wg.Wait()
		t.Logf("8 tasks RUNNING after %s; 8 parallel `docker run` took %s", ours.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
		n.onHost("sh", "-c", "docker rm -f $(docker ps -aq)")
	})

	part("cycles leave nothing behind", func(t *testing.T) {
		for i := range 10 {
			id := fmt.Sprintf("c%d", i)
			n.assignMore(n.probe(id, "serve"))
			n.reaches(id, running)
			n.end(id)
		}
		if got := n.onHost("docker", "ps", "-aq"); got != "" {
			t.Errorf("containers left: %s", got)
		}
		if k := len(n.agent.reporter.latest); k != 0 {
			t.Errorf("%d statuses remembered", k)
		}
	})

	part("leaving", func(t *testing.T) {
		n.assignMore(n.probe("l1"))
		n.reaches("l1", running)
		n.onHost("docker", "run", "-d", "--name", "neighbour", n.image, "serve")
		_ = n.stop()
		if err := n.agent.Leave(t.Context()); err != nil {
			t.Error(err)
		}
		if got := n.onHost("docker", "ps", "-a", "--format", "{{.Names}}"); got != "neighbour" {
			t.Errorf("containers left: %s", got)
		}
		if got := n.onHost("docker", "network", "ls", "-q", "--filter", "label="+docker.LabelNetworkNode); got != "" {
			t.Errorf("networks left: %s", got)
		}
		n.ended <- nil // for the clean-up, which stops the agent again
	})
}
