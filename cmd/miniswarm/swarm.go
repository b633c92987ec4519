package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"time"

	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"
	"github.com/urfave/cli/v2"

	"github.com/miniswarm/miniswarm/manager/identity"
)

// swarmCommands are the commands about the cluster as a whole: Docker has them under "docker swarm".
func swarmCommands(e *env) []*cli.Command {
	return []*cli.Command{initCommand(e), joinCommand(e), leaveCommand(e), tokenCommand(e), updateCommand(e), unlockCommand(e), unlockKeyCommand(e), caCommand(e), backupCommand(e), recoverCommand(e), rejoinCommand(e), infoCommand(e), versionCommand(e), eventsCommand(e), doctorCommand(e), metricsCommand(e)}
}

// The headings of the list of commands.
const (
	clusterCategory = "Cluster"
	machineCategory = "Machine"
)

func addressFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "listen-addr", Usage: "`ADDRESS` the cluster port listens on (default: the daemon's, else 0.0.0.0:2377)"},
		&cli.StringFlag{Name: "advertise-addr", Usage: "`ADDRESS` at which the other machines reach this one"},
		&cli.StringFlag{Name: "data-path-addr", Usage: "`ADDRESS` for traffic between containers (default: the advertised one)"},
		&cli.StringFlag{Name: "availability", Value: "active", Usage: "active, pause or drain"},
		&cli.StringFlag{Name: flagLogFile, EnvVars: []string{"MINISWARM_LOG_FILE"}, Value: "/var/log/miniswarm.log", Usage: "`FILE` that a daemon which this starts logs to, where there is no systemd"},
	}
}

func availability(c *cli.Context) (swarm.NodeAvailability, error) {
	switch a := swarm.NodeAvailability(strings.ToLower(c.String("availability"))); a {
	case swarm.NodeAvailabilityActive, swarm.NodeAvailabilityPause, swarm.NodeAvailabilityDrain:
		return a, nil
	default:
		return "", usage("invalid availability %q, only active, pause and drain are supported", c.String("availability"))
	}
}

func initCommand(e *env) *cli.Command {
	return &cli.Command{Name: "init", Usage: "start a cluster on this machine", Category: clusterCategory,
		Description: "   miniswarm init\n   miniswarm init --advertise-addr 192.168.1.10\n   miniswarm init --advertise-addr eth1 --task-history-limit 10\n   miniswarm init --force-new-cluster     (after the loss of most managers, on one that is left; see 'miniswarm recover')",
		Flags: append(append(addressFlags(), settingsFlags()...),
			&cli.StringSliceFlag{Name: "default-addr-pool", Usage: "`CIDR` from which overlay networks get their subnets"},
			&cli.UintFlag{Name: "default-addr-pool-mask-length", Value: 24, Usage: "subnet size in bits"},
			&cli.UintFlag{Name: "data-path-port", Usage: "UDP `PORT` of the overlay (default 4789)"},
			&cli.BoolFlag{Name: "autolock", Usage: "managers lock themselves when they restart: 'miniswarm unlock' asks for the key"},
			&cli.StringSliceFlag{Name: "external-ca", Usage: "`SPEC` of who signs in place of the managers: protocol=cfssl,url=https://...,cacert=root.pem"},
			&cli.BoolFlag{Name: "force-new-cluster", Usage: "make this manager the only one of its cluster, with all that the cluster has"}),
		Action: func(c *cli.Context) error { return runInit(c.Context, e, c) }}
}

func runInit(ctx context.Context, e *env, c *cli.Context) error {
	avail, err := availability(c)
	if err != nil {
		return err
	}
	var ca swarm.CAConfig
	if err := foundWith(c, &ca); err != nil {
		return err
	}
	cl, err := connectOrStart(ctx, e, c)
	if err != nil {
		return err
	}
	defer cl.Close()
	req := swarm.InitRequest{Spec: swarm.Spec{CAConfig: ca}, ListenAddr: c.String("listen-addr"), AdvertiseAddr: c.String("advertise-addr"), DataPathAddr: c.String("data-path-addr"),
		DataPathPort: uint32(c.Uint("data-path-port")), DefaultAddrPool: c.StringSlice("default-addr-pool"), SubnetSize: uint32(c.Uint("default-addr-pool-mask-length")), Availability: avail,
		ForceNewCluster: c.Bool("force-new-cluster")}
	mergeSettings(c, &req.Spec)
	req.AutoLockManagers = c.Bool("autolock")
	id, err := cl.SwarmInit(ctx, req)
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "Swarm initialized: current node (%s) is now a manager.\n\n", id)
	if err := printJoin(ctx, e, cl, swarm.NodeRoleWorker); err != nil {
		return err
	}
	fmt.Fprintln(e.stdout, "To add a manager to this swarm, run 'miniswarm token manager' and follow the instructions.")
	if req.AutoLockManagers {
		fmt.Fprintln(e.stdout)
		return printUnlockKey(ctx, e, cl)
	}
	return nil
}

