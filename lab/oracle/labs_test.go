package oracle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/miniswarm/miniswarm/lab"
)

const hosts = 5

// bringUp gives the two sides, Docker Swarm's first, each with its swarm formed and the images on its hosts. Both are
// formed by the same docker commands.
func bringUp(t *testing.T, client dockerCommand, keep string) (theirs, ours *side) {
	t.Helper()
	dir := t.TempDir()
	binary := filepath.Join(dir, "miniswarm")
	if keep != "" { // the daemons outlive this run
		binary = filepath.Join(os.TempDir(), "miniswarm-oracle-"+keep)
	}
	build(t, binary, "github.com/miniswarm/miniswarm/cmd/miniswarm")
	build(t, filepath.Join(dir, "server"), "../e2e/testdata/witness")

	theirs = &side{name: "Docker Swarm", socket: func(h lab.Host) string { return h.EngineSocket }}
	ours = &side{name: "miniswarm", socket: func(h lab.Host) string { return h.DaemonSocket }}
	// One side after the other: two cores would only let all wait for all.
	for _, s := range []*side{theirs, ours} {
		opts := lab.Options{Nodes: hosts, NoDaemon: s == theirs, MiniswarmBinary: binary}
		l, fresh := open(t, keep, opts)
		all, err := l.Hosts()
		if err != nil {
			t.Fatal(err)
		}
		s.hosts = map[string]lab.Host{}
		s.variables = map[string]string{"IMAGE": "registry:5000/server:1", "IMAGE2": "registry:5000/server:2"}
		for _, h := range all {
			s.hosts[h.Name] = h
			s.variables[strings.ToUpper(h.Name)] = h.Addr.String()
		}
		if fresh {
			if err := furnish(t.Context(), l, filepath.Join(dir, "server")); err != nil {
				t.Fatal(err)
			}
		} else if s == ours {
			restart(t, l)
		}
		form(t, s.session(t, client, "vm1"), fresh)
	}
	return theirs, ours
}

// open gives a lab that this test alone uses, or the one that is kept under a name.
func open(t *testing.T, keep string, opts lab.Options) (l *lab.Lab, fresh bool) {
	t.Helper()
	if keep == "" {
		return lab.ForTest(t, opts), true
	}
	opts.Name = keep + map[bool]string{true: "-docker", false: "-mini"}[opts.NoDaemon]
	if l, err := lab.Open("", opts.Name); err == nil {
		return l, false
	}
	l, err := lab.Up(t.Context(), opts, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("lab %s stays up: miniswarm lab down --name %s", opts.Name, opts.Name)
	return l, true
}

// restart has the daemons of a kept lab run what was built just now.
func restart(t *testing.T, l *lab.Lab) {
	t.Helper()
	for n := 1; n <= hosts; n++ {
		name := fmt.Sprint("vm", n)
		if err := errors.Join(l.StopDaemon(t.Context(), name), l.StartDaemon(t.Context(), name)); err != nil {
			t.Fatal(err)
		}
	}
}

func build(t *testing.T, path, pkg string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", path, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
}

// furnish puts the images on all hosts.
func furnish(ctx context.Context, l *lab.Lab, server string) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, tag := range []string{"1", "2"} {
		at := filepath.Join(filepath.Dir(server), tag+l.Name())
		if err := errors.Join(os.Mkdir(at, 0o755), os.Link(server, filepath.Join(at, "server")),
			os.WriteFile(filepath.Join(at, "Dockerfile"), []byte("FROM scratch\nCOPY server /server\nENV VERSION="+tag+"\nENTRYPOINT [\"/server\"]\n"), 0o644)); err != nil {
			return err
		}
		g.Go(func() error {
			ref, err := l.BuildImage(ctx, "vm1", at, "server:"+tag)
			if err != nil {
				return err
			}
			for n := 1; n <= hosts; n++ { // under the name that is the same in both labs
				if _, err := l.Output(ctx, fmt.Sprint("vm", n), "sh", "-c", "docker pull -q registry:5000/server:"+tag); err != nil {
					return fmt.Errorf("%s: %w", ref, err)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// form makes the swarm of vm1 to vm3, and finds its tokens out.
func form(t *testing.T, s *session, fresh bool) {
	t.Helper()
	must := func(host, command string) string {
		t.Helper()
		out, err := s.must(t.Context(), host, command)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if fresh {
		must("vm1", "docker swarm init --advertise-addr $VM1")
	}
	for name, role := range map[string]string{"WORKER": "worker", "MANAGER": "manager"} {
		s.side.variables[name] = must("vm1", "docker swarm join-token -q "+role)
		s.variables[name] = s.side.variables[name]
	}
	if fresh {
		for _, host := range []string{"vm2", "vm3"} {
			must(host, "docker swarm join --token $WORKER $VM1:2377")
		}
	}
	if !fresh { // what a run that was killed has left
		s.variables["N"] = "s[0-9][0-9][0-9]"
		for _, sc := range []*script{{exclusive: true}, {fresh: true}} {
			if err := s.clean(t.Context(), sc); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.await(t.Context(), "vm1", "docker node ls --format {{.Status}}", regexpThree); err != nil {
		t.Fatal(err)
	}
}
