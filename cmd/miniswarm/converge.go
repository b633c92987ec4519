package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/docker/cli/cli/command/service/progress"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/jsonmessage"
	"github.com/spf13/cobra"
)

const (
	// waitPoll is how often the state of what is waited for is asked, as by Docker's own progress.
	waitPoll = 200 * time.Millisecond
	// reasonAfter is how long a task may be without a node before its reasons are shown.
	reasonAfter = time.Second
	// reasonNodes bounds how many nodes a reason names.
	reasonNodes = 10
)

// adaptConverging makes a command that writes services wait with reasons, and gives it a dry run. The waiting itself is
// Docker's.
func adaptConverging(oc *observedCLI, cmd *cobra.Command) {
	dryRunFlag(cmd)
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		detach, err := cmd.Flags().GetBool("detach")
		if err != nil {
			return err
		}
		quiet, err := cmd.Flags().GetBool("quiet")
		quiet = err == nil && quiet // scale has no such flag
		if err := cmd.Flags().Set("detach", "true"); err != nil {
			return err
		}
		obs := oc.observer()
		if startDryRun(oc, cmd) {
			if err := run(cmd, args); err != nil {
				return err
			}
			return showPlan(cmd.Context(), oc)
		}
		var before []stopped
		if cmd.Name() == "scale" && oc.Cli.Err().IsTerminal() {
			for _, arg := range args {
				name, _, _ := strings.Cut(arg, "=")
				before = append(before, runningTasks(cmd.Context(), obs.APIClient, name)...)
			}
		}
		errs := []error{run(cmd, args)}
		if detach {
			return errs[0]
		}
		for _, id := range obs.written {
			if err := await(cmd.Context(), oc, id, quiet); err != nil {
				if cmd.Name() == "scale" {
					err = fmt.Errorf("%s: %w", id, err)
				}
				errs = append(errs, err)
			}
		}
		showEnded(cmd.Context(), oc, before)
		return errors.Join(errs...)
	}
}

// showEnded names those tasks of before that are not wanted any more.
func showEnded(ctx context.Context, oc *observedCLI, before []stopped) {
	if len(before) == 0 {
		return
	}
	still := make(map[string]bool)
	for _, s := range before {
		if _, asked := still[s.service]; asked {
			continue
		}
		still[s.service] = true
		for _, t := range runningTasks(ctx, oc.observer().APIClient, s.service) {
			still[t.id] = true
		}
	}
	for _, s := range before {
		if !still[s.id] {
			fmt.Fprintln(oc.Err(), s)
		}
	}
}

// await waits until a service has converged and shows how it goes on; while tasks find no place, what each node lacks.
func await(ctx context.Context, oc *observedCLI, id string, quiet bool) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	cl := oc.observer().APIClient
	reader, writer := io.Pipe()
	out := &progressPrinter{write: oc.Out(), last: make(map[string]string), quiet: quiet, nodes: nodesByID(ctx, cl),
		because: func(text string) string { return because(ctx, cl, text) }}
	var done sync.WaitGroup
	if !quiet && oc.Out().IsTerminal() {
		screen, frames := io.Pipe()
		out.frames = frames
		done.Go(func() {
			_ = jsonmessage.DisplayJSONMessagesToStream(screen, oc.Out(), nil) // it ends with the pipe
			_ = screen.Close()
		})
		defer done.Wait()
		defer frames.Close()
	}
	var helpers sync.WaitGroup
	helpers.Go(func() { out.copy(reader) })
	helpers.Go(func() { watchTasks(ctx, cl, id, out, stop) })
	err := explainStop(ctx, cl, progress.ServiceProgress(ctx, cl, id, writer))
	if ended := context.Cause(ctx); errors.Is(ended, errAllComplete) {
		err = nil
		out.message(message{ID: "verify", Status: "Service " + id + ": all tasks are complete"})
	}
	stop(nil)
	helpers.Wait()
	return err
}

// errAllComplete: tasks that are not to run again have done their work, for which Docker's progress would wait for ever.
var errAllComplete = errors.New("all tasks are complete")

