package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	dockercli "github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/config"
	"github.com/docker/cli/cli/command/network"
	"github.com/docker/cli/cli/command/node"
	"github.com/docker/cli/cli/command/secret"
	"github.com/docker/cli/cli/command/service"
	"github.com/docker/cli/cli/command/stack"
	"github.com/docker/cli/cli/flags"
	"github.com/docker/docker/client"
	"github.com/spf13/cobra"
	"github.com/urfave/cli/v2"
)

const (
	flagHost    = "host"
	defaultHost = "unix:///run/miniswarm.sock"
)

// hostURL takes an absolute path for the unix socket that it is: Docker's client would look for it on a TCP port of this machine.
func hostURL(host string) string {
	if strings.HasPrefix(host, "/") {
		return "unix://" + host
	}
	return host
}

// newClient gives a client of the daemon that the command line names.
func newClient(c *cli.Context) (*client.Client, error) {
	cl, err := client.NewClientWithOpts(client.WithHost(c.String(flagHost)), client.WithAPIVersionNegotiation(), client.WithUserAgent("miniswarm/"+version))
	if err != nil {
		return nil, fmt.Errorf("connect to the daemon at %s: %w", c.String(flagHost), err)
	}
	return cl, nil
}

// noun is one of Docker's commands that miniswarm has too.
type noun struct {
	name, usage string
	make        func(command.Cli) *cobra.Command
	// extra are miniswarm's own subcommands under Docker's noun.
	extra []func(command.Cli) *cobra.Command
	// adapt changes what Docker's own subcommands do.
	adapt func(*observedCLI, *cobra.Command)
}

func (n noun) category() string {
	if n.name == "node" {
		return clusterCategory
	}
	return "Workloads"
}

//lint:file-ignore SA1019 Docker means to make its commands internal; until then, with the version pinned, they are the
// only ones that are exactly Docker's.

var nouns = []noun{
	{name: "node", usage: "manage the machines of the cluster", make: node.NewNodeCommand, adapt: adaptNodes},
	{name: "service", usage: "manage services", make: service.NewServiceCommand, adapt: adaptServices,
		extra: []func(command.Cli) *cobra.Command{explainService, execService, copyService}},
	{name: "stack", usage: "deploy and manage Compose files", make: stack.NewStackCommand, adapt: adaptStack},
	{name: "task", usage: "look at the tasks of services", make: newTaskCommand},
	{name: "network", usage: "manage networks", make: network.NewNetworkCommand},
	{name: "secret", usage: "manage secrets", make: secret.NewSecretCommand},
	{name: "config", usage: "manage configs", make: config.NewConfigCommand},
}

// dockerCommands gives Docker's own nouns. The words after the noun are Docker's to parse.
func dockerCommands(e *env) []*cli.Command {
	out := make([]*cli.Command, 0, len(nouns))
	for _, n := range nouns {
		out = append(out, &cli.Command{Name: n.name, Usage: n.usage, Category: n.category(), SkipFlagParsing: true, HideHelp: true,
			Action: func(c *cli.Context) error { return runDocker(e, c, n, c.Args().Slice()) }})
	}
	return out
}

// runDocker runs one of Docker's commands against the daemon.
func runDocker(e *env, c *cli.Context, n noun, args []string) error {
	ctx, stop := c.Context, context.CancelFunc(func() {})
	waits := slices.Contains(waiting, n.name+" "+firstWord(args))
	if waits {
		ctx, stop = patient(ctx)
	}
	defer stop()
	stale, args := staleAsked(c, args)
	var more []command.CLIOption
	if stale {
		cl, age, err := newStaleClient(c.String(flagHost))
		if err != nil {
			return err
		}
		defer age.tell(e.stderr)
		more = append(more, command.WithAPIClient(cl))
	}
	root, err := dockerRoot(ctx, e, c.String(flagHost), n, more...)
	if err != nil {
		return err
	}
	root.SetArgs(append([]string{n.name}, args...))
	ran, err := root.ExecuteContextC(ctx)
	if waits && c.Context.Err() != nil {
		fmt.Fprintf(e.stderr, "Interrupted. What the cluster has accepted goes on: 'miniswarm %s ps %s' shows it.\n", n.name, waitedFor(ran))
		if err == nil { // Docker's progress takes Ctrl-C for its end
			err = context.Canceled
		}
	}
	if err != nil && (ctx.Err() != nil || errors.Is(err, context.Canceled)) {
		return fmt.Errorf("%s: %w", n.name, context.Canceled)
	}
	return hint(didYouMean(err, ran, firstWord(args)), c)
}

