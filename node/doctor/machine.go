package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/api/types/versions"
	"golang.org/x/sys/unix"

	"github.com/miniswarm/miniswarm/agent/docker"
	"github.com/miniswarm/miniswarm/ingress"
)

// Machine is what to look at on a machine, whether a daemon runs or not.
type Machine struct {
	// StateDir is the daemon's state directory.
	StateDir string
	// DataPlane says whether the kernel is to be looked at: a daemon without a data plane needs nothing of it.
	DataPlane bool
	// Engine tells how the engine is.
	Engine func(ctx context.Context) (system.Info, error)
	// EngineHost is the engine's address, for messages and to find its process.
	EngineHost string
}

// Examine looks at all of it.
func (m Machine) Examine(ctx context.Context) []Finding {
	out := slices.Concat(m.disk(ctx), m.engine(ctx), m.leftovers())
	if m.DataPlane {
		out = slices.Concat(out, kernel(), settings("/proc/sys"))
	}
	return out
}

// Limits of file systems and of the state directory's disk. The log is some ten MB as a rule; the engine's images are usually on
// the same file system and fill it.
const (
	tooLittle, little = 64 << 20, 512 << 20
	littleShare       = 0.05
	writes            = 5
	slow, tooSlow     = 100 * time.Millisecond, time.Second
)

func (m Machine) disk(ctx context.Context) []Finding {
	const check = "disk"
	if _, err := os.Stat(m.StateDir); errors.Is(err, fs.ErrNotExist) {
		return []Finding{Good(check, "there is no state directory %s yet", m.StateDir)}
	}
	cure := func() string { return Room(m.StateDir, m.engineDir(ctx)) }
	out, err := space(check, m.StateDir, cure, "a manager whose disk is full stops")
	if err != nil {
		return []Finding{Broken(check, "make the state directory readable for the daemon", "%s: %v", m.StateDir, err)}
	}
	return append(out, m.writing(ctx))
}

// engineDisk looks at the file system of images and containers where it is another one than that of the state directory.
func (m Machine) engineDisk(root string) []Finding {
	const check = "engine disk"
	if root == "" || !strings.HasPrefix(m.EngineHost, "unix://") || device(root) == device(m.StateDir) {
		return nil
	}
	cure := func() string {
		return "make room on the file system of " + root + ": 'docker system prune' removes images and containers that nothing uses"
	}
	out, err := space(check, root, cure, "tasks are rejected on a node whose engine has no room")
	if err != nil {
		return nil // not of this mount namespace: see mounts
	}
	return out
}

// space looks at the room on the file system of dir; consequence is what comes of having none.
func space(check, dir string, cure func() string, consequence string) (out []Finding, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return nil, err
	}
	free, total := st.Bavail*uint64(st.Bsize), st.Blocks*uint64(st.Bsize)
	switch says := fmt.Sprintf("%s free of %s at %s", size(free), size(total), dir); {
	case free < tooLittle:
		out = append(out, Broken(check, cure()+"; "+consequence, "%s", says))
	case free < little || float64(free) < littleShare*float64(total):
		out = append(out, Bad(check, cure(), "%s", says))
	default:
		out = append(out, Good(check, "%s", says))
	}
	if st.Files > 0 && st.Ffree < 1000 {
		out = append(out, Bad(check, cure(), "%d inodes free of %d at %s", st.Ffree, st.Files, dir))
	}
	return out, nil
}

