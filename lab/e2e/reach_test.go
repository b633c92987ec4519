package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"

	"github.com/miniswarm/miniswarm/lab"
)

// said is what a command line printed and how it ended.
type said struct {
	out, err string
	code     int
}

// run runs the miniswarm command inside a host with an input.
func (c *testCluster) run(ctx context.Context, t *testing.T, host string, in io.Reader, args ...string) said {
	t.Helper()
	var out, complaint bytes.Buffer
	err := c.Exec(ctx, host, append([]string{c.binary}, args...), lab.Stdio{In: in, Out: &out, Err: &complaint})
	s := said{out: out.String(), err: complaint.String()}
	if exited, ok := errors.AsType[*exec.ExitError](err); ok {
		s.code = exited.ExitCode()
	} else if err != nil {
		t.Fatalf("miniswarm %s: %v", strings.Join(args, " "), err)
	}
	return s
}

// Commands run and files are copied in any replica from any manager, as with docker exec and docker cp on its own node.
func TestReach(t *testing.T) {
	c := ownLab(t, "reach", lab.Options{Nodes: 4, Managers: 3, Cluster: true})
	c.managers, c.workers = []string{"vm1", "vm2", "vm3"}, []string{"vm4"}
	c.allReady(t)
	ctx := t.Context()
	leader := c.currentLeader(t)
	follower := c.others(leader)[0]
	ways := []string{leader, follower}
	c.miniswarm(t, "vm1", "service", "create", "--detach", "--name", "w", "--replicas", "4", "--restart-delay", "100ms", c.witness+":1")
	replicas := c.running(t, "w", 4)
	if n := len(spread(replicas)); n != 4 {
		t.Fatalf("replicas on %d nodes", n)
	}
	slot := func(host string) string { return strings.Join(strings.Split(on(replicas, host)[0].name, ".")[:2], ".") }

	t.Run("commands", func(t *testing.T) {
		for _, from := range ways {
			for _, r := range replicas {
				s := c.run(ctx, t, from, nil, "service", "exec", slot(r.host), "/witness", "say", "from", from)
				if s != (said{out: "from " + from + "\n"}) {
					t.Errorf("from %s in %s on %s: %+v", from, r.name, r.host, s)
				}
				if s := c.run(ctx, t, from, nil, "service", "exec", r.task, "/witness", "exit", "42"); s != (said{code: 42}) {
					t.Errorf("from %s in %s on %s: %+v", from, r.name, r.host, s)
				}
			}
		}
		s := c.run(ctx, t, "vm2", nil, "service", "exec", "w", "/witness", "say", "any")
		if s.out != "any\n" || !strings.HasPrefix(s.err, "w.1 on vm") || !strings.HasSuffix(s.err, ", one of 4 replicas\n") {
			t.Errorf("any replica: %+v", s)
		}
		s = c.run(ctx, t, "vm2", nil, "service", "exec", "-e", "A=b", "-w", "/nowhere", "-u", "nobody-here", "w.1", "/witness", "say", "x")
		if s.code == 0 || !strings.Contains(s.out+s.err, "nobody-here") {
			t.Errorf("a user who does not exist: %+v", s)
		}
		s = c.run(ctx, t, "vm2", nil, "service", "exec", "--privileged", "w.1", "/witness", "say", "x")
		if s.code == 0 || !strings.Contains(s.err, "this node does not allow privileged commands") {
			t.Errorf("privileged: %+v", s)
		}
		s = c.run(ctx, t, "vm4", nil, "service", "exec", "w.1", "/witness", "say", "x")
		if s.code == 0 || !strings.Contains(s.err, "This node is not a swarm manager.") {
			t.Errorf("on a worker: %+v", s)
		}
	})

	t.Run("input and output of any size and content", func(t *testing.T) {
		big := make([]byte, 32<<20)
		_, _ = rand.Read(big)
		for _, from := range ways {
			s := c.run(ctx, t, from, bytes.NewReader(big), "service", "exec", "-i", slot("vm4"), "/witness", "cat")
			if s.code != 0 || sha256.Sum256([]byte(s.out)) != sha256.Sum256(big) {
				t.Errorf("from %s: %d of %d bytes came back, code %d, %s", from, len(s.out), len(big), s.code, s.err)
			}
		}
	})

	t.Run("files", func(t *testing.T) {
		dir := t.TempDir()
		tree := filepath.Join(dir, "tree")
		for name, mode := range map[string]os.FileMode{"a": 0o640, "run": 0o755, "deep/er/b": 0o600} {
			path := filepath.Join(tree, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o750), os.WriteFile(path, []byte(name), mode), os.Chmod(path, mode)); err != nil {
				t.Fatal(err)
			}
		}
		big := make([]byte, 20<<20)
		_, _ = rand.Read(big)
		if err := errors.Join(os.Symlink("a", filepath.Join(tree, "link")), os.WriteFile(filepath.Join(tree, "big"), big, 0o644)); err != nil {
			t.Fatal(err)
		}
		for _, from := range ways {
			back := filepath.Join(dir, "back-"+from)
			if s := c.run(ctx, t, from, nil, "service", "cp", tree, slot("vm3")+":/"+from); s.code != 0 {
				t.Fatalf("from %s: %+v", from, s)
			}
			if s := c.run(ctx, t, from, nil, "service", "cp", slot("vm3")+":/"+from, back); s.code != 0 {
				t.Fatalf("back to %s: %+v", from, s)
			}
			if was, now := listing(t, tree), listing(t, back); was != now {
				t.Errorf("through %s:\n%s\nbecame\n%s", from, was, now)
			}
		}
		if s := c.run(ctx, t, "vm1", nil, "service", "cp", slot("vm3")+":/nothing", dir); s.code == 0 || !strings.Contains(s.err, "Could not find the file /nothing") {
			t.Errorf("a file that is not there: %+v", s)
		}
	})

	t.Run("a terminal", func(t *testing.T) {
		record := filepath.Join(t.TempDir(), "record")
		// script makes a terminal and writes down what appears on it. Its window is changed while the command runs.
		inside := fmt.Sprintf(`stty rows 33 cols 77; (until grep -q "size 77x3[3]" %[1]s; do sleep 0.1; done; stty rows 44 cols 88 </dev/tty) & %[2]s service exec -it %[3]s /witness terminal; echo "code $?"`,
			record, c.binary, slot("vm3"))
		limited, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		out, err := c.Output(limited, "vm2", "sh", "-c", fmt.Sprintf(`touch %[1]s; (until grep -q "size 88x4[4]" %[1]s; do sleep 0.1; done; echo end; until grep -q "code [0]" %[1]s; do sleep 0.1; done) | script -qfec '%[2]s' %[1]s`, record, inside))
		if err != nil || !strings.Contains(out, "size 77x33\r\n") || !strings.Contains(out, "size 88x44\r\n") || !strings.Contains(out, "code 0") {
			t.Errorf("%v\n%s", err, out)
		}
	})

	t.Run("a hundred at a time", func(t *testing.T) {
		hosts := []string{"vm1", "vm2", "vm3", "vm4"}
		before := map[string]footprint{}
		for _, h := range hosts {
			before[h] = c.footprint(t, h)
		}
		at := c.window("vm2", on(replicas, "vm4")[0].task)
		defer at.Close()
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				in := bytes.Repeat(fmt.Appendf(nil, "input of %d\n", i), 1000)
				if out, code, err := throughExec(ctx, at, in, "/witness", "cat"); err != nil || code != 0 || !bytes.Equal(out, in) {
					t.Errorf("command %d: %d of %d bytes, code %d, %v", i, len(out), len(in), code, err)
				}
			})
		}
		all.Wait()
		for _, h := range hosts {
			var now footprint
			eventually(t, "the daemon of "+h+" holds nothing of them", patience, func() error {
				if now = c.footprint(t, h); now.files > before[h].files+8 {
					return fmt.Errorf("%d files are open, before there were %d", now.files, before[h].files)
				}
				return nil
			})
			t.Logf("%s: %d files, %d before", h, now.files, before[h].files)
		}
	})

	// hold begins a command that does not end by itself, and gives how it ended nevertheless.
	hold := func(t *testing.T, from, task string) <-chan said {
		t.Helper()
		eventually(t, "the node of task "+task+" is there", patience, func() error {
			if s := c.run(ctx, t, from, nil, "service", "exec", task, "/witness", "say", "here"); s.code != 0 {
				return errors.New(s.err)
			}
			return nil
		})
		out, done := &firstWrite{first: make(chan struct{})}, make(chan said, 1)
		go func() {
			var complaint bytes.Buffer
			err := c.Exec(ctx, from, []string{c.binary, "service", "exec", task, "/witness", "hold", "127.0.0.1:0"}, lab.Stdio{Out: out, Err: &complaint})
			s := said{out: out.String(), err: complaint.String()}
			if exited, ok := errors.AsType[*exec.ExitError](err); ok {
				s.code = exited.ExitCode()
			}
			done <- s
		}()
		select {
		case <-out.first:
		case s := <-done:
			t.Fatalf("it did not begin: %+v", s)
		}
		return done
	}
	ends := func(t *testing.T, done <-chan said, words ...string) {
		t.Helper()
		began := time.Now()
		select {
		case s := <-done:
			t.Logf("%.1f s: %s", time.Since(began).Seconds(), strings.TrimSpace(s.err))
			if s.code == 0 || !slices.ContainsFunc(words, func(w string) bool { return strings.Contains(s.err, w) }) {
				t.Errorf("%+v", s)
			}
		case <-time.After(patience):
			t.Fatal("the command goes on")
		}
	}
	brokeOff := "the connection to the replica broke off; the command goes on there"

	t.Run("a replica that ends", func(t *testing.T) {
		r := on(replicas, "vm4")[0]
		done := hold(t, follower, r.task)
		if err := c.engine("vm4").ContainerKill(ctx, r.id, "KILL"); err != nil {
			t.Fatal(err)
		}
		if s := <-done; s.code != 137 {
			t.Errorf("%+v", s)
		}
		replicas = c.running(t, "w", 4)
	})

	t.Run("a daemon that restarts", func(t *testing.T) {
		c.backOn(t, "vm4")
		done := hold(t, follower, on(c.running(t, "w", 4), "vm4")[0].task)
		if err := errors.Join(c.KillDaemon(ctx, "vm4"), c.StartDaemon(ctx, "vm4")); err != nil {
			t.Fatal(err)
		}
		ends(t, done, brokeOff, "on node vm4")
		c.allReady(t)
	})

	t.Run("a leader that is lost", func(t *testing.T) {
		c.backOn(t, "vm4")
		done := hold(t, follower, on(c.running(t, "w", 4), "vm4")[0].task)
		if err := c.KillDaemon(ctx, leader); err != nil {
			t.Fatal(err)
		}
		ends(t, done, brokeOff, "leader", "on node vm4")
		if err := c.StartDaemon(ctx, leader); err != nil {
			t.Fatal(err)
		}
		c.reachable(t, 3)
		c.allReady(t)
	})

	t.Run("a node that is lost", func(t *testing.T) {
		c.backOn(t, "vm4")
		done := hold(t, follower, on(c.running(t, "w", 4), "vm4")[0].task)
		if err := c.Cut(ctx, "vm4"); err != nil {
			t.Fatal(err)
		}
		ends(t, done, "on node vm4", "node vm4 of task")
	})
}

