package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// hostPaused is the fault of a host that Pause has frozen.
const hostPaused = "paused"

// gatherTimeout bounds collecting and freezing the processes of a host.
const gatherTimeout = 10 * time.Second

// Pause freezes a host where it is, engine, daemon and containers, as a hypervisor does that moves or starves a virtual
// machine. Its kernel goes on, being the machine's: connections stay open and answer with silence.
func (l *Lab) Pause(ctx context.Context, host string) error {
	return l.ail(ctx, host, hostPaused, func(ctx context.Context, h hostRecord) error {
		at, unified, err := l.gather(ctx, h, "freezer")
		if err != nil {
			return err
		}
		return freeze(ctx, at, unified, true)
	})
}

// What PauseDaemon and PauseEngine bring over a host, in words.
const (
	daemonPaused = "daemon paused"
	enginePaused = "engine paused"
)

// forgetDead takes out the faults of processes that are dead, whoever killed them: their successors do not have them.
func (h *hostRecord) forgetDead() {
	h.Faults = slices.DeleteFunc(slices.Clone(h.Faults), func(f string) bool {
		return f == daemonPaused && !h.Daemon.alive() || f == enginePaused && !h.Engine.alive()
	})
}

// PauseDaemon stops the host's miniswarm daemon with SIGSTOP and PauseEngine its dockerd: the process is there, its sockets
// accept, and it does nothing until Resume.
func (l *Lab) PauseDaemon(ctx context.Context, host string) error {
	return l.ail(ctx, host, daemonPaused, func(_ context.Context, h hostRecord) error { return signalProcess(h.Daemon, sigStop) })
}

// PauseEngine is told of with PauseDaemon.
func (l *Lab) PauseEngine(ctx context.Context, host string) error {
	return l.ail(ctx, host, enginePaused, func(_ context.Context, h hostRecord) error { return signalProcess(h.Engine, sigStop) })
}

// cpuPeriod is what shares of processors are counted over: a host that has used up its part waits for the next.
const cpuPeriod = 100 * time.Millisecond

// Starve leaves a host that many processors, 0.05 say, for all its processes together.
func (l *Lab) Starve(ctx context.Context, host string, cpus float64) error {
	quota := time.Duration(cpus * float64(cpuPeriod))
	if quota < time.Millisecond {
		return fmt.Errorf("starve %s: %v processors are too few: at least 0.01", host, cpus)
	}
	return l.ail(ctx, host, fmt.Sprintf("%v cpus", cpus), func(ctx context.Context, h hostRecord) error {
		at, unified, err := l.gather(ctx, h, "cpu")
		if err != nil {
			return err
		}
		return limitCPU(at, unified, quota)
	})
}

// Resume ends what Pause, PauseDaemon, PauseEngine, Starve, HangDisk and SetClock have begun.
func (l *Lab) Resume(ctx context.Context, host string) error {
	return l.locked(ctx, host, func() error {
		h, err := l.running(host)
		if err != nil {
			return err
		}
		if err := errors.Join(release(ctx, l.dir, h), signalProcess(h.Daemon, sigCont), signalProcess(h.Engine, sigCont)); err != nil {
			return fmt.Errorf("resume %s: %w", host, err)
		}
		if h.Ahead != 0 {
			if err := l.setClock(ctx, host, 0); err != nil {
				return fmt.Errorf("resume %s: %w", host, err)
			}
		}
		return l.updateHost(ctx, host, func(h *hostRecord) {
			h.Faults = slices.DeleteFunc(h.Faults, func(f string) bool { return f != diskFull })
		})
	})
}

// ail brings a fault over a host that is on, and writes it down first: whoever takes a host away must know what to undo.
func (l *Lab) ail(ctx context.Context, host, fault string, do func(context.Context, hostRecord) error) error {
	return l.locked(ctx, host, func() error {
		h, err := l.running(host)
		if err != nil {
			return err
		}
		had := slices.Contains(h.Faults, fault)
		if err := l.updateHost(ctx, host, func(h *hostRecord) {
			if !had {
				h.Faults = append(h.Faults, fault)
			}
		}); err != nil {
			return err
		}
		trying, cancel := context.WithTimeoutCause(ctx, gatherTimeout, fmt.Errorf("not within %s", gatherTimeout))
		defer cancel()
		if err := do(trying, h); err != nil {
			err = fmt.Errorf("host %s, %s: %w", host, fault, err)
			if had || fault == diskHangs { // that may hold what is to be undone
				return err
			}
			return errors.Join(err, l.updateHost(ctx, host, func(h *hostRecord) {
				h.Faults = slices.DeleteFunc(h.Faults, func(f string) bool { return f == fault })
			}))
		}
		return nil
	})
}

