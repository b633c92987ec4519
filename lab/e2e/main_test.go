package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miniswarm/miniswarm/lab"
)

const (
	// childVariable tells the child that runs the tests where its parent keeps what is built once.
	childVariable = "MINISWARM_E2E_DIR"
	// raceVariable builds the daemons of the labs with the race detector, whose findings fail the test that meets them.
	raceVariable = "MINISWARM_E2E_RACE"
)

// TestMain runs the tests in a child of itself, so that the labs are removed even when the tests end in a panic.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv(lab.TestVariable) != "1":
		os.Exit(m.Run())
	case os.Getenv(childVariable) != "":
		code := m.Run()
		if err := dropShared(); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			code = max(code, 1)
		}
		os.Exit(code)
	}
	code, err := supervise()
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// supervise runs the tests in a child, waits for its end, and removes what it has left. It returns the child's exit code.
func supervise() (code int, err error) {
	dir, err := os.MkdirTemp("", "miniswarm-e2e-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// A Ctrl-C reaches the child as well; this process has only to outlive it.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)

	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), childVariable+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// Should this process be killed the child goes as well; its labs are then the next lab's to clear away. The kernel
	// ties the two to the thread that starts the child.
	runtime.LockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	_ = cmd.Wait() // its exit code says it all
	code = cmd.ProcessState.ExitCode()
	if code < 0 {
		code = 1 // ended by a signal
	}
	return code, removeLabs(labPrefix(dir))
}

// labPrefix begins the names of all labs of one run.
func labPrefix(dir string) string {
	return "e2e" + strings.TrimPrefix(filepath.Base(dir), "miniswarm-e2e-") + "-"
}

func removeLabs(prefix string) error {
	all, err := lab.List("")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	for _, l := range all {
		if strings.HasPrefix(l.Name(), prefix) {
			errs = append(errs, l.Down(ctx))
		}
	}
	return errors.Join(errs...)
}