// backOn has the service w moved until a host has a replica of it.
func (c *testCluster) backOn(t *testing.T, host string) {
	t.Helper()
	if all, err := c.converged(t.Context(), "w", 4); err == nil && len(on(all, host)) > 0 {
		return
	}
	c.miniswarm(t, c.leader(), "service", "update", "--detach", "--force", "--update-parallelism", "0", "w")
	eventually(t, "a replica is on "+host, patience, func() error {
		if all, err := c.converged(t.Context(), "w", 4); err != nil || len(on(all, host)) == 0 {
			return fmt.Errorf("%v %w", all, err)
		}
		return nil
	})
}

// firstWrite tells of the first thing that is written to it.
type firstWrite struct {
	mu    sync.Mutex
	buf   bytes.Buffer // guarded by mu
	first chan struct{}
	once  sync.Once
}

func (f *firstWrite) Write(p []byte) (int, error) {
	f.once.Do(func() { close(f.first) })
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.buf.Write(p)
}

func (f *firstWrite) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.buf.String()
}

// window gives a client that sees a task's container through a host's daemon.
func (c *testCluster) window(host, task string) *client.Client {
	h, err := c.Host(host)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		if err != nil {
			return nil, err
		}
		return new(net.Dialer).DialContext(ctx, "unix", h.DaemonSocket)
	}
	cl, err2 := client.NewClientWithOpts(client.WithHost("tcp://m/miniswarm/tasks/"+task+"/engine"), client.WithDialContext(dial), client.WithAPIVersionNegotiation())
	if err2 != nil {
		panic(err2) // a constant form of address
	}
	return cl
}

// throughExec runs a command with an input.
func throughExec(ctx context.Context, cl *client.Client, in []byte, words ...string) ([]byte, int, error) {
	made, err := cl.ContainerExecCreate(ctx, "any", container.ExecOptions{Cmd: words, AttachStdin: true, AttachStdout: true, AttachStderr: true})
	if err != nil {
		return nil, 0, err
	}
	att, err := cl.ContainerExecAttach(ctx, made.ID, container.ExecAttachOptions{})
	if err != nil {
		return nil, 0, err
	}
	defer att.Close()
	wrote := make(chan error, 1)
	go func() {
		_, err := att.Conn.Write(in)
		wrote <- errors.Join(err, att.CloseWrite())
	}()
	var out bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &out, att.Reader); err != nil {
		return nil, 0, err
	}
	st, err := cl.ContainerExecInspect(ctx, made.ID)
	return out.Bytes(), st.ExitCode, errors.Join(err, <-wrote)
}

// listing writes a tree down: names, modes, and what is in the files.
func listing(t *testing.T, root string) string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		info, err := d.Info()
		if err != nil {
			return err
		}
		line := rel + " " + info.Mode().String()
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %x", sha256.Sum256(data))
		case info.Mode()&os.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " " + to
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
