package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// TestVariable must be 1 in the environment for tests that need a lab; `make test` sets it.
const TestVariable = "MINISWARM_LAB"

// TB is what ForTest asks of a *testing.T or *testing.B. The package that programs link does not import testing.
type TB interface {
	Helper()
	Name() string
	TempDir() string
	Cleanup(func())
	Context() context.Context
	Failed() bool
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
	Skipf(format string, args ...any)
}

// testLabs numbers the labs of this process.
var testLabs atomic.Int64

// ForTest brings up a lab for one test and removes it when the test ends. A failed test shows the end of every
// log first. Without MINISWARM_LAB=1 the test is skipped; with it, whatever keeps the lab from running fails the test.
// An empty Name is chosen to be unique, and a test run that is killed has its labs removed by the next one.
func ForTest(t TB, opts Options) *Lab {
	t.Helper()
	if os.Getenv(TestVariable) != "1" {
		t.Skipf("set %s=1 to run tests on real hosts", TestVariable)
	}
	if opts.Name == "" {
		opts.Name = fmt.Sprintf("t%d-%d", os.Getpid(), testLabs.Add(1))
	}
	opts.Ephemeral = true
	var progress strings.Builder
	start := time.Now()
	l, err := Up(t.Context(), opts, &progress)
	if err != nil {
		t.Fatalf("lab for %s: %v\n%s", t.Name(), err, progress.String())
	}
	t.Logf("lab %s: %d hosts up after %.1f s", l.name, l.opts.Nodes, time.Since(start).Seconds())
	t.Cleanup(func() {
		if _, err := os.Stat(l.dir); err == nil && t.Failed() {
			t.Logf("%s", l.Logs(40))
		}
		// The test's own context has ended by now.
		ctx, cancel := context.WithTimeout(context.Background(), removeTimeout)
		defer cancel()
		if err := l.Down(ctx); err != nil {
			t.Errorf("%v", err)
		}
	})
	return l
}

// Miniswarm builds this module's command for a test and returns its path, for Options.MiniswarmBinary.
func Miniswarm(t TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "miniswarm")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", path, "github.com/miniswarm/miniswarm/cmd/miniswarm")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build miniswarm: %v\n%s", err, out)
	}
	return path
}

// Logs returns the last lines of every log of the lab, each under its path.
func (l *Lab) Logs(lines int) string {
	paths := []string{l.path(registryLog)}
	hosts, err := l.Hosts()
	if err != nil {
		return err.Error()
	}
	for _, h := range hosts {
		paths = append(paths, l.path(h.Name, bootLog), h.EngineLog)
		if !l.opts.NoDaemon {
			paths = append(paths, h.DaemonLog)
		}
	}
	var b strings.Builder
	for _, p := range paths {
		fmt.Fprintf(&b, "==> %s\n%s\n", p, tail(p, lines))
	}
	return b.String()
}
