package doctor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRoom(t *testing.T) {
	dir := t.TempDir()
	if says := Room(dir, ""); !strings.HasSuffix(says, "remove what else is on it, or make it larger") {
		t.Error(says)
	}
	if says := Room(dir, dir); !strings.Contains(says, "docker system prune") {
		t.Error(says)
	}
	if says := Room(dir, "/proc"); strings.Contains(says, "docker") {
		t.Errorf("the engine's images are on another file system: %s", says)
	}
	former := filepath.Join(dir, "raft.former", "wal")
	if err := os.MkdirAll(former, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(former, "0.wal"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if says := Room(dir, ""); !strings.Contains(says, "raft.former (1.0 MiB), the log that the latest recovery has replaced, may be removed") {
		t.Error(says)
	}
}
