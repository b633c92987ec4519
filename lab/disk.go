package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

const (
	// stateDir is the miniswarm daemon's directory in a host's own.
	stateDir = "miniswarm"
	// daemonLock is what the daemon holds in it while it runs.
	daemonLock = "daemon.lock"
	// diskFile holds the file system of that directory where it has one of its own.
	diskFile = "miniswarm.img"
	// fillerFile takes the room on it.
	fillerFile = ".lab-filler"

	diskFull, diskHangs = "disk full", "disk hangs"
)

// makeDisk makes the file system of a host's state directory once; boot.sh mounts it.
func (l *Lab) makeDisk(ctx context.Context, h hostRecord) error {
	path := l.path(h.Name, diskFile)
	if _, err := os.Lstat(path); err == nil || l.opts.DiskMiB == 0 {
		return nil
	}
	f, err := os.Create(path + ".new")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(int64(l.opts.DiskMiB) << 20); err != nil {
		return err
	}
	// Nothing is kept back for root, who is all there is.
	if _, err := run(ctx, "", "mkfs.ext4", "-q", "-F", "-m", "0", path+".new"); err != nil {
		return fmt.Errorf("disk of the state directory: %w", err)
	}
	return os.Rename(path+".new", path)
}

// FillDisk takes all the room on the file system of the daemon's state directory, which the lab must have been made with
// (Options.DiskMiB). FreeDisk gives it back.
func (l *Lab) FillDisk(ctx context.Context, host string) error {
	return l.onDisk(ctx, host, diskFull, func(at string) error { return takeRoom(filepath.Join(at, fillerFile)) })
}

// FreeDisk ends what FillDisk has begun.
func (l *Lab) FreeDisk(ctx context.Context, host string) error {
	return l.locked(ctx, host, func() error {
		h, err := l.running(host)
		if err != nil {
			return err
		}
		if err := os.Remove(innerPath(h, l.path(host, stateDir, fillerFile))); err != nil {
			return fmt.Errorf("free the disk of %s: %w", host, err)
		}
		return l.updateHost(ctx, host, func(h *hostRecord) {
			h.Faults = slices.DeleteFunc(h.Faults, func(f string) bool { return f == diskFull })
		})
	})
}

// HangDisk lets every write and sync on the file system of the daemon's state directory wait until Resume.
func (l *Lab) HangDisk(ctx context.Context, host string) error {
	return l.onDisk(ctx, host, diskHangs, func(at string) error { return holdWrites(at, true) })
}

func (l *Lab) onDisk(ctx context.Context, host, fault string, do func(at string) error) error {
	if l.opts.DiskMiB == 0 {
		return fmt.Errorf("host %s: its state is on the machine's own disk, which is no toy: make a lab with a disk size (lab up --disk 1024)", host)
	}
	return l.ail(ctx, host, fault, func(_ context.Context, h hostRecord) error { return do(innerPath(h, l.path(host, stateDir))) })
}
