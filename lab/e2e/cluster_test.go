package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"
	"golang.org/x/sync/errgroup"

	"github.com/miniswarm/miniswarm/lab"
)

// The labels by which Swarm's tools find the containers of services; miniswarm sets the same.
const (
	serviceLabel = "com.docker.swarm.service.name"
	taskLabel    = "com.docker.swarm.task.id"
)

// patience bounds every wait that has no tighter bound of its own. What is waited for takes a second or two on an idle
// machine.
const patience = 90 * time.Second

// testCluster is a lab with a cluster on some of its hosts.
type testCluster struct {
	*lab.Lab
	binary string // the miniswarm command
	hosts  []lab.Host
	// managers and workers are hosts of the cluster, spare ones belong to none.
	managers, workers, spare []string
	// prime and witness are images that every engine has, each with the tags 1 and 2 for versions to update between, and
	// h1 and h2, the same with a health check.
	prime, witness string
	// read says how much of each daemon's log has been looked through for panics.
	read map[string]int64
}

// built holds what is built once for all labs of a run.
var built = sync.OnceValues(func() (string, error) {
	dir := os.Getenv(childVariable)
	build := func(out, pkg, cgo string, flags ...string) error {
		cmd := exec.Command("go", append(append([]string{"build", "-o", out}, flags...), pkg)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
		if said, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", pkg, err, said)
		}
		return nil
	}
	cgo, flags := "0", []string(nil)
	if os.Getenv(raceVariable) == "1" {
		cgo, flags = "1", []string{"-race"}
	}
	var errs []error
	errs = append(errs, build(filepath.Join(dir, "miniswarm"), "github.com/miniswarm/miniswarm/cmd/miniswarm", cgo, flags...))
	errs = append(errs, build(filepath.Join(dir, "prime"), "github.com/miniswarm/miniswarm/examples/prime", "0"),
		build(filepath.Join(dir, "witness"), "./testdata/witness", "0"), build(filepath.Join(dir, "jobs"), "github.com/miniswarm/miniswarm/examples/jobs", "0"))
	for _, i := range images {
		at := filepath.Join(dir, i.name+"-"+i.tag)
		text := fmt.Sprintf("FROM scratch\nCOPY %[1]s /%[1]s\nENV VERSION=%[2]s\nENTRYPOINT [\"/%[1]s\"]\n", i.name, i.tag)
		if i.health != "" {
			text += "HEALTHCHECK --interval=1s --timeout=10s " + i.health + "\n"
		}
		errs = append(errs, os.Mkdir(at, 0o755), os.Link(filepath.Join(dir, i.name), filepath.Join(at, i.name)),
			os.WriteFile(filepath.Join(at, "Dockerfile"), []byte(text), 0o644))
	}
	return dir, errors.Join(errs...)
})

// images are built once and are on every host.
var images = []struct{ name, tag, health string }{
	{"prime", "1", ""}, {"prime", "2", ""},
	{"prime", "h1", `CMD ["/prime", "-healthcheck"]`}, {"prime", "h2", `CMD ["/prime", "-healthcheck"]`},
	{"witness", "1", ""}, {"witness", "2", ""},
	{"witness", "h1", `CMD ["/witness", "get", "http://127.0.0.1:8000/healthz"]`}, {"witness", "h2", `CMD ["/witness", "get", "http://127.0.0.1:8000/healthz"]`},
	{"jobs", "1", ""},
}