// waitedFor gives the names of what a command of waiting was given to write, NAME where the daemon made one up.
func waitedFor(ran *cobra.Command) string {
	if f := ran.Flags().Lookup("name"); f != nil { // a new service's; its arguments are an image and a command
		return cmp.Or(f.Value.String(), "NAME")
	}
	var names []string
	for _, arg := range ran.Flags().Args() {
		name, _, _ := strings.Cut(arg, "=") // as scale takes them
		names = append(names, name)
	}
	return cmp.Or(strings.Join(names, " "), "NAME")
}

// waiting are the commands that wait for the cluster to converge.
var waiting = []string{"service create", "service scale", "service update", "service rollback", "stack deploy", "stack up"}

// interruptPatience is how long those have to end by themselves after Ctrl-C: their progress bars look for it every
// 200 ms, and then stop waiting without an error.
const interruptPatience = 700 * time.Millisecond

// patient gives a context that ends a moment after its parent, or when it is stopped.
func patient(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(parent))
	unhook := context.AfterFunc(parent, func() { time.AfterFunc(interruptPatience, cancel) })
	return ctx, func() {
		unhook()
		cancel()
	}
}

func firstWord(args []string) string {
	for _, a := range args {
		if !strings.HasPrefix(a, "-") {
			return a
		}
	}
	return ""
}

// dockerRoot builds a root command with Docker's help and error texts around one noun.
func dockerRoot(ctx context.Context, e *env, host string, n noun, more ...command.CLIOption) (*cobra.Command, error) {
	base, err := command.NewDockerCli(append([]command.CLIOption{command.WithBaseContext(ctx), command.WithInputStream(e.stdin), command.WithOutputStream(e.stdout),
		command.WithErrorStream(e.stderr), command.WithUserAgent("miniswarm/" + version)}, more...)...)
	if err != nil {
		return nil, fmt.Errorf("set up the Docker commands: %w", err)
	}
	root := &cobra.Command{Use: "miniswarm", SilenceErrors: true, SilenceUsage: true, TraverseChildren: true,
		PersistentPreRunE: func(*cobra.Command, []string) error { return nil }} // Docker's help calls it
	dockercli.SetupRootCommand(root)
	root.Annotations = nil
	root.CompletionOptions.DisableDefaultCmd = true
	opts := flags.NewClientOptions()
	opts.Hosts = []string{host}
	if err := base.Initialize(opts); err != nil {
		return nil, fmt.Errorf("connect to the daemon at %s: %w", host, err)
	}
	dc := &observedCLI{Cli: base}
	sub := n.make(dc)
	for _, extra := range n.extra {
		sub.AddCommand(extra(dc))
	}
	if n.adapt != nil {
		n.adapt(dc, sub)
	}
	withExamples(sub)
	root.AddCommand(sub)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	return root, nil
}

