package oracle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/miniswarm/miniswarm/lab"
)

const (
	// commandTimeout ends a command that hangs, and untilTimeout the waiting for a condition. The machine may be busy.
	commandTimeout = 60 * time.Second
	untilTimeout   = 60 * time.Second
	pollInterval   = 200 * time.Millisecond
)

// side is one of the two swarms, on its hosts.
type side struct {
	name      string
	hosts     map[string]lab.Host
	socket    func(lab.Host) string
	variables map[string]string // of every script
}

// dockerCommand is one docker command of the machine.
type dockerCommand struct {
	major int
	dir   string // holds it under its name
}

// session runs the steps of one script on one side.
type session struct {
	*side
	client    dockerCommand
	host      string // where $ goes
	dir       string // working directory
	config    string
	variables map[string]string
}

// run gives the outcome of one command.
func (s *session) run(ctx context.Context, host, command string) (outcome, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, commandTimeout, fmt.Errorf("no end after %s", commandTimeout))
	defer cancel()
	if host == "" {
		host = s.host
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=" + s.client.dir + ":" + os.Getenv("PATH"), "DOCKER_HOST=unix://" + s.socket(s.hosts[host]), "DOCKER_CONFIG=" + s.config, "HOME=" + s.config,
		"DOCKER_CLI_HINTS=false", "NO_COLOR=1", "TZ=UTC", "LC_ALL=C"}
	for name, value := range s.variables {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.WaitDelay = time.Second // children of the shell may hold its output
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if ctx.Err() != nil {
		return outcome{}, fmt.Errorf("%s: %s: %w\n%s%s", s.name, command, context.Cause(ctx), out.String(), errs.String())
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return outcome{}, fmt.Errorf("%s: %s: %w", s.name, command, err)
	}
	return outcome{out.String(), errs.String(), cmd.ProcessState.ExitCode()}, nil
}

// must is run for commands that have to succeed.
func (s *session) must(ctx context.Context, host, command string) (string, error) {
	o, err := s.run(ctx, host, command)
	if err == nil && o.code != 0 {
		err = fmt.Errorf("%s: %s: exit %d\n%s%s", s.name, command, o.code, o.stdout, o.stderr)
	}
	return strings.TrimSpace(o.stdout), err
}

// await repeats a command until all it prints matches.
func (s *session) await(ctx context.Context, host, command string, until *regexp.Regexp) error {
	timeout, cancel := context.WithTimeout(ctx, untilTimeout)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		o, err := s.run(ctx, host, command)
		if err != nil {
			return err
		}
		text := strings.TrimSpace(o.stdout + o.stderr)
		if until.MatchString(text) {
			return nil
		}
		select {
		case <-timeout.Done():
			return fmt.Errorf("%s: %s: for %s it did not match %s; last:\n%s", s.name, command, untilTimeout, until, text)
		case <-tick.C:
		}
	}
}

// step runs one step and gives what is compared, as outcome.text does.
func (s *session) step(ctx context.Context, st *step) (string, error) {
	switch {
	case st.until != nil:
		return "", s.await(ctx, st.host, st.command, st.until)
	case st.quiet || st.set != "":
		out, err := s.must(ctx, st.host, st.command)
		if st.set != "" {
			s.variables[st.set] = out
		}
		return "", err
	}
	o, err := s.run(ctx, st.host, st.command)
	return o.text(s.variables), err
}

// clean removes what a script has made: all that bears its name; for a fresh script, the swarm; for an exclusive one, what
// it may have left of its changes to nodes.
func (s *session) clean(ctx context.Context, sc *script) error {
	if sc.fresh {
		for _, host := range []string{"vm5", "vm4"} {
			if _, err := s.run(ctx, host, "docker swarm leave --force"); err != nil {
				return err
			}
		}
		return nil
	}
	// Services go first, since they use the rest; networks when the last task on them has gone.
	const each = `docker %[1]s ls --format '{{.ID}} {{.Name}}' | while read -r id name; do case $name in $N*) docker %[1]s rm $id >/dev/null;; esac; done`
	for _, noun := range []string{"service", "config", "secret"} {
		if _, err := s.must(ctx, "vm1", fmt.Sprintf(each, noun)); err != nil {
			return err
		}
	}
	if sc.exclusive {
		const reset = `for h in vm1 vm2 vm3; do docker node update --availability active $(docker node inspect $h --format '{{range $k, $v := .Spec.Labels}}--label-rm {{$k}} {{end}}') $h; done`
		if _, err := s.must(ctx, "vm1", reset); err != nil {
			return err
		}
	}
	gone := fmt.Sprintf(each, "network") + ` 2>/dev/null; docker network ls --format '{{.Name}}' | grep ^$N`
	return s.await(ctx, "vm1", gone, regexp.MustCompile(`^$`))
}

// findDocker gives the docker commands on PATH, one of each major version, in the order in which PATH has them. Each gets a
// directory below dir, so that scripts can call it by its name.
func findDocker(dir string) ([]dockerCommand, error) {
	version := regexp.MustCompile(`^Docker version (\d+)\.`)
	var found []dockerCommand
	for _, p := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/local/bin", "/usr/bin") {
		path := filepath.Join(p, "docker")
		out, err := exec.Command(path, "--version").Output()
		m := version.FindSubmatch(out)
		if err != nil || m == nil {
			continue // not there, or something else of that name
		}
		c := dockerCommand{dir: filepath.Join(dir, "docker-"+string(m[1]))}
		fmt.Sscan(string(m[1]), &c.major)
		if os.Mkdir(c.dir, 0o755) != nil {
			continue // the same version again
		}
		if err := os.Symlink(path, filepath.Join(c.dir, "docker")); err != nil {
			return nil, err
		}
		found = append(found, c)
	}
	if len(found) == 0 {
		return nil, errors.New("no docker command on PATH")
	}
	return found, nil
}
