// Command miniswarm is the whole of miniswarm in one binary: the daemon of a node, and the commands that talk to it.
//
// The commands are clients of the Engine API that a daemon serves on its unix socket. What Docker has too (service,
// stack, node, secret, config, network) is Docker's own implementation with its tables, flags and messages; what is
// miniswarm's own has a file of its own here, named after the noun.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strings"
	"syscall"

	dockercli "github.com/docker/cli/cli"
	"github.com/urfave/cli/v2"

	"github.com/miniswarm/miniswarm/cmd/miniswarm/twofold"
)

// version is set when the binary is linked.
var version = "dev"

// env is everything the process takes from outside, so that commands are plain functions of it.
type env struct {
	args   []string
	stdin  io.ReadCloser
	stdout io.Writer
	stderr io.Writer
	// executable is this binary, for starting the daemon.
	executable string
}

// Exit codes. Docker's are kept: 1 for a failed operation, 125 for wrong usage, 130 after Ctrl-C.
const (
	exitFailed      = 1
	exitUsage       = 125
	exitInterrupted = 130
)

func main() {
	if err := twofold.Forget(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(exitFailed)
	}
	exe, err := os.Executable()
	if err != nil {
		exe = os.Args[0]
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the first signal ends what runs in order, a second one at once
	os.Exit(run(ctx, &env{args: os.Args, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, executable: exe}))
}

// run executes the command line and gives the exit code. When ctx ends the command stops; that is no failure of its own.
func run(ctx context.Context, e *env) int {
	app := newApp(e)
	err := app.RunContext(ctx, flagsFirst(app, e.args))
	if err == nil {
		return 0
	}
	code := exitFailed
	var docker dockercli.StatusError
	var coded cli.ExitCoder
	var exited *exec.ExitError
	switch {
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.As(err, &exited): // a command in a host of the lab has said itself what was wrong
		return exited.ExitCode()
	case errors.As(err, &docker):
		if docker.StatusCode != 0 {
			code = docker.StatusCode
		}
		if err.Error() == fmt.Sprintf("exit status %d", code) { // the command has said itself what was wrong
			return code
		}
	case errors.As(err, &coded):
		code = coded.ExitCode()
	}
	if text := err.Error(); text != "" {
		fmt.Fprintln(e.stderr, ourWords.Replace(withNextStep(plainNumbers(text))))
	}
	return code
}

// ourWords turns the advice in Docker's messages, which daemon and commands keep word by word, into advice for the
// command that was typed.
var ourWords = strings.NewReplacer(
	"docker swarm join-token", "miniswarm token",
	`"docker swarm unlock"`, `"miniswarm unlock"`, `"docker swarm init"`, `"miniswarm init"`, `"docker swarm join"`, `"miniswarm join"`, `"docker swarm leave"`, `"miniswarm leave"`,
	"docker swarm init", "miniswarm init", "docker swarm join", "miniswarm join", "docker swarm leave", "miniswarm leave",
	". Is the docker daemon running?", ".", "Cannot connect to the Docker daemon at", "Cannot connect to the miniswarm daemon at",
)

// wrongNumber is how Go words that a text is no number.
var wrongNumber = regexp.MustCompile(`strconv\.Parse(\w+): parsing ("(?:[^"\\]|\\.)*"): (invalid syntax|value out of range)`)

// plainNumbers says of what was to be a number, in words that people use, what it must be.
func plainNumbers(text string) string {
	return wrongNumber.ReplaceAllStringFunc(text, func(found string) string {
		m := wrongNumber.FindStringSubmatch(found)
		must := map[string]string{"Uint": "a whole number, 0 or more", "Int": "a whole number", "Float": "a number", "Bool": "true or false"}[m[1]]
		switch {
		case must == "":
			return found
		case m[3] == "value out of range":
			return m[2] + " is too large"
		}
		return m[2] + " must be " + must
	})
}

// newApp builds the tree of commands.
func newApp(e *env) *cli.App {
	app := cli.NewApp()
	app.Name, app.Version = "miniswarm", version
	app.Usage = "turn machines that run Docker Engine into one cluster"
	app.Description = `Start a cluster on one machine, join others to it, and deploy:

   miniswarm init --advertise-addr 192.168.1.10
   miniswarm join --token SWMTKN-1-... 192.168.1.10:2377     (on the other machines, as init printed it)
   miniswarm stack deploy -c compose.yml shop
   miniswarm service scale shop_web=12
   miniswarm service explain shop_web

The docker command works as well: docker -H unix:///run/miniswarm.sock service ls`
	app.Reader, app.Writer, app.ErrWriter = e.stdin, e.stdout, e.stderr
	app.ExitErrHandler = func(*cli.Context, error) {} // run turns errors into codes
	app.Flags = []cli.Flag{
		&cli.StringFlag{Name: flagHost, Aliases: []string{"H"}, EnvVars: []string{"MINISWARM_HOST"}, Value: defaultHost, Usage: "the daemon's `SOCKET`"},
		&cli.BoolFlag{Name: flagStale, Usage: "with ls, ps, inspect and explain: be content with what this manager knows by itself, and say how old it is; works without a leader"},
	}
	app.Before = func(c *cli.Context) error {
		if host := c.String(flagHost); host != hostURL(host) {
			return c.Set(flagHost, hostURL(host))
		}
		return nil
	}
	app.CommandNotFound = func(_ *cli.Context, name string) {
		fmt.Fprintf(e.stderr, "no help for %q: it is not a command\n", name)
	}
	app.Action = func(c *cli.Context) error {
		if c.Args().Present() {
			return unknownCommand("miniswarm", c.Args().First(), app.Commands)
		}
		return cli.ShowAppHelp(c)
	}
	app.Commands = append(app.Commands, swarmCommands(e)...)
	app.Commands = append(app.Commands, dockerCommands(e)...)
	app.Commands = append(app.Commands, daemonCommand(e), labCommand(e), lbCommand(e), completionCommand(e), completeCommand(e))
	app.OnUsageError = usageError("miniswarm")
	for _, c := range app.Commands {
		explainUsage("miniswarm", c)
	}
	return app
}

// explainUsage makes wrong flags of a command and its subcommands an error with the next step.
func explainUsage(parent string, c *cli.Command) {
	path := parent + " " + c.Name
	c.OnUsageError = usageError(path)
	if why, ok := withoutArguments[strings.TrimPrefix(path, "miniswarm ")]; ok {
		refuseArguments(path, why, c)
	}
	if len(c.Subcommands) > 0 && c.Action == nil {
		c.Action = func(ctx *cli.Context) error {
			if ctx.Args().Present() {
				return unknownCommand(path, ctx.Args().First(), c.Subcommands)
			}
			return cli.ShowSubcommandHelp(ctx)
		}
	}
	for _, sub := range c.Subcommands {
		explainUsage(path, sub)
	}
}

// longFlag is a flag with one dash where people type two.
var longFlag = regexp.MustCompile(`(flag |not defined: |argument: )-(\w[\w-]+)`)

func usageError(path string) cli.OnUsageErrorFunc {
	return func(_ *cli.Context, err error, _ bool) error {
		text := longFlag.ReplaceAllString(err.Error(), "$1--$2")
		return cli.Exit(fmt.Sprintf("%s: %s\nsee '%s --help'", path, text, path), exitUsage)
	}
}

// usage is the error of a command line that cannot be meant.
func usage(format string, args ...any) error {
	return cli.Exit(fmt.Sprintf(format, args...), exitUsage)
}
