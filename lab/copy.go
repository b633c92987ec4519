package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// Copy makes one host more, whose disk is a copy of a host's as it is at this moment, and boots it: a virtual machine that is cloned.
// The copy has an address and a host name of its own, and everything else of the other: the engine with its containers, and the
// daemon's state. A host that is on stands still meanwhile, for a second or two. The copy's name is returned.
func (l *Lab) Copy(ctx context.Context, host string) (string, error) {
	name := ""
	if err := l.locked(ctx, host, func() error {
		h, err := l.host(host)
		if err != nil {
			return err
		}
		if name, err = l.addHost(ctx); err != nil {
			return err
		}
		if err := l.still(ctx, h, func() error { return l.copyDisk(ctx, host, name) }); err != nil {
			return errors.Join(err, l.dropHost(ctx, name))
		}
		r, err := l.host(name)
		if err != nil {
			return err
		}
		return l.spread(ctx, r.Addr)
	}); err != nil {
		return "", fmt.Errorf("copy %s: %w", host, err)
	}
	return name, l.Start(ctx, name)
}

// addHost writes one host more into the record.
func (l *Lab) addHost(ctx context.Context) (name string, err error) {
	return name, l.update(ctx, func(r *record) error {
		n := len(r.Hosts) + 1
		if n > maxNodes {
			return fmt.Errorf("the lab has %d hosts already", maxNodes)
		}
		addr, err := r.freeAddr(hostAddr(r.Subnet, n))
		if err != nil {
			return err
		}
		name = hostName(n)
		r.Hosts = append(r.Hosts, hostRecord{Name: name, Addr: addr})
		return nil
	})
}

// dropHost takes a host that has not booted yet away again.
func (l *Lab) dropHost(ctx context.Context, name string) error {
	return errors.Join(os.RemoveAll(l.path(name)), l.update(ctx, func(r *record) error {
		r.Hosts = slices.DeleteFunc(r.Hosts, func(h hostRecord) bool { return h.Name == name })
		return nil
	}))
}

// still does something while a host stands still, if it is on and does not do so anyway.
func (l *Lab) still(ctx context.Context, h hostRecord, do func() error) error {
	if !h.Init.alive() || slices.Contains(h.Faults, hostPaused) {
		return do()
	}
	at, unified, err := l.gather(ctx, h, "freezer")
	if err != nil {
		return err
	}
	err = freeze(ctx, at, unified, true)
	if err == nil {
		err = do()
	}
	return errors.Join(err, freeze(context.WithoutCancel(ctx), at, unified, false))
}

// copyDisk copies what a host has on its disk to where another one's will be: not its logs and sockets.
func (l *Lab) copyDisk(ctx context.Context, from, to string) error {
	if err := os.MkdirAll(l.path(to, "etc"), 0o755); err != nil {
		return err
	}
	for _, part := range []string{"docker", stateDir, diskFile, filepath.Join("etc", "upper")} {
		if _, err := os.Lstat(l.path(from, part)); errors.Is(err, os.ErrNotExist) {
			continue
		}
		// Extended attributes are what overlay file systems mark deleted files with.
		if _, err := run(ctx, "", "cp", "-a", "--reflink=auto", "--sparse=always", l.path(from, part), l.path(to, part)); err != nil {
			return err
		}
	}
	// Engines write down where their directory is, and the two hosts share a file system.
	files, err := filepath.Glob(l.path(to, "docker", "containers", "*", "*.json"))
	if err != nil {
		return err
	}
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, bytes.ReplaceAll(text, []byte(l.path(from, "docker")), []byte(l.path(to, "docker"))), 0o600); err != nil {
			return err
		}
	}
	return nil
}
