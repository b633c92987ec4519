package lab

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A lab may be kept in a directory that has other things in it, such as somebody's home or a checkout.
func TestWhatNoLabHasMadeIsLeftAlone(t *testing.T) {
	root := t.TempDir()
	var kept []string
	for _, name := range []string{".git", ".new", ".gone-lab", "project"} {
		kept = append(kept, name)
		if err := errors.Join(os.Mkdir(filepath.Join(root, name), 0o755), os.WriteFile(filepath.Join(root, name, "file"), nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{passingPrefix + "new", passingPrefix + "gone-lab"} {
		if err := os.Mkdir(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := sweepRoot(t.Context(), root, newTeller(nil)); err != nil {
		t.Error(err)
	}
	if _, err := reserve(t.Context(), Options{Name: "project", StateDir: root, Nodes: 1}, newTeller(nil)); err == nil {
		t.Error("a lab was made of somebody's directory")
	}
	if err := Remove(t.Context(), root, "project"); !errors.Is(err, ErrNotFound) {
		t.Errorf("remove somebody's directory: %v, want %v", err, ErrNotFound)
	}
	var left []string
	for _, name := range kept {
		if _, err := os.Stat(filepath.Join(root, name, "file")); err == nil {
			left = append(left, name)
		}
	}
	if !slices.Equal(left, kept) {
		t.Errorf("of %q only %q are left", kept, left)
	}
	entries, err := os.ReadDir(root)
	if err != nil || len(entries) != len(kept) {
		t.Errorf("%d entries are left, want %d: %v", len(entries), len(kept), err)
	}
}
