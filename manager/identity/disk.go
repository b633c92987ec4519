package identity

import (
	"errors"
	"os"
)

// disk is how a Store changes files, so that tests can pull the plug between any two steps. Reading needs no seam.
type disk interface {
	// mkdir creates a directory and its parents, readable by their owner only; a directory that exists becomes so.
	mkdir(dir string) error
	// write creates or replaces a file that only its owner can read, and returns when its content is on disk.
	write(path string, content []byte) error
	// sync makes creations and renames in a directory durable.
	sync(dir string) error
	rename(from, to string) error
	remove(path string) error
	removeAll(dir string) error
}

type realDisk struct{}

func (realDisk) mkdir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.Chmod(dir, 0o700)
}

func (realDisk) write(path string, content []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Chmod(0o600); err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
		return err
	}
	return f.Sync()
}

func (realDisk) sync(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (realDisk) rename(from, to string) error { return os.Rename(from, to) }
func (realDisk) remove(path string) error     { return os.Remove(path) }
func (realDisk) removeAll(dir string) error   { return os.RemoveAll(dir) }
