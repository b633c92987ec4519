package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// boot starts the host's first process in new namespaces and plugs it in. When it fails nothing runs.
func (l *Lab) boot(ctx context.Context, h hostRecord) (_ hostRecord, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, bootTimeout, fmt.Errorf("not up after %s", bootTimeout))
	defer cancel()
	if err := l.fabric().check(); err != nil {
		return h, fmt.Errorf("boot %s: %w", h.Name, err)
	}
	if err := errors.Join(l.furnish(h), l.makeDisk(ctx, h)); err != nil {
		return h, fmt.Errorf("boot %s: %w", h.Name, err)
	}
	if err := l.fabric().unplug(ctx, h.Name); err != nil { // a cable that a killed run left
		return h, fmt.Errorf("boot %s: %w", h.Name, err)
	}
	ready, err := l.firstProcess(&h)
	if err != nil {
		return h, fmt.Errorf("boot %s: %w", h.Name, err)
	}
	defer ready.Close()
	defer func() {
		if err != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bootTimeout)
			defer cancel()
			err = errors.Join(err, h.Init.kill(ctx))
		}
	}()
	if err := l.updateHost(ctx, h.Name, func(stored *hostRecord) { *stored = h }); err != nil {
		return h, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = ready.SetReadDeadline(deadline)
	}
	word := make([]byte, len("ready"))
	if _, err := io.ReadFull(ready, word); err != nil {
		return h, fmt.Errorf("boot %s: the end of %s:\n%s", h.Name, l.path(h.Name, bootLog), tail(l.path(h.Name, bootLog), 5))
	}
	if err := l.fabric().plug(ctx, h, h.Init); err != nil {
		return h, fmt.Errorf("boot %s: %w", h.Name, err)
	}
	return h, nil
}

