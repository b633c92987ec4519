package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/term"
)

// Stdio is what a command in a host reads and writes. Nil fields are empty input and discarded output. Give the
// *os.File itself where there is a terminal, and interactive programs find it.
type Stdio struct {
	In       io.Reader
	Out, Err io.Writer
}

// Env points docker and miniswarm, on the machine or in a host, at one host: DOCKER_HOST and MINISWARM_HOST as
// NAME=value.
func (l *Lab) Env(host string) ([]string, error) {
	h, err := l.Host(host)
	if err != nil {
		return nil, err
	}
	return []string{"DOCKER_HOST=unix://" + h.EngineSocket, "MINISWARM_HOST=unix://" + h.DaemonSocket}, nil
}

// Exec runs a command inside a host, in the working directory of the caller and with its environment, but pointed
// at that host (see Env). It waits for the command; when ctx ends first, the command is killed. A command that
// exits with a code other than zero returns an error that is an *exec.ExitError to errors.As.
func (l *Lab) Exec(ctx context.Context, host string, argv []string, io Stdio) error {
	if len(argv) == 0 {
		return fmt.Errorf("exec on %s: no command given", host)
	}
	if err := Check(); err != nil {
		return err
	}
	h, err := l.running(host)
	if err != nil {
		return err
	}
	env, err := l.Env(host)
	if err != nil {
		return err
	}
	path, err := lookTool("nsenter")
	if err != nil {
		return err
	}
	dir, err := os.Getwd()
	if err != nil {
		dir = "/"
	}
	cmd := exec.CommandContext(ctx, path, append([]string{"-t", strconv.Itoa(h.Init.PID), "-m", "-u", "-i", "-n", "-p", "--",
		"/bin/sh", "-c", `cd "$1" 2>/dev/null || cd /; shift; exec "$@"`, "sh", dir}, argv...)...)
	cmd.Env = append(callerEnv(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = io.In, io.Out, io.Err
	// A group of its own lets a cancelled command take its children along. At a terminal the command has to stay
	// in the group that the terminal talks to, and Ctrl-C reaches all of it there.
	if f, ok := io.In.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		cmd.SysProcAttr = groupAttr()
		cmd.Cancel = func() error { return killGroup(cmd.Process.Pid) }
	}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("%s on %s: %w", argv[0], host, err)
	}
	return nil
}

// Output runs a command inside a host and returns what it printed. An error carries what it said on stderr.
func (l *Lab) Output(ctx context.Context, host string, argv ...string) (string, error) {
	var out, complaint bytes.Buffer
	if err := l.Exec(ctx, host, argv, Stdio{Out: &out, Err: &complaint}); err != nil {
		if said := strings.TrimSpace(complaint.String()); said != "" {
			err = fmt.Errorf("%w: %s", err, said)
		}
		return out.String(), err
	}
	return out.String(), nil
}

// callerEnv is the caller's environment without what would point docker or miniswarm elsewhere.
func callerEnv() []string {
	var env []string
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		switch name {
		case "DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "MINISWARM_HOST", "PATH", dirVariable:
			continue
		}
		env = append(env, e)
	}
	return append(env, "PATH="+pathWithSbin(os.Getenv("PATH")))
}

// pathWithSbin keeps the caller's own directories first and adds those the lab's tools are in.
func pathWithSbin(path string) string {
	if path == "" {
		return searchPath
	}
	return path + ":" + searchPath
}
