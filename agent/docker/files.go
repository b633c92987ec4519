package docker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// File is a file made for one task.
type File struct {
	Name     string // plain
	Data     []byte
	UID, GID int
	Mode     fs.FileMode
}

// Files keeps the files of tasks' secrets and configs where the engine can bind them into containers: one directory, in
// memory, with a directory for each task. The files of a task are made once and all at a time, and stay as they are until
// its container has stopped. They outlive the daemon, so that one that restarts finds them under its containers.
// Methods may be called concurrently, those about one task one at a time.
type Files struct {
	dir   string
	mount func(dir string) error

	mu sync.Mutex // held while dir is made or removed
}

// NewFiles gives the files in dir. Nothing happens before there is a file to be made; then dir is created and mount, which
// may be nil, puts a file system in memory there. It is called before every task's files and leaves alone what is there.
func NewFiles(dir string, mount func(dir string) error) *Files { return &Files{dir: dir, mount: mount} }

// Dir is the directory.
func (f *Files) Dir() string { return f.dir }

// made says whether the files of a task are there.
func (f *Files) made(taskID string) bool {
	_, err := os.Stat(filepath.Join(f.dir, taskID))
	return err == nil
}

// unfinished ends the name of a task's directory while its files are written.
const unfinished = ".new"

// make writes the files of a task. What an earlier attempt has left is replaced.
func (f *Files) make(taskID string, files []File) error {
	if err := f.open(); err != nil {
		return err
	}
	final := filepath.Join(f.dir, taskID)
	dir := final + unfinished
	if err := errors.Join(os.RemoveAll(dir), os.RemoveAll(final)); err != nil {
		return fmt.Errorf("replace the files of task %s: %w", taskID, err)
	}
	if err := writeAll(dir, files); err != nil {
		return errors.Join(fmt.Errorf("write the secrets and configs of task %s: %w", taskID, err), os.RemoveAll(dir))
	}
	if err := os.Rename(dir, final); err != nil {
		return fmt.Errorf("write the secrets and configs of task %s: %w", taskID, err)
	}
	return nil
}

func writeAll(dir string, files []File) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for _, file := range files {
		path := filepath.Join(dir, file.Name)
		if err := os.WriteFile(path, file.Data, 0o600); err != nil {
			return err
		}
		// Owner first: a change of owner takes away some bits of the mode.
		if err := os.Chown(path, file.UID, file.GID); err != nil {
			return err
		}
		if err := os.Chmod(path, file.Mode.Perm()); err != nil {
			return err
		}
	}
	return nil
}

// open makes the directory. It looks each time: somebody may have unmounted what was there, and secrets must not end up on
// a disk below it.
func (f *Files) open() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return fmt.Errorf("create the directory for secrets: %w", err)
	}
	if f.mount != nil {
		if err := f.mount(f.dir); err != nil {
			return fmt.Errorf("keep secrets in memory only: %w", err)
		}
	}
	return nil
}

// remove removes the files of a task, if there are any.
func (f *Files) remove(taskID string) error {
	if err := errors.Join(os.RemoveAll(filepath.Join(f.dir, taskID+unfinished)), os.RemoveAll(filepath.Join(f.dir, taskID))); err != nil {
		return fmt.Errorf("remove the secrets and configs of task %s: %w", taskID, err)
	}
	return nil
}

// Tasks lists the tasks that have files.
func (f *Files) Tasks() ([]string, error) {
	entries, err := os.ReadDir(f.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the files of tasks: %w", err)
	}
	var ids []string
	for _, e := range entries {
		ids = append(ids, strings.TrimSuffix(e.Name(), unfinished))
	}
	return ids, nil
}

// Remove removes the files of tasks that are not on this node any more. Their containers must have stopped.
func (f *Files) Remove(taskIDs ...string) error {
	var errs []error
	for _, id := range taskIDs {
		errs = append(errs, f.remove(id))
	}
	return errors.Join(errs...)
}

// Close removes everything: files, file system, the directory, and the one above it if that is empty.
func (f *Files) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	ids, err := f.Tasks()
	if err == nil {
		err = f.Remove(ids...)
	}
	if f.mount != nil {
		err = errors.Join(err, unmount(f.dir))
	}
	if rmErr := os.Remove(f.dir); rmErr != nil && !errors.Is(rmErr, fs.ErrNotExist) {
		err = errors.Join(err, fmt.Errorf("remove the directory for secrets: %w", rmErr))
	}
	_ = os.Remove(filepath.Dir(f.dir)) // stays where another node of this machine has files
	return err
}
