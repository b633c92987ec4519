package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"golang.org/x/term"
)

// askHidden asks a person at a terminal for something that is not shown while it is typed. When ctx ends, the terminal shows again what is
// typed; who reads from it then cannot be woken, and is left to the end of the process.
func askHidden(ctx context.Context, e *env, terminal *os.File, question string) (string, error) {
	fd := int(terminal.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return "", err
	}
	fmt.Fprint(e.stderr, question)
	defer fmt.Fprintln(e.stderr)
	type line struct {
		text []byte
		err  error
	}
	typed := make(chan line, 1)
	go func() {
		text, err := term.ReadPassword(fd)
		typed <- line{text, err}
	}()
	select {
	case l := <-typed:
		return strings.TrimSpace(string(l.text)), l.err
	case <-ctx.Done():
		_ = term.Restore(fd, before)
		return "", ctx.Err()
	}
}
