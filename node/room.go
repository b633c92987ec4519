package node

import (
	"fmt"
	"path/filepath"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"github.com/miniswarm/miniswarm/node/doctor"
	"github.com/miniswarm/miniswarm/raftstore"
)

// recoveryMargin is for what a recovery writes besides the log and its snapshot, and for the file system's own records.
const recoveryMargin = 2 << 20

// cramped says why there is no room for the files of a recovery, empty if there is. What they replace is there until they count.
func (n *Node) cramped(r *recovery) (string, error) {
	needs, err := r.salvaged.Needs()
	if err != nil {
		return "", err
	}
	needs += recoveryMargin
	var st unix.Statfs_t
	if err := unix.Statfs(n.cfg.StateDir, &st); err != nil {
		return "", fmt.Errorf("room for the files of the recovered cluster in %s: %w", n.cfg.StateDir, err)
	}
	free := st.Bavail * uint64(st.Bsize)
	if n.managing() != nil {
		free += raftstore.Spare(filepath.Join(n.cfg.StateDir, raftDir)) // it ends before anything is written
	}
	if free >= needs {
		return "", nil
	}
	return fmt.Sprintf("the new log and its snapshot need %s in %s, and there is room for %s: %s",
		units.BytesSize(float64(needs)), n.cfg.StateDir, units.BytesSize(float64(free)), doctor.Room(n.cfg.StateDir, "")), nil
}
