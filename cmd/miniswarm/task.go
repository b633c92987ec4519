package main

import (
	dockercli "github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/idresolver"
	"github.com/docker/cli/cli/command/inspect"
	"github.com/docker/cli/cli/command/task"
	"github.com/docker/cli/opts"
	"github.com/docker/docker/api/types/swarm"
	"github.com/spf13/cobra"
)

// newTaskCommand is a noun that Docker's API has and its command line has not, made of Docker's own parts.
func newTaskCommand(dc command.Cli) *cobra.Command {
	cmd := &cobra.Command{Use: "task", Short: "Look at tasks", Args: dockercli.NoArgs, RunE: command.ShowHelp(dc.Err())}
	cmd.AddCommand(listTasks(dc), inspectTasks(dc), explainTask(dc))
	return cmd
}

func listTasks(dc command.Cli) *cobra.Command {
	var (
		quiet, noTrunc, noResolve bool
		format                    string
		filter                    = opts.NewFilterOpt()
	)
	cmd := &cobra.Command{Use: "ls [OPTIONS]", Aliases: []string{"list"}, Short: "List tasks of all services", Args: dockercli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			tasks, err := dc.Client().TaskList(cmd.Context(), swarm.TaskListOptions{Filters: filter.Value()})
			if err != nil {
				return err
			}
			if format == "" {
				format = task.DefaultFormat(dc.ConfigFile(), quiet)
			}
			return task.Print(cmd.Context(), dc, tasks, idresolver.New(dc.Client(), noResolve), !noTrunc, quiet, format)
		}}
	f := cmd.Flags()
	f.BoolVarP(&quiet, "quiet", "q", false, "Only display task IDs")
	f.BoolVar(&noTrunc, "no-trunc", false, "Do not truncate output")
	f.BoolVar(&noResolve, "no-resolve", false, "Do not map IDs to Names")
	f.StringVar(&format, "format", "", "Pretty-print tasks using a Go template")
	f.VarP(&filter, "filter", "f", "Filter output based on conditions provided (desired-state, id, label, name, node, service)")
	return cmd
}

func inspectTasks(dc command.Cli) *cobra.Command {
	var format string
	cmd := &cobra.Command{Use: "inspect [OPTIONS] TASK [TASK...]", Short: "Display detailed information on one or more tasks", Args: dockercli.RequiresMinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return inspect.Inspect(dc.Out(), args, format, func(ref string) (any, []byte, error) { return dc.Client().TaskInspectWithRaw(cmd.Context(), ref) })
		}}
	cmd.Flags().StringVarP(&format, "format", "f", "", `Format output using a custom template, or "json"`)
	return cmd
}
