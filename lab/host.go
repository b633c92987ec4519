package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"time"
)

// Each step of a host's start must answer within its time. On an idle machine none takes a tenth of it.
const (
	bootTimeout   = 20 * time.Second
	engineTimeout = 60 * time.Second
	daemonTimeout = 30 * time.Second
	endTimeout    = 5 * time.Second
)

// Host is one host as it is at the moment it was asked for.
type Host struct {
	Name string
	// Addr is the host's address in the lab's network, the same after every boot unless it was moved.
	Addr netip.Addr
	// Manager says that the lab makes this host a manager when it forms the cluster.
	Manager bool
	// On says that the host has power; Engine and Daemon, that its dockerd and its miniswarm daemon run.
	On, Engine, Daemon bool
	// Cut says that its network port is off.
	Cut bool
	// Faults are the other faults it suffers from, in words.
	Faults []string
	// EngineSocket and DaemonSocket are unix sockets that the machine reaches as well as the host.
	EngineSocket, DaemonSocket string
	// EngineLog and DaemonLog are files that grow over all boots.
	EngineLog, DaemonLog string
	// PID is the host's first process, for nsenter; 0 when off.
	PID int
}

// Hosts lists the hosts, vm1 first.
func (l *Lab) Hosts() ([]Host, error) {
	r, err := readRecord(l.dir)
	if err != nil {
		return nil, err
	}
	hosts := make([]Host, len(r.Hosts))
	for i, h := range r.Hosts {
		hosts[i] = l.describe(h)
		for _, f := range r.Losses {
			if f.touches(h.Name) {
				hosts[i].Faults = append(hosts[i].Faults, f.String())
			}
		}
	}
	return hosts, nil
}

// Host returns one host by name.
func (l *Lab) Host(name string) (Host, error) {
	h, err := l.host(name)
	return l.describe(h), err
}

func (l *Lab) describe(h hostRecord) Host {
	h.forgetDead()
	d := Host{
		Name: h.Name, Addr: h.Addr, Manager: h.Manager, Cut: h.Cut,
		On: h.Init.alive(), Engine: h.Engine.alive(), Daemon: h.Daemon.alive(), Faults: slices.Clone(h.Faults),
		EngineSocket: l.path(h.Name, engineSocket), DaemonSocket: l.path(h.Name, daemonSocket),
		EngineLog: l.path(h.Name, engineLog), DaemonLog: l.path(h.Name, daemonLog),
	}
	if d.On {
		d.PID = h.Init.PID
	}
	if h.Ahead != 0 {
		d.Faults = append(d.Faults, "clock "+ahead(h.Ahead))
	}
	return d
}

func (l *Lab) path(elem ...string) string { return filepath.Join(append([]string{l.dir}, elem...)...) }

// Start boots a host: the disk and the address it had, engine and daemon. A host that is on keeps
// running, and what is missing on it is started. It returns when engine and daemon answer.
func (l *Lab) Start(ctx context.Context, host string) error {
	return l.locked(ctx, host, func() error {
		h, err := l.host(host)
		if err != nil {
			return err
		}
		if !h.Init.alive() {
			if h, err = l.boot(ctx, h); err != nil {
				return err
			}
		}
		if err := l.startEngine(ctx, h); err != nil {
			return err
		}
		if l.opts.NoDaemon {
			return nil
		}
		return l.startDaemon(ctx, h)
	})
}

// Fail pulls the host's power cord. Its peers hear nothing from it, not even connections being closed; all its
// processes end where they are. The disk keeps what had been written. A host that is off stays off.
func (l *Lab) Fail(ctx context.Context, host string) error {
	return l.locked(ctx, host, func() error {
		h, err := l.host(host)
		if err != nil {
			return err
		}
		// The cable first: sockets of dying processes would tell their peers.
		if err := l.fabric().unplug(ctx, host); err != nil {
			return err
		}
		if err := errors.Join(release(ctx, l.dir, h), h.Init.kill(ctx)); err != nil {
			return fmt.Errorf("fail %s: %w", host, err)
		}
		if err := removeCgroups(ctx, hostGroup(l.dir, host)); err != nil {
			return fmt.Errorf("fail %s: %w", host, err)
		}
		return l.updateHost(ctx, host, func(h *hostRecord) {
			h.Init, h.Engine, h.Daemon, h.Cut = process{}, process{}, process{}, false
			h.Faults = slices.DeleteFunc(h.Faults, func(f string) bool { return f != diskFull })
		})
	})
}

