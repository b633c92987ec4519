package docker_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"github.com/google/go-cmp/cmp"

	"github.com/miniswarm/miniswarm/agent/docker"
	"github.com/miniswarm/miniswarm/agent/docker/fake"
	"github.com/miniswarm/miniswarm/cluster"
)

const node1 = "node1"

// bench is a fake engine with a runtime on it, in a synctest bubble.
type bench struct {
	*testing.T
	e  *fake.Engine
	rt *docker.Runtime
}

func withBench(t *testing.T, f func(b *bench)) {
	synctest.Test(t, func(t *testing.T) {
		e := fake.New()
		w := docker.NewWatcher(e, node1, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = w.Run(ctx) }()
		synctest.Wait()
		f(&bench{t, e, &docker.Runtime{
			Engine: e, Watcher: w, Images: docker.NewImages(e), Networks: docker.NewNetworks(e, node1),
			Node: func() docker.Node { return docker.Node{ID: node1, FixedAddresses: true} },
			Attachment: func(_ context.Context, id string) (netip.Prefix, error) {
				return map[string]netip.Prefix{"net1": netip.MustParsePrefix("10.0.1.9/24")}[id], nil
			},
			Logger: slog.New(slog.DiscardHandler),
		}})
		cancel()
		<-done
	})
}

func (b *bench) task(image string) *cluster.Task {
	t := &cluster.Task{Task: swarm.Task{ID: "task1", ServiceID: "svc1", Slot: 1, NodeID: node1,
		Spec: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: image}}}}
	t.ServiceAnnotations.Name = "web"
	return t
}

func (b *bench) controller(t *cluster.Task) *docker.Controller {
	b.Helper()
	c, err := docker.NewController(b.rt, t)
	if err != nil {
		b.Fatal(err)
	}
	return c
}

func (b *bench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *bench) wantErr(err error, want string) {
	b.Helper()
	if err == nil || err.Error() != want {
		b.Errorf("got error %v, want %s", err, want)
	}
}

// up prepares and starts.
func (b *bench) up(c *docker.Controller) {
	b.Helper()
	b.must(c.Prepare(b.Context()))
	b.must(c.Start(b.Context()))
}

func TestLifeOfATask(t *testing.T) {
	withBench(t, func(b *bench) {
		b.e.SetImage("web:1", fake.Program{Exits: time.Minute})
		c := b.controller(b.task("web:1"))
		b.up(c)
		b.up(c) // every step may be repeated
		st, _ := c.Status()
		if st.ContainerID == "" || st.PID == 0 || b.e.Starts(st.ContainerID) != 1 {
			b.Errorf("status %+v, started %d times", st, b.e.Starts(st.ContainerID))
		}
		began := time.Now()
		b.must(c.Wait(b.Context()))
		if d := time.Since(began); d != time.Minute {
			b.Errorf("noticed the exit after %s", d)
		}
		b.must(c.Shutdown(b.Context()))
		b.must(c.Remove(b.Context()))
		b.must(c.Remove(b.Context()))
		b.must(c.Shutdown(b.Context()))
		if got := b.e.Describe(); got != "" {
			b.Errorf("left over: %s", got)
		}
	})
}

func TestExitCodes(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(e *fake.Engine, id string)
		want string
	}{
		{name: "zero", do: func(e *fake.Engine, id string) { e.Exit(id, 0) }},
		{name: "other", do: func(e *fake.Engine, id string) { e.Exit(id, 3) }, want: "task: non-zero exit (3)"},
		{name: "killed behind its back", do: func(e *fake.Engine, id string) { e.Kill(id) }, want: "task: non-zero exit (137)"},
		{name: "removed behind its back", do: func(e *fake.Engine, id string) { _ = e.Remove(context.Background(), id) }, want: "No such container: web.1.task1"},
		{name: "unhealthy", do: func(e *fake.Engine, id string) { e.Sicken(id) }, want: "task: non-zero exit (143): dockerexec: unhealthy container"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			withBench(t, func(b *bench) {
				b.e.SetImage("web:1", fake.Program{Term: 143})
				c := b.controller(b.task("web:1"))
				b.up(c)
				st, _ := c.Status()
				time.AfterFunc(time.Second, func() { tt.do(b.e, st.ContainerID) })
				err := c.Wait(b.Context())
				if tt.want == "" {
					b.must(err)
				} else {
					b.wantErr(err, tt.want)
				}
			})
		})
	}
}

