package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/miniswarm/miniswarm/lab"
)

func idleFlags(f *flag.FlagSet) func(context.Context, *table) error {
	hosts := f.Int("hosts", 3, "how many `hosts`")
	managers := f.Int("managers", 1, "how many of them are `managers`")
	length := f.Duration("for", 30*time.Second, "how long to watch")
	withSwarm := f.Bool("swarm", true, "watch the engines of a Docker Swarm of the same shape afterwards")
	return func(ctx context.Context, out *table) (err error) {
		if err := lab.Check(); err != nil {
			return err
		}
		b, err := build(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, b.remove()) }()
		for _, up := range []func(context.Context, built, int, int) (*system, error){newMiniswarm, newSwarm} {
			s, err := up(ctx, b, *hosts, *managers)
			if err != nil {
				return err
			}
			if err := errors.Join(s.idle(ctx, out, *managers, *length), s.end()); err != nil {
				return err
			}
			if !*withSwarm {
				break
			}
		}
		return nil
	}
}

// settleFor is how long a cluster is left alone before it counts as idle.
const settleFor = 15 * time.Second

// idle adds what the daemons of a cluster with 12 replicas take while nothing happens.
func (s *system) idle(ctx context.Context, out *table, managers int, length time.Duration) error {
	if err := s.ready(ctx); err != nil {
		return err
	}
	if err := s.create(ctx, "site", siteReplicas, 0); err != nil {
		return err
	}
	if err := s.running(ctx, s.hosts[0], "site", siteReplicas, ""); err != nil {
		return err
	}
	if err := rest(ctx, settleFor); err != nil {
		return err
	}
	type daemon struct {
		what, pid string
		used      time.Duration
	}
	var daemons []daemon
	for i, h := range s.hosts {
		role := "manager and agent"
		if i >= managers {
			role = "worker"
		}
		for _, p := range []struct{ what, socket string }{{"miniswarm, " + role, h.DaemonSocket}, {s.name + "'s dockerd, " + role, h.EngineSocket}} {
			if s.socket(h) == h.EngineSocket && p.socket == h.DaemonSocket {
				continue // Docker Swarm is in dockerd
			}
			pid, err := processWith(p.socket)
			if err != nil {
				return err
			}
			used, err := usedBy(pid)
			if err != nil {
				return err
			}
			daemons = append(daemons, daemon{h.Name + ": " + p.what, pid, used})
		}
	}
	begun := time.Now()
	if err := rest(ctx, length); err != nil {
		return err
	}
	for _, d := range daemons {
		used, err := usedBy(d.pid)
		if err != nil {
			return err
		}
		resident, err := statusBytes(d.pid, "VmRSS")
		if err != nil {
			return err
		}
		own, err := statusBytes(d.pid, "RssAnon")
		if err != nil {
			return err
		}
		out.add(d.what, "resident "+mib(resident), "of it own "+mib(own), fmt.Sprintf("%.2f %% of a core", 100*(used-d.used).Seconds()/time.Since(begun).Seconds()))
	}
	return nil
}

// processWith finds the daemon that listens on a socket: the process that has its path as an argument and is no
// wrapper around it.
func processWith(socket string) (pid string, err error) {
	all, err := os.ReadDir("/proc")
	if err != nil {
		return "", err
	}
	for _, e := range all {
		line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err != nil {
			continue // not a process, or one that has just ended
		}
		args := strings.Split(string(bytes.TrimRight(line, "\x00")), "\x00")
		if !strings.HasSuffix(args[0], "miniswarm") && !strings.HasSuffix(args[0], "dockerd") {
			continue
		}
		for i, a := range args[1:] {
			listens := args[i] == "--socket" || args[i] == "-H" || args[i] == "--host"
			if listens && strings.TrimPrefix(a, "unix://") == socket || strings.TrimPrefix(a, "--host=unix://") == socket {
				return e.Name(), nil
			}
		}
	}
	return "", fmt.Errorf("no daemon listens on %s", socket)
}