// up makes a lab of that many hosts and puts the images on them. The cluster is the caller's to form.
func up(ctx context.Context, name string, opts lab.Options) (*testCluster, error) {
	dir, err := built()
	if err != nil {
		return nil, err
	}
	opts.Name, opts.Ephemeral, opts.MiniswarmBinary = labPrefix(dir)+name, true, filepath.Join(dir, "miniswarm")
	var said strings.Builder
	l, err := lab.Up(ctx, opts, &said)
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, said.String())
	}
	c := &testCluster{Lab: l, binary: opts.MiniswarmBinary, read: map[string]int64{}}
	c.prime, c.witness = l.Registry()+"/prime", l.Registry()+"/witness"
	if c.hosts, err = l.Hosts(); err != nil {
		return nil, errors.Join(err, l.Down(ctx))
	}
	var g errgroup.Group
	for _, i := range images {
		g.Go(func() error {
			ref, err := l.BuildImage(ctx, "vm1", filepath.Join(dir, i.name+"-"+i.tag), i.name+":"+i.tag)
			if err == nil {
				err = l.Preload(ctx, ref)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, errors.Join(err, l.Down(ctx))
	}
	return c, nil
}

// shared is the lab that the tests use one after the other.
var shared *testCluster

func dropShared() error {
	if shared == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := shared.Down(ctx)
	shared = nil
	return err
}

// needLab skips a test where no labs are asked for.
func needLab(t *testing.T) {
	t.Helper()
	if os.Getenv(lab.TestVariable) != "1" {
		t.Skipf("set %s=1 to run tests on real hosts", lab.TestVariable)
	}
}

// ownLab gives a test a lab of its own, which is gone when the test ends. The cluster is the caller's to form, unless opts ask for it.
func ownLab(t *testing.T, name string, opts lab.Options) *testCluster {
	t.Helper()
	needLab(t)
	c, err := up(t.Context(), name, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.unharmed(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			c.showLogs(t)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := c.Down(ctx); err != nil {
			t.Error(err)
		}
	})
	return c
}

// onShared gives a test the shared lab: vm1 a manager, vm2 and vm3 workers, vm4 part of no cluster. When the test ends
// the lab must be as it was.
func onShared(t *testing.T) *testCluster {
	t.Helper()
	needLab(t)
	if shared == nil {
		start := time.Now()
		c, err := up(t.Context(), "shared", lab.Options{Nodes: 4})
		if err != nil {
			t.Fatal(err)
		}
		shared = c
		c.managers, c.workers, c.spare = []string{"vm1"}, []string{"vm2", "vm3"}, []string{"vm4"}
		c.form(t)
		t.Logf("lab, images and cluster: %.1f s", time.Since(start).Seconds())
	}
	c := shared
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		showed := t.Failed()
		if showed {
			c.showLogs(t)
		}
		if err := errors.Join(c.restore(ctx), c.unharmed()); err != nil {
			if !showed {
				c.showLogs(t)
			}
			t.Errorf("the lab after %s: %v", t.Name(), err)
			if err := dropShared(); err != nil {
				t.Error(err)
			}
		}
	})
	return c
}

// form makes the cluster with the commands and the words of the story.
func (c *testCluster) form(t *testing.T) {
	t.Helper()
	out := c.miniswarm(t, "vm1", "init")
	id := between(out, "Swarm initialized: current node (", ") is now a manager.")
	if len(id) != 25 {
		t.Errorf("init names no node id of 25 characters:\n%s", out)
	}
	_, line, _ := strings.Cut(out, "\n    miniswarm ")
	line, _, _ = strings.Cut(line, "\n")
	for _, w := range c.workers {
		if got := strings.TrimSpace(c.miniswarm(t, w, strings.Fields(line)...)); got != "This node joined a swarm as a worker." {
			t.Errorf("%s said on joining: %s", w, got)
		}
	}
	c.allReady(t)
}

// allReady waits until every node of the cluster is Ready and Active.
func (c *testCluster) allReady(t *testing.T) {
	t.Helper()
	eventually(t, "nodes are Ready", patience, func() error { return c.ready(t.Context()) })
}

func (c *testCluster) ready(ctx context.Context) error {
	nodes, err := c.swarm(c.leader()).NodeList(ctx, swarm.NodeListOptions{})
	if err != nil {
		return err
	}
	ready := 0
	for _, n := range nodes {
		if n.Status.State == swarm.NodeStateReady && n.Spec.Availability == swarm.NodeAvailabilityActive {
			ready++
		}
	}
	if want := len(c.managers) + len(c.workers); ready != want || len(nodes) != want {
		return fmt.Errorf("%d of %d nodes are Ready and Active; %d are known", ready, want, len(nodes))
	}
	return nil
}

