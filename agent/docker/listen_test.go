package docker_test

import (
	"context"
	"errors"
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/agent/docker"
	"github.com/miniswarm/miniswarm/agent/docker/fake"
)

// A container without a health check counts as running once it listens on what the mesh publishes, and never later than
// after the limit.
func TestStartWaitsForListeners(t *testing.T) {
	published := &swarm.Endpoint{Ports: []swarm.PortConfig{
		{TargetPort: 8000, PublishedPort: 80, Protocol: swarm.PortConfigProtocolTCP, PublishMode: swarm.PortConfigPublishModeIngress},
		{TargetPort: 53, PublishedPort: 53, Protocol: swarm.PortConfigProtocolUDP, PublishMode: swarm.PortConfigPublishModeIngress},
		{TargetPort: 9000, PublishedPort: 90, Protocol: swarm.PortConfigProtocolTCP, PublishMode: swarm.PortConfigPublishModeHost},
	}}
	for _, tc := range []struct {
		name     string
		program  fake.Program
		endpoint *swarm.Endpoint
		after    time.Duration // when it listens; negative: never
		err      error         // what looking gives
		min, max time.Duration
		fails    string
	}{
		{name: "at once", endpoint: published},
		{name: "a second later", endpoint: published, after: time.Second, min: time.Second, max: 1100 * time.Millisecond},
		{name: "never", endpoint: published, after: -1, min: 3 * time.Second, max: 3 * time.Second},
		{name: "nothing published", after: -1},
		{name: "the kernel does not tell", endpoint: published, after: -1, err: errors.New("no such process")},
		{name: "the health check decides", program: fake.Program{Health: 7 * time.Second}, endpoint: published, after: -1, min: 7 * time.Second, max: 7 * time.Second},
		{name: "ends before it listens", program: fake.Program{Exits: time.Second, ExitCode: 4}, endpoint: published, after: -1, min: time.Second, max: time.Second,
			fails: "task: non-zero exit (4)"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			withBench(t, func(b *bench) {
				b.e.SetImage("web:1", tc.program)
				began := time.Now()
				b.rt.Listeners = func(pid int) (map[uint16]int, error) {
					if pid == 0 {
						b.Error("asked for the listeners of no process")
					}
					open := map[uint16]int{9000: 0}
					if tc.after >= 0 && time.Since(began) >= tc.after {
						open[8000] = 0
					}
					return open, tc.err
				}
				task := b.task("web:1")
				task.Endpoint = tc.endpoint
				c := b.controller(task)
				b.must(c.Prepare(b.Context()))
				began = time.Now()
				if err := c.Start(b.Context()); tc.fails != "" {
					b.wantErr(err, tc.fails)
				} else {
					b.must(err)
				}
				if d := time.Since(began); d < tc.min || d > tc.max {
					b.Errorf("started after %s, want %s to %s", d, tc.min, tc.max)
				}
			})
		})
	}
}

// A daemon that ends meanwhile does not end the wait: the next one takes it up.
func TestWaitingForListenersIsTakenUp(t *testing.T) {
	withBench(t, func(b *bench) {
		b.e.SetImage("web:1", fake.Program{})
		b.rt.Listeners = func(int) (map[uint16]int, error) { return nil, nil }
		task := b.task("web:1")
		task.Endpoint = &swarm.Endpoint{Ports: []swarm.PortConfig{{TargetPort: 8000, PublishedPort: 80, PublishMode: swarm.PortConfigPublishModeIngress}}}
		c := b.controller(task)
		b.must(c.Prepare(b.Context()))
		began := time.Now()
		ctx, cancel := context.WithTimeout(b.Context(), time.Second)
		defer cancel()
		if err := c.Start(ctx); !errors.Is(err, context.DeadlineExceeded) {
			b.Errorf("started after %s: %v", time.Since(began), err)
		}
		for range 2 { // once more when it has been long enough
			b.must(b.controller(task).Start(b.Context()))
			if d := time.Since(began); d != 3*time.Second {
				b.Errorf("started after %s, want 3s", d)
			}
		}
	})
}

// A container is told to stop when it has accepted what it was sent, and not much later if it never does.
func TestShutdownWaitsForWhatIsToBeAccepted(t *testing.T) {
	host := []swarm.NetworkAttachment{{Network: swarm.Network{Spec: swarm.NetworkSpec{DriverConfiguration: &swarm.Driver{Name: "host"}}}}}
	for _, tc := range []struct {
		name     string
		networks []swarm.NetworkAttachment
		accepts  time.Duration // when all have been accepted
		err      error
		min, max time.Duration
	}{
		{name: "none waits"},
		{name: "some wait a while", accepts: time.Second, min: time.Second, max: 1100 * time.Millisecond},
		{name: "they wait for ever", accepts: time.Hour, min: 2 * time.Second, max: 2 * time.Second},
		{name: "the kernel does not tell", accepts: time.Hour, err: errors.New("no such process")},
		{name: "listeners shared with the machine", networks: host, accepts: time.Hour},
	} {
		t.Run(tc.name, func(t *testing.T) {
			withBench(t, func(b *bench) {
				b.e.SetImage("web:1", fake.Program{})
				began := time.Now()
				b.rt.Listeners = func(int) (map[uint16]int, error) {
					if time.Since(began) >= tc.accepts {
						return map[uint16]int{80: 0, 81: 0}, tc.err
					}
					return map[uint16]int{80: 0, 81: 3}, tc.err
				}
				task := b.task("web:1")
				task.NetworksAttachments = tc.networks
				c := b.controller(task)
				b.must(c.Prepare(b.Context()))
				b.must(c.Start(b.Context()))
				began = time.Now()
				b.must(c.Shutdown(b.Context()))
				if d := time.Since(began); d < tc.min || d > tc.max {
					b.Errorf("stopped after %s, want %s to %s", d, tc.min, tc.max)
				}
			})
		})
	}
}

func TestListeners(t *testing.T) {
	reached, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer reached.Close()
	hidden, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hidden.Close()
	port := func(ln net.Listener) uint16 { return uint16(ln.Addr().(*net.TCPAddr).Port) }
	for waiting := range 3 {
		if waiting > 0 {
			conn, err := net.Dial("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port(reached)))))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
		}
		open, err := docker.Listeners(os.Getpid())
		if n, ok := open[port(reached)]; err != nil || !ok || n != waiting {
			t.Errorf("port %d of %v (%v), want %d connections that wait", port(reached), open, err, waiting)
		}
		if _, ok := open[port(hidden)]; ok {
			t.Error("a listener that nobody reaches")
		}
	}
	if _, err := docker.Listeners(-1); err == nil {
		t.Error("a process that does not exist: want an error")
	}
}
