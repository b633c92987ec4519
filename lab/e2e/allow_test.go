package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
)

// What Swarm gives to no service, a node that allows it gives: privileged containers, devices, GPUs. Elsewhere nothing of it
// runs.
func TestAllow(t *testing.T) {
	c := onShared(t)
	ctx := t.Context()
	says := func(service, format, want string) {
		t.Helper()
		eventually(t, service+" says "+want, patience, func() error {
			out, err := c.tryMiniswarm(t, "vm1", "service", "ps", "--no-trunc", "--format", format, service)
			if err != nil || !strings.Contains(out, want) {
				return fmt.Errorf("%s %w", out, err)
			}
			return nil
		})
	}
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "d", "--device", "/dev/null:/dev/hole:rw", c.witness+":1")
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "p", "--privileged", c.witness+":1")
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "g", "--gpus", "all", c.witness+":1")
	says("d", "{{.Error}}", "no suitable node (node does not allow devices (3 nodes))")
	says("p", "{{.Error}}", "no suitable node (node does not allow privileged containers (3 nodes))")
	says("g", "{{.Error}}", "no suitable node (node does not allow GPUs (3 nodes))")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		for _, n := range []string{"vm2", "vm3"} {
			if _, err := c.Output(ctx, "vm1", c.binary, "node", "update", "--allow", "none", n); err != nil {
				t.Error(err)
			}
		}
	})
	c.miniswarm(t, "vm1", "node", "update", "--allow", "gpus", "vm2")
	c.miniswarm(t, "vm1", "node", "update", "--allow", "privileged,devices", "vm3")

	r := c.running(t, "d", 1)[0]
	made, err := c.engine(r.host).ContainerInspect(ctx, r.id)
	if err != nil {
		t.Fatal(err)
	}
	devices, _ := json.Marshal(made.HostConfig.Devices)
	if r.host != "vm3" || made.HostConfig.Privileged || string(devices) != `[{"PathOnHost":"/dev/null","PathInContainer":"/dev/hole","CgroupPermissions":"rw"}]` {
		t.Errorf("on %s, privileged %v, devices %s", r.host, made.HostConfig.Privileged, devices)
	}
	// Whether the kernel of this machine lets containers be privileged is not miniswarm's to say: that one was made is.
	eventually(t, "there is a privileged container on vm3", patience, func() error {
		list, err := c.engine("vm3").ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", serviceLabel+"=p"))})
		if err != nil || len(list) == 0 {
			return fmt.Errorf("no container of p: %w", err)
		}
		made, err := c.engine("vm3").ContainerInspect(ctx, list[0].ID)
		if err != nil || !made.HostConfig.Privileged {
			return fmt.Errorf("it is not privileged: %w", err)
		}
		return nil
	})
	// These hosts have no GPUs, and their engine says so.
	says("g", "{{.Node}} {{.Error}}", `could not select device driver "" with capabilities: [[gpu]]`)

	// Where nothing is asked for any more, any node will do.
	c.miniswarm(t, "vm1", "service", "update", "--detach", "--device", "", "--constraint-add", "node.hostname==vm1", "d")
	eventually(t, "the service is an ordinary one on vm1", patience, func() error {
		all, err := c.converged(ctx, "d", 1)
		if err != nil {
			return err
		}
		made, err := c.engine(all[0].host).ContainerInspect(ctx, all[0].id)
		if err != nil || all[0].host != "vm1" || len(made.HostConfig.Devices) > 0 {
			return fmt.Errorf("on %s: %w", all[0].host, err)
		}
		return nil
	})
}