// leader names a manager whose daemon runs and suffers from nothing; any manager will do for any request.
func (c *testCluster) leader() string {
	for _, m := range c.managers {
		if h, err := c.Host(m); err == nil && h.Daemon && !h.Cut && len(h.Faults) == 0 {
			return m
		}
	}
	return c.managers[0]
}

// restore brings every host and daemon back, removes what a test has made, and waits until nothing of it is left
// anywhere. It is an error when something will not go.
func (c *testCluster) restore(ctx context.Context) error {
	for _, h := range c.hosts {
		now, err := c.Host(h.Name)
		if err != nil {
			return err
		}
		if now.Cut {
			err = c.Heal(ctx, h.Name)
		}
		if err := errors.Join(err, c.Start(ctx, h.Name)); err != nil {
			return err
		}
	}
	api := c.swarm(c.leader())
	if err := within(ctx, patience, func() error { return c.activate(ctx) }); err != nil {
		return fmt.Errorf("nodes: %w", err)
	}
	services, err := api.ServiceList(ctx, swarm.ServiceListOptions{})
	if err != nil {
		return err
	}
	for _, s := range services {
		if err := api.ServiceRemove(ctx, s.ID); err != nil {
			return err
		}
	}
	secrets, err := api.SecretList(ctx, swarm.SecretListOptions{})
	if err != nil {
		return err
	}
	for _, s := range secrets {
		if err := api.SecretRemove(ctx, s.ID); err != nil {
			return err
		}
	}
	configs, err := api.ConfigList(ctx, swarm.ConfigListOptions{})
	if err != nil {
		return err
	}
	for _, f := range configs {
		if err := api.ConfigRemove(ctx, f.ID); err != nil {
			return err
		}
	}
	if err := within(ctx, patience, func() error { return c.empty(ctx) }); err != nil {
		return fmt.Errorf("left over: %w", err)
	}
	return nil
}

// activate makes every node Active and says whether all are Ready.
func (c *testCluster) activate(ctx context.Context) error {
	api := c.swarm(c.leader())
	nodes, err := api.NodeList(ctx, swarm.NodeListOptions{})
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if n.Spec.Availability != swarm.NodeAvailabilityActive {
			n.Spec.Availability = swarm.NodeAvailabilityActive
			if err := api.NodeUpdate(ctx, n.ID, n.Version, n.Spec); err != nil {
				return err
			}
		}
	}
	return c.ready(ctx)
}

// empty says what of services and networks is left, in the cluster or on an engine. It removes networks that services
// no longer hold.
func (c *testCluster) empty(ctx context.Context) error {
	api := c.swarm(c.leader())
	networks, err := api.NetworkList(ctx, network.ListOptions{Filters: filters.NewArgs(filters.Arg("scope", "swarm"))})
	if err != nil {
		return err
	}
	for _, n := range networks {
		if n.Ingress {
			continue
		}
		if err := api.NetworkRemove(ctx, n.ID); err != nil {
			return err
		}
	}
	for _, h := range c.hosts {
		if files, err := c.taskFiles(ctx, h.Name); err != nil || files != "" {
			return fmt.Errorf("files of tasks on %s: %q, %w", h.Name, files, err)
		}
		all, err := c.labelled(ctx, h.Name, true)
		if err != nil {
			return err
		}
		for _, one := range all {
			return fmt.Errorf("container %s (%s) on %s", one.Names[0], one.State, h.Name)
		}
	}
	return nil
}

// unharmed looks through what the daemons have logged since the last time for what no test excuses.
func (c *testCluster) unharmed() error {
	var errs []error
	for _, h := range c.hosts {
		data, err := os.ReadFile(h.DaemonLog)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		fresh := data[min(c.read[h.Name], int64(len(data))):]
		c.read[h.Name] = int64(len(data))
		for _, bad := range []string{"panic", "fatal error:", "DATA RACE"} {
			if at := bytes.Index(fresh, []byte(bad)); at >= 0 {
				errs = append(errs, fmt.Errorf("the daemon of %s: %s", h.Name, fresh[at:min(at+4000, len(fresh))]))
			}
		}
	}
	return errors.Join(errs...)
}