func TestAnExitWithoutWitnessFailsAServiceButNotAJob(t *testing.T) {
	for _, tt := range []struct {
		name string
		job  bool
		do   func(e *fake.Engine)
	}{
		{"shutdown", false, (*fake.Engine).Shutdown},
		{"shutdown of a job", true, (*fake.Engine).Shutdown},
		{"away while it ended", false, func(e *fake.Engine) { e.Vanish(); e.Exit(e.Ids()[0], 0) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			withBench(t, func(b *bench) {
				b.e.SetImage("web:1", fake.Program{})
				task := b.task("web:1")
				if tt.job {
					task.JobIteration = &swarm.Version{}
				}
				c := b.controller(task)
				b.up(c)
				time.AfterFunc(time.Second, func() { tt.do(b.e) })
				time.AfterFunc(5*time.Second, b.e.Return)
				err := c.Wait(b.Context())
				for errors.Is(err, docker.ErrUnavailable) {
					time.Sleep(time.Second)
					err = c.Wait(b.Context())
				}
				if tt.job {
					b.must(err)
				} else {
					b.wantErr(err, "task: exit (0): stopped while the engine was away")
				}
			})
		})
	}
}

func TestAContainerThatSurvivesTheEngineGoesOn(t *testing.T) {
	withBench(t, func(b *bench) {
		b.e.SetImage("web:1", fake.Program{Exits: time.Hour})
		c := b.controller(b.task("web:1"))
		b.up(c)
		time.AfterFunc(time.Minute, b.e.Vanish)
		time.AfterFunc(2*time.Minute, b.e.Return)
		began := time.Now()
		err := c.Wait(b.Context())
		for errors.Is(err, docker.ErrUnavailable) {
			time.Sleep(time.Second)
			err = c.Wait(b.Context())
		}
		b.must(err)
		if d := time.Since(began).Round(time.Minute); d != time.Hour {
			b.Errorf("ended after %s", d)
		}
	})
}

func TestHealthGatesTheStart(t *testing.T) {
	withBench(t, func(b *bench) {
		b.e.SetImage("web:1", fake.Program{Health: 7 * time.Second})
		c := b.controller(b.task("web:1"))
		began := time.Now()
		b.up(c)
		if d := time.Since(began); d != 7*time.Second {
			b.Errorf("started after %s, want after the health check's 7 s", d)
		}
	})
	withBench(t, func(b *bench) {
		b.e.SetImage("web:1", fake.Program{Health: 7 * time.Second, Sick: true, Term: 2})
		c := b.controller(b.task("web:1"))
		b.must(c.Prepare(b.Context()))
		b.wantErr(c.Start(b.Context()), "task: non-zero exit (2): dockerexec: unhealthy container")
	})
	withBench(t, func(b *bench) {
		b.e.SetImage("web:1", fake.Program{Health: 7 * time.Second, Exits: time.Second, ExitCode: 4})
		c := b.controller(b.task("web:1"))
		b.must(c.Prepare(b.Context()))
		b.wantErr(c.Start(b.Context()), "task: non-zero exit (4)")
	})
	withBench(t, func(b *bench) {
		b.e.SetImage("web:1", fake.Program{StartError: "exec: \"/no\": no such file"})
		c := b.controller(b.task("web:1"))
		b.must(c.Prepare(b.Context()))
		b.wantErr(c.Start(b.Context()), "starting container failed: exec: \"/no\": no such file")
	})
}