// firstProcess starts boot.sh in new namespaces and enters it into h. The pipe it returns says "ready" when the
// host is furnished, and ends without it when that failed.
func (l *Lab) firstProcess(h *hostRecord) (*os.File, error) {
	log, err := os.OpenFile(l.path(h.Name, bootLog), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	ready, signal, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer signal.Close()
	cmd := exec.Command("/bin/sh", l.path(bootFile), h.Name, l.path(h.Name))
	cmd.Dir = "/"
	cmd.Env = l.environment()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{signal}
	cmd.SysProcAttr = hostAttr()
	keepDescriptors()
	if err := cmd.Start(); err != nil {
		ready.Close()
		return nil, fmt.Errorf("new namespaces: %w", err)
	}
	// Identified before anyone waits for it: until then even a process that has ended keeps its pid.
	h.Init, err = identify(cmd.Process.Pid)
	h.Engine, h.Daemon, h.Cut = process{}, process{}, false
	l.reap(cmd)
	if err != nil {
		ready.Close()
		return nil, err
	}
	return ready, nil
}

// furnish lays out the host's disk: on the first boot all of it, later only what is missing.
func (l *Lab) furnish(h hostRecord) error {
	upper := l.path(h.Name, "etc", "upper")
	for _, dir := range []string{filepath.Join(upper, "docker"), l.path(h.Name, "etc", "work"), l.path(h.Name, "docker"), l.path(h.Name, stateDir)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	// The machine's own engine configuration and key are not the host's.
	if err := hideLower(filepath.Join(upper, "docker")); err != nil {
		return err
	}
	names, err := l.names()
	if err != nil {
		return err
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	for name, content := range map[string]string{
		"hosts":    names,
		"hostname": h.Name + "\n",
		// No name server is there, and no firewall either, so a question is refused at once; silence would cost
		// whoever asks for an unknown name ten seconds.
		"resolv.conf": fmt.Sprintf("nameserver %s\noptions timeout:1 attempts:1\n", l.fabric().switchIP()),
		"machine-id":  hex.EncodeToString(id) + "\n",
	} {
		path := filepath.Join(upper, name)
		if _, err := os.Lstat(path); err == nil {
			continue
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// startEngine starts dockerd unless it runs, and waits until it answers.
func (l *Lab) startEngine(ctx context.Context, h hostRecord) error {
	if !h.Engine.alive() {
		args := []string{
			"dockerd",
			"--host", "unix://" + l.path(h.Name, engineSocket), "--host", "unix:///run/docker.sock",
			"--data-root", l.path(h.Name, "docker"), "--exec-root", "/run/docker", "--pidfile", "/run/docker.pid",
			"--insecure-registry", l.subnet.String(),
			"--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", hostGroup(l.dir, h.Name),
		}
		p, err := l.spawn(ctx, h, engineLog, append(args, l.opts.EngineArgs...))
		if err != nil {
			return fmt.Errorf("start engine on %s: %w", h.Name, err)
		}
		h.Engine = p
		if err := l.updateHost(ctx, h.Name, func(h *hostRecord) {
			h.forgetDead()
			h.Engine = p
		}); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, engineTimeout, fmt.Errorf("no answer after %s", engineTimeout))
	defer cancel()
	return l.answers(ctx, h.Engine, "engine", h.Name, engineSocket, engineLog)
}

// startDaemon starts the miniswarm daemon unless it runs, and waits until it answers. One that was told to end a moment ago may still
// look as if it ran.
func (l *Lab) startDaemon(ctx context.Context, h hostRecord) error {
	ran := h.Daemon.alive()
	err := l.daemonUp(ctx, h)
	if err != nil && ran && !h.Daemon.alive() {
		err = l.daemonUp(ctx, h)
	}
	return err
}

func (l *Lab) daemonUp(ctx context.Context, h hostRecord) error {
	if !h.Daemon.alive() {
		args := []string{
			l.opts.MiniswarmBinary, "daemon",
			"--engine", "unix://" + l.path(h.Name, engineSocket), "--socket", l.path(h.Name, daemonSocket),
			"--state-dir", l.path(h.Name, stateDir),
		}
		if err := l.awaitStateLock(ctx, h); err != nil {
			return fmt.Errorf("start miniswarm daemon on %s: %w", h.Name, err)
		}
		if !h.Home.IsValid() { // else it is one whose address nobody told the daemon
			args = append(args, "--listen-addr", netip.AddrPortFrom(h.Addr, clusterPort).String(), "--advertise-addr", h.Addr.String())
		}
		p, err := l.spawnShifted(ctx, h, daemonLog, append(args, l.opts.DaemonArgs...))
		if err != nil {
			return fmt.Errorf("start miniswarm daemon on %s: %w", h.Name, err)
		}
		h.Daemon = p
		if err := l.updateHost(ctx, h.Name, func(h *hostRecord) {
			h.forgetDead()
			h.Daemon = p
		}); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, daemonTimeout, fmt.Errorf("no answer after %s", daemonTimeout))
	defer cancel()
	return l.answers(ctx, h.Daemon, "miniswarm daemon", h.Name, daemonSocket, daemonLog)
}

// awaitStateLock waits for a daemon that is ending to let go of its state directory: its threads may outlive the process that is seen.
func (l *Lab) awaitStateLock(ctx context.Context, h hostRecord) error {
	path := innerPath(h, l.path(h.Name, stateDir, daemonLock))
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil // there was none yet
	}
	ctx, cancel := context.WithTimeoutCause(ctx, endTimeout, fmt.Errorf("another daemon uses its state directory, and has not ended within %s", endTimeout))
	defer cancel()
	unlock, err := lock(ctx, path)
	if err != nil {
		return err
	}
	unlock()
	return nil
}

// spawn starts a program inside a host as a child of the host's first process, its output appended to a log.
func (l *Lab) spawn(ctx context.Context, h hostRecord, log string, argv []string) (process, error) {
	args := append([]string{"-t", strconv.Itoa(h.Init.PID), "-m", "-u", "-i", "-n", "-p", "--",
		"/bin/sh", "-c", `cd /; log=$1; shift; setsid "$@" </dev/null >>"$log" 2>&1 & echo $!`, "sh", l.path(h.Name, log)}, argv...)
	path, err := lookTool("nsenter")
	if err != nil {
		return process{}, err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = l.environment()
	cmd.SysProcAttr = groupAttr()
	keepDescriptors()
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return process{}, fmt.Errorf("%w: %s", err, strings.TrimSpace(complaint.String()))
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		return process{}, fmt.Errorf("pid of %s: %w", argv[0], err)
	}
	p, err := inner(h.Init, pid)
	if err != nil {
		return process{}, fmt.Errorf("%w: %s", err, tail(l.path(h.Name, log), 5))
	}
	return p, nil
}

// answers waits until the API on a socket answers a ping, or its process ends.
func (l *Lab) answers(ctx context.Context, p process, what, host, socket, log string) error {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", l.path(host, socket))
		},
	}}
	return until(ctx, 25*time.Millisecond, func() (bool, error) {
		if !p.alive() {
			return false, fmt.Errorf("%s on %s has ended; the end of %s:\n%s", what, host, l.path(host, log), tail(l.path(host, log), 10))
		}
		return ping(ctx, client, "http://lab/_ping") == nil, nil
	}, func() error {
		return fmt.Errorf("%s on %s does not answer; the end of %s:\n%s", what, host, l.path(host, log), tail(l.path(host, log), 10))
	})
}

// ping asks for a page and is content with any success.
func ping(ctx context.Context, client *http.Client, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("GET %s: %s", url, res.Status)
	}
	return nil
}
