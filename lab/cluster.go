package lab

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// clusterPort is Swarm's port for managers.
const clusterPort = 2377

// form makes one cluster of the hosts with the commands a person would type: init on vm1, join on the others.
// Managers join one after the other, since each changes who must agree; workers join all at once.
func (l *Lab) form(ctx context.Context, hosts []Host, say teller) error {
	start := time.Now()
	first := hosts[0]
	if _, err := l.miniswarm(ctx, first.Name, "init", "--advertise-addr", first.Addr.String()); err != nil {
		return err
	}
	say("%s: cluster initialized", first.Name)
	token := map[bool]string{}
	for _, h := range hosts[1:] {
		if token[h.Manager] != "" {
			continue
		}
		role := "worker"
		if h.Manager {
			role = "manager"
		}
		out, err := l.miniswarm(ctx, first.Name, "token", "-q", role)
		if err != nil {
			return err
		}
		token[h.Manager] = strings.TrimSpace(out)
	}
	remote := netip.AddrPortFrom(first.Addr, clusterPort).String()
	g, gctx := errgroup.WithContext(ctx)
	for _, h := range hosts[1:] {
		join := func(ctx context.Context) error {
			if _, err := l.miniswarm(ctx, h.Name, "join", "--token", token[h.Manager], remote); err != nil {
				return err
			}
			say("%s: joined (%.1f s)", h.Name, time.Since(start).Seconds())
			return nil
		}
		if h.Manager {
			if err := join(ctx); err != nil {
				return err
			}
			continue
		}
		g.Go(func() error { return join(gctx) })
	}
	return g.Wait()
}

// miniswarm runs the miniswarm command line inside a host against that host's daemon.
func (l *Lab) miniswarm(ctx context.Context, host string, args ...string) (string, error) {
	out, err := l.Output(ctx, host, append([]string{l.opts.MiniswarmBinary, "--host", "unix://" + l.path(host, daemonSocket)}, args...)...)
	if err != nil {
		return out, fmt.Errorf("miniswarm %s: %w", args[0], err)
	}
	return out, nil
}
