package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/miniswarm/miniswarm/lab"
)

const (
	defaultLab      = "lab"
	envLabName      = "MINISWARM_LAB_NAME"
	envLabRoot      = "MINISWARM_LAB_ROOT"
	execCommandName = "exec"
	// labDownTimeout bounds taking a lab away once Ctrl-C has been pressed: half a lab is worse than a late prompt.
	labDownTimeout = time.Minute
)

func labFlags(more ...cli.Flag) []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "name", Value: defaultLab, EnvVars: []string{envLabName}, Usage: "`NAME` of the lab"},
		&cli.StringFlag{Name: "state-dir", Value: lab.DefaultRoot, EnvVars: []string{envLabRoot}, Usage: "`DIRECTORY` below which labs are kept; not on an overlay file system"},
	}, more...)
}

func labCommand(e *env) *cli.Command {
	return &cli.Command{Name: "lab", Usage: "run several real hosts on this machine, to study and to break", Category: machineCategory,
		Description: `Each host has its own network, processes, Docker Engine and miniswarm daemon. It needs root and Linux.

   miniswarm lab up --nodes 3
   eval "$(miniswarm lab env vm1)"
   miniswarm node ls
   miniswarm lab exec vm2 -- docker ps
   miniswarm lab fail vm2              (pull its power cord)
   miniswarm lab start vm2
   miniswarm lab cut vm2 --to vm1      (what vm2 sends to vm1 is lost)
   miniswarm lab heal vm2
   miniswarm lab pause vm3             (freeze it; resume thaws it)
   miniswarm lab down`,
		Subcommands: []*cli.Command{
			labUp(e), labDown(e), labList(e), labExec(e), labEnv(e), labLogs(e),
			labDo(e, "fail", "pull a host's power cord", "failed: no power", (*lab.Lab).Fail),
			labDo(e, "start", "boot a host, or start what is missing on it", "is up", (*lab.Lab).Start),
			labCut(e),
			labDo(e, "heal", "end what is wrong with a host's network", "is connected", (*lab.Lab).Heal),
			labPause(e), labStarve(e),
			labDo(e, "fill", "leave no room on the disk of a host's state (lab up --disk)", "has no room on its disk", (*lab.Lab).FillDisk),
			labDo(e, "free", "give the room back", "has room on its disk", (*lab.Lab).FreeDisk),
			labDo(e, "hang", "let writes to the disk of a host's state wait (lab up --disk)", "waits for its disk", (*lab.Lab).HangDisk),
			labMove(e), labCopy(e), labClock(e),
			labDo(e, "resume", "end pause, starve, hang and clock", "goes on", (*lab.Lab).Resume),
		}}
}

func labUp(e *env) *cli.Command {
	return &cli.Command{Name: "up", Usage: "build a lab",
		Description: "   miniswarm lab up\n   miniswarm lab up --nodes 5 --managers 3\n   miniswarm lab up --no-cluster --name blank     (hosts and daemons; init and join are yours)",
		Flags: labFlags(
			&cli.IntFlag{Name: "nodes", Aliases: []string{"n"}, Value: 3, Usage: "hosts, named vm1 and so on"},
			&cli.IntFlag{Name: "managers", Aliases: []string{"m"}, Value: 1, Usage: "how many of them, from vm1 on, are managers"},
			&cli.IntFlag{Name: "disk", Usage: "give each daemon's state a disk of its own, of so many `MIB`, that fill and hang work on"},
			&cli.BoolFlag{Name: "no-cluster", Usage: "do not make a cluster of them"}),
		Action: func(c *cli.Context) error {
			if n := c.Int("nodes"); n < 1 {
				return cli.Exit(fmt.Sprintf("--nodes %d: a lab has at least one host", n), exitUsage)
			}
			began := time.Now()
			l, err := lab.Up(c.Context, lab.Options{Name: c.String("name"), StateDir: c.String("state-dir"), Nodes: c.Int("nodes"), Managers: c.Int("managers"),
				MiniswarmBinary: e.executable, Cluster: !c.Bool("no-cluster"), DiskMiB: c.Int("disk")}, e.stderr)
			if err != nil {
				return err
			}
			next := "miniswarm node ls"
			if c.Bool("no-cluster") {
				next = "miniswarm init"
			}
			fmt.Fprintf(e.stdout, "Lab %s is up after %.1f s. Look around:\n\n    eval \"$(miniswarm lab env vm1%s)\"\n    %s\n\n", l.Name(), time.Since(began).Seconds(), nameFlag(c), next)
			return nil
		}}
}

// nameFlag is what a hint must say to mean the same lab.
func nameFlag(c *cli.Context) string {
	out := ""
	for _, f := range []string{"name", "state-dir"} {
		if c.IsSet(f) {
			out += " --" + f + " " + c.String(f)
		}
	}
	return out
}