// showLogs prints the ends of the daemons' logs.
func (c *testCluster) showLogs(t *testing.T) {
	for _, h := range c.hosts {
		data, err := os.ReadFile(h.DaemonLog)
		if err != nil {
			t.Log(err)
			continue
		}
		var lines []string
		for line := range strings.Lines(string(data)) {
			if strings.Contains(line, " level=") { // not the goroutines that a daemon was asked to print
				lines = append(lines, line)
			}
		}
		t.Logf("==> daemon of %s\n%s", h.Name, strings.Join(lines[max(0, len(lines)-60):], ""))
	}
}

// labelled lists the containers of services on a host's engine, also those that do not run if all is set.
func (c *testCluster) labelled(ctx context.Context, host string, all bool) ([]container.Summary, error) {
	return c.engine(host).ContainerList(ctx, container.ListOptions{All: all, Filters: filters.NewArgs(filters.Arg("label", taskLabel))})
}

// swarm is a client of a host's daemon, engine of its engine alone.
func (c *testCluster) swarm(host string) *client.Client  { return c.dial(host, true) }
func (c *testCluster) engine(host string) *client.Client { return c.dial(host, false) }

func (c *testCluster) dial(host string, daemon bool) *client.Client {
	h, err := c.Host(host)
	socket := h.EngineSocket
	if daemon {
		socket = h.DaemonSocket
	}
	if err != nil {
		socket = "/nonexistent/" + host // the first request says so
	}
	// A connection a request: nothing is kept that the next failure would break, or that a daemon would have to hold.
	// A daemon that hangs is an error in the end, for who asks without a time limit as well.
	short := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, ResponseHeaderTimeout: patience}}
	cl, err := client.NewClientWithOpts(client.WithHTTPClient(short), client.WithHost("unix://"+socket), client.WithAPIVersionNegotiation())
	if err != nil {
		panic(err) // a constant form of address
	}
	return cl
}

