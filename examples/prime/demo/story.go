package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/miniswarm/miniswarm/lab"
)

const (
	stackName   = "fastapi"
	serviceName = "fastapi_fastapi-app"
	imageTag    = "kennethan/fastapi-app-prime:latest"
	// limit is the processor limit of each container. Twelve of them, three engines and the crowd share this machine.
	limit = "0.10"
)

// story is one telling.
type story struct {
	set    settings
	tell   *teller
	report *report

	lab   *lab.Lab
	hosts []lab.Host // vm1, the manager, first
	image string
	old   map[string]string // containers of the four replicas and when each was started, by id

	one, four, twelve phase // the loads of steps 2, 8 and 10
}

// told checks that something is as the story tells it.
func told(ok bool, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf("not as told: "+format, args...)
}

// prepare builds the image and the hosts. It leaves the working directory in dir.
func (s *story) prepare(ctx context.Context, dir string) error {
	s.tell.step("Three hosts on this machine", "Each has its own network, processes, Docker Engine and miniswarm daemon, and nothing of a cluster yet.")
	if _, err := os.Stat(s.set.miniswarm); err != nil {
		return fmt.Errorf("%w; run `make build`, or name the binary with -miniswarm", err)
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "prime"), ".")
	build.Dir, build.Env = s.set.prime, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the service: %w: %s", err, out)
	}
	for _, name := range []string{"Dockerfile", "compose.yml"} {
		text, err := os.ReadFile(filepath.Join(s.set.prime, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	began := time.Now()
	l, err := lab.Up(ctx, lab.Options{Name: fmt.Sprintf("demo-%d", os.Getpid()), Nodes: 3, StateDir: s.set.stateDir, MiniswarmBinary: s.set.miniswarm, Ephemeral: true}, s.tell.file)
	if err != nil {
		return err
	}
	s.lab = l
	s.report.Seconds.LabUp = since(began)
	if err := s.furnish(ctx, dir); err != nil {
		return errors.Join(err, l.Down(context.WithoutCancel(ctx)))
	}
	return nil
}

// furnish puts the service's image on every host, so that what is measured later is not the registry.
func (s *story) furnish(ctx context.Context, dir string) (err error) {
	if s.hosts, err = s.lab.Hosts(); err != nil {
		return err
	}
	if s.image, err = s.lab.BuildImage(ctx, "vm1", dir, imageTag); err != nil {
		return err
	}
	if err := s.lab.Preload(ctx, s.image); err != nil {
		return err
	}
	// From here on commands are typed where compose.yml is, and miniswarm is found like docker is.
	if err := os.Chdir(dir); err != nil {
		return err
	}
	s.tell.command("vm1", "export IMAGE="+s.image+" CPUS="+limit)
	return errors.Join(os.Setenv("IMAGE", s.image), os.Setenv("CPUS", limit),
		os.Setenv("PATH", filepath.Dir(s.set.miniswarm)+string(os.PathListSeparator)+os.Getenv("PATH")))
}

// types types a command on a host and shows what it prints.
func (s *story) types(ctx context.Context, host string, argv ...string) error {
	s.tell.command(host, strings.Join(argv, " "))
	out, end := s.tell.output()
	err := s.lab.Exec(ctx, host, argv, lab.Stdio{Out: out, Err: out})
	end()
	return err
}

// shows is types for a command whose output is looked at, too.
func (s *story) shows(ctx context.Context, host string, argv ...string) (string, error) {
	s.tell.command(host, strings.Join(argv, " "))
	text, err := s.lab.Output(ctx, host, argv...)
	fmt.Fprint(s.tell.file, text)
	return text, err
}

// asks runs a command on a host without a word about it.
func (s *story) asks(ctx context.Context, host string, argv ...string) (string, error) {
	text, err := s.lab.Output(ctx, host, argv...)
	return strings.TrimSpace(text), err
}

// address gives the address of a host.
func (s *story) address(name string) string {
	i := slices.IndexFunc(s.hosts, func(h lab.Host) bool { return h.Name == name })
	return s.hosts[i].Addr.String()
}

// urls gives http://HOST of all hosts.
func (s *story) urls() []string {
	var out []string
	for _, h := range s.hosts {
		out = append(out, "http://"+h.Addr.String())
	}
	return out
}

func since(t time.Time) float64 { return round(time.Since(t).Seconds()) }

// round keeps what a reader wants to know of seconds.
func round(seconds float64) float64 { return float64(int(seconds*100+0.5)) / 100 }
