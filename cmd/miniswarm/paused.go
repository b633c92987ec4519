package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/compose/convert"
	"github.com/docker/cli/opts"
	"github.com/docker/docker/api/types/swarm"
	"github.com/spf13/cobra"
)

// namePaused makes a command that lists services, "service ls" or "stack services", speak of updates that wait for a person.
func namePaused(dc command.Cli, list *cobra.Command) {
	run := list.RunE
	list.RunE = func(list *cobra.Command, args []string) error {
		if err := run(list, args); err != nil || !forPeople(dc, list) {
			return err
		}
		return warnOfPaused(list.Context(), dc, list, args)
	}
}

// forPeople says whether a list is shown as Docker's table; what has a format of its own, or is ids alone, is read by
// scripts.
func forPeople(dc command.Cli, ls *cobra.Command) bool {
	quiet, err := ls.Flags().GetBool("quiet")
	return err == nil && !quiet && ls.Flags().Lookup("format").Value.String() == "" && dc.ConfigFile().ServicesFormat == ""
}

// warnOfPaused names the listed services whose update or rollback is paused below the table, on the error stream: the table
// has no place for it, and a service whose update has stopped half way looks well there.
// Of a stack, args has the name.
func warnOfPaused(ctx context.Context, dc command.Cli, ls *cobra.Command, args []string) error {
	flag, ok := ls.Flags().Lookup("filter").Value.(*opts.FilterOpt)
	if !ok {
		return fmt.Errorf("%s: --filter is no filter but %T", ls.CommandPath(), ls.Flags().Lookup("filter").Value)
	}
	filter := flag.Value().Clone()
	for _, stack := range args {
		filter.Add("label", convert.LabelNamespace+"="+stack)
	}
	services, err := dc.Client().ServiceList(ctx, swarm.ServiceListOptions{Filters: filter})
	if err != nil {
		return err
	}
	for _, svc := range services {
		writePaused(dc.Err(), svc)
	}
	return nil
}

func writePaused(w io.Writer, svc swarm.Service) {
	if svc.UpdateStatus == nil {
		return
	}
	name, ways := svc.Spec.Name, ""
	switch svc.UpdateStatus.State {
	case swarm.UpdateStatePaused:
		ways = fmt.Sprintf("'miniswarm service rollback %s' goes back, 'miniswarm service update %s' goes on", name, name)
	case swarm.UpdateStateRollbackPaused:
		ways = fmt.Sprintf("'miniswarm service update %s' goes on", name)
	default:
		return
	}
	what, reason := strings.ReplaceAll(string(svc.UpdateStatus.State), "_", " "), svc.UpdateStatus.Message
	if svc.UpdateStatus.State == swarm.UpdateStatePaused {
		what = "update paused"
	}
	if strings.HasPrefix(reason, what) {
		reason = strings.TrimPrefix(reason, what)
	} else if reason != "" {
		reason = ": " + reason
	}
	fmt.Fprintf(w, "%s: %s%s. 'miniswarm service ps %s' shows why; %s.\n", name, what, reason, name, ways)
}
