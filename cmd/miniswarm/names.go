package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/docker/cli/cli/command"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"
	"github.com/spf13/cobra"
)

// completeServices offers the names of services for the first argument.
func completeServices(dc command.Cli) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return completed(serviceNames(cmd.Context(), dc.Client()))
	}
}

// completeSlots offers the tasks that are to run as taskOfSlot understands them, and by their ids those that have no slot.
func completeSlots(dc command.Cli) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return completed(slotNames(cmd.Context(), dc.Client()))
	}
}

// completeReplica offers SERVICE: for the one of two paths that names a replica; the other is the shell's to complete.
func completeReplica(dc command.Cli) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 1 || slices.ContainsFunc(args, func(arg string) bool { _, ok := replicaOf(arg); return ok }) {
			return nil, cobra.ShellCompDirectiveDefault
		}
		names, err := serviceNames(cmd.Context(), dc.Client())
		for i := range names {
			names[i] += ":"
		}
		return completed(names, err)
	}
}

func completed(names []string, err error) ([]string, cobra.ShellCompDirective) {
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func serviceNames(ctx context.Context, cl client.APIClient) ([]string, error) {
	services, err := cl.ServiceList(ctx, swarm.ServiceListOptions{})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, s := range services {
		names = append(names, s.Spec.Name)
	}
	return names, nil
}

func slotNames(ctx context.Context, cl client.APIClient) ([]string, error) {
	services, err := cl.ServiceList(ctx, swarm.ServiceListOptions{})
	if err != nil {
		return nil, err
	}
	tasks, err := cl.TaskList(ctx, swarm.TaskListOptions{Filters: filters.NewArgs(filters.Arg("desired-state", "running"))})
	if err != nil {
		return nil, err
	}
	named := make(map[string]string, len(services))
	for _, s := range services {
		named[s.ID] = s.Spec.Name
	}
	var names []string
	for _, t := range tasks {
		if name := named[t.ServiceID]; t.Slot != 0 && name != "" {
			names = append(names, fmt.Sprintf("%s.%d", name, t.Slot))
		} else {
			names = append(names, t.ID)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}
