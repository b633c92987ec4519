package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// dirVariable is in the environment of every process a lab starts, so that Remove finds also those whose pid was
// never written down.
const dirVariable = "MINISWARM_LAB_DIR"

// searchPath is the PATH of everything the lab runs: root's may lack the sbin directories the tools are in.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// process names one process for good: a pid is used again, a pid with its start time is not.
type process struct {
	PID int
	// Start is when the process started, in clock ticks since the machine's boot (field 22 of /proc/PID/stat).
	Start uint64
}

// identify gives the lasting name of a running process.
func identify(pid int) (process, error) {
	_, start, err := stat(pid)
	if err != nil {
		return process{}, err
	}
	return process{PID: pid, Start: start}, nil
}

// staleProcess keeps the fact that there was an owner while making sure that it is not found alive.
func staleProcess(p process) process {
	if p.PID == 0 {
		return p
	}
	return process{PID: p.PID, Start: ^uint64(0)}
}

// alive reports whether this very process runs. One that has ended and only awaits its parent does not.
func (p process) alive() bool {
	if p.PID == 0 {
		return false
	}
	state, start, err := stat(p.PID)
	return err == nil && start == p.Start && state != 'Z' && state != 'X'
}

// stat reads a process' state letter and start time.
func stat(pid int) (state byte, start uint64, err error) {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, 0, err
	}
	// The command name, in parentheses, may hold anything; the fields after the last one are plain.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 20 {
		return 0, 0, fmt.Errorf("process %d: stat has %d fields", pid, len(fields))
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	return fields[0][0], start, err
}

// kill ends the process at once and returns when it has ended.
func (p process) kill(ctx context.Context) error { return p.end(ctx, sigKill) }

// stop asks the process to end and returns when it has ended.
func (p process) stop(ctx context.Context) error { return p.end(ctx, sigTerm) }

func (p process) end(ctx context.Context, sig syscall.Signal) error {
	if !p.alive() {
		return nil
	}
	if err := signalProcess(p, sig); err != nil {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	return until(ctx, 5*time.Millisecond, func() (bool, error) { return !p.alive(), nil },
		func() error { return fmt.Errorf("process %d has been told to end and has not", p.PID) })
}

// until asks done again and again until it says yes or fails, or until ctx ends, for which stuck finds the words.
func until(ctx context.Context, every time.Duration, done func() (bool, error), stuck func() error) error {
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return errors.Join(stuck(), context.Cause(ctx))
		}
	}
}

// marked lists the processes that carry the directory of a lab in their environment.
func marked(dir string) []process {
	want := []byte(dirVariable + "=" + dir + "\x00")
	var found []process
	for _, pid := range pids() {
		env, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
		if err != nil || !(bytes.HasPrefix(env, want) || bytes.Contains(env, append([]byte{0}, want...))) {
			continue
		}
		if p, err := identify(pid); err == nil && p.alive() {
			found = append(found, p)
		}
	}
	return found
}

// inner finds the process that is called pid in the pid namespace of init.
func inner(init process, pid int) (process, error) {
	space, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(init.PID), "ns/pid"))
	if err != nil {
		return process{}, err
	}
	for _, p := range pids() {
		at := filepath.Join("/proc", strconv.Itoa(p))
		if link, err := os.Readlink(filepath.Join(at, "ns/pid")); err != nil || link != space {
			continue
		}
		status, err := os.ReadFile(filepath.Join(at, "status"))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(status)) {
			if names, ok := strings.CutPrefix(line, "NSpid:"); ok {
				if f := strings.Fields(names); f[len(f)-1] == strconv.Itoa(pid) {
					return identify(p)
				}
			}
		}
	}
	return process{}, fmt.Errorf("process %d has ended already", pid)
}

func pids() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var all []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

// run runs a tool and returns what it printed. An error carries the command and its complaint.
func run(ctx context.Context, input string, name string, args ...string) (string, error) {
	path, err := lookTool(name)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = baseEnv()
	cmd.SysProcAttr = groupAttr() // Ctrl-C ends the operation through ctx, not its tools behind its back
	cmd.Stdin = strings.NewReader(input)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		said := strings.TrimSpace(complaint.String())
		if said != "" {
			said = ": " + said
		}
		return out.String(), fmt.Errorf("%s %s: %w%s", name, strings.Join(args, " "), err, said)
	}
	return out.String(), nil
}

// baseEnv is the environment the lab's own tools run in: nothing of the caller's leaks into a host.
func baseEnv() []string { return []string{"PATH=" + searchPath, "HOME=/root", "LC_ALL=C.UTF-8"} }

// tail returns the last lines of a log, for an error or a failed test.
func tail(path string, lines int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return strings.Join(all, "\n")
}
