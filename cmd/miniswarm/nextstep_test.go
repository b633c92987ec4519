package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The refusals that have a next step are still worded so by the daemon.
func TestNextSteps(t *testing.T) {
	files, err := filepath.Glob("../../manager/*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob("../../*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	var words strings.Builder
	for _, name := range append(files, more...) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(name, "_test.go") {
			words.Write(text)
		}
	}
	for _, n := range nextSteps {
		if !strings.Contains(words.String(), n.refusal) {
			t.Errorf("no daemon says %q", n.refusal)
		}
	}
	if got, want := withNextStep("rpc error: node x is not down and can't be removed"), "can't be removed\n'miniswarm leave'"; !strings.Contains(got, want) {
		t.Errorf("got %q", got)
	}
	down := "node %s is not down and can't be removed"
	several := strings.ReplaceAll(down, "%s", "a") + "\n" + strings.ReplaceAll(down, "%s", "b") + "\nnode c not found"
	if got := strings.Split(withNextStep(several), "\n"); len(got) != 4 || !strings.HasPrefix(got[1], "'miniswarm leave'") {
		t.Errorf("got %q", got)
	}
	if got := withNextStep("something else"); got != "something else" {
		t.Errorf("got %q", got)
	}
}
