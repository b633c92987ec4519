package lab_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miniswarm/miniswarm/lab"
)

// upVariable makes the test binary bring up a lab of that name, tied to itself, and wait to be killed.
const upVariable = "LAB_TEST_UP"

func TestMain(m *testing.M) {
	if name := os.Getenv(upVariable); name != "" {
		if _, err := lab.Up(context.Background(), lab.Options{Name: name, NoDaemon: true, Ephemeral: true}, os.Stderr); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println("up")
		select {}
	}
	os.Exit(m.Run())
}

func needLab(t *testing.T) {
	t.Helper()
	if os.Getenv(lab.TestVariable) != "1" {
		t.Skipf("set %s=1 to run tests on real hosts", lab.TestVariable)
	}
}

// A run may be killed at any moment. Whatever it had built by then goes with the next lab's start, or by its name.
func TestRunsThatWereKilled(t *testing.T) {
	needLab(t)
	var swept, removed []string
	for i, after := range []time.Duration{
		30 * time.Millisecond, 60 * time.Millisecond, 120 * time.Millisecond, 200 * time.Millisecond, 350 * time.Millisecond, 3 * time.Second,
	} {
		name := fmt.Sprintf("k%d-%d", os.Getpid(), i)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), upVariable+"="+name)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after) // the moment of death, not a wait for anything
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		dir := filepath.Join(lab.DefaultRoot, name)
		if i%2 == 0 {
			swept = append(swept, dir)
			continue
		}
		removed = append(removed, dir)
		if err := lab.Remove(t.Context(), "", name); err != nil && !errors.Is(err, lab.ErrNotFound) {
			t.Error(err)
		}
	}
	for _, dir := range removed {
		nothingLeft(t, dir)
	}
	lab.ForTest(t, lab.Options{Nodes: 1, NoDaemon: true})
	for _, dir := range swept {
		nothingLeft(t, dir)
	}
}

func TestUpThatIsCancelled(t *testing.T) {
	needLab(t)
	for i, after := range []time.Duration{time.Millisecond, 50 * time.Millisecond, 250 * time.Millisecond} {
		name := fmt.Sprintf("c%d-%d", os.Getpid(), i)
		ctx, cancel := context.WithTimeout(t.Context(), after)
		l, err := lab.Up(ctx, lab.Options{Name: name, NoDaemon: true, Ephemeral: true}, nil)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cancelled after %s: %v", after, err)
		}
		if err == nil {
			err = l.Down(t.Context())
			t.Errorf("it was up by then, take a shorter time; %v", err)
		}
		nothingLeft(t, filepath.Join(lab.DefaultRoot, name))
	}
}

func TestUpThatFails(t *testing.T) {
	needLab(t)
	name := fmt.Sprintf("f%d", os.Getpid())
	_, err := lab.Up(t.Context(), lab.Options{Name: name, Nodes: 2, MiniswarmBinary: "/bin/false", Ephemeral: true}, nil)
	if err == nil || !strings.Contains(err.Error(), "miniswarm daemon on vm") {
		t.Errorf("a daemon that ends at once: %v", err)
	}
	nothingLeft(t, filepath.Join(lab.DefaultRoot, name))
	_, err = lab.Up(t.Context(), lab.Options{Name: name, Nodes: 1, NoDaemon: true, EngineArgs: []string{"--no-such-flag"}, Ephemeral: true}, nil)
	if err == nil || !strings.Contains(err.Error(), "no-such-flag") {
		t.Errorf("an engine that ends at once, without its own words: %v", err)
	}
	nothingLeft(t, filepath.Join(lab.DefaultRoot, name))
}
