package main

import (
	"cmp"
	"fmt"
	"io"
	"runtime"
	"slices"
	"text/tabwriter"

	"github.com/docker/docker/api/types"
	"github.com/urfave/cli/v2"
)

func versionCommand(e *env) *cli.Command {
	return &cli.Command{Name: "version", Usage: "show the versions of this command, the daemon and the engine", Category: clusterCategory,
		Flags: []cli.Flag{&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "json"}},
		Action: func(c *cli.Context) error {
			cl, err := newClient(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			v, err := cl.ServerVersion(c.Context)
			format := c.String("format")
			if err == nil && format != "" {
				return printFormatted(e.stdout, format, map[string]any{"Client": version, "Server": v})
			}
			if format == "" {
				writeClientVersion(e.stdout, cl.ClientVersion())
			}
			if err != nil {
				return hint(err, c)
			}
			return writeServerVersion(e.stdout, v)
		}}
}

// versionColumn is where the values stand in "docker version".
const versionColumn = 20

func writeClientVersion(w io.Writer, api string) {
	fmt.Fprintln(w, "Client:")
	for _, kv := range [][2]string{{"Version", version}, {"API version", api}, {"Go version", runtime.Version()}, {"OS/Arch", runtime.GOOS + "/" + runtime.GOARCH}} {
		fmt.Fprintf(w, "%-*s%s\n", versionColumn, " "+kv[0]+":", kv[1])
	}
}

// shownDetails are those that a component's version has besides, in Docker's order, and how they are called.
var shownDetails = [][2]string{{"GoVersion", "Go version"}, {"GitCommit", "Git commit"}, {"BuildTime", "Built"}, {"KernelVersion", "Kernel"}}

// writeServerVersion shows what answers: the daemon first, for whose sake the command is.
func writeServerVersion(w io.Writer, v types.Version) error {
	fmt.Fprintln(w, "\nServer:")
	out := tabwriter.NewWriter(w, versionColumn, 1, 1, ' ', 0)
	components := slices.Clone(v.Components)
	slices.SortStableFunc(components, func(a, b types.ComponentVersion) int {
		return cmp.Compare(rank(a.Name), rank(b.Name))
	})
	for _, c := range components {
		fmt.Fprintf(out, " %s:\n  Version:\t%s\n", c.Name, c.Version)
		if c.Name == daemonComponent {
			fmt.Fprintf(out, "  API version:\t%s (minimum version %s)\n", v.APIVersion, v.MinAPIVersion)
		}
		for _, d := range shownDetails {
			if text := c.Details[d[0]]; text != "" {
				fmt.Fprintf(out, "  %s:\t%s\n", d[1], text)
			}
		}
		if c.Details["Os"] != "" {
			fmt.Fprintf(out, "  OS/Arch:\t%s/%s\n", c.Details["Os"], c.Details["Arch"])
		}
	}
	return out.Flush()
}

// daemonComponent is how the daemon calls itself among the engine's components.
const daemonComponent = "miniswarm"

func rank(component string) int {
	if component == daemonComponent {
		return 0
	}
	return 1
}
