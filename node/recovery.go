package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// A recovery replaces several files of the state directory at once. It makes the new ones in recoveryDir with ".new" behind it, and
// renaming that directory is the moment from which on they count: a crash before leaves everything as it was, and after it the
// next start moves the rest into place.
const (
	recoveryDir = "recovery"
	// formerSuffix marks the log that a recovery has replaced: a backup may be older than what it replaces. Only the latest is
	// kept.
	formerSuffix = ".former"
)

// replaced are what a recovery may replace, in the order in which it does; certificates/ is what package identity keeps.
var replaced = []string{raftDir, "certificates", stateFile}

// stageRecovery gives the empty directory in which a recovery makes its files.
func (n *Node) stageRecovery() (string, error) {
	dir := filepath.Join(n.cfg.StateDir, recoveryDir+".new")
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
		return "", fmt.Errorf("make the files of the recovered cluster: %w", err)
	}
	return dir, nil
}

// commitRecovery has what was staged count, and moves it into place.
func (n *Node) commitRecovery(staged string) error {
	final := filepath.Join(n.cfg.StateDir, recoveryDir)
	if err := syncDir(filepath.Join(staged, "any")); err != nil {
		return err
	}
	if err := os.Rename(staged, final); err != nil {
		return fmt.Errorf("take over the files of the recovered cluster: %w", err)
	}
	if err := syncDir(final); err != nil {
		return err
	}
	return n.settleRecovery()
}

// settleRecovery completes a recovery that was interrupted, or takes away what one has left that never came to count.
func (n *Node) settleRecovery() error {
	if err := os.RemoveAll(filepath.Join(n.cfg.StateDir, recoveryDir+".new")); err != nil {
		return fmt.Errorf("remove an unfinished recovery: %w", err)
	}
	dir := filepath.Join(n.cfg.StateDir, recoveryDir)
	if !exists(dir) {
		return nil
	}
	for _, name := range replaced {
		if err := n.replace(dir, name); err != nil {
			return fmt.Errorf("take over the files of the recovered cluster: %w", err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("take over the files of the recovered cluster: %w", err)
	}
	return syncDir(dir)
}

// replace moves one file or directory from dir to the state directory. It may be repeated wherever it was interrupted.
func (n *Node) replace(dir, name string) error {
	from, to := filepath.Join(dir, name), filepath.Join(n.cfg.StateDir, name)
	if !exists(from) {
		return nil // not replaced, or done before
	}
	remove := os.RemoveAll
	if name == raftDir {
		remove = putAside
	}
	if err := remove(to); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return errors.Join(syncDir(from), syncDir(to))
}

// putAside renames what is of no use any more but may be missed, if it is there.
func putAside(path string) error {
	if !exists(path) {
		return nil
	}
	if err := os.RemoveAll(path + formerSuffix); err != nil {
		return err
	}
	if err := os.Rename(path, path+formerSuffix); err != nil {
		return err
	}
	return syncDir(path)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
