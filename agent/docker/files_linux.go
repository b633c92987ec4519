package docker

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// MountMemory mounts a file system in memory on dir, unless a former daemon has. It is kept out of swap where the kernel
// can do that (from Linux 6.4 on). A process that may not mount is content with a directory that lies in memory already.
func MountMemory(dir string) error {
	mounted, err := isMount(dir)
	if err != nil {
		return err
	}
	if !mounted {
		const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
		err = unix.Mount("miniswarm", dir, "tmpfs", flags, "mode=0700,noswap")
		if errors.Is(err, unix.EINVAL) {
			err = unix.Mount("miniswarm", dir, "tmpfs", flags, "mode=0700")
		}
	}
	var st unix.Statfs_t
	if statErr := unix.Statfs(dir, &st); statErr != nil {
		return fmt.Errorf("%s: %w", dir, statErr)
	}
	if int64(st.Type) == unix.TMPFS_MAGIC || int64(st.Type) == unix.RAMFS_MAGIC {
		return nil
	}
	if err == nil {
		err = errors.New("it is no tmpfs")
	}
	return fmt.Errorf("%s: %w: run the daemon as root, or give it a --run-dir on a tmpfs", dir, err)
}

// unmount takes the file system off dir, if one was mounted there.
func unmount(dir string) error {
	mounted, err := isMount(dir)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err == nil && mounted {
		// Containers that run in spite of everything keep what they have.
		err = unix.Unmount(dir, unix.MNT_DETACH)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// isMount says whether dir is another file system than the directory it is in.
func isMount(dir string) (bool, error) {
	var own, above unix.Stat_t
	if err := unix.Stat(dir, &own); err != nil {
		return false, fmt.Errorf("%s: %w", dir, err)
	}
	if err := unix.Stat(filepath.Dir(dir), &above); err != nil {
		return false, fmt.Errorf("%s: %w", filepath.Dir(dir), err)
	}
	return own.Dev != above.Dev, nil
}
