package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

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
		Action: eachHost(e, func(c *cli.Context, l *lab.Lab, host string) (string, error) {
			return fmt.Sprintf("%s has %v of a processor", host, c.Float64("cpus")), l.Starve(c.Context, host, c.Float64("cpus"))
		})}
}

func labMove(e *env) *cli.Command {
	return &cli.Command{Name: "move", Usage: "give a host another address, of which its daemon is not told", ArgsUsage: "HOST...",
		Description: "   miniswarm lab move vm2                        (as DHCP does; a host that is off boots with it)\n   miniswarm lab move vm2 --to 10.213.0.12",
		Flags:       labFlags(&cli.StringFlag{Name: "to", Usage: "`ADDRESS` of the lab's network (default: one that is free)"}),
		Action: eachHost(e, func(c *cli.Context, l *lab.Lab, host string) (string, error) {
			var to netip.Addr
			if s := c.String("to"); s != "" {
				var err error
				if to, err = netip.ParseAddr(s); err != nil || c.Args().Len() > 1 {
					return "", usage("--to %s: one address for one host", s)
				}
			}
			addr, err := l.Move(c.Context, host, to)
			return fmt.Sprintf("%s is at %s", host, addr), err
		})}
}

func labCopy(e *env) *cli.Command {
	return &cli.Command{Name: "copy", Usage: "make one host more, with a copy of a host's disk", ArgsUsage: "HOST",
		Description: "   miniswarm lab copy vm3                        (a virtual machine that is cloned: engine, containers and the daemon's state)",
		Flags:       labFlags(),
		Action: func(c *cli.Context) error {
			l, host, err := openLab(c)
			if err != nil {
				return err
			}
			name, err := l.Copy(c.Context, host)
			if err != nil {
				return err
			}
			h, err := l.Host(name)
			if err != nil {
				return err
			}
			fmt.Fprintf(e.stdout, "%s, a copy of %s, is up at %s\n", name, host, h.Addr)
			return nil
		}}
}

func labClock(e *env) *cli.Command {
	return &cli.Command{Name: "clock", Usage: "set the clock of a host's daemon wrong, until resume", ArgsUsage: "HOST...",
		Description: "   miniswarm lab clock vm2 --ahead 26h\n   miniswarm lab clock vm2 --ahead=-876000h      (a century slow)\n   miniswarm lab resume vm2",
		Flags:       labFlags(&cli.DurationFlag{Name: "ahead", Usage: "by `HOW-MUCH` it is ahead of this machine's; 0 puts it right"}),
		Action: eachHost(e, func(c *cli.Context, l *lab.Lab, host string) (string, error) {
			if !c.IsSet("ahead") {
				return "", usage("miniswarm lab clock needs --ahead: by how much, 26h for example")
			}
			ahead := c.Duration("ahead")
			return fmt.Sprintf("the clock of the daemon of %s is %s", host, offset(ahead)), l.SetClock(c.Context, host, ahead)
		})}
}

// offset words how far a clock is ahead.
func offset(ahead time.Duration) string {
	switch {
	case ahead < 0:
		return (-ahead).String() + " behind"
	case ahead > 0:
		return ahead.String() + " ahead"
	}
	return "right"
}
