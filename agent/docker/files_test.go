package docker

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// What was mounted may be gone by the time the next task needs files.
func TestEveryTaskFindsItsFilesInMemory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run", "node1")
	var mounts int
	var refuses error
	f := NewFiles(dir, func(at string) error {
		if at != dir {
			t.Errorf("mounted at %s", at)
		}
		mounts++
		return refuses
	})
	if err := f.make("t1", []File{{Name: "secret0", Data: []byte("x"), UID: os.Getuid(), GID: os.Getgid(), Mode: 0o400}}); err != nil {
		t.Fatal(err)
	}
	refuses = errors.New("it is no tmpfs")
	if err := f.make("t2", []File{{Name: "secret0"}}); !errors.Is(err, refuses) || mounts != 2 {
		t.Errorf("asked %d times: %v", mounts, err)
	}
	if f.made("t2") || !f.made("t1") {
		t.Error("a secret was written where it must not be, or one that was there is gone")
	}
}
