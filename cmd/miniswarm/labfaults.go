package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/miniswarm/miniswarm/lab"
)

// everybody is how --to and --from name all other hosts, the machine and the registry.
const everybody = "all"

func labCut(e *env) *cli.Command {
	return &cli.Command{Name: "cut", Usage: "unplug a host's network, or break it in one direction; it runs on", ArgsUsage: "HOST...",
		Description: "   miniswarm lab cut vm2                          (the cable is out)\n" +
			"   miniswarm lab cut vm2 --to vm1                 (what vm2 sends to vm1 is lost; what vm1 sends arrives)\n" +
			"   miniswarm lab cut vm2 --to vm3 --from vm3      (those two do not reach each other)\n" +
			"   miniswarm lab cut vm2 --loss 30                (a bad cable: 30 % is lost, both ways)",
		Flags: labFlags(
			&cli.StringFlag{Name: "to", Usage: "lose only what is sent to `HOST`, or to all"},
			&cli.StringFlag{Name: "from", Usage: "lose only what `HOST` sends, or all send"},
			&cli.IntFlag{Name: "loss", Value: 100, Usage: "lose only that `PERCENTAGE` of it"}),
		Action: func(c *cli.Context) error {
			l, _, err := openLab(c)
			if err != nil {
				return err
			}
			to, from, percent := c.String("to"), c.String("from"), c.Int("loss")
			if percent < 1 || percent > 100 {
				return usage("--loss %d: 1 to 100 percent can be lost", percent)
			}
			if to == "" && from == "" && c.IsSet("loss") {
				to, from = everybody, everybody
			}
			for _, host := range c.Args().Slice() {
				if to == "" && from == "" {
					if err := l.Cut(c.Context, host); err != nil {
						return err
					}
					fmt.Fprintf(e.stdout, "%s is cut off\n", host)
				}
				if to != "" {
					if err := l.Lose(c.Context, host, anyone(to), percent); err != nil {
						return err
					}
					fmt.Fprintf(e.stdout, "%d %% of what %s sends to %s is lost\n", percent, host, to)
				}
				if from != "" {
					if err := l.Lose(c.Context, anyone(from), host, percent); err != nil {
						return err
					}
					fmt.Fprintf(e.stdout, "%d %% of what %s gets from %s is lost\n", percent, host, from)
				}
			}
			return nil
		}}
}

// anyone is the lab's word for a host that --to or --from names.
func anyone(host string) string {
	if host == everybody {
		return ""
	}
	return host
}

func labPause(e *env) *cli.Command {
	return &cli.Command{Name: "pause", Usage: "freeze a host, or only its daemon or engine, until resume", ArgsUsage: "HOST...",
		Description: "   miniswarm lab pause vm2               (everything in it, containers too)\n   miniswarm lab pause --daemon vm2      (SIGSTOP to miniswarm)\n   miniswarm lab resume vm2",
		Flags:       labFlags(&cli.BoolFlag{Name: "daemon", Usage: "only the miniswarm daemon"}, &cli.BoolFlag{Name: "engine", Usage: "only dockerd"}),
		Action: func(c *cli.Context) error {
			l, _, err := openLab(c)
			if err != nil {
				return err
			}
			for _, host := range c.Args().Slice() {
				for _, p := range []struct {
					asked bool
					what  string
					pause func(*lab.Lab, context.Context, string) error
				}{
					{c.Bool("daemon"), "the miniswarm daemon of %s", (*lab.Lab).PauseDaemon},
					{c.Bool("engine"), "the engine of %s", (*lab.Lab).PauseEngine},
					{!c.Bool("daemon") && !c.Bool("engine"), "%s", (*lab.Lab).Pause},
				} {
					if !p.asked {
						continue
					}
					if err := p.pause(l, c.Context, host); err != nil {
						return err
					}
					fmt.Fprintf(e.stdout, p.what+" is paused\n", host)
				}
			}
			return nil
		}}
}

func labStarve(e *env) *cli.Command {
	return &cli.Command{Name: "starve", Usage: "leave a host little of the processors, until resume", ArgsUsage: "HOST...",
		Description: "   miniswarm lab starve vm2 --cpus 0.05\n   miniswarm lab resume vm2",
		Flags:       labFlags(&cli.Float64Flag{Name: "cpus", Value: 0.1, Usage: "`SHARE` of one processor for all of the host, containers too"}),
		Action: func(c *cli.Context) error {
			l, _, err := openLab(c)
			if err != nil {
				return err
			}
			for _, host := range c.Args().Slice() {
				if err := l.Starve(c.Context, host, c.Float64("cpus")); err != nil {
					return err
				}
				fmt.Fprintf(e.stdout, "%s has %v of a processor\n", host, c.Float64("cpus"))
			}
			return nil
		}}
}
