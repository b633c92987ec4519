package lab

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// SetClock puts the clock of a host's daemon that much ahead of the machine's, by whole seconds, or behind it if it is negative: the
// date that the daemon sees jumps, as if somebody had set it. 0 and Resume put it right. A daemon that is started later has that
// clock from its first moment, and so has one on a host that is off now.
//
// The binary knows nothing of it. The kernel tells programs the time through code that it maps into each of them, and this process' copy of that
// code is changed. So it is about this one process: engine, containers and commands go by the machine's clock.
func (l *Lab) SetClock(ctx context.Context, host string, to time.Duration) error {
	if to != to.Truncate(time.Second) {
		return fmt.Errorf("clock of %s: %s ahead: whole seconds are possible", host, to)
	}
	return l.locked(ctx, host, func() error { return l.setClock(ctx, host, to) })
}

// setClock is SetClock for who holds the host.
func (l *Lab) setClock(ctx context.Context, host string, to time.Duration) error {
	h, err := l.host(host)
	if err != nil {
		return err
	}
	if h.Daemon.alive() {
		ctx, cancel := context.WithTimeoutCause(ctx, clockTimeout, fmt.Errorf("not within %s; a host that is paused has to be resumed first", clockTimeout))
		defer cancel()
		if err := shiftClock(ctx, h.Daemon, to, true); err != nil {
			return fmt.Errorf("clock of the daemon on %s: %w", host, err)
		}
	}
	return l.updateHost(ctx, host, func(h *hostRecord) { h.Ahead = to })
}

// clockTimeout bounds the wait for a process to stand still.
const clockTimeout = 5 * time.Second

// spawnShifted is spawn for a program that is to have the host's clock when it begins.
func (l *Lab) spawnShifted(ctx context.Context, h hostRecord, log string, argv []string) (process, error) {
	if h.Ahead == 0 {
		return l.spawn(ctx, h, log, argv)
	}
	// The shell waits to be the program until somebody looks.
	p, err := l.spawn(ctx, h, log, append([]string{"/bin/sh", "-c", `kill -STOP $$; exec "$@"`, "sh"}, argv...))
	if err != nil {
		return p, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, clockTimeout, fmt.Errorf("not within %s", clockTimeout))
	defer cancel()
	if err := atExec(ctx, p, func() error { return shiftClock(ctx, p, h.Ahead, false) }); err != nil {
		return p, errors.Join(fmt.Errorf("set its clock: %w", err), signalProcess(p, sigKill)) // nobody would ever let it go on
	}
	return p, nil
}

// ahead words how far a clock is ahead.
func ahead(d time.Duration) string {
	if d > 0 {
		return "+" + d.String()
	}
	return d.String()
}