func TestPullRules(t *testing.T) {
	pinned := "web@sha256:" + strings.Repeat("a", 64)
	for _, tt := range []struct {
		name, ref string
		local     bool
		registry  *fake.Registry
		offline   bool
		takes     time.Duration
		pulls     int
		want      string
	}{
		{name: "fetched", ref: "web:1", registry: &fake.Registry{Takes: time.Minute}, takes: time.Minute, pulls: 1},
		{name: "refreshed, however long it takes", ref: "web:1", local: true, registry: &fake.Registry{Takes: time.Minute}, takes: time.Minute, pulls: 1},
		{name: "registry away, image there", ref: "web:1", local: true, registry: &fake.Registry{Silent: true}, takes: 2 * time.Second, pulls: 1},
		{name: "registry refuses, image there", ref: "web:1", local: true, registry: &fake.Registry{Err: "denied"}, pulls: 1},
		{name: "registry refuses", ref: "web:1", registry: &fake.Registry{Err: "denied"}, pulls: 1, want: "No such image: web:1 (denied)"},
		{name: "no room for the image", ref: "web:1", registry: &fake.Registry{Err: "write /var/lib/docker/tmp/GetImageBlob1: no space left on device"}, pulls: 1,
			want: "No such image: web:1 (write /var/lib/docker/tmp/GetImageBlob1: no space left on device)"},
		{name: "credentials have expired, image there", ref: "web:1", local: true, registry: &fake.Registry{Err: "unauthorized: authentication required"}, pulls: 1},
		{name: "credentials have expired", ref: "web:1", registry: &fake.Registry{Err: "unauthorized: authentication required"}, pulls: 1,
			want: "No such image: web:1 (unauthorized: authentication required)"},
		{name: "pinned and there", ref: pinned, local: true, registry: &fake.Registry{Silent: true}},
		{name: "pinned, not there", ref: pinned, registry: &fake.Registry{}, pulls: 1},
		{name: "offline", ref: "web:1", local: true, offline: true},
		{name: "offline, not there", ref: "web:1", offline: true, registry: &fake.Registry{}, pulls: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			withBench(t, func(b *bench) {
				b.rt.Offline = tt.offline
				if tt.local {
					b.e.SetImage(tt.ref, fake.Program{})
				}
				if tt.registry != nil {
					b.e.SetRegistry(tt.ref, *tt.registry, fake.Program{})
				}
				c := b.controller(b.task(tt.ref))
				began := time.Now()
				err := c.Prepare(b.Context())
				if tt.want == "" {
					b.must(err)
				} else {
					b.wantErr(err, tt.want)
				}
				if d := time.Since(began); d != tt.takes {
					b.Errorf("took %s, want %s", d, tt.takes)
				}
				if n := b.e.Pulls(tt.ref); n != tt.pulls {
					b.Errorf("%d pulls, want %d", n, tt.pulls)
				}
			})
		})
	}
}

func TestTasksSharePulls(t *testing.T) {
	withBench(t, func(b *bench) {
		b.e.SetRegistry("web:1", fake.Registry{Takes: time.Minute}, fake.Program{})
		ctx, cancel := context.WithCancel(b.Context())
		errs := make(chan error)
		for range 3 {
			go func() { errs <- b.rt.Images.Fetch(b.Context(), "web:1", "", false) }()
		}
		go func() { errs <- b.rt.Images.Fetch(ctx, "web:1", "", false) }()
		time.Sleep(time.Second)
		cancel() // one gives up; the others do not notice
		if err := <-errs; !errors.Is(err, context.Canceled) {
			b.Error(err)
		}
		for range 3 {
			b.must(<-errs)
		}
		if n := b.e.Pulls("web:1"); n != 1 {
			b.Errorf("%d pulls", n)
		}
	})
}

func TestNetworksOfATask(t *testing.T) {
	withBench(t, func(b *bench) {
		b.e.SetImage("web:1", fake.Program{})
		task := b.task("web:1")
		n := swarm.Network{ID: "net1"}
		n.Spec.Name = "app"
		task.NetworksAttachments = []swarm.NetworkAttachment{{Network: n, Addresses: []string{"10.0.1.44/24"}}}
		c := b.controller(task)
		b.up(c)
		want := "container web.1.task1 web:1 running app=10.0.1.44\nnetwork app 10.0.1.0/24 via 10.0.1.9"
		if d := cmp.Diff(b.e.Describe(), want); d != "" {
			b.Error(d)
		}
		if err := b.rt.Networks.Keep(b.Context(), func(string) bool { return false }); err == nil {
			b.Error("a network in use was removed without complaint")
		}
		b.must(c.Remove(b.Context()))
		b.must(b.rt.Networks.Keep(b.Context(), func(string) bool { return false }))
		if got := b.e.Describe(); got != "" {
			b.Errorf("left over: %s", got)
		}
	})
}