func labDown(e *env) *cli.Command {
	return &cli.Command{Name: "down", Usage: "take a lab away, whatever state it is in", Description: "   miniswarm lab down",
		Flags: labFlags(),
		Action: func(c *cli.Context) error {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context), labDownTimeout)
			defer cancel()
			if err := lab.Remove(ctx, c.String("state-dir"), c.String("name")); err != nil {
				return knownLabs(c, err)
			}
			fmt.Fprintf(e.stdout, "Lab %s is gone.\n", c.String("name"))
			return nil
		}}
}

func labList(e *env) *cli.Command {
	return &cli.Command{Name: "ls", Usage: "list labs and their hosts", Description: "   miniswarm lab ls\n   miniswarm lab ls --format json",
		Flags: labFlags(&cli.StringFlag{Name: "format", Usage: "json, or a template for each host"}),
		Action: func(c *cli.Context) error {
			labs, err := lab.List(c.String("state-dir"))
			if err != nil {
				return err
			}
			var rows []labRow
			for _, l := range labs {
				if c.IsSet("name") && l.Name() != c.String("name") {
					continue
				}
				hosts, err := l.Hosts()
				if err != nil {
					return err
				}
				for _, h := range hosts {
					rows = append(rows, newLabRow(l.Name(), h))
				}
			}
			if f := c.String("format"); f != "" {
				for _, r := range rows {
					if err := printFormatted(e.stdout, f, r); err != nil {
						return err
					}
				}
				return nil
			}
			w := tabwriter.NewWriter(e.stdout, 0, 8, 3, ' ', 0)
			fmt.Fprintln(w, "LAB\tHOST\tADDRESS\tPOWER\tNETWORK\tENGINE\tDAEMON\tFAULTS")
			for _, r := range rows {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Lab, r.Host, r.Address, r.Power, r.Network, r.Engine, r.Daemon, r.Faults)
			}
			return w.Flush()
		}}
}

// labRow is a host in a listing.
type labRow struct{ Lab, Host, Address, Power, Network, Engine, Daemon, Faults, EngineSocket, DaemonSocket string }

func newLabRow(name string, h lab.Host) labRow {
	r := labRow{Lab: name, Host: h.Name, Address: h.Addr.String(), EngineSocket: h.EngineSocket, DaemonSocket: h.DaemonSocket,
		Power: word(h.On, "on", "off"), Network: "connected", Engine: word(h.Engine, "running", "stopped"), Daemon: word(h.Daemon, "running", "stopped"), Faults: strings.Join(h.Faults, ", ")}
	switch {
	case !h.On:
		r.Network = "off"
	case h.Cut:
		r.Network = "cut"
	}
	return r
}

func word(b bool, yes, no string) string {
	if b {
		return yes
	}
	return no
}

// knownLabs says, where a lab was not found, which there are.
func knownLabs(c *cli.Context, err error) error {
	if !errors.Is(err, lab.ErrNotFound) {
		return err
	}
	labs, listed := lab.List(c.String("state-dir"))
	switch {
	case listed != nil:
		return err
	case len(labs) == 0:
		return fmt.Errorf("%w (there is none in %s)", err, c.String("state-dir"))
	}
	names := make([]string, len(labs))
	for i, l := range labs {
		names[i] = l.Name()
	}
	return fmt.Errorf("%w (there are: %s; --name names one)", err, strings.Join(names, ", "))
}

// openLab opens the lab the flags name, and checks that the first argument names one of its hosts.
func openLab(c *cli.Context) (*lab.Lab, string, error) {
	host := c.Args().First()
	if host == "" {
		return nil, "", usage("miniswarm lab %s needs the name of a host; 'miniswarm lab ls' lists them", c.Command.Name)
	}
	l, err := lab.Open(c.String("state-dir"), c.String("name"))
	if errors.Is(err, lab.ErrNotFound) {
		return nil, "", fmt.Errorf("%w; 'miniswarm lab up%s' makes it", knownLabs(c, err), nameFlag(c))
	}
	if err != nil {
		return nil, "", err
	}
	_, err = l.Host(host)
	return l, host, err
}

func labExec(e *env) *cli.Command {
	return &cli.Command{Name: execCommandName, Usage: "run a command in a host", ArgsUsage: "HOST [--] COMMAND [ARG...]",
		Description: "   miniswarm lab exec vm2 -- docker ps\n   miniswarm lab exec vm2 -- sh",
		Flags:       labFlags(),
		Action: func(c *cli.Context) error {
			l, host, err := openLab(c)
			if err != nil {
				return err
			}
			argv := c.Args().Tail()
			if len(argv) > 0 && argv[0] == "--" {
				argv = argv[1:]
			}
			if len(argv) == 0 {
				return usage("miniswarm lab exec needs a command: miniswarm lab exec %s -- docker ps", host)
			}
			// The host's daemon is this program; the command that talks to it should be, too.
			if err := os.Setenv("PATH", filepath.Dir(e.executable)+string(os.PathListSeparator)+os.Getenv("PATH")); err != nil {
				return fmt.Errorf("run %s on %s: %w", argv[0], host, err)
			}
			return l.Exec(c.Context, host, argv, lab.Stdio{In: e.stdin, Out: e.stdout, Err: e.stderr})
		}}
}