// Cut switches the host's network port off: it runs on, and reaches and is reached by nobody.
func (l *Lab) Cut(ctx context.Context, host string) error { return l.cable(ctx, host, true) }

// Heal switches the port on again, and ends what Lose has begun from and to the host.
func (l *Lab) Heal(ctx context.Context, host string) error {
	if err := l.changeLosses(ctx, func(r *record) error {
		r.Losses = slices.DeleteFunc(r.Losses, func(f loss) bool { return f.touches(host) })
		return nil
	}); err != nil {
		return err
	}
	return l.cable(ctx, host, false)
}

func (l *Lab) cable(ctx context.Context, host string, cut bool) error {
	return l.locked(ctx, host, func() error {
		if _, err := l.running(host); err != nil {
			return err
		}
		state := "up"
		if cut {
			state = "down"
		}
		if err := l.fabric().link(ctx, host, state); err != nil {
			return err
		}
		return l.updateHost(ctx, host, func(h *hostRecord) { h.Cut = cut })
	})
}

// KillEngine kills dockerd at once. Containers run on under their shims; what dockerd makes of them when it is
// started again is dockerd's own affair (it ends them, unless EngineArgs has --live-restore).
func (l *Lab) KillEngine(ctx context.Context, host string) error {
	return l.endOne(ctx, host, func(h *hostRecord) *process { return &h.Engine }, process.kill)
}

// StopEngine asks dockerd to end, which stops its containers first.
func (l *Lab) StopEngine(ctx context.Context, host string) error {
	return l.endOne(ctx, host, func(h *hostRecord) *process { return &h.Engine }, process.stop)
}

// StartEngine starts dockerd on a host that is on, and returns when it answers. One that runs is left alone.
func (l *Lab) StartEngine(ctx context.Context, host string) error {
	return l.locked(ctx, host, func() error {
		h, err := l.running(host)
		if err != nil {
			return err
		}
		return l.startEngine(ctx, h)
	})
}

// KillDaemon kills the host's miniswarm daemon at once. Its containers stay.
func (l *Lab) KillDaemon(ctx context.Context, host string) error {
	return l.endOne(ctx, host, func(h *hostRecord) *process { return &h.Daemon }, process.kill)
}

// StopDaemon asks the host's miniswarm daemon to end and waits until it has.
func (l *Lab) StopDaemon(ctx context.Context, host string) error {
	return l.endOne(ctx, host, func(h *hostRecord) *process { return &h.Daemon }, process.stop)
}

// StartDaemon starts the miniswarm daemon on a host that is on, and returns when it answers. One that runs is
// left alone.
func (l *Lab) StartDaemon(ctx context.Context, host string) error {
	return l.locked(ctx, host, func() error {
		h, err := l.running(host)
		if err != nil {
			return err
		}
		if l.opts.MiniswarmBinary == "" {
			return fmt.Errorf("start daemon on %s: lab %s was made without a miniswarm binary", host, l.name)
		}
		return l.startDaemon(ctx, h)
	})
}

func (l *Lab) endOne(ctx context.Context, host string, which func(*hostRecord) *process, end func(process, context.Context) error) error {
	return l.locked(ctx, host, func() error {
		h, err := l.running(host)
		if err != nil {
			return err
		}
		if err := end(*which(&h), ctx); err != nil {
			return fmt.Errorf("host %s: %w", host, err)
		}
		return l.updateHost(ctx, host, func(h *hostRecord) {
			*which(h) = process{}
			h.forgetDead()
		})
	})
}

// locked runs an operation on a host while no other one on it runs, in this process or another.
func (l *Lab) locked(ctx context.Context, host string, op func() error) error {
	if _, err := l.host(host); err != nil {
		return err
	}
	if err := Check(); err != nil {
		return err
	}
	unlock, err := lock(ctx, l.path(host+".lock"))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s", ErrNotFound, l.name)
	}
	if err != nil {
		return fmt.Errorf("host %s: %w", host, err)
	}
	defer unlock()
	return op()
}
