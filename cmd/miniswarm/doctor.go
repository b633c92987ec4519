package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/cli/cli/streams"
	"github.com/docker/docker/client"
	"github.com/urfave/cli/v2"

	"github.com/miniswarm/miniswarm/lab"
	"github.com/miniswarm/miniswarm/node"
	"github.com/miniswarm/miniswarm/node/doctor"
)

const (
	// doctorLimit is how long all of a cluster may take to look at itself.
	doctorLimit = time.Minute
	// answerLimit is how long a daemon may be silent before it counts as hanging. It answers a ping without its engine, for which it
	// waits less than that.
	answerLimit = 5 * time.Second
)

// Exit codes of doctor: 0 is all well.
const (
	exitWarnings = 1
	exitFailures = 2
)

// checkup is everything that doctor shows.
type checkup struct {
	// Node is this machine's report, made by its daemon or, where none answers, without.
	Node doctor.Report
	// Cluster is the leader's, nil where this machine cannot ask for it; then Unasked says why.
	Cluster *doctor.Cluster `json:",omitempty"`
	Unasked *doctor.Finding `json:",omitempty"`
}

func doctorCommand(e *env) *cli.Command {
	return &cli.Command{Name: "doctor", Usage: "find out what is wrong with this machine and its cluster, and what to do about it", Category: clusterCategory,
		Description: "   miniswarm doctor\n   miniswarm doctor --local       (this machine only)\n   miniswarm doctor --all         (what is well, too)\n   miniswarm doctor --format json\n\n" +
			"On a manager it looks at the cluster and has every node look at itself; on a worker, or where no daemon runs, at this machine.\n" +
			"The exit code is 0 if all is well, 1 if there are warnings, 2 if something does not work.",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "local", Usage: "look at this machine only"},
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "show what is well, too"},
			&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "json"},
			&cli.StringFlag{Name: "state-dir", EnvVars: []string{"MINISWARM_STATE_DIR"}, Value: defaultStateDir, Usage: "the daemon's state `DIRECTORY`, where no daemon answers"},
			&cli.StringFlag{Name: "engine", EnvVars: []string{"MINISWARM_ENGINE"}, Value: defaultEngine, Usage: "the local Docker Engine, where no daemon answers"},
		},
		Action: func(c *cli.Context) error {
			ctx, cancel := context.WithTimeout(c.Context, doctorLimit)
			defer cancel()
			up, err := examine(ctx, c)
			if err != nil && c.Context.Err() == nil {
				return cli.Exit(err.Error(), exitFailures)
			}
			if err != nil {
				return err
			}
			if f := c.String("format"); f != "" {
				if err := printFormatted(e.stdout, f, up); err != nil {
					return err
				}
			} else {
				up.print(e.stdout, c.Bool("all"), streams.NewOut(e.stdout).IsTerminal())
			}
			switch up.worst() {
			case doctor.Failure:
				return cli.Exit("", exitFailures)
			case doctor.Warning:
				return cli.Exit("", exitWarnings)
			}
			return nil
		}}
}

// examine asks the daemon, and where none answers looks by itself.
func examine(ctx context.Context, c *cli.Context) (*checkup, error) {
	cl, err := newClient(c)
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	up := &checkup{}
	first, cancel := context.WithTimeout(ctx, answerLimit)
	_, err = cl.Ping(first)
	hangs := err != nil && first.Err() != nil && ctx.Err() == nil
	cancel()
	if !hangs {
		err = fetch(ctx, cl, "/miniswarm/doctor", &up.Node)
	}
	var op *net.OpError
	switch {
	case hangs:
		up.Node = withoutDaemon(ctx, c, doctor.Broken("daemon", "if its process was stopped (state T in 'ps'), 'kill -CONT' has it go on; else look at its log and start it anew ('systemctl restart miniswarm'): containers go on meanwhile",
			"the daemon at %s does not answer: it accepts connections and has been silent for %s; what can be seen without it was looked at", c.String(flagHost), answerLimit))
		return up, nil
	case errors.As(err, &op) && errors.Is(err, fs.ErrPermission):
		return nil, hint(err, c)
	case errors.As(err, &op) && elsewhere(c):
		up.Node = report(doctor.Broken("daemon", "start it there ('miniswarm lab start HOST' for a host of a lab), or unset MINISWARM_HOST to look at this machine",
			"no daemon answers at %s, which is another machine's: nothing was looked at", c.String(flagHost)))
		return up, nil
	case errors.As(err, &op):
		up.Node = withoutDaemon(ctx, c, doctor.Broken("daemon", "start it: 'systemctl start miniswarm', 'miniswarm daemon', or 'miniswarm init' or 'join' on a machine that is part of no cluster; or name its socket with --host",
			"no daemon answers at %s; what can be seen of this machine without it was looked at", c.String(flagHost)))
		return up, nil
	case err != nil:
		return nil, err
	}
	if c.Bool("local") || up.Node.Role == "" {
		return up, nil
	}
	if up.Node.Role == "worker" {
		f := doctor.Good("cluster", "this is a worker: 'miniswarm doctor' on a manager looks at the whole cluster")
		up.Unasked = &f
		return up, nil
	}
	up.Cluster = &doctor.Cluster{}
	if err := fetch(ctx, cl, "/miniswarm/doctor/cluster", up.Cluster); err != nil {
		cure := "bring back managers until more than half of them answer; if that cannot be, 'miniswarm recover --dry-run' on one that is left says what a cluster of it alone would keep (docs/operations.md)"
		if slices.ContainsFunc(up.Node.Findings, func(f doctor.Finding) bool { return f.Check == "swarm" && f.Level == doctor.Failure }) {
			cure = "see first what is said about this manager, or ask another one"
		}
		f := doctor.Broken("cluster", cure, "the cluster cannot be looked at: %v", err)
		up.Cluster, up.Unasked = nil, &f
	}
	return up, nil
}