// printJoin prints the command that adds a node of the role.
func printJoin(ctx context.Context, e *env, cl *client.Client, role swarm.NodeRole) error {
	sw, err := cl.SwarmInspect(ctx)
	if err != nil {
		return err
	}
	info, err := cl.Info(ctx)
	if err != nil {
		return err
	}
	token := sw.JoinTokens.Worker
	if role == swarm.NodeRoleManager {
		token = sw.JoinTokens.Manager
	}
	addr := info.Swarm.NodeAddr
	for _, m := range info.Swarm.RemoteManagers {
		if m.NodeID == info.Swarm.NodeID {
			addr = m.Addr
		}
	}
	fmt.Fprintf(e.stdout, "To add a %s to this swarm, run the following command:\n\n    miniswarm join --token %s %s\n\n", role, token, addr)
	return nil
}

func joinCommand(e *env) *cli.Command {
	return &cli.Command{Name: "join", Usage: "make this machine a node of a cluster", ArgsUsage: "HOST[:PORT]", Category: clusterCategory,
		Description: "   miniswarm join --token SWMTKN-1-... 192.168.1.10:2377",
		Flags:       append(addressFlags(), &cli.StringFlag{Name: "token", Usage: "the `TOKEN` that init or token printed"}),
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return usage("miniswarm join needs exactly one argument: the HOST:PORT of a manager")
			}
			if c.String("token") == "" {
				return usage("miniswarm join needs --token: 'miniswarm token worker' on a manager prints it")
			}
			avail, err := availability(c)
			if err != nil {
				return err
			}
			if _, err := identity.ParseToken(c.String("token")); err != nil {
				return err
			}
			cl, err := connectOrStart(c.Context, e, c)
			if err != nil {
				return err
			}
			defer cl.Close()
			err = cl.SwarmJoin(c.Context, swarm.JoinRequest{ListenAddr: c.String("listen-addr"), AdvertiseAddr: c.String("advertise-addr"),
				DataPathAddr: c.String("data-path-addr"), RemoteAddrs: []string{c.Args().First()}, JoinToken: c.String("token"), Availability: avail})
			if err != nil {
				return err
			}
			info, err := cl.Info(c.Context)
			if err != nil {
				return err
			}
			role := "worker"
			if info.Swarm.ControlAvailable {
				role = "manager"
			}
			fmt.Fprintf(e.stdout, "This node joined a swarm as a %s.\n", role)
			return nil
		}}
}

func leaveCommand(e *env) *cli.Command {
	return &cli.Command{Name: "leave", Usage: "take this machine out of its cluster", Category: clusterCategory,
		Description: "   miniswarm leave\n   miniswarm leave --force     (also where this machine is a manager)",
		Flags:       []cli.Flag{&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "leave even if this machine is a manager"}},
		Action: func(c *cli.Context) error {
			cl, err := newClient(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			if err := cl.SwarmLeave(c.Context, c.Bool("force")); err != nil {
				return hint(err, c)
			}
			fmt.Fprintln(e.stdout, "Node left the swarm.")
			return nil
		}}
}