// release frees the processes of a host from whatever holds them, so that they run, or can be killed. What does not hold them is
// no error.
func release(ctx context.Context, dir string, h hostRecord) error {
	var errs []error
	if h.Init.alive() && slices.Contains(h.Faults, diskHangs) {
		errs = append(errs, holdWrites(innerPath(h, filepath.Join(dir, h.Name, stateDir)), false))
	}
	for controller, free := range map[string]func(at string, unified bool) error{
		"freezer": func(at string, unified bool) error { return freeze(ctx, at, unified, false) },
		"cpu":     func(at string, unified bool) error { return limitCPU(at, unified, 0) },
	} {
		root, unified := hierarchy(controller)
		at := filepath.Join(root, hostGroup(dir, h.Name))
		if err := free(at, unified); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// innerPath is how the machine reaches a path in the mounts of a host.
func innerPath(h hostRecord, path string) string {
	return filepath.Join("/proc", strconv.Itoa(h.Init.PID), "root", path)
}

// hierarchy is where the groups of a controller are: beside those of the others, or, unified, all in one.
func hierarchy(controller string) (root string, unified bool) {
	if _, err := os.Stat(filepath.Join(cgroupRoot, "cgroup.controllers")); err == nil {
		return cgroupRoot, true
	}
	return filepath.Join(cgroupRoot, controller), false
}

// gather puts every process of a host that is not in a container into the group beside those of its containers, and returns the
// group that holds all of them.
func (l *Lab) gather(ctx context.Context, h hostRecord, controller string) (at string, unified bool, err error) {
	root, unified := hierarchy(controller)
	at = filepath.Join(root, hostGroup(l.dir, h.Name))
	own := filepath.Join(at, "host")
	if err := os.MkdirAll(own, 0o755); err != nil {
		return "", false, fmt.Errorf("control group: %w", err)
	}
	if unified && controller == "cpu" { // the freezer is always there
		for _, parent := range []string{root, filepath.Join(root, groupsRoot), filepath.Dir(at)} {
			if err := os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+cpu"), 0); err != nil {
				return "", false, fmt.Errorf("control group: %w", err)
			}
		}
	}
	space, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(h.Init.PID), "ns/pid"))
	if err != nil {
		return "", false, err
	}
	in := map[int]bool{}
	// What they start meanwhile is born in the group, so this ends.
	return at, unified, until(ctx, 0, func() (bool, error) {
		settled := true
		for _, pid := range pids() {
			if link, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "ns/pid")); err != nil || link != space || in[pid] {
				continue
			}
			settled = false
			if err := os.WriteFile(filepath.Join(own, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err == nil {
				in[pid] = true // else it has ended, or is tried again
			}
		}
		return settled, nil
	}, func() error { return errors.New("processes could not be put into a control group") })
}

// freeze stops or thaws all processes of a group and returns when the kernel has.
func freeze(ctx context.Context, at string, unified, frozen bool) error {
	file, word, state, want := "freezer.state", "THAWED", "freezer.state", "THAWED"
	if frozen {
		word, want = "FROZEN", "FROZEN"
	}
	if unified {
		file, word, state, want = "cgroup.freeze", "0", "cgroup.events", "frozen 0"
		if frozen {
			word, want = "1", "frozen 1"
		}
	}
	if err := os.WriteFile(filepath.Join(at, file), []byte(word), 0); err != nil {
		return err
	}
	return until(ctx, 5*time.Millisecond, func() (bool, error) {
		now, err := os.ReadFile(filepath.Join(at, state))
		return slices.Contains(strings.Split(strings.TrimSpace(string(now)), "\n"), want), err
	}, func() error { return fmt.Errorf("control group %s is not %s", at, want) })
}

// limitCPU gives a group that much processor time each cpuPeriod; 0 is no limit.
func limitCPU(at string, unified bool, quota time.Duration) error {
	us, period := strconv.FormatInt(quota.Microseconds(), 10), strconv.FormatInt(cpuPeriod.Microseconds(), 10)
	if unified {
		if quota == 0 {
			us = "max"
		}
		return os.WriteFile(filepath.Join(at, "cpu.max"), []byte(us+" "+period), 0)
	}
	if quota == 0 {
		us = "-1"
	}
	if err := os.WriteFile(filepath.Join(at, "cpu.cfs_period_us"), []byte(period), 0); err != nil {
		return err
	}
	err := os.WriteFile(filepath.Join(at, "cpu.cfs_quota_us"), []byte(us), 0)
	if errors.Is(err, syscall.EINVAL) {
		return fmt.Errorf("a container there has a limit of its own that is higher, and this kernel takes no lower one around it: remove that (--limit-cpu), or starve another host: %w", err)
	}
	return err
}
