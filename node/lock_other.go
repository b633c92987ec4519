//go:build !unix

package node

import (
	"fmt"
	"os"
	"path/filepath"
)

// lockState does not lock where there is no flock; containers run on unix only.
func lockState(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock of the state directory: %w", err)
	}
	return f, nil
}