// miniswarm runs the command line inside a host and returns what it printed; failing is fatal.
func (c *testCluster) miniswarm(t *testing.T, host string, args ...string) string {
	t.Helper()
	out, err := c.tryMiniswarm(t, host, args...)
	if err != nil {
		t.Fatalf("miniswarm %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (c *testCluster) tryMiniswarm(t *testing.T, host string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	return c.Output(ctx, host, append([]string{c.binary}, args...)...)
}

// docker runs the stock client inside a host, pointed at the miniswarm daemon; failing is fatal.
func (c *testCluster) docker(t *testing.T, host string, args ...string) string {
	t.Helper()
	out, err := c.tryDocker(t, host, args...)
	if err != nil {
		t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (c *testCluster) tryDocker(t *testing.T, host string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	return c.Output(ctx, host, append([]string{"docker", "-H", "unix:///run/miniswarm.sock"}, args...)...)
}

// replica is a running container of a service, as its engine tells.
type replica struct {
	host, id, name, image, task string
	started                     string
}

// replicas lists the running containers of a service on all hosts that are on, in order of host and name.
func (c *testCluster) replicas(t *testing.T, service string) []replica {
	t.Helper()
	all, err := c.tryReplicas(t.Context(), service)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func (c *testCluster) tryReplicas(ctx context.Context, service string) ([]replica, error) {
	var all []replica
	for _, h := range c.hosts {
		if now, err := c.Host(h.Name); err != nil || !now.Engine {
			continue
		}
		list, err := c.engine(h.Name).ContainerList(ctx, container.ListOptions{Filters: filters.NewArgs(filters.Arg("label", serviceLabel+"="+service))})
		if err != nil {
			return nil, fmt.Errorf("containers of %s: %w", h.Name, err)
		}
		for _, one := range list {
			d, err := c.engine(h.Name).ContainerInspect(ctx, one.ID)
			if err != nil {
				return nil, fmt.Errorf("containers of %s: %w", h.Name, err)
			}
			all = append(all, replica{host: h.Name, id: d.ID, name: strings.TrimPrefix(d.Name, "/"), image: d.Config.Image,
				task: d.Config.Labels[taskLabel], started: d.State.StartedAt})
		}
	}
	slices.SortFunc(all, func(a, b replica) int { return strings.Compare(a.host+" "+a.name, b.host+" "+b.name) })
	return all, nil
}

// running waits until a service has exactly n running containers, and as many running tasks, which are these.
func (c *testCluster) running(t *testing.T, service string, n int) []replica {
	t.Helper()
	var all []replica
	eventually(t, fmt.Sprintf("%s runs %d replicas", service, n), patience, func() (err error) {
		all, err = c.converged(t.Context(), service, n)
		return err
	})
	return all
}

func (c *testCluster) converged(ctx context.Context, service string, n int) ([]replica, error) {
	tasks, err := c.tasks(ctx, service)
	if err != nil {
		return nil, err
	}
	all, err := c.tryReplicas(ctx, service)
	if err != nil {
		return nil, err
	}
	live := map[string]bool{}
	for _, task := range tasks {
		if task.Status.State == swarm.TaskStateRunning {
			live[task.ID] = true
		}
	}
	if len(all) != n || len(tasks) != n || len(live) != n {
		return nil, fmt.Errorf("%d containers, %d tasks, %d of them running", len(all), len(tasks), len(live))
	}
	for _, r := range all {
		if !live[r.task] {
			return nil, fmt.Errorf("container %s on %s belongs to no running task", r.name, r.host)
		}
	}
	return all, nil
}

// accounted says whether every container of a service, running or not, belongs to a task that the cluster knows and
// has put on that host, and whether those that run should (I10).
func (c *testCluster) accounted(ctx context.Context) error {
	api := c.swarm(c.leader())
	nodes, err := api.NodeList(ctx, swarm.NodeListOptions{})
	if err != nil {
		return err
	}
	tasks, err := api.TaskList(ctx, swarm.TaskListOptions{})
	if err != nil {
		return err
	}
	hostname, known := map[string]string{}, map[string]swarm.Task{}
	for _, n := range nodes {
		hostname[n.ID] = n.Description.Hostname
	}
	for _, task := range tasks {
		known[task.ID] = task
	}
	for _, h := range c.hosts {
		if now, err := c.Host(h.Name); err != nil || !now.Engine {
			continue
		}
		list, err := c.labelled(ctx, h.Name, true)
		if err != nil {
			return err
		}
		for _, one := range list {
			task, ok := known[one.Labels[taskLabel]]
			switch {
			case !ok:
				return fmt.Errorf("container %s (%s) on %s belongs to no task", one.Names[0], one.State, h.Name)
			case hostname[task.NodeID] != h.Name:
				return fmt.Errorf("container %s (%s) on %s belongs to a task of %s", one.Names[0], one.State, h.Name, hostname[task.NodeID])
			case one.State == "running" && task.DesiredState != swarm.TaskStateRunning && task.DesiredState != swarm.TaskStateComplete:
				return fmt.Errorf("container %s on %s runs, its task should be %s", one.Names[0], h.Name, task.DesiredState)
			}
		}
	}
	return nil
}

// spread counts replicas by host.
func spread(all []replica) map[string]int {
	counts := map[string]int{}
	for _, r := range all {
		counts[r.host]++
	}
	return counts
}

// untouched checks that the old containers are there still, the same ones, running since the same moment.
func untouched(t *testing.T, old, now []replica) {
	t.Helper()
	for _, o := range old {
		if !slices.ContainsFunc(now, func(n replica) bool { return n.id == o.id && n.started == o.started }) {
			t.Errorf("container %s on %s, running since %s, was replaced or restarted; now there are %+v", o.name, o.host, o.started, now)
		}
	}
}

// addr is a host's address with a port.
func (c *testCluster) addr(host string, port int) string {
	for _, h := range c.hosts {
		if h.Name == host {
			return fmt.Sprintf("%s:%d", h.Addr, port)
		}
	}
	return "unknown-host-" + host
}

func between(s, before, after string) string {
	_, s, _ = strings.Cut(s, before)
	s, _, ok := strings.Cut(s, after)
	if !ok {
		return ""
	}
	return s
}