// examples are shown by --help of Docker's commands, by command path without "miniswarm".
var examples = map[string]string{
	"service create":   "  miniswarm service create --name web --replicas 4 -p 80:8000 registry.local/web:1.0\n  miniswarm service create --mode global --name agent registry.local/agent:2\n  miniswarm service create --name door --device /dev/ttyUSB0 registry.local/door:1",
	"service scale":    "  miniswarm service scale web=12\n  miniswarm service scale web=3 worker=9",
	"service update":   "  miniswarm service update --image registry.local/web:1.1 --update-order start-first web\n  miniswarm service update --limit-cpu 0.5 web",
	"service ls":       "  miniswarm service ls\n  miniswarm service ls --filter mode=global --format '{{.Name}} {{.Replicas}}'",
	"service ps":       "  miniswarm service ps web\n  miniswarm service ps --no-trunc --filter desired-state=running web",
	"service inspect":  "  miniswarm service inspect --pretty web\n  miniswarm service inspect --format '{{json .Endpoint}}' web",
	"service logs":     "  miniswarm service logs -f --tail 20 web",
	"service exec":     "  miniswarm service exec -it web.3 sh\n  miniswarm service exec -e DEBUG=1 -u nobody -w /srv web ./check --all\n  tar c site | miniswarm service exec -i web.1 tar x -C /srv",
	"service cp":       "  miniswarm service cp web.1:/etc/nginx ./nginx\n  miniswarm service cp ./index.html web.2:/srv/",
	"service rm":       "  miniswarm service rm web",
	"stack deploy":     "  miniswarm stack deploy -c compose.yml shop\n  IMAGE=registry.local/web:2 miniswarm stack deploy -c compose.yml --detach shop",
	"stack ls":         "  miniswarm stack ls",
	"stack ps":         "  miniswarm stack ps shop",
	"stack services":   "  miniswarm stack services shop",
	"stack rm":         "  miniswarm stack rm shop",
	"stack config":     "  miniswarm stack config -c compose.yml",
	"node ls":          "  miniswarm node ls\n  miniswarm node ls --format '{{.Hostname}} {{.Status}}'",
	"node inspect":     "  miniswarm node inspect --pretty self",
	"node ps":          "  miniswarm node ps vm2",
	"node update":      "  miniswarm node update --availability drain vm2\n  miniswarm node update --label-add zone=a vm2\n  miniswarm node update --allow devices,gpus vm2",
	"node rm":          "  miniswarm node rm vm3",
	"service rollback": "  miniswarm service rollback web",
	"node promote":     "  miniswarm node promote vm2",
	"node demote":      "  miniswarm node demote vm2",
	"task ls":          "  miniswarm task ls --filter desired-state=running\n  miniswarm task ls --filter node=vm2 --format '{{.Name}} {{.CurrentState}}'",
	"task inspect":     "  miniswarm task inspect 4f0k6wn3trid\n  miniswarm task inspect --format '{{.Status.State}}' 4f0k6wn3trid",
	"network ls":       "  miniswarm network ls --filter driver=overlay",
	"network inspect":  "  miniswarm network inspect backend",
	"network rm":       "  miniswarm network rm backend",
	"secret create":    "  printf s3cret | miniswarm secret create db-password -",
	"secret ls":        "  miniswarm secret ls",
	"secret inspect":   "  miniswarm secret inspect --pretty db-password",
	"secret rm":        "  miniswarm secret rm db-password",
	"config create":    "  miniswarm config create web-conf ./nginx.conf",
	"config ls":        "  miniswarm config ls",
	"config inspect":   "  miniswarm config inspect --pretty web-conf",
	"config rm":        "  miniswarm config rm web-conf",
	"network create":   "  miniswarm network create -d overlay backend",
}

// withExamples adds what Docker keeps in its documentation.
func withExamples(c *cobra.Command) {
	for _, sub := range c.Commands() {
		sub.DisableFlagsInUseLine = true
		if text, ok := examples[c.Name()+" "+sub.Name()]; ok && sub.Example == "" {
			sub.Example = text
		}
	}
}

// completeDocker gives what may stand for the word at the cursor after the words that follow a noun.
func completeDocker(ctx context.Context, e *env, host string, n noun, words []string, current string) []string {
	quiet := *e
	quiet.stderr = io.Discard
	root, err := dockerRoot(ctx, &quiet, host, n)
	if err != nil {
		return nil
	}
	root.SetArgs(slices.Concat([]string{cobra.ShellCompNoDescRequestCmd, n.name}, words, []string{current}))
	var out strings.Builder
	root.SetOut(&out)
	root.SetErr(io.Discard)
	if root.ExecuteContext(ctx) != nil {
		return nil
	}
	var found []string
	for line := range strings.Lines(out.String()) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, ":") {
			found = append(found, line)
		}
	}
	return found
}
