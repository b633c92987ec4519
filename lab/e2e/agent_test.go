package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/swarm"
)

// Stopping, killing and starting miniswarm restarts no container, fails no request and drops no connection.
func TestDaemonRestart(t *testing.T) {
	c := onShared(t)
	ctx := t.Context()
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "w", "--replicas", "6", "--publish", "8080:8000", "--publish", "8081:8001", c.witness+":1")
	old := c.running(t, "w", 6)
	nodes := []string{"vm1", "vm2", "vm3"}
	var requests, connections []string
	for _, n := range nodes {
		requests, connections = append(requests, c.addr(n, 8080)), append(connections, c.addr(n, 8081))
	}
	// Six connections through each node reach replicas on all of them: next to the entry node and one hop away.
	kept := dialTalks(t, 6, connections...)

	for _, way := range []struct {
		name string
		end  func(context.Context, string) error
	}{{"stopped", c.StopDaemon}, {"killed", c.KillDaemon}} {
		for _, host := range nodes {
			t.Run(host+" "+way.name, func(t *testing.T) {
				p := startProbe(t, requests...)
				if err := way.end(ctx, host); err != nil {
					t.Fatal(err)
				}
				if err := kept.alive(); err != nil {
					t.Errorf("without its daemon: %v", err)
				}
				if _, err := ask(ctx, c.addr(host, 8080)); err != nil {
					t.Errorf("without its daemon %s does not answer: %v", host, err)
				}
				if err := c.StartDaemon(ctx, host); err != nil {
					t.Fatal(err)
				}
				c.allReady(t)
				untouched(t, old, c.running(t, "w", 6))
				if err := kept.alive(); err != nil {
					t.Errorf("after its daemon came back: %v", err)
				}
				p.none(t, "daemon of "+host+" "+way.name)
			})
		}
	}

	// The daemon that came back also works: it takes orders.
	now := func() []replica {
		c.miniswarm(t, "vm1", "service", "scale", "--detach", "w=9")
		return c.running(t, "w", 9)
	}()
	untouched(t, old, now)
	eventually(t, "new replicas answer on every node", patience, func() error {
		for _, addr := range requests {
			if err := everyone(byShortID(now), 18, func() (answer, error) { return ask(ctx, addr) }, c.MachineAddr().String()); err != nil {
				return fmt.Errorf("%s: %w", addr, err)
			}
		}
		return nil
	})
}

