package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	dockercli "github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/container"
	containertypes "github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"
	"github.com/spf13/cobra"
)

//lint:file-ignore SA1019 as in docker.go: only Docker's own commands are exactly Docker's.

// reach is Docker's command line with a client that sees one task's container, on whatever node it is: the daemon serves the
// part of that engine's API under a path of its own. So exec and cp are Docker's, terminals, exit codes and all.
type reach struct {
	command.Cli
	window client.APIClient
}

func (r *reach) Client() client.APIClient { return r.window }

// open points the client at a task, and says on stderr which replica was taken where there was a choice.
func (r *reach) open(ctx context.Context, ref string) error {
	t, chosen, err := pickTask(ctx, r.Cli.Client(), ref)
	if err != nil {
		return err
	}
	if chosen != "" {
		fmt.Fprintln(r.Err(), chosen)
	}
	dial := r.Cli.Client().Dialer()
	// Docker's client takes a path in front of the API's only with a TCP address; the connection goes to the socket.
	window, err := client.NewClientWithOpts(client.WithHost("tcp://miniswarm/miniswarm/tasks/"+url.PathEscape(t)+"/engine"),
		client.WithDialContext(func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }),
		client.WithAPIVersionNegotiation(), client.WithUserAgent("miniswarm/"+version))
	if err != nil {
		return fmt.Errorf("reach task %s: %w", t, err)
	}
	r.window = windowClient{window}
	return nil
}

// windowClient tells a command that has ended from a stream that broke off. Docker's exec takes the one for the other: on one
// machine streams do not break.
type windowClient struct{ client.APIClient }

// settleLimit is how long an engine may take to know that a command has ended whose output has.
const (
	settleLimit = 2 * time.Second
	settlePoll  = 50 * time.Millisecond
)

// ContainerExecInspect is asked for the exit code when the output has ended.
func (c windowClient) ContainerExecInspect(ctx context.Context, id string) (containertypes.ExecInspect, error) {
	for began := time.Now(); ; {
		e, err := c.APIClient.ContainerExecInspect(ctx, id)
		switch {
		case err != nil || !e.Running:
			return e, err
		case time.Since(began) > settleLimit:
			return e, errors.New("the connection to the replica broke off; the command goes on there")
		}
		select {
		case <-time.After(settlePoll):
		case <-ctx.Done():
			return e, context.Cause(ctx)
		}
	}
}

// pickTask gives the id of the task that ref means: a task, SERVICE.SLOT, or a service, of which the first replica that runs
// is taken and named in chosen if there are others.
func pickTask(ctx context.Context, cl client.APIClient, ref string) (id, chosen string, err error) {
	if id, err = taskOfSlot(ctx, cl, ref); err != nil || id != ref {
		return id, "", err
	}
	if _, _, err := cl.ServiceInspectWithRaw(ctx, ref, swarm.ServiceInspectOptions{}); err != nil {
		if _, _, terr := cl.TaskInspectWithRaw(ctx, ref); terr != nil {
			return "", "", fmt.Errorf("no service or task %s: %w", ref, err)
		}
		return ref, "", nil
	}
	tasks, err := cl.TaskList(ctx, swarm.TaskListOptions{Filters: filters.NewArgs(filters.Arg("service", ref), filters.Arg("desired-state", "running"))})
	if err != nil {
		return "", "", err
	}
	tasks = slices.DeleteFunc(tasks, func(t swarm.Task) bool { return t.Status.State != swarm.TaskStateRunning })
	if len(tasks) == 0 {
		return "", "", fmt.Errorf("service %s has no running task; 'miniswarm service ps %s' says why", ref, ref)
	}
	first := slices.MinFunc(tasks, func(a, b swarm.Task) int {
		return cmp.Or(cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.NodeID, b.NodeID))
	})
	if len(tasks) > 1 {
		name, node := first.ID, first.NodeID
		if first.Slot != 0 {
			name = fmt.Sprintf("%s.%d", ref, first.Slot)
		}
		if n, _, err := cl.NodeInspectWithRaw(ctx, first.NodeID); err == nil && n.Description.Hostname != "" {
			node = n.Description.Hostname
		}
		chosen = fmt.Sprintf("%s on %s, one of %d replicas", name, node, len(tasks))
	}
	return first.ID, chosen, nil
}

// execService runs a command in a replica, on whatever node it is.
func execService(dc command.Cli) *cobra.Command {
	r := &reach{Cli: dc}
	cmd := container.NewExecCommand(r)
	docker := cmd.RunE
	cmd.Use, cmd.Short = "exec [OPTIONS] SERVICE[.SLOT]|TASK COMMAND [ARG...]", "Execute a command in a running replica, on whatever node it is"
	cmd.Annotations = nil
	cmd.ValidArgsFunction = completeServices(dc)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := r.open(cmd.Context(), args[0]); err != nil {
			return err
		}
		return docker(cmd, args) // the window shows one container, by whatever name
	}
	return cmd
}

// copyService copies files between this machine and a replica.
func copyService(dc command.Cli) *cobra.Command {
	r := &reach{Cli: dc}
	cmd := container.NewCopyCommand(r)
	docker := cmd.RunE
	cmd.Use = "cp [OPTIONS] SERVICE[.SLOT]|TASK:SRC_PATH DEST_PATH|-\n       miniswarm service cp [OPTIONS] SRC_PATH|- SERVICE[.SLOT]|TASK:DEST_PATH"
	cmd.Short, cmd.Long = "Copy files/folders between a replica and this machine, on whatever node the replica is", ""
	cmd.Annotations = nil
	cmd.ValidArgsFunction = completeReplica(dc)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ref := ""
		for _, arg := range args {
			name, ok := replicaOf(arg)
			if ok && ref != "" {
				return errors.New("copying between replicas is not supported")
			}
			ref = cmp.Or(ref, name)
		}
		if ref == "" {
			return dockercli.StatusError{Status: "one of the two paths names a replica: SERVICE[.SLOT]:PATH or TASK:PATH", StatusCode: exitUsage}
		}
		if err := r.open(cmd.Context(), ref); err != nil {
			return err
		}
		return docker(cmd, args)
	}
	return cmd
}

// replicaOf gives the name in REPLICA:PATH; a path of this machine begins with / or . or has no colon, as Docker has it.
func replicaOf(arg string) (name string, ok bool) {
	if strings.HasPrefix(arg, "/") || strings.HasPrefix(arg, ".") {
		return "", false
	}
	if name, _, ok = strings.Cut(arg, ":"); !ok {
		return "", false
	}
	return name, name != ""
}
