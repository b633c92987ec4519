package node

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/raftstore"
)

// A recovery that has no room for its log says so before it begins, and names what an earlier one has left.
func TestARecoveryLooksForRoomFirst(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a file system needs root")
	}
	n, dir := newNode(t), t.TempDir()
	r := &recovery{salvaged: &raftstore.Salvaged{State: cluster.NewState()}}
	if says, err := n.cramped(r); says != "" || err != nil {
		t.Fatalf("on a disk with room: %q, %v", says, err)
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	n.cfg.StateDir = dir
	former := filepath.Join(dir, raftDir+formerSuffix)
	must(t, os.Mkdir(former, 0o700))
	must(t, os.WriteFile(filepath.Join(former, "log"), []byte("what was"), 0o600))
	says, err := n.cramped(r)
	if err != nil || !strings.Contains(says, "the new log and its snapshot need 124.1MiB in "+dir) || !strings.Contains(says, former) || strings.Contains(says, "docker") {
		t.Errorf("on a disk without: %q, %v", says, err)
	}
}
