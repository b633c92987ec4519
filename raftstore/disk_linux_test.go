package raftstore

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// mount mounts a file system for the length of a test, in the only way that also works for images of ext4: by mount(8).
func mount(t *testing.T, args ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a file system needs root")
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", append(args, dir)...).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
}

// fillUp takes all the room there is in a directory's file system and returns what gives it back.
func fillUp(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 64<<10); len(block) > 0; block = block[:len(block)/2] {
		for err == nil {
			_, err = f.Write(block)
		}
		if !isFull(err) {
			t.Fatal(err)
		}
		err = nil
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

func isFull(err error) bool {
	return err != nil && strings.Contains(err.Error(), syscall.ENOSPC.Error())
}

// putUntilRefused writes until a write is refused, and gives the number of those that were acknowledged.
func (m *member) putUntilRefused(t *testing.T) (acked int, err error) {
	t.Helper()
	for i := range 10_000 {
		if err := m.put(fmt.Sprintf("more%d", i)); err != nil {
			return i, err
		}
	}
	t.Fatal("10,000 writes were acknowledged on a disk that takes none")
	return 0, nil
}

// A disk without room stops the store, which names the file; with room again it opens and has what it acknowledged (F5).
func TestAFullDiskStopsTheStore(t *testing.T) {
	dir := mount(t, "-t", "tmpfs", "-o", "size=4m", "tmpfs")
	g := newGroup(t, 1, func(c *Config) { c.Tick = 10 * time.Millisecond })
	cfg := g.config("n1", filepath.Join(dir, "store"))
	cfg.Bootstrap = true
	m := g.start(cfg)
	g.leader()
	m.mustPut("first")
	fillUp(t, dir)
	acked, refused := m.putUntilRefused(t)
	if err := m.gone(); !isFull(err) || !strings.Contains(err.Error(), cfg.Dir) {
		t.Errorf("the store ended with %v, want an error that names the full disk", err)
	}
	t.Logf("%d writes were acknowledged, then: %v", acked, refused)
	if s, err := Open(cfg); err == nil {
		_ = s.Close() // there may be room enough to open it
	}
	free := fillUp(t, dir) // the end of the store, and its cleaning up, may have given a segment back
	if err := Room(cfg.Dir); !isFull(err) {
		t.Errorf("room on a full disk: %v", err)
	}
	free()
	if err := Room(cfg.Dir); err != nil {
		t.Errorf("no room on a disk that is not full: %v", err)
	}
	cfg.Bootstrap, cfg.Transport = false, g.transport("n1")
	m = g.start(cfg)
	g.leader()
	for _, id := range append([]string{"first"}, upTo(acked)...) {
		if m.Snapshot().Config(id) == nil {
			t.Fatalf("%s was acknowledged and is gone", id)
		}
	}
	m.mustPut("after")
}

func upTo(n int) (ids []string) {
	for i := range n {
		ids = append(ids, fmt.Sprintf("more%d", i))
	}
	return ids
}

// A disk of which fsync fails stops the store, which does not try again: nobody knows then what the disk holds (F6). The disk is an
// image that promises more room than what it lies on has.
func TestAFailedSyncStopsTheStore(t *testing.T) {
	under := mount(t, "-t", "tmpfs", "-o", "size=24m", "tmpfs")
	image := filepath.Join(under, "image")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(64 << 20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", "-J", "size=4", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs: %v: %s", err, out)
	}
	dir := mount(t, "-o", "loop", image)
	g := newGroup(t, 1, func(c *Config) { c.Tick = 10 * time.Millisecond })
	cfg := g.config("n1", filepath.Join(dir, "store"))
	cfg.Bootstrap = true
	m := g.start(cfg)
	g.leader()
	m.mustPut("first")
	free := fillUp(t, under)
	acked, refused := m.putUntilRefused(t)
	err = m.gone()
	t.Logf("%d writes were acknowledged, then: %v; the store: %v", acked, refused, err)
	if err == nil || !strings.Contains(err.Error(), cfg.Dir) || !strings.Contains(err.Error(), syscall.EIO.Error()) {
		t.Errorf("the store ended with %v, want the input/output error and the directory", err)
	}
	if m.Snapshot().Config(fmt.Sprintf("more%d", acked)) != nil {
		t.Error("what was not stored is visible")
	}
	free()
}
