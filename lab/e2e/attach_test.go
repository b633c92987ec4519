package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/lab"
)

// Containers that people run by hand on a manager and on a worker are on a network of the swarm with the services: with an
// address of their own, and names that lead both ways.
func TestAttach(t *testing.T) {
	c := ownLab(t, "attach", lab.Options{Nodes: 2, Managers: 1, Cluster: true})
	c.managers, c.workers = []string{"vm1"}, []string{"vm2"}
	c.allReady(t)
	ctx := t.Context()
	image := c.witness + ":1"
	hosts := []string{"vm1", "vm2"}
	c.docker(t, "vm1", "network", "create", "-d", "overlay", "--attachable", "--subnet", "10.88.0.0/24", "front")
	c.docker(t, "vm1", "network", "create", "-d", "overlay", "back")

	t.Run("refused", func(t *testing.T) {
		for _, host := range hosts {
			_, err := c.tryDocker(t, host, "run", "--rm", "--network", "back", image, "say", "x")
			if err == nil || !strings.Contains(err.Error(), "network back not manually attachable") {
				t.Errorf("on %s: %v", host, err)
			}
			_, err = c.tryDocker(t, host, "run", "--rm", "--network", "nosuch", image, "say", "x")
			if err == nil || !strings.Contains(err.Error(), "network nosuch not found") {
				t.Errorf("on %s: %v", host, err)
			}
		}
		c.noAttachments(t)
	})

	t.Run("alone", func(t *testing.T) {
		// No service has brought the network to the worker.
		c.docker(t, "vm2", "run", "--rm", "--network", "front", image, "say", "x")
		c.noAttachments(t)
	})

	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "web", "--replicas", "2", "--network", "front", image)
	replicas := c.running(t, "web", 2)
	if len(spread(replicas)) != 2 {
		t.Fatalf("the replicas are not on two hosts: %v", replicas)
	}

	t.Run("names and addresses", func(t *testing.T) {
		for _, host := range hosts {
			c.docker(t, host, "run", "-d", "--name", "by-hand-"+host, "--network", "front", image)
		}
		for i, host := range hosts {
			other := hosts[1-i]
			eventually(t, "a container on "+host+" meets both replicas by the service's name", patience, func() error {
				seen := map[string]bool{}
				for range 8 {
					out, err := c.tryDocker(t, host, "exec", "by-hand-"+host, "/witness", "get", "http://web:8000/")
					if err != nil {
						return err
					}
					seen[between(out, `"Replica":"`, `"`)] = true
				}
				if len(seen) != 2 {
					return fmt.Errorf("only %v answered", seen)
				}
				return nil
			})
			eventually(t, "a container on "+host+" meets the one on "+other+" by name", patience, func() error {
				_, err := c.tryDocker(t, host, "exec", "by-hand-"+host, "/witness", "get", "http://by-hand-"+other+":8000/")
				return err
			})
			eventually(t, "a replica on "+host+" meets the container on "+other+" by name", patience, func() error {
				_, err := c.inside(ctx, on(replicas, host)[0], "get", "http://by-hand-"+other+":8000/")
				return err
			})
		}
		if _, err := c.tryDocker(t, "vm1", "network", "rm", "front"); err == nil {
			t.Error("a network was removed that is in use")
		}
	})

	t.Run("an address is kept, and given back", func(t *testing.T) {
		before := c.addressOf(t, "vm2", "by-hand-vm2", "front")
		c.docker(t, "vm2", "restart", "-t", "0", "by-hand-vm2")
		if now := c.addressOf(t, "vm2", "by-hand-vm2", "front"); now != before || now == "" {
			t.Errorf("the address was %q before a restart and is %q now", before, now)
		}
		if n := len(c.attachments(t)); n != 2 {
			t.Errorf("%d attachments", n)
		}
		// While the daemon is away, a container goes.
		if err := c.KillDaemon(ctx, "vm2"); err != nil {
			t.Fatal(err)
		}
		if err := c.engine("vm2").ContainerRemove(ctx, "by-hand-vm2", container.RemoveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
		if err := c.StartDaemon(ctx, "vm2"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the cluster has noticed", patience, func() error {
			if n := len(c.attachments(t)); n != 1 {
				return fmt.Errorf("%d attachments", n)
			}
			return nil
		})
		c.docker(t, "vm1", "rm", "-f", "by-hand-vm1")
		if all := c.attachments(t); len(all) > 0 {
			t.Errorf("a container is removed and still attached: %v", all[0].Status)
		}
	})

	t.Run("connect", func(t *testing.T) {
		c.docker(t, "vm2", "run", "-d", "--name", "solo", image)
		c.docker(t, "vm2", "network", "connect", "--ip", "10.88.0.200", "front", "solo")
		if addr := c.addressOf(t, "vm2", "solo", "front"); addr != "10.88.0.200" {
			t.Errorf("the address asked for is not given: %q", addr)
		}
		if _, err := c.tryDocker(t, "vm1", "run", "--rm", "--network", "front", "--ip", "10.88.0.200", image, "say", "x"); err == nil {
			t.Error("an address was given twice")
		}
		eventually(t, "it is reached by name from the other host", patience, func() error {
			_, err := c.inside(ctx, on(replicas, "vm1")[0], "get", "http://solo:8000/")
			return err
		})
		c.docker(t, "vm2", "network", "disconnect", "front", "solo")
		if all := c.attachments(t); len(all) > 0 {
			t.Errorf("a container is off the network and still attached: %v", all[0].Status)
		}
		c.docker(t, "vm2", "rm", "-f", "solo")
	})

	c.miniswarm(t, "vm1", "service", "rm", "web")
	eventually(t, "the network is free", patience, func() error {
		_, err := c.tryDocker(t, "vm1", "network", "rm", "front")
		return err
	})
}

// attachments are the tasks that stand for containers attached by hand.
func (c *testCluster) attachments(t *testing.T) []swarm.Task {
	t.Helper()
	all, err := c.swarm("vm1").TaskList(t.Context(), swarm.TaskListOptions{Filters: filters.NewArgs(filters.Arg("runtime", "attachment"))})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func (c *testCluster) noAttachments(t *testing.T) {
	t.Helper()
	eventually(t, "no container is attached any more", patience, func() error {
		if all := c.attachments(t); len(all) > 0 {
			return fmt.Errorf("%d are: %v", len(all), all[0].Status)
		}
		return nil
	})
}

// addressOf gives a container's address on a network.
func (c *testCluster) addressOf(t *testing.T, host, name, network string) string {
	t.Helper()
	return strings.TrimSpace(c.docker(t, host, "inspect", "--format", `{{with index .NetworkSettings.Networks "`+network+`"}}{{.IPAddress}}{{end}}`, name))
}
