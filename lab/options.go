package lab

import (
	"fmt"
	"path/filepath"
	"regexp"
)

// DefaultRoot is the directory below which labs live when no other is named.
const DefaultRoot = "/var/lib/miniswarm-lab"

// maxNodes keeps host addresses (.11 and up) inside the lab's /24 with room to spare.
const maxNodes = 200

// minDiskMiB has room for the two segments that a log always keeps ready, and some.
const minDiskMiB = 160

// maxSocketPath is the longest path a unix socket may have (sun_path, less its final zero).
const maxSocketPath = 107

// Options say what Up builds. The zero value is three hosts with a miniswarm daemon each, not yet a cluster.
type Options struct {
	// Name of the lab, unique below StateDir. Lower-case letters, digits and dashes; "lab" if empty.
	Name string
	// Nodes is the number of hosts, named vm1 to vmN; 3 if zero.
	Nodes int
	// Managers is how many of them, from vm1 on, join as managers when Cluster is set; 1 if zero.
	Managers int
	// StateDir is the directory below which the lab gets its own, DefaultRoot if empty. Engines keep images and
	// containers there: it must be on a file system that overlayfs can stand on, so not on an overlay itself.
	StateDir string

	// MiniswarmBinary is the program whose daemon runs on each host. Required unless NoDaemon is set.
	MiniswarmBinary string
	// NoDaemon leaves the miniswarm daemon out: engine-only hosts.
	NoDaemon bool
	// Cluster runs init on vm1 and join on the others, through the miniswarm command line.
	Cluster bool

	// DiskMiB gives the state directory of every daemon a file system of its own of that many MiB, at least 160: one that can be
	// filled and made to hang (FillDisk, HangDisk). 0 keeps it on the file system of StateDir.
	DiskMiB int

	// EngineArgs are appended to every dockerd command line.
	EngineArgs []string
	// DaemonArgs are appended to every miniswarm daemon command line.
	DaemonArgs []string
	// Env is added, as NAME=value, to the environment of engines and daemons.
	Env []string

	// Ephemeral ties the lab to this process: once the process is gone, the next Up on the machine removes
	// what it left. ForTest sets it.
	Ephemeral bool
}

var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,29}$`)

// complete fills in the defaults and reports what cannot be built.
func (o Options) complete() (Options, error) {
	if o.Name == "" {
		o.Name = "lab"
	}
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.Managers == 0 {
		o.Managers = 1
	}
	if o.StateDir == "" {
		o.StateDir = DefaultRoot
	}
	if !validName.MatchString(o.Name) {
		return o, fmt.Errorf("lab name %q: use lower-case letters, digits and dashes, at most 30", o.Name)
	}
	if o.Nodes < 1 || o.Nodes > maxNodes {
		return o, fmt.Errorf("lab %s: %d nodes: use 1 to %d", o.Name, o.Nodes, maxNodes)
	}
	if o.Managers < 1 || o.Managers > o.Nodes {
		return o, fmt.Errorf("lab %s: %d managers among %d nodes: use 1 to %d", o.Name, o.Managers, o.Nodes, o.Nodes)
	}
	if o.DiskMiB != 0 && o.DiskMiB < minDiskMiB {
		return o, fmt.Errorf("lab %s: a disk of %d MiB: use at least %d, the log's segments take 64 each", o.Name, o.DiskMiB, minDiskMiB)
	}
	if !o.NoDaemon && o.MiniswarmBinary == "" {
		return o, fmt.Errorf("lab %s: no miniswarm binary named for the daemons; name one, or ask for hosts without a daemon", o.Name)
	}
	if o.NoDaemon && o.Cluster {
		return o, fmt.Errorf("lab %s: a cluster needs the miniswarm daemon on its hosts", o.Name)
	}
	var err error
	if o.StateDir, err = filepath.Abs(o.StateDir); err != nil {
		return o, fmt.Errorf("lab %s: state directory: %w", o.Name, err)
	}
	if o.MiniswarmBinary != "" {
		if o.MiniswarmBinary, err = filepath.Abs(o.MiniswarmBinary); err != nil {
			return o, fmt.Errorf("lab %s: miniswarm binary: %w", o.Name, err)
		}
	}
	longest := filepath.Join(o.StateDir, o.Name, hostName(o.Nodes), daemonSocket)
	if len(longest) > maxSocketPath {
		return o, fmt.Errorf("lab %s: %s is longer than the %d bytes a unix socket's path may have; use a shorter state directory", o.Name, longest, maxSocketPath)
	}
	return o, nil
}
