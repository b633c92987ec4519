package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/docker/cli/cli/compose/convert"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"
	"github.com/spf13/cobra"
)

const flagWait = "wait"

// adaptRemoval makes a command that removes show on a terminal what it stops, and wait for the end if asked to.
func adaptRemoval(oc *observedCLI, cmd *cobra.Command, wait func(ctx context.Context, cl client.APIClient, before []string) error) {
	waits := cmd.Flags().Bool(flagWait, false, "Wait until what is removed has stopped")
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, obs := cmd.Context(), oc.observer()
		attached := false
		if detach := cmd.Flags().Lookup("detach"); detach != nil { // Docker's own waiting of stack rm asks without a pause
			attached = detach.Value.String() == "false"
			if err := detach.Value.Set("true"); err != nil {
				return err
			}
		}
		var ids []string
		if *waits || attached {
			if cmd.Parent().Name() == "service" {
				ids = serviceIDs(ctx, obs.APIClient, args)
			} else {
				ids = args
			}
		}
		obs.showStops = oc.Err().IsTerminal()
		err := run(cmd, args)
		for _, s := range obs.stopping {
			fmt.Fprintln(oc.Err(), s)
		}
		if !*waits && !attached {
			return err
		}
		return errors.Join(err, wait(ctx, obs.APIClient, ids))
	}
}

// serviceIDs gives the ids of services, which a removed one is known by no more.
func serviceIDs(ctx context.Context, cl client.APIClient, names []string) []string {
	var ids []string
	for _, name := range names {
		if svc, _, err := cl.ServiceInspectWithRaw(ctx, name, swarm.ServiceInspectOptions{}); err == nil {
			ids = append(ids, svc.ID)
		}
	}
	return ids
}

// usedByService is how a daemon refuses to remove a network, in Docker's words, which have ids.
var usedByService = regexp.MustCompile(`is in use by service (\w+)$`)

// NetworkRemove is the client's, with the name of the service that uses the network.
func (o *observer) NetworkRemove(ctx context.Context, id string) error {
	err := o.APIClient.NetworkRemove(ctx, id)
	if err == nil {
		return nil
	}
	if m := usedByService.FindStringSubmatch(err.Error()); m != nil {
		if svc, _, failed := o.ServiceInspectWithRaw(ctx, m[1], swarm.ServiceInspectOptions{}); failed == nil {
			return fmt.Errorf("%w (%s)", err, svc.Spec.Name)
		}
	}
	return err
}

// until asks again and again, until done says so or cannot.
func until(ctx context.Context, done func() (bool, error)) error {
	tick := time.NewTicker(waitPoll)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// allEnded says that every task that the filter finds has ended.
func allEnded(ctx context.Context, cl client.APIClient, filter ...string) (bool, error) {
	tasks, err := cl.TaskList(ctx, swarm.TaskListOptions{Filters: filterOf(filter...)})
	if err != nil {
		return false, fmt.Errorf("wait for tasks to stop: %w", err)
	}
	for _, t := range tasks {
		if !ended(t.Status.State) {
			return false, nil
		}
	}
	return true, nil
}

func waitForServices(ctx context.Context, cl client.APIClient, ids []string) error {
	for _, id := range ids {
		if err := until(ctx, func() (bool, error) { return allEndedOf(ctx, cl, id) }); err != nil {
			return err
		}
	}
	return nil
}

// allEndedOf is allEnded for the tasks of a service, which may be gone itself: tasks keep its id, and a filter by the id of
// what is gone finds nothing.
func allEndedOf(ctx context.Context, cl client.APIClient, serviceID string) (bool, error) {
	tasks, err := cl.TaskList(ctx, swarm.TaskListOptions{})
	if err != nil {
		return false, fmt.Errorf("wait for the tasks of service %s to stop: %w", serviceID, err)
	}
	for _, t := range tasks {
		if t.ServiceID == serviceID && !ended(t.Status.State) {
			return false, nil
		}
	}
	return true, nil
}

// waitForStacks waits until nothing of the stacks is left.
func waitForStacks(ctx context.Context, cl client.APIClient, names []string) error {
	for _, name := range names {
		label := convert.LabelNamespace + "=" + name
		err := until(ctx, func() (bool, error) {
			if done, err := allEnded(ctx, cl, "label", label); !done || err != nil {
				return false, err
			}
			networks, err := cl.NetworkList(ctx, network.ListOptions{Filters: filterOf("label", label)})
			if err != nil {
				return false, fmt.Errorf("wait for the networks of stack %s to go: %w", name, err)
			}
			return len(networks) == 0, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// waitForNodes waits until no task is left on nodes that take none any more.
func waitForNodes(ctx context.Context, cl client.APIClient, nodes []string) error {
	for _, node := range nodes {
		n, _, err := cl.NodeInspectWithRaw(ctx, node)
		if err != nil {
			return fmt.Errorf("wait for node %s: %w", node, err)
		}
		if n.Spec.Availability != swarm.NodeAvailabilityDrain {
			continue
		}
		if err := until(ctx, func() (bool, error) { return allEnded(ctx, cl, "node", n.ID) }); err != nil {
			return err
		}
	}
	return nil
}

// adaptNodes gives the commands about nodes their waiting, and what a node may allow.
func adaptNodes(oc *observedCLI, cmd *cobra.Command) {
	addAllow(cmd)
	for _, sub := range cmd.Commands() {
		if sub.Name() == "demote" {
			demoteOwnLast(oc, sub)
		}
		if sub.Name() != "update" {
			continue
		}
		waits := sub.Flags().Bool(flagWait, false, "With --availability drain: wait until the node's tasks have stopped")
		run := sub.RunE
		sub.RunE = func(cmd *cobra.Command, args []string) error {
			if err := run(cmd, args); err != nil || !*waits {
				return err
			}
			return waitForNodes(cmd.Context(), oc.observer(), args)
		}
	}
}

// adaptServices gives the commands about services their waiting and dry runs, and what else miniswarm has beside Docker's.
func adaptServices(oc *observedCLI, cmd *cobra.Command) {
	addExtras(cmd)
	for _, sub := range cmd.Commands() {
		switch sub.Name() {
		case "create", "update", "scale", "rollback":
			adaptConverging(oc, sub)
		case "ls":
			namePaused(oc, sub)
		case "rm":
			adaptRemoval(oc, sub, waitForServices)
		}
	}
}