// writing tries how long the disk takes to keep something: raft waits for it with every change.
func (m Machine) writing(ctx context.Context) Finding {
	const check = "disk latency"
	f, err := os.CreateTemp(m.StateDir, ".doctor-*")
	if err != nil {
		return Broken(check, "make the file system writable for the daemon", "cannot write to %s: %v", m.StateDir, err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	var took []time.Duration
	block := make([]byte, 4096)
	for range writes {
		if ctx.Err() != nil {
			break
		}
		began := time.Now()
		_, err := f.Write(block)
		if err == nil {
			err = f.Sync()
		}
		if err != nil {
			return Broken(check, "make room, or replace the disk if the kernel's log tells of errors", "cannot write to %s: %v", m.StateDir, err)
		}
		took = append(took, time.Since(began))
	}
	if len(took) == 0 {
		return Bad(check, "ask again", "there was no time to try the disk")
	}
	slices.Sort(took)
	median := took[len(took)/2].Round(10 * time.Microsecond)
	cure := "put the state directory on a faster disk (--state-dir), or find out what else keeps this one busy: every change of the cluster waits for it"
	switch {
	case median >= tooSlow:
		return Broken(check, cure, "a write of 4 KiB takes %s until the disk has it, longer than a leader may be silent", median)
	case median >= slow:
		return Bad(check, cure, "a write of 4 KiB takes %s until the disk has it", median)
	}
	return Good(check, "a write of 4 KiB takes %s until the disk has it", median)
}

func size(n uint64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	default:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
}

// leftovers looks for what a daemon puts aside because it could not use it.
func (m Machine) leftovers() []Finding {
	const check = "state"
	damaged, _ := filepath.Glob(filepath.Join(m.StateDir, "agent", "*.damaged")) // the pattern is well-formed
	if len(damaged) > 0 {
		return []Finding{Bad(check, "look whether the disk is sound, then remove the file: the tasks were learned anew from the managers",
			"the tasks of this node could not be read and were put aside in %s", strings.Join(damaged, ", "))}
	}
	return nil
}

const (
	engineLimit = 5 * time.Second
	// oldest is the first API version of the engine that is supported, that of Docker 20.10.
	oldest = "20.10"
)

func (m Machine) engine(ctx context.Context) []Finding {
	const check = "engine"
	ctx, cancel := context.WithTimeout(ctx, engineLimit)
	defer cancel()
	info, err := m.Engine(ctx)
	if err != nil {
		return []Finding{Broken(check, "start it ('systemctl start docker') and look at its log; containers that run go on where it has live-restore", "the Docker Engine at %s does not answer: %s", m.EngineHost,
			strings.TrimPrefix(err.Error(), docker.ErrUnavailable.Error()+": "))} // which says the same once more
	}
	live := "live-restore is off: its containers stop when it restarts"
	if info.LiveRestoreEnabled {
		live = "live-restore is on"
	}
	out := []Finding{Good(check, "version %s, storage driver %s, cgroup v%s (%s), %s", info.ServerVersion, info.Driver, cmp.Or(info.CgroupVersion, "1"), info.CgroupDriver, live)}
	if versions.LessThan(info.ServerVersion, oldest) {
		out = append(out, Bad(check, "upgrade it to "+oldest+" or newer", "the engine is version %s", info.ServerVersion))
	}
	if info.Driver == "vfs" {
		out = append(out, Bad(check, "use overlay2: see the engine's documentation of storage drivers", "the storage driver is vfs, which copies every image for every container"))
	}
	if info.Swarm.LocalNodeState != "" && info.Swarm.LocalNodeState != swarm.LocalNodeStateInactive {
		out = append(out, Broken(check, "'docker swarm leave' on the engine's own socket, or keep this machine out of miniswarm", "the engine is part of a Docker Swarm of its own, whose ports and networks are in the way"))
	}
	return slices.Concat(out, m.engineDisk(info.DockerRootDir), m.mounts())
}

// mounts looks whether the engine sees what this machine's processes mount, which secrets depend on.
func (m Machine) mounts() []Finding {
	const check = "mounts"
	path, ok := strings.CutPrefix(m.EngineHost, "unix://")
	if !ok {
		return []Finding{Bad(check, "give --engine as a unix socket", "the engine at %s may be on another machine, where it does not see the secrets of containers", m.EngineHost)}
	}
	pid, err := peer(path)
	if err != nil || pid == 0 {
		return nil // not running, or of another PID namespace: its first secret tells
	}
	theirs, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/mnt")
	ours, err2 := os.Readlink("/proc/self/ns/mnt")
	switch {
	case err != nil || err2 != nil:
		return nil
	case theirs != ours:
		return []Finding{Bad(check, "run the daemon in the engine's mount namespace: no PrivateTmp=, ProtectSystem=, PrivateMounts= and the like in its unit",
			"the engine (process %d) has another mount namespace, and may not see the secrets that are mounted here", pid)}
	}
	return []Finding{Good(check, "the engine sees what is mounted here")}
}

// kernel tries what the data plane needs.
func kernel() []Finding {
	const check = "kernel"
	var out []Finding
	var names []string
	for _, f := range ingress.Features() {
		switch {
		case f.Err != nil && f.Optional != "":
			out = append(out, Bad(check, "load its module (nf_tables_bridge), or run a kernel that has it", "%s: %v: %s", f.Name, f.Err, f.Optional))
			continue
		case f.Err != nil:
			out = append(out, Broken(check, "run a kernel that has it, or load its module: published ports and overlay networks need it", "%s: %v", f.Name, f.Err))
			continue
		}
		names = append(names, f.Name)
	}
	if len(names) > 0 {
		out = append(out, Good(check, "%s", strings.Join(names, ", ")))
	}
	return out
}

// settings looks at the kernel's settings below root.
func settings(root string) []Finding {
	const check = "settings"
	read := func(key string) string {
		b, err := os.ReadFile(filepath.Join(root, key))
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	var out []Finding
	if v := read("net/ipv4/ip_forward"); v != "1" {
		out = append(out, Broken(check, "sysctl -w net.ipv4.ip_forward=1, and look who sets it back", "net.ipv4.ip_forward is %q: no packet reaches a container through this machine", v))
	}
	if n, limit := number(read("net/netfilter/nf_conntrack_count")), number(read("net/netfilter/nf_conntrack_max")); limit > 0 && n > limit*9/10 {
		out = append(out, Bad(check, "sysctl -w net.netfilter.nf_conntrack_max="+strconv.Itoa(2*limit), "%d connections are tracked of %d that may be: new ones are about to be dropped", n, limit))
	}
	if len(out) == 0 {
		says := "ip_forward 1"
		for _, k := range []string{"net/ipv4/conf/all/rp_filter", "net/bridge/bridge-nf-call-iptables"} {
			if v := read(k); v != "" {
				says += ", " + filepath.Base(k) + " " + v
			}
		}
		out = append(out, Good(check, "%s", says))
	}
	return out
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0
	}
	return n
}