func labEnv(e *env) *cli.Command {
	return &cli.Command{Name: "env", Usage: "print what points docker and miniswarm at a host", ArgsUsage: "HOST",
		Description: "   eval \"$(miniswarm lab env vm1)\"\n   miniswarm lab env --unset",
		Flags:       labFlags(&cli.BoolFlag{Name: "unset", Aliases: []string{"u"}, Usage: "print what points them back"}),
		Action: func(c *cli.Context) error {
			if c.Bool("unset") {
				fmt.Fprintln(e.stdout, "unset DOCKER_HOST MINISWARM_HOST LAB_REGISTRY "+envLabName+" "+envLabRoot)
				return nil
			}
			l, host, err := openLab(c)
			if err != nil {
				return err
			}
			h, err := l.Host(host)
			if err != nil {
				return err
			}
			// docker is pointed at the daemon too: that serves everything the engine does, and the cluster besides.
			docker := h.DaemonSocket
			if !h.Daemon {
				docker = h.EngineSocket
			}
			vars := [][2]string{{"DOCKER_HOST", "unix://" + docker}, {"MINISWARM_HOST", "unix://" + h.DaemonSocket}, {"LAB_REGISTRY", l.Registry()}}
			// Whoever looks around in a lab means that one with the next 'lab fail' as well.
			if name := c.String("name"); name != defaultLab {
				vars = append(vars, [2]string{envLabName, name})
			}
			if root := c.String("state-dir"); root != lab.DefaultRoot {
				vars = append(vars, [2]string{envLabRoot, root})
			}
			for _, kv := range vars {
				fmt.Fprintf(e.stdout, "export %s='%s'\n", kv[0], strings.ReplaceAll(kv[1], "'", `'\''`))
			}
			return nil
		}}
}

func labLogs(e *env) *cli.Command {
	return &cli.Command{Name: "logs", Usage: "show the end of the logs of all hosts, or one", ArgsUsage: "[HOST]",
		Description: "   miniswarm lab logs\n   miniswarm lab logs --lines 200 vm2",
		Flags:       labFlags(&cli.IntFlag{Name: "lines", Value: 40, Usage: "lines of each log"}),
		Action: func(c *cli.Context) error {
			if !c.Args().Present() {
				l, err := lab.Open(c.String("state-dir"), c.String("name"))
				if err != nil {
					return knownLabs(c, err)
				}
				_, err = fmt.Fprint(e.stdout, l.Logs(c.Int("lines")))
				return err
			}
			l, name, err := openLab(c)
			if err != nil {
				return err
			}
			h, err := l.Host(name)
			if err != nil {
				return err
			}
			for _, path := range []string{h.EngineLog, h.DaemonLog} {
				text, err := os.ReadFile(path)
				if errors.Is(err, os.ErrNotExist) {
					continue
				}
				if err != nil {
					return fmt.Errorf("read the log: %w", err)
				}
				fmt.Fprintf(e.stdout, "==> %s\n%s\n", path, lastLines(text, c.Int("lines")))
			}
			return nil
		}}
}

func lastLines(text []byte, n int) []byte {
	lines := bytes.Split(bytes.TrimRight(text, "\n"), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-n):], []byte("\n"))
}

// labDo makes a command of an operation on hosts.
func labDo(e *env, name, does, done string, do func(*lab.Lab, context.Context, string) error) *cli.Command {
	return &cli.Command{Name: name, Usage: does, ArgsUsage: "HOST...", Description: "   miniswarm lab " + name + " vm2", Flags: labFlags(),
		Action: eachHost(e, func(c *cli.Context, l *lab.Lab, host string) (string, error) {
			return host + " " + done, do(l, c.Context, host)
		})}
}

// eachHost does something to the hosts that are named, one after the other until it fails, and prints what do says of each.
func eachHost(e *env, do func(c *cli.Context, l *lab.Lab, host string) (string, error)) cli.ActionFunc {
	return func(c *cli.Context) error {
		l, _, err := openLab(c)
		if err != nil {
			return err
		}
		for _, host := range c.Args().Slice() {
			said, err := do(c, l, host)
			if err != nil {
				return err
			}
			fmt.Fprintln(e.stdout, said)
		}
		return nil
	}
}