// A network may get the addresses of one that is removed, whose containers take their time to stop.
func TestANetworkWaitsForItsPredecessor(t *testing.T) {
	withBench(t, func(b *bench) {
		b.e.SetImage("web:1", fake.Program{})
		b.rt.Attachment = func(context.Context, string) (netip.Prefix, error) { return netip.MustParsePrefix("10.0.1.9/24"), nil }
		on := func(id, network string) *docker.Controller {
			task := b.task("web:1")
			n := swarm.Network{ID: network}
			task.ID, n.Spec.Name = id, network
			task.NetworksAttachments = []swarm.NetworkAttachment{{Network: n, Addresses: []string{"10.0.1.44/24"}}}
			return b.controller(task)
		}
		before, after := on("task1", "net1"), on("task2", "net2")
		b.up(before)
		if err := after.Prepare(b.Context()); !errors.Is(err, docker.ErrOccupied) {
			b.Errorf("got %v", err)
		}
		b.must(before.Remove(b.Context()))
		b.up(after)
	})
}

func TestNetworkNamesAndFormerLives(t *testing.T) {
	withBench(t, func(b *bench) {
		ctx := b.Context()
		other := docker.NewNetworks(b.e, "node2") // another agent on the same engine
		n := swarm.Network{ID: "abcdefghijklmnop"}
		n.Spec.Name = "app"
		first := docker.Bridge(n, netip.MustParsePrefix("10.0.1.2/24"))
		for i, want := range []string{"app", "app"} {
			got, err := b.rt.Networks.Make(ctx, first)
			b.must(err)
			if got != want {
				b.Errorf("call %d: name %s, want %s", i, got, want)
			}
		}
		name, err := other.Make(ctx, docker.Bridge(n, netip.Prefix{}))
		b.must(err)
		if name != "app-abcdefghij" {
			b.Errorf("name %s for a network whose name is taken", name)
		}
		list, err := b.rt.Networks.List(ctx)
		b.must(err)
		if len(list) != 1 || list[0] != first {
			b.Errorf("got %+v, want what was made: %+v", list, first)
		}
		_, err = b.rt.Networks.Make(ctx, docker.Bridge(n, netip.MustParsePrefix("10.0.2.2/24")))
		b.must(err)
		want := "network app 10.0.2.0/24 via 10.0.2.2\nnetwork app-abcdefghij"
		if d := cmp.Diff(b.e.Describe(), want); d != "" {
			b.Error(d)
		}
	})
}

// A machine that was another node before has that node's networks in its engine, where the new node's have their addresses.
func TestNetworksOfAFormerNodeGiveWay(t *testing.T) {
	withBench(t, func(b *bench) {
		ctx := b.Context()
		former := docker.NewNetworks(b.e, "former")
		var lived swarm.Network
		lived.ID, lived.Spec.Name = "net1", "app"
		apart := swarm.Network{ID: "net2"}
		apart.Spec.Name = "apart"
		for n, gateway := range map[*swarm.Network]string{&lived: "10.0.1.2/24", &apart: "10.0.2.2/24"} {
			_, err := former.Make(ctx, docker.Bridge(*n, netip.MustParsePrefix(gateway)))
			b.must(err)
		}
		b.e.SetImage("web:1", fake.Program{})
		left := &docker.Container{Name: "left", Networks: []docker.Connection{{Network: "app"}}}
		left.Config.Image = "web:1"
		id, err := b.e.Create(ctx, left)
		b.must(err)
		b.must(b.e.Start(ctx, id))
		now := docker.Bridge(lived, netip.MustParsePrefix("10.0.1.7/24"))
		if _, err := b.rt.Networks.Make(ctx, now); !errors.Is(err, docker.ErrOccupied) || !strings.Contains(err.Error(), "node former") {
			b.Errorf("with a container on the former network: %v", err)
		}
		b.must(b.e.Remove(ctx, id))
		name, err := b.rt.Networks.Make(ctx, now)
		b.must(err)
		if name != "app" {
			b.Errorf("the network is called %s", name)
		}
		if d := cmp.Diff(b.e.Describe(), "network apart 10.0.2.0/24 via 10.0.2.2\nnetwork app 10.0.1.0/24 via 10.0.1.7"); d != "" {
			b.Error(d)
		}
	})
}

