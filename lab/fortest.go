package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
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
	inTests.begin(opts.StateDir, opts.Name)
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
			return
		}
		inTests.end(opts.StateDir, opts.Name)
	})
	return l
}

// inTests has the labs of this process's tests removed when it is interrupted, for then no test's cleanup is run.
var inTests interruption

type interruption struct {
	once sync.Once
	mu   sync.Mutex         // held for good while the process ends, so that no test begins another lab
	labs map[[2]string]bool // guarded by mu; by state directory and name
}

func (i *interruption) begin(stateDir, name string) {
	i.once.Do(func() {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
		go i.await(signals)
	})
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.labs == nil {
		i.labs = map[[2]string]bool{}
	}
	i.labs[[2]string{stateDir, name}] = true
}

func (i *interruption) end(stateDir, name string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.labs, [2]string{stateDir, name})
}

// await waits for the signal, as long as the process lives, and ends it.
func (i *interruption) await(signals <-chan os.Signal) {
	s := <-signals
	fmt.Fprintf(os.Stderr, "%s: the labs of the tests are removed\n", s)
	i.mu.Lock()
	ctx, cancel := context.WithTimeout(context.Background(), removeTimeout)
	for l := range i.labs {
		if err := Remove(ctx, l[0], l[1]); err != nil && !errors.Is(err, ErrNotFound) {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	cancel()
	os.Exit(1)
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