func tokenCommand(e *env) *cli.Command {
	return &cli.Command{Name: "token", Aliases: []string{"join-token"}, Usage: "show or rotate the token by which machines join", ArgsUsage: "worker|manager", Category: clusterCategory,
		Description: "   miniswarm token worker\n   miniswarm token -q manager\n   miniswarm token --rotate worker",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "rotate", Usage: "make a new token; the old one admits nobody any more"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print the token only"}},
		BashComplete: func(*cli.Context) { fmt.Fprintln(e.stdout, "worker\nmanager") },
		Action: func(c *cli.Context) error {
			role := swarm.NodeRole(c.Args().First())
			if c.NArg() != 1 || role != swarm.NodeRoleWorker && role != swarm.NodeRoleManager {
				return usage("miniswarm token needs the role of the machines that may join: 'miniswarm token worker' or 'miniswarm token manager'")
			}
			cl, err := newClient(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			if c.Bool("rotate") {
				if err := rotate(c.Context, cl, role); err != nil {
					return hint(err, c)
				}
				if !c.Bool("quiet") {
					fmt.Fprintf(e.stdout, "Successfully rotated %s join token.\n\n", role)
				}
			}
			if !c.Bool("quiet") {
				return hint(printJoin(c.Context, e, cl, role), c)
			}
			sw, err := cl.SwarmInspect(c.Context)
			if err != nil {
				return hint(err, c)
			}
			token := sw.JoinTokens.Worker
			if role == swarm.NodeRoleManager {
				token = sw.JoinTokens.Manager
			}
			fmt.Fprintln(e.stdout, token)
			return nil
		}}
}

func rotate(ctx context.Context, cl *client.Client, role swarm.NodeRole) error {
	sw, err := cl.SwarmInspect(ctx)
	if err != nil {
		return err
	}
	return cl.SwarmUpdate(ctx, sw.Version, sw.Spec, swarm.UpdateFlags{RotateWorkerToken: role == swarm.NodeRoleWorker, RotateManagerToken: role == swarm.NodeRoleManager})
}

func infoCommand(e *env) *cli.Command {
	return &cli.Command{Name: "info", Usage: "show this machine's part in the cluster", Category: clusterCategory,
		Flags: []cli.Flag{&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "json prints everything the daemon knows"}},
		Action: func(c *cli.Context) error {
			cl, err := newClient(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			info, err := cl.Info(c.Context)
			if err != nil {
				return hint(err, c)
			}
			if f := c.String("format"); f != "" {
				return printFormatted(e.stdout, f, info)
			}
			s := info.Swarm
			fmt.Fprintf(e.stdout, "Swarm: %s\n", s.LocalNodeState)
			if s.LocalNodeState != swarm.LocalNodeStateInactive && s.LocalNodeState != swarm.LocalNodeStateLocked {
				fmt.Fprintf(e.stdout, " NodeID: %s\n", s.NodeID)
				if s.Error != "" {
					fmt.Fprintf(e.stdout, " Error: %s\n", ourWords.Replace(s.Error))
				}
				fmt.Fprintf(e.stdout, " Is Manager: %v\n", s.ControlAvailable)
				if s.Cluster != nil {
					fmt.Fprintf(e.stdout, " ClusterID: %s\n Managers: %d\n Nodes: %d\n", s.Cluster.ID, s.Managers, s.Nodes)
					printSettings(e.stdout, s.Cluster)
				}
				fmt.Fprintf(e.stdout, " Node Address: %s\n", s.NodeAddr)
				fmt.Fprintln(e.stdout, " Manager Addresses:")
				for _, m := range s.RemoteManagers {
					fmt.Fprintf(e.stdout, "  %s\n", m.Addr)
				}
			}
			fmt.Fprintf(e.stdout, "Engine:\n Name: %s\n Version: %s\n Containers: %d (running %d)\n CPUs: %d\n Memory: %.1f GiB\n",
				info.Name, info.ServerVersion, info.Containers, info.ContainersRunning, info.NCPU, float64(info.MemTotal)/(1<<30))
			for _, w := range info.Warnings {
				fmt.Fprintln(e.stderr, w)
			}
			return nil
		}}
}

func eventsCommand(e *env) *cli.Command {
	return &cli.Command{Name: "events", Usage: "follow what happens in the cluster and on this machine's engine", Category: clusterCategory,
		Description: "   miniswarm events --filter scope=swarm\n   miniswarm events --since 10m --until 0s",
		Flags: []cli.Flag{&cli.StringSliceFlag{Name: "filter", Usage: "`KEY=VALUE`, as in docker events"}, &cli.StringFlag{Name: "since"}, &cli.StringFlag{Name: "until"},
			&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "json"}},
		Action: func(c *cli.Context) error {
			cl, err := newClient(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			args := filters.NewArgs()
			for _, f := range c.StringSlice("filter") {
				k, v, ok := strings.Cut(f, "=")
				if !ok {
					return usage("invalid filter %q: it must be KEY=VALUE", f)
				}
				args.Add(k, v)
			}
			msgs, errs := cl.Events(c.Context, events.ListOptions{Since: c.String("since"), Until: c.String("until"), Filters: args})
			for {
				select {
				case m := <-msgs:
					if c.String("format") != "" {
						if err := printFormatted(e.stdout, c.String("format"), m); err != nil {
							return err
						}
						continue
					}
					fmt.Fprintln(e.stdout, eventLine(m))
				case err := <-errs:
					if errors.Is(err, io.EOF) || errors.Is(err, context.Canceled) || c.Context.Err() != nil {
						return nil
					}
					return hint(err, c)
				}
			}
		}}
}

func eventLine(m events.Message) string {
	var attrs []string
	for _, k := range sortedKeys(m.Actor.Attributes) {
		attrs = append(attrs, k+"="+m.Actor.Attributes[k])
	}
	line := fmt.Sprintf("%s %s %s %s", time.Unix(0, m.TimeNano).Format("2006-01-02T15:04:05.000000000Z07:00"), m.Type, m.Action, m.Actor.ID)
	if len(attrs) > 0 {
		line += " (" + strings.Join(attrs, ", ") + ")"
	}
	return line
}

// printFormatted prints v as JSON; other formats are refused with the one that exists.
func printFormatted(w io.Writer, format string, v any) error {
	if format != "json" && format != "{{json .}}" {
		return printTemplate(w, format, v)
	}
	return json.NewEncoder(w).Encode(v)
}

// hint adds the next step to an error that a person can do something about.
func hint(err error, c *cli.Context) error {
	var op *net.OpError
	if err != nil && (client.IsErrConnectionFailed(err) || errors.As(err, &op)) {
		if errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("%w\nthe daemon's socket is for root and for the group that it belongs to: try again as one of them", err)
		}
		return fmt.Errorf("%w\nno daemon answers at %s: start one with 'miniswarm init', 'miniswarm join' or 'miniswarm daemon', or name its socket with --host", err, c.String(flagHost))
	}
	return err
}
