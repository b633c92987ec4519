package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openTerminal gives both ends of a terminal: where a person types, and what a program reads from.
func openTerminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return person, program
}

func shows(t *testing.T, terminal *os.File) bool {
	t.Helper()
	now, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return now.Lflag&unix.ECHO != 0
}

// What is typed is not shown; Ctrl-C at the question ends it at once, and the terminal is as it was.
func TestHiddenQuestions(t *testing.T) {
	e := &env{stderr: io.Discard}
	person, terminal := openTerminal(t)
	asked := func(ctx context.Context) <-chan error {
		ended := make(chan error, 1)
		go func() {
			text, err := askHidden(ctx, e, terminal, "key: ")
			if err == nil && text != "SWMKEY-1-x" {
				err = fmt.Errorf("it read %q", text)
			}
			ended <- err
		}()
		for began := time.Now(); shows(t, terminal); time.Sleep(time.Millisecond) {
			if time.Since(began) > 10*time.Second {
				t.Fatal("what is typed is shown")
			}
		}
		return ended
	}
	first := asked(t.Context())
	if _, err := person.WriteString("SWMKEY-1-x \n"); err != nil {
		t.Fatal(err)
	}
	if err := <-first; err != nil || !shows(t, terminal) {
		t.Errorf("%v; shown again: %v", err, shows(t, terminal))
	}
	ctx, interrupt := context.WithCancel(t.Context())
	second := asked(ctx)
	interrupt()
	if err := <-second; !errors.Is(err, context.Canceled) || !shows(t, terminal) {
		t.Errorf("interrupted: %v; shown again: %v", err, shows(t, terminal))
	}
}
