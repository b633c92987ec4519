package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// A machine chooses its host name, and whoever completes the names of nodes must not run it.
func TestBashTakesNamesForText(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash here")
	}
	ran := filepath.Join(t.TempDir(), "ran")
	cmd := exec.CommandContext(t.Context(), bash, "-c", completionScripts["bash"]+`
miniswarm() { printf '%s\n' 'vm1' 'vm$(touch "$RAN")' 'vm`+"`touch $RAN`"+`' 'vm two'; }
COMP_WORDS=(miniswarm node inspect vm) COMP_CWORD=3
_miniswarm
eval "set -- ${COMPREPLY[*]}"
printf '<%s>' "$@"`)
	cmd.Env = append(os.Environ(), "RAN="+ran)
	out, err := cmd.CombinedOutput()
	if want := "<vm1><vm$(touch \"$RAN\")><vm`touch $RAN`><vm two>"; err != nil || string(out) != want {
		t.Errorf("got %s (%v), want %s", out, err, want)
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("a name was run")
	}
}
