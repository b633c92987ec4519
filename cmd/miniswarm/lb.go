package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"
	"github.com/urfave/cli/v2"

	"github.com/miniswarm/miniswarm/ingress/lb"
)

const (
	// nodesInterval is the time between two looks at the list of nodes. A node that dies meanwhile is found out by the
	// balancer's own checks.
	nodesInterval = time.Second
	nodesTimeout  = 5 * time.Second
)

func lbCommand(e *env) *cli.Command {
	return &cli.Command{Name: "lb", Usage: "balance over the nodes, so that clients outlive any of them", Category: machineCategory,
		Description: `Clients that use one node's address are cut off when that node fails, though the service runs elsewhere. Run this on a
machine in front of the nodes: it sends nothing to a failed one.

   miniswarm lb --listen :80 --to vm1:80,vm2:80,vm3:80
   miniswarm lb --listen :80 --to vm1,vm2,vm3 --http
   miniswarm lb --listen :443 --from-managers --port 443`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "listen", Aliases: []string{"l"}, Value: ":80", Usage: "`ADDRESS` for clients"},
			&cli.StringSliceFlag{Name: "to", Usage: "`NODE[:PORT],...` to send them to"},
			&cli.BoolFlag{Name: "from-managers", Usage: "send them to all Ready nodes of the cluster that --host is a manager of, as they come and go"},
			&cli.UintFlag{Name: "port", Usage: "`PORT` of nodes without one (default: that of --listen)"},
			&cli.BoolFlag{Name: "http", Usage: "balance HTTP requests instead of TCP connections; those that a node failed are repeated where that is safe"},
			&cli.StringFlag{Name: "policy", Value: lb.LeastOfTwo.String(), Usage: "least-of-two or round-robin"},
			&cli.StringFlag{Name: "check-path", Usage: "`PATH` to ask for in health checks instead of only connecting"},
			&cli.DurationFlag{Name: "check-interval", Value: 500 * time.Millisecond, Usage: "time between two health checks of a node"},
			&cli.DurationFlag{Name: "first-byte-timeout", Usage: "with --http, ask another node when one has not begun to answer by then (default: wait)"},
			&cli.DurationFlag{Name: "grace", Value: 10 * time.Second, Usage: "time for what is under way when this is told to end"},
			&cli.StringFlag{Name: "log-level", EnvVars: []string{"MINISWARM_LOG_LEVEL"}, Value: "info", Usage: "debug, info, warn or error"},
			&cli.StringFlag{Name: "log-format", EnvVars: []string{"MINISWARM_LOG_FORMAT"}, Value: "text", Usage: "text or json"},
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usage("miniswarm lb takes no arguments; name the nodes with --to")
			}
			logger, err := newLogger(e, c.String("log-level"), c.String("log-format"))
			if err != nil {
				return err
			}
			policy, err := lb.ParsePolicy(c.String("policy"))
			if err != nil {
				return usage("%v", err)
			}
			source, err := nodeSource(c, logger)
			if err != nil {
				return err
			}
			cfg := lb.Config{Listen: c.String("listen"), Source: source, Policy: policy, FirstByteTimeout: c.Duration("first-byte-timeout"), Log: logger,
				Check: lb.Check{Interval: c.Duration("check-interval"), Path: c.String("check-path")}, Grace: c.Duration("grace")}
			if c.Bool("http") {
				cfg.Mode = lb.HTTP
			}
			b, err := lb.New(cfg)
			if err != nil {
				return err
			}
			return b.Run(c.Context)
		}}
}

