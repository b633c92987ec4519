package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// cgroupRoot is where the machine mounts its control groups: one hierarchy (v2), or one below it for each controller.
const cgroupRoot = "/sys/fs/cgroup"

// cgroupTimeout bounds the wait for the kernel to let go of groups whose last process has just ended.
const cgroupTimeout = 10 * time.Second

// groupsRoot holds the groups of all labs. Engines that share a kernel would otherwise share /docker, and nobody
// could tell whose group is whose after a power failure.
const groupsRoot = "/miniswarm-lab"

// labGroup is the group that all hosts of the lab in dir have theirs in.
func labGroup(dir string) string { return filepath.Join(groupsRoot, labID(dir)) }

// hostGroup is the group below which a host's engine creates its containers.
func hostGroup(dir, host string) string { return filepath.Join(labGroup(dir), host) }

// removeCgroups removes a group whose processes have ended and all groups in it.
func removeCgroups(ctx context.Context, group string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, cgroupTimeout, fmt.Errorf("still there after %s", cgroupTimeout))
	defer cancel()
	hierarchies := []string{cgroupRoot}
	entries, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return fmt.Errorf("control groups: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			hierarchies = append(hierarchies, filepath.Join(cgroupRoot, e.Name()))
		}
	}
	var errs []error
	for _, h := range hierarchies {
		at := filepath.Join(h, group)
		var last error
		errs = append(errs, until(ctx, 20*time.Millisecond, func() (bool, error) {
			last = removeTree(at)
			return last == nil, nil
		}, func() error { return fmt.Errorf("control group %s: %w", at, last) }))
		if filepath.Dir(group) == groupsRoot {
			_ = os.Remove(filepath.Dir(at)) // the last lab takes the common parent along; any other finds it in use
		}
	}
	return errors.Join(errs...)
}

// removeTree removes a group and those in it, deepest first. Only empty groups can go; files in them go along.
func removeTree(at string) error {
	var dirs []string
	err := filepath.WalkDir(at, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := os.Remove(dirs[i]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