// Whatever happens to a service's container behind miniswarm's back, the service has its replicas again, and what is
// not miniswarm's stays as it is (I5, I10).
func TestBehindItsBack(t *testing.T) {
	c := onShared(t)
	ctx := t.Context()
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "w", "--replicas", "3", "--restart-delay", "100ms", "--publish", "8080:8000", c.witness+":1")
	c.running(t, "w", 3)
	foreign := map[string]string{} // containers of somebody else, by host
	for _, host := range []string{"vm2", "vm3"} {
		out, err := c.Output(ctx, host, "docker", "run", "-d", "--restart", "always", "--label", "com.example=1", c.witness+":1")
		if err != nil {
			t.Fatal(err)
		}
		id := strings.TrimSpace(out)
		foreign[host] = id
		t.Cleanup(func() {
			_ = c.engine(host).ContainerRemove(context.WithoutCancel(ctx), id, container.RemoveOptions{Force: true})
		})
	}
	started := func(host string) string {
		d, err := c.engine(host).ContainerInspect(ctx, foreign[host])
		if err != nil || !d.State.Running {
			t.Fatalf("the foreign container of %s: %+v %v", host, d.State, err)
		}
		return d.State.StartedAt
	}
	began := map[string]string{"vm2": started("vm2"), "vm3": started("vm3")}

	for _, way := range []struct {
		name string
		do   func(host, id string) error
	}{
		{"killed", func(host, id string) error { return c.engine(host).ContainerKill(ctx, id, "KILL") }},
		{"stopped", func(host, id string) error { return c.engine(host).ContainerStop(ctx, id, container.StopOptions{}) }},
		{"removed", func(host, id string) error {
			return c.engine(host).ContainerRemove(ctx, id, container.RemoveOptions{Force: true})
		}},
	} {
		t.Run(way.name, func(t *testing.T) {
			before := c.replicas(t, "w")
			victim := before[slices.IndexFunc(before, func(r replica) bool { return r.host == "vm2" })]
			if err := way.do(victim.host, victim.id); err != nil {
				t.Fatal(err)
			}
			var now []replica
			took := eventually(t, "three replicas run, another in its place", patience, func() (err error) {
				if now, err = c.converged(ctx, "w", 3); err == nil && slices.ContainsFunc(now, func(r replica) bool { return r.id == victim.id }) {
					err = fmt.Errorf("the old container is still listed")
				}
				return err
			})
			t.Logf("container %s: replaced after %.1f s", way.name, took.Seconds())
			untouched(t, slices.DeleteFunc(before, func(r replica) bool { return r.id == victim.id }), now)
			if ps := c.miniswarm(t, "vm1", "service", "ps", "--no-trunc", "w"); !strings.Contains(ps, victim.task) || !strings.Contains(ps, "\\_ w.") {
				t.Errorf("service ps does not show the lost task:\n%s", ps)
			}
			eventually(t, "all three answer", patience, func() error {
				return everyone(byShortID(now), 6, func() (answer, error) { return ask(ctx, c.addr("vm3", 8080)) }, "")
			})
		})
	}
	for host, at := range began {
		if now := started(host); now != at {
			t.Errorf("the foreign container of %s was restarted", host)
		}
	}

	t.Run("a process killed in its container", func(t *testing.T) {
		before := c.replicas(t, "w")
		d, err := c.engine(before[0].host).ContainerInspect(ctx, before[0].id)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Output(ctx, before[0].host, "kill", "-9", fmt.Sprint(d.State.Pid)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "three replicas run, another in its place", patience, func() error {
			now, err := c.converged(ctx, "w", 3)
			if err == nil && slices.ContainsFunc(now, func(r replica) bool { return r.id == before[0].id }) {
				err = fmt.Errorf("the old container is still listed")
			}
			return err
		})
	})
}

// dockerd restarts: it ends its containers, as engines do without live-restore. The node is given its replicas again, and
// those of other nodes never notice.
func TestEngineRestart(t *testing.T) {
	c := onShared(t)
	ctx := t.Context()
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "w", "--replicas", "6", "--restart-delay", "100ms", "--publish", "8080:8000", c.witness+":1")
	for _, way := range []struct {
		name string
		end  func(context.Context, string) error
	}{{"stopped", c.StopEngine}, {"killed", c.KillEngine}} {
		t.Run(way.name, func(t *testing.T) {
			before := c.running(t, "w", 6)
			if err := way.end(ctx, "vm2"); err != nil {
				t.Fatal(err)
			}
			if err := c.StartEngine(ctx, "vm2"); err != nil {
				t.Fatal(err)
			}
			// What the engine has ended is not among them; a killed engine may find its containers alive.
			var now []replica
			took := eventually(t, "six replicas run", patience, func() (err error) {
				now, err = c.converged(ctx, "w", 6)
				return err
			})
			t.Logf("engine %s: six replicas after %.1f s, spread as %v", way.name, took.Seconds(), spread(now))
			untouched(t, on(before, "vm1", "vm3"), now)
			eventually(t, "containers are accounted for and every node reaches every replica", patience, func() error {
				if err := c.accounted(ctx); err != nil {
					return err
				}
				now, err := c.converged(ctx, "w", 6)
				if err != nil {
					return err
				}
				for _, n := range []string{"vm1", "vm2", "vm3"} {
					if err := everyone(byShortID(now), 12, func() (answer, error) { return ask(ctx, c.addr(n, 8080)) }, c.MachineAddr().String()); err != nil {
						return fmt.Errorf("%s: %w", n, err)
					}
				}
				return nil
			})
			c.nodeState(t, "vm2", string(swarm.NodeStateReady))
		})
	}
	// A killed engine can forget to unmount a dead container, which then cannot be removed before the next boot. That the
	// agent tries until then is checked when the lab is handed back.
	if err := c.Fail(ctx, "vm2"); err != nil {
		t.Fatal(err)
	}
}