// watchTasks shows what nodes lack for tasks that wait for a place, and stops when all tasks have done their work.
func watchTasks(ctx context.Context, cl client.APIClient, id string, out *progressPrinter, stop context.CancelCauseFunc) {
	tick := time.NewTicker(waitPoll)
	defer tick.Stop()
	shown, began := make(map[string]bool), time.Now()
	var failed *failures
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		tasks, err := cl.TaskList(ctx, swarm.TaskListOptions{Filters: filterOf("service", id, "_up-to-date", "true")})
		if err != nil {
			continue // Docker's progress reports it
		}
		if failed == nil {
			if failed, err = newFailures(ctx, cl, id); err != nil {
				continue
			}
		}
		failed.tell(tasks, out)
		current := newest(tasks)
		if len(current) > 0 && !slices.ContainsFunc(current, func(t swarm.Task) bool { return t.Status.State != swarm.TaskStateComplete || t.JobIteration != nil }) {
			stop(errAllComplete)
			return
		}
		if len(current) == 0 && time.Since(began) > reasonAfter {
			for _, r := range ineligible(ctx, cl, id) {
				out.message(r)
			}
		}
		now := make(map[string]bool)
		if at := slices.IndexFunc(current, func(t swarm.Task) bool { return t.NodeID == "" && time.Since(t.CreatedAt) > reasonAfter }); at >= 0 {
			for _, r := range reasons(ctx, cl, current[at].ID) {
				now[r.ID] = true
				out.message(r)
			}
		}
		for node := range shown {
			if !now[node] {
				out.message(message{ID: node, Status: "has room again"})
			}
		}
		shown = now
	}
}

// newest gives the tasks that stand for their slots: of a slot's tasks the latest.
func newest(tasks []swarm.Task) []swarm.Task {
	bySlot := make(map[string]swarm.Task)
	for _, t := range tasks {
		slot := fmt.Sprint(t.Slot)
		if t.Slot == 0 {
			slot = t.NodeID
		}
		if old, ok := bySlot[slot]; !ok || old.CreatedAt.Before(t.CreatedAt) {
			bySlot[slot] = t
		}
	}
	out := make([]swarm.Task, 0, len(bySlot))
	for _, slot := range slices.Sorted(maps.Keys(bySlot)) {
		out = append(out, bySlot[slot])
	}
	return out
}

// reasons say of each node why it does not take a task.
func reasons(ctx context.Context, cl client.APIClient, taskID string) []message {
	body, err := get(ctx, cl, "/miniswarm/tasks/"+url.PathEscape(taskID)+"/explain")
	if err != nil {
		return nil
	}
	var answer struct {
		Now struct {
			Table []struct {
				Hostname string `json:"hostname"`
				NodeID   string `json:"node_id"`
				Fits     bool   `json:"fits"`
				Filters  []struct {
					Passed bool   `json:"passed"`
					Detail string `json:"detail"`
				} `json:"filters"`
			} `json:"table"`
		}
	}
	if json.Unmarshal(body, &answer) != nil {
		return nil
	}
	var out []message
	left := 0
	for _, row := range answer.Now.Table {
		if row.Fits {
			continue
		}
		if len(out) == reasonNodes {
			left++
			continue
		}
		var lacks []string
		for _, f := range row.Filters {
			if !f.Passed {
				lacks = append(lacks, f.Detail)
			}
		}
		out = append(out, message{ID: cmp.Or(row.Hostname, row.NodeID), Status: strings.Join(lacks, "; ")})
	}
	if left > 0 {
		out = append(out, message{ID: "other nodes", Status: fmt.Sprintf("%d more have no room either", left)})
	}
	return out
}

// ineligible say of each node why it has no task of a global service.
func ineligible(ctx context.Context, cl client.APIClient, serviceID string) []message {
	body, err := get(ctx, cl, "/miniswarm/services/"+url.PathEscape(serviceID)+"/explain?limit=0")
	if err != nil {
		return nil
	}
	var answer struct {
		Without []struct{ ID, Hostname, Lacks string }
	}
	if json.Unmarshal(body, &answer) != nil {
		return nil
	}
	var out []message
	for i, n := range answer.Without {
		if i == reasonNodes {
			return append(out, message{ID: "other nodes", Status: fmt.Sprintf("%d more take none either", len(answer.Without)-i)})
		}
		out = append(out, message{ID: cmp.Or(n.Hostname, n.ID), Status: n.Lacks})
	}
	return out
}

// filterOf builds filters from keys and values.
func filterOf(pairs ...string) filters.Args {
	f := filters.NewArgs()
	for i := 0; i+1 < len(pairs); i += 2 {
		f.Add(pairs[i], pairs[i+1])
	}
	return f
}
