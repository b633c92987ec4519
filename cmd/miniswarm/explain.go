package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	dockercli "github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"
	"github.com/spf13/cobra"
)

// explainService tells where a service's next task would go and why.
func explainService(dc command.Cli) *cobra.Command {
	return explain(dc, "service",
		"Show why a service's tasks are where they are, and where the next would go",
		"  miniswarm service explain web\n  miniswarm service explain --verbose --tasks 3 web\n  miniswarm service explain --format json web")
}

// explainTask tells why a task is where it is.
func explainTask(dc command.Cli) *cobra.Command {
	return explain(dc, "task",
		"Show why a task is on its node: every node, every filter with its numbers, the ranking",
		"  miniswarm task explain 4f0k6wn3trid\n  miniswarm task explain web.3\n  miniswarm task explain --format json web.3")
}

func explain(dc command.Cli, noun, short, example string) *cobra.Command {
	var (
		format  string
		tasks   uint
		verbose bool
	)
	cmd := &cobra.Command{Use: "explain [OPTIONS] " + strings.ToUpper(noun), Short: short, Args: dockercli.ExactArgs(1), Example: example,
		RunE: func(cmd *cobra.Command, args []string) error {
			if format != "" && format != "json" {
				return dockercli.StatusError{Status: fmt.Sprintf("invalid --format %q: json, or leave it out for text", format), StatusCode: exitUsage}
			}
			ref := args[0]
			if noun == "task" {
				var err error
				if ref, err = taskOfSlot(cmd.Context(), dc.Client(), ref); err != nil {
					return err
				}
			}
			path := "/miniswarm/" + noun + "s/" + url.PathEscape(ref) + "/explain"
			query := make(url.Values)
			if cmd.Flags().Changed("tasks") {
				query.Set("limit", strconv.FormatUint(uint64(tasks), 10))
			}
			if noun == "service" && !verbose {
				query.Set("compact", "1")
			}
			if len(query) > 0 {
				path += "?" + query.Encode()
			}
			body, err := get(cmd.Context(), dc.Client(), path)
			if err != nil && noun == "task" {
				return taskOrService(cmd.Context(), dc.Client(), ref, err)
			}
			if err != nil {
				return err
			}
			if format == "json" {
				_, err = fmt.Fprintln(dc.Out(), strings.TrimSpace(string(body)))
				return err
			}
			var answer struct{ Text string }
			if err := json.Unmarshal(body, &answer); err != nil {
				return fmt.Errorf("explain %s: read the answer of the daemon: %w", args[0], err)
			}
			_, err = fmt.Fprintln(dc.Out(), strings.TrimRight(answer.Text, "\n"))
			return err
		},
		ValidArgsFunction: completeServices(dc)}
	if noun == "task" {
		cmd.ValidArgsFunction = completeSlots(dc)
	}
	cmd.Flags().StringVar(&format, "format", "", `"json" prints the whole decision`)
	if noun == "service" {
		cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "Show how each came about and the whole table of nodes, filters and ranks")
		cmd.Flags().UintVar(&tasks, "tasks", 20, "How many of its tasks to explain, besides the next replica")
	}
	return cmd
}

// taskOrService adds to the refusal of a task what to ask for instead where a service has that name.
func taskOrService(ctx context.Context, cl client.APIClient, ref string, refusal error) error {
	if !strings.HasSuffix(refusal.Error(), "not found") {
		return refusal
	}
	if _, _, err := cl.ServiceInspectWithRaw(ctx, ref, swarm.ServiceInspectOptions{}); err != nil {
		return refusal
	}
	return fmt.Errorf("%w\n%[2]s is a service: 'miniswarm service explain %[2]s'; one of its tasks is %[2]s.SLOT, as in %[2]s.1", refusal, ref)
}

// taskOfSlot gives the id of the task that a name as "service ps" shows it means, SERVICE.SLOT: the one that is to run, or
// else the latest. Anything else is left to the daemon.
func taskOfSlot(ctx context.Context, cl client.APIClient, ref string) (string, error) {
	dot := strings.LastIndexByte(ref, '.')
	if dot < 0 {
		return ref, nil
	}
	slot, err := strconv.Atoi(ref[dot+1:])
	if err != nil {
		return ref, nil
	}
	tasks, err := cl.TaskList(ctx, swarm.TaskListOptions{Filters: filters.NewArgs(filters.Arg("service", ref[:dot]))})
	if err != nil {
		return "", err
	}
	tasks = slices.DeleteFunc(tasks, func(t swarm.Task) bool { return t.Slot != slot })
	if len(tasks) == 0 {
		return "", fmt.Errorf("service %s has no task in slot %d; 'miniswarm service ps %s' lists its tasks", ref[:dot], slot, ref[:dot])
	}
	return slices.MaxFunc(tasks, func(a, b swarm.Task) int {
		if r := cmp.Compare(wanted(a), wanted(b)); r != 0 {
			return r
		}
		return a.CreatedAt.Compare(b.CreatedAt)
	}).ID, nil
}

func wanted(t swarm.Task) int {
	if t.DesiredState == swarm.TaskStateRunning || t.DesiredState == swarm.TaskStateComplete { // a job's, to its end
		return 1
	}
	return 0
}

// daemonSays begins every refusal of the daemon, in Docker's words.
const daemonSays = "Error response from daemon:"

// get asks the daemon for what Docker's client has no call for.
func get(ctx context.Context, cl client.APIClient, path string) ([]byte, error) {
	return ask(ctx, cl, http.MethodGet, path, nil)
}

// ask sends the daemon a request that Docker's client has no call for.
func ask(ctx context.Context, cl client.APIClient, method, path string, body io.Reader) ([]byte, error) {
	header := make(http.Header)
	if body != nil {
		header.Set("Content-Type", "application/json")
	}
	answer, err := open(ctx, cl, method, path, header, body)
	if err != nil {
		return nil, err
	}
	defer answer.Close()
	all, err := io.ReadAll(answer)
	if err != nil {
		return nil, fmt.Errorf("ask the daemon for %s: %w", path, err)
	}
	return all, nil
}

// open sends such a request and gives the answer to read; its error is what the daemon says.
func open(ctx context.Context, cl client.APIClient, method, path string, header http.Header, body io.Reader) (io.ReadCloser, error) {
	host, err := client.ParseHostURL(cl.DaemonHost())
	if err != nil {
		return nil, fmt.Errorf("daemon %q: %w", cl.DaemonHost(), err)
	}
	address := host.Host
	if host.Scheme != "tcp" {
		address = "miniswarm" // the connection is made to the socket whatever the name is
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+address+path, body)
	if err != nil {
		return nil, fmt.Errorf("ask the daemon for %s: %w", path, err)
	}
	req.Header = header
	resp, err := cl.HTTPClient().Do(req)
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		return nil, fmt.Errorf("cannot connect to the miniswarm daemon at %s: %w", cl.DaemonHost(), dial)
	}
	if err != nil {
		return nil, fmt.Errorf("ask the daemon for %s: %w", path, err)
	}
	if resp.StatusCode < 300 {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("ask the daemon for %s: %w", path, err)
	}
	var said struct{ Message string }
	if json.Unmarshal(answer, &said) != nil || said.Message == "" {
		said.Message = resp.Status
	}
	return nil, fmt.Errorf("%s %s", daemonSays, said.Message)
}
