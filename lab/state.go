package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// ErrNotFound is returned when no lab of that name exists.
var ErrNotFound = errors.New("no such lab")

// ErrExists is returned by Up when a lab of that name is up.
var ErrExists = errors.New("lab is up already")

// Files of a lab's directory and of a host's directory in it.
const (
	recordFile   = "lab.json"
	lockFile     = "lock"
	bootFile     = "boot.sh"
	engineSocket = "docker.sock"
	daemonSocket = "miniswarm.sock"
	bootLog      = "boot.log"
	engineLog    = "dockerd.log"
	daemonLog    = "miniswarm.log"
	registryLog  = "registry.log"
)

// passingPrefix begins the names of directories beside labs that are being made or deleted. Nobody else's may begin so:
// what a killed run has left of them is removed unseen.
const passingPrefix = ".miniswarm-lab-"

// isLab says whether a lab has made the directory. It has its record from the first moment to the last.
func isLab(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, recordFile))
	return err == nil
}

// record is lab.json: what is true of a lab whoever looks at it.
type record struct {
	Name    string
	Created time.Time
	// BootID tells the machine's current boot from the one the processes below were started in.
	BootID string
	Subnet netip.Prefix
	// Owner is the process an ephemeral lab belongs to; zero for a lab that stays.
	Owner process
	// Builder is the process whose Up has not returned yet.
	Builder  process
	Options  Options
	Registry process
	Hosts    []hostRecord
	// Losses are what the switch drops.
	Losses []loss `json:",omitempty"`
}

// hostRecord is what is known of one host. A zero process is one that does not run.
type hostRecord struct {
	Name    string
	Addr    netip.Addr
	Manager bool
	// Init is the host's first process, pid 1 inside; it and all others are recorded by their pid on the machine.
	Init   process
	Engine process
	Daemon process
	Cut    bool
	// Home is the address that a host was made with which has moved since; invalid if it has not.
	Home netip.Addr `json:",omitzero"`
	// Ahead is by how much the clock of its daemon is ahead.
	Ahead time.Duration `json:",omitempty"`
	// Faults are what was brought over the host and not ended, besides a cable that is out.
	Faults []string `json:",omitempty"`
}

// home is the address that the host was made with. Its hardware address is made from it, and stays.
func (h hostRecord) home() netip.Addr {
	if h.Home.IsValid() {
		return h.Home
	}
	return h.Addr
}

func (r *record) host(name string) (*hostRecord, error) {
	for i := range r.Hosts {
		if r.Hosts[i].Name == name {
			return &r.Hosts[i], nil
		}
	}
	known := make([]string, len(r.Hosts))
	for i, h := range r.Hosts {
		known[i] = h.Name
	}
	return nil, fmt.Errorf("lab %s has no host %q (it has %s)", r.Name, name, strings.Join(known, ", "))
}

// up reports whether anything of the lab runs or is about to.
func (r *record) up() bool {
	if r.Registry.alive() || r.Builder.alive() {
		return true
	}
	for _, h := range r.Hosts {
		if h.Init.alive() {
			return true
		}
	}
	return false
}

// readRecord reads lab.json. Processes of an earlier boot of the machine are dead, whatever their pids say now.
func readRecord(dir string) (*record, error) {
	data, err := os.ReadFile(filepath.Join(dir, recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, filepath.Base(dir))
	}
	if err != nil {
		return nil, fmt.Errorf("read lab %s: %w", filepath.Base(dir), err)
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("read lab %s: %s: %w; `miniswarm lab down --name %s` clears it away",
			filepath.Base(dir), filepath.Join(dir, recordFile), err, filepath.Base(dir))
	}
	if r.BootID != bootID() {
		r.Owner, r.Builder, r.Registry = staleProcess(r.Owner), process{}, process{}
		for i := range r.Hosts {
			h := &r.Hosts[i]
			h.Init, h.Engine, h.Daemon, h.Cut, h.Faults = process{}, process{}, process{}, false, nil
		}
	}
	return &r, nil
}

// writeRecord replaces lab.json in one step.
func writeRecord(dir string, r *record) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write lab %s: %w", r.Name, err)
	}
	path := filepath.Join(dir, recordFile)
	if err := os.WriteFile(path+".new", append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("write lab %s: %w", r.Name, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write lab %s: %w", r.Name, err)
	}
	return nil
}

// update changes lab.json under the lab's lock.
func (l *Lab) update(ctx context.Context, change func(*record) error) error {
	unlock, err := lock(ctx, filepath.Join(l.dir, lockFile))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s", ErrNotFound, l.name)
	}
	if err != nil {
		return fmt.Errorf("lab %s: %w", l.name, err)
	}
	defer unlock()
	r, err := readRecord(l.dir)
	if err != nil {
		return err
	}
	if err := change(r); err != nil {
		return err
	}
	return writeRecord(l.dir, r)
}

// updateHost changes one host's part of lab.json under the lab's lock.
func (l *Lab) updateHost(ctx context.Context, name string, change func(*hostRecord)) error {
	return l.update(ctx, func(r *record) error {
		h, err := r.host(name)
		if err != nil {
			return err
		}
		change(h)
		return nil
	})
}

// host reads what is known of one host.
func (l *Lab) host(name string) (hostRecord, error) {
	r, err := readRecord(l.dir)
	if err != nil {
		return hostRecord{}, err
	}
	h, err := r.host(name)
	if err != nil {
		return hostRecord{}, err
	}
	return *h, nil
}

// running reads one host and reports an error when its power is off.
func (l *Lab) running(name string) (hostRecord, error) {
	h, err := l.host(name)
	if err == nil && !h.Init.alive() {
		err = fmt.Errorf("host %s of lab %s is off; `miniswarm lab start %s` boots it", name, l.name, name)
	}
	return h, err
}

// lock takes the lock file at path, waiting for whoever holds it. The kernel drops the lock of a process that dies.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		taken, err := tryLock(f)
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if taken {
			return func() { f.Close() }, nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("lock %s: another operation holds it: %w", path, context.Cause(ctx))
		}
	}
}

// bootID names the machine's current boot.
func bootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// labID is a short name for the lab in this directory, for kernel objects whose names must be unique on the machine.
func labID(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return hex.EncodeToString(sum[:4])
}
