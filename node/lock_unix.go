//go:build unix

package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// lockState keeps a second daemon from being the same node. The lock ends with the file or the process.
func lockState(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); {
	case errors.Is(err, syscall.EWOULDBLOCK):
		f.Close()
		return nil, fmt.Errorf("lock the state directory: another daemon uses %s; stop that one or give --state-dir another path", dir)
	case err != nil:
		f.Close()
		return nil, fmt.Errorf("lock the state directory %s: %w", dir, err)
	}
	return f, nil
}
