package doctor

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Room says how to make room on the file system of a state directory. engineDir is where the engine keeps images and containers, empty
// if that is not known.
func Room(stateDir, engineDir string) string {
	var ways []string
	// Package node leaves it there when it recovers a cluster.
	if former := filepath.Join(stateDir, "raft.former"); sizeOf(former) > 0 {
		ways = append(ways, fmt.Sprintf("%s (%s), the log that the latest recovery has replaced, may be removed", former, size(sizeOf(former))))
	}
	if engineDir != "" && device(engineDir) == device(stateDir) {
		ways = append(ways, "'docker system prune' removes images and containers that nothing uses")
	}
	if len(ways) == 0 {
		ways = append(ways, "remove what else is on it, or make it larger")
	}
	return "make room on the file system of " + stateDir + ": " + strings.Join(ways, "; ")
}

// sizeOf is what a directory takes, as far as it can be read.
func sizeOf(dir string) (n uint64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if fi, err := d.Info(); err == nil {
				n += uint64(fi.Size())
			}
		}
		return nil
	})
	return n
}

// device tells file systems apart; 0 is none.
func device(path string) uint64 {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0
	}
	return uint64(st.Dev)
}

// engineDir is where the engine keeps what it has; one that is silent is taken to keep it where engines do.
func (m Machine) engineDir(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, engineLimit)
	defer cancel()
	if info, err := m.Engine(ctx); err == nil && info.DockerRootDir != "" {
		return info.DockerRootDir
	}
	return "/var/lib/docker"
}
