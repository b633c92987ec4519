package docker_test

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
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
				b.rt.Listening = func(pid int, ports []uint16) (bool, error) {
					if pid == 0 || !slices.Equal(ports, []uint16{8000}) {
						b.Errorf("asked for ports %v of process %d", ports, pid)
					}
					return tc.after >= 0 && time.Since(began) >= tc.after, tc.err
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
		b.rt.Listening = func(int, []uint16) (bool, error) { return false, nil }
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

func TestListening(t *testing.T) {
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
	for _, tc := range []struct {
		ports []uint16
		want  bool
	}{{nil, true}, {[]uint16{port(reached)}, true}, {[]uint16{port(hidden)}, false}, {[]uint16{port(reached), port(hidden)}, false}} {
		got, err := docker.Listening(os.Getpid(), tc.ports)
		if err != nil || got != tc.want {
			t.Errorf("Listening(%v) = %v, %v; want %v", tc.ports, got, err, tc.want)
		}
	}
	if _, err := docker.Listening(-1, []uint16{1}); err == nil {
		t.Error("a process that does not exist: want an error")
	}
}