// nodeSource gives the nodes that the command line names, one way or the other.
func nodeSource(c *cli.Context, logger *slog.Logger) (lb.Source, error) {
	host, port, err := net.SplitHostPort(c.String("listen"))
	if err != nil {
		return nil, usage("--listen %q is not an address such as :80", c.String("listen"))
	}
	own := ownAddress{host, port}
	if c.IsSet("port") {
		port = strconv.FormatUint(uint64(c.Uint("port")), 10)
	}
	to := c.StringSlice("to")
	switch {
	case len(to) > 0 && c.Bool("from-managers"):
		return nil, usage("--to and --from-managers exclude each other")
	case len(to) > 0:
		for i, node := range to {
			if _, _, err := net.SplitHostPort(node); err != nil {
				to[i] = net.JoinHostPort(strings.Trim(node, "[]"), port)
			}
		}
		for _, node := range to {
			if own.is(c.Context, node) {
				return nil, usage("--to %s is this balancer itself, which listens on %s: listen on another port, or name that of the nodes with --port", node, c.String("listen"))
			}
		}
		return lb.Static(to), findNames(c.Context, to)
	case c.Bool("from-managers"):
		cl, err := newClient(c)
		if err != nil {
			return nil, err
		}
		return &clusterNodes{client: cl, port: port, own: own, log: logger}, nil
	}
	return nil, usage("miniswarm lb needs nodes: --to vm1:80,vm2:80 or --from-managers")
}

// ownAddress is where the balancer listens. A balancer on a node must not send clients to itself, who would come back for ever.
type ownAddress struct{ host, port string }

// is says whether an address leads to the balancer, as far as is known without asking a name server for long.
func (o ownAddress) is(ctx context.Context, addr string) bool {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || port != o.port || port == "0" {
		return false
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return false // findNames says so
	}
	for _, ip := range found {
		ip = ip.Unmap()
		switch listens, err := netip.ParseAddr(o.host); {
		case err == nil && !listens.IsUnspecified():
			if listens.Unmap() == ip {
				return true
			}
		case isLocal(ip):
			return true
		}
	}
	return false
}

// isLocal says whether an address is one of this machine.
func isLocal(ip netip.Addr) bool {
	if ip.IsLoopback() {
		return true
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(addrs, func(a net.Addr) bool {
		prefix, err := netip.ParsePrefix(a.String())
		return err == nil && prefix.Addr().Unmap() == ip
	})
}

// findNames is an error for nodes whose names do not exist: a balancer would wait for them for ever. What a name server that
// does not answer would say is not known, and no reason to end.
func findNames(ctx context.Context, nodes []string) error {
	ctx, cancel := context.WithTimeout(ctx, nodesTimeout)
	defer cancel()
	var errs []error
	for _, node := range nodes {
		host, _, err := net.SplitHostPort(node)
		if err == nil && host != "" {
			_, err = net.DefaultResolver.LookupHost(ctx, host)
		}
		if e, ok := errors.AsType[*net.DNSError](err); ok && e.IsNotFound {
			errs = append(errs, fmt.Errorf("--to %s: there is no host of that name: %w", node, err))
		}
	}
	return errors.Join(errs...)
}

// clusterNodes is a lb.Source that asks a manager for the nodes that are Ready.
type clusterNodes struct {
	client client.NodeAPIClient
	port   string
	own    ownAddress
	log    *slog.Logger
}

// Follow implements lb.Source. While the manager does not answer, what it said last holds.
func (n *clusterNodes) Follow(ctx context.Context, set func([]string) error) error {
	var last []string
	silent := false
	tick := time.NewTicker(nodesInterval)
	defer tick.Stop()
	for {
		nodes, err := n.ready(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			if !silent {
				n.log.Warn("the manager does not answer; its last list of nodes holds", "err", err)
			}
		case len(nodes) == 0:
			// A cluster without a Ready node is more likely one that has just elected a leader than one without nodes.
		case !slices.Equal(nodes, last):
			if err := set(nodes); err != nil {
				return err
			}
			last = nodes
		}
		silent = err != nil
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (n *clusterNodes) ready(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, nodesTimeout)
	defer cancel()
	all, err := n.client.NodeList(ctx, swarm.NodeListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list the nodes: %w", err)
	}
	var out []string
	for _, node := range all {
		if node.Status.State != swarm.NodeStateReady || node.Status.Addr == "" {
			continue
		}
		if at := net.JoinHostPort(node.Status.Addr, n.port); !n.own.is(ctx, at) {
			out = append(out, at)
		} else if len(all) == 1 {
			return nil, errors.New("the only node is this machine, at the port that this balancer listens on: name that of the nodes with --port")
		}
	}
	slices.Sort(out)
	return out, nil
}
