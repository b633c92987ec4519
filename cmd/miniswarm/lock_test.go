package main

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/swarm"
)

// A locked machine says so, and opens with the key, which is read from where nobody looks.
func TestUnlock(t *testing.T) {
	f := startFake(t, t.TempDir())
	f.member, f.locked, f.unlockKey, f.spec = true, true, "SWMKEY-1-first", swarm.Spec{}
	unlock := func(stdin string) (int, string) {
		var out, errs bytes.Buffer
		code := run(t.Context(), &env{args: []string{"miniswarm", "--host", "unix://" + f.socket, "unlock"}, stdin: io.NopCloser(strings.NewReader(stdin)), stdout: &out, stderr: &errs})
		return code, out.String() + errs.String()
	}
	if code, out, _ := call(t.Context(), "--host", "unix://"+f.socket, "info"); code != 0 || !strings.HasPrefix(out, "Swarm: locked\nEngine:") {
		t.Errorf("info of a locked machine: %d\n%s", code, out)
	}
	for _, c := range []struct {
		stdin string
		code  int
		text  string
	}{
		{"", exitFailed, "swarm could not be unlocked: invalid key provided"},
		{"SWMKEY-1-other\n", exitFailed, "swarm could not be unlocked: invalid key provided"},
		{"  SWMKEY-1-first  \nmore\n", 0, ""},
		{"SWMKEY-1-first", exitFailed, "error: swarm is not locked"},
	} {
		if code, text := unlock(c.stdin); code != c.code || !strings.Contains(text, c.text) || c.text == "" && text != "" {
			t.Errorf("unlock with %q: %d %q, want %d %q", c.stdin, code, text, c.code, c.text)
		}
	}
	f.worker = true
	if code, text := unlock("SWMKEY-1-first"); code != exitFailed || !strings.Contains(text, "this node runs no manager") {
		t.Errorf("unlock of a worker: %d %q", code, text)
	}
	if code, _, errs := call(t.Context(), "--host", "unix://"+f.socket, "unlock", "SWMKEY-1-first"); code != exitUsage || !strings.Contains(errs, "it asks for the key") {
		t.Errorf("a key on the command line: %d %s", code, errs)
	}
}
