//go:build !linux

package docker

import "errors"

// MountMemory is for Linux only: elsewhere nothing promises that secrets stay in memory.
func MountMemory(string) error {
	return errors.New("secrets and configs in containers need Linux")
}

func unmount(string) error { return nil }