// withoutDaemon looks at this machine by itself; why says what is the matter with the daemon.
func withoutDaemon(ctx context.Context, c *cli.Context, why doctor.Finding) doctor.Report {
	machine := node.Machine(node.Config{StateDir: c.String("state-dir"), Engine: c.String("engine"), DataPlane: true})
	rest := machine.Examine(ctx)
	doctor.Sort(rest)
	return report(append([]doctor.Finding{why}, rest...)...)
}

// report is what this command has found by itself, in that order.
func report(fs ...doctor.Finding) doctor.Report {
	host, _ := os.Hostname()
	return doctor.Report{Hostname: host, Version: version, Time: time.Now(), Findings: fs}
}

// elsewhere says that --host is a daemon of another machine, unless the command line says where on this one its state is.
func elsewhere(c *cli.Context) bool {
	path, local := strings.CutPrefix(c.String(flagHost), "unix://")
	root := cmp.Or(os.Getenv(envLabRoot), lab.DefaultRoot)
	host, _ := os.Hostname() // which a lab's host has in the path of its socket: it may be this one
	return !c.IsSet("state-dir") && (!local || strings.HasPrefix(path, root+"/") && filepath.Base(filepath.Dir(path)) != host)
}

// fetch gets a page of the daemon.
func fetch(ctx context.Context, cl *client.Client, path string, v any) error {
	answer, err := get(ctx, cl, path)
	if err != nil {
		return err
	}
	return json.Unmarshal(answer, v)
}

// reports are those of all nodes, this one's first, once each.
func (u *checkup) reports() []doctor.Report {
	all := []doctor.Report{u.Node}
	if u.Cluster != nil {
		for _, r := range u.Cluster.Nodes {
			if r.NodeID != u.Node.NodeID {
				all = append(all, r)
			}
		}
	}
	return all
}

// general are the findings about the cluster.
func (u *checkup) general() (fs []doctor.Finding) {
	if u.Cluster != nil {
		fs = u.Cluster.Findings
	}
	if u.Unasked != nil {
		fs = append(fs, *u.Unasked)
	}
	return fs
}

func (u *checkup) worst() doctor.Level {
	lists := [][]doctor.Finding{u.general()}
	for _, r := range u.reports() {
		lists = append(lists, r.Findings)
	}
	return doctor.Worst(lists...)
}

// The colours of levels on a terminal.
var colours = map[doctor.Level]string{doctor.Ok: "\x1b[32m", doctor.Warning: "\x1b[33m", doctor.Failure: "\x1b[31m"}

// print shows a table, what is to be done below what was found, and a summary. What is well is only counted unless all is set.
func (u *checkup) print(w io.Writer, all, coloured bool) {
	count := map[doctor.Level]int{}
	tw := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	show := func(where string, fs []doctor.Finding) {
		for _, f := range fs {
			count[f.Level]++
			if f.Level == doctor.Ok && !all {
				continue
			}
			// Colours have a width of nothing and the same length in every line, so that columns stay columns.
			level := fmt.Sprintf("%-7s", f.Level)
			if coloured {
				level = colours[f.Level] + level + "\x1b[0m"
			}
			says := oneLine(f.Says)
			if f.Check != "engine" { // where Docker's daemon is meant
				says = ourWords.Replace(says)
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", level, where, f.Check, says)
			if f.Cure != "" {
				blank := strings.Repeat(" ", 7)
				if coloured {
					blank = "\x1b[32m" + blank + "\x1b[0m"
				}
				fmt.Fprintf(tw, "%s\t\t\t-> %s\n", blank, f.Cure)
			}
		}
	}
	show("cluster", u.general())
	nodes := u.reports()
	for _, r := range nodes {
		show(r.Hostname, r.Findings)
	}
	_ = tw.Flush()
	fmt.Fprintf(w, "%s looked at: %s, %s, %d ok\n", counted(len(nodes), "node"), counted(count[doctor.Failure], "failure"), counted(count[doctor.Warning], "warning"), count[doctor.Ok])
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