func TestStopGrace(t *testing.T) {
	withBench(t, func(b *bench) {
		b.e.SetImage("web:1", fake.Program{Deaf: true})
		task := b.task("web:1")
		grace := 3500 * time.Millisecond
		task.Spec.ContainerSpec.StopGracePeriod = &grace
		c := b.controller(task)
		b.up(c)
		began := time.Now()
		b.must(c.Shutdown(b.Context()))
		if d := time.Since(began); d != 3*time.Second {
			b.Errorf("killed after %s, want after whole seconds of the grace", d)
		}
		if st, _ := c.Status(); st.ExitCode != 137 {
			b.Errorf("status %+v", st)
		}
	})
}

func TestAbandonedCreationIsTakenOver(t *testing.T) {
	withBench(t, func(b *bench) {
		b.e.SetImage("web:1", fake.Program{})
		b.must(b.controller(b.task("web:1")).Prepare(b.Context()))
		c := b.controller(b.task("web:1")) // the agent was restarted
		b.up(c)
		if ids := b.e.Ids(); len(ids) != 1 {
			b.Errorf("containers %v", ids)
		}
		st, _ := c.Status()
		if st.ContainerID != b.e.Ids()[0] {
			b.Errorf("status %+v", st)
		}
	})
	// One that was cut off before its network was connected is made anew.
	withBench(t, func(b *bench) {
		b.e.SetImage("web:1", fake.Program{})
		half := docker.Container{Name: "web.1.task1"}
		half.Config.Image, half.Config.Labels = "web:1", map[string]string{docker.LabelTaskID: "task1", docker.LabelNodeID: node1}
		_, err := b.e.Create(b.Context(), &half)
		b.must(err)
		task := b.task("web:1")
		n := swarm.Network{ID: "net1"}
		n.Spec.Name = "app"
		task.NetworksAttachments = []swarm.NetworkAttachment{{Network: n, Addresses: []string{"10.0.1.44/24"}}}
		b.up(b.controller(task))
		want := "container web.1.task1 web:1 running app=10.0.1.44\nnetwork app 10.0.1.0/24 via 10.0.1.9"
		if d := cmp.Diff(b.e.Describe(), want); d != "" {
			b.Error(d)
		}
	})
	// Somebody else's of that name is left alone.
	withBench(t, func(b *bench) {
		b.e.SetImage("web:1", fake.Program{})
		foreign := docker.Container{Name: "web.1.task1"}
		foreign.Config.Image = "web:1"
		_, err := b.e.Create(b.Context(), &foreign)
		b.must(err)
		c := b.controller(b.task("web:1"))
		if err := c.Prepare(b.Context()); err == nil || !strings.Contains(err.Error(), "already in use") {
			b.Errorf("got %v", err)
		}
		b.must(c.Shutdown(b.Context()))
		b.must(c.Remove(b.Context()))
		if len(b.e.Ids()) != 1 {
			b.Error("somebody else's container was removed")
		}
	})
}

// TestATaskOfWhichNothingIsKnownEndsWhileTheEngineIsAway found a panic: the engine's description is asked for, and there is
// none.
func TestATaskOfWhichNothingIsKnownEndsWhileTheEngineIsAway(t *testing.T) {
	withBench(t, func(b *bench) {
		c := b.controller(b.task("web:1"))
		b.e.Vanish()
		for what, do := range map[string]func(context.Context) error{"shutdown": c.Shutdown, "removal": c.Remove} {
			if err := do(b.Context()); !errors.Is(err, docker.ErrUnavailable) {
				b.Errorf("%s: %v, want %v", what, err, docker.ErrUnavailable)
			}
		}
		b.e.Return()
		b.must(c.Shutdown(b.Context()))
	})
}
