package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"miniswarm": main}) }

// The command line as people use it, against a daemon that behaves: the scripts are commands with what they print.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", Setup: func(ts *testscript.Env) error {
		dir, err := os.MkdirTemp("", "msw") // a unix socket's path must be short
		if err != nil {
			return err
		}
		ts.Defer(func() { _ = os.RemoveAll(dir) })
		f := startFake(t, dir)
		ts.Setenv("MINISWARM_HOST", "unix://"+f.socket)
		ts.Setenv("HOME", dir)
		return nil
	}})
}

// call runs a command line in this process.
func call(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	code = run(ctx, &env{args: append([]string{"miniswarm"}, args...), stdin: io.NopCloser(strings.NewReader("")), stdout: &out, stderr: &err, executable: "miniswarm"})
	return code, out.String(), err.String()
}

// Waiting ends with Ctrl-C, and what was created stays.
func TestInterruptStopsWaitingOnly(t *testing.T) {
	f := startFake(t, t.TempDir())
	f.member, f.stuck = true, true
	ctx, interrupt := context.WithCancel(t.Context())
	began := time.Now()
	time.AfterFunc(300*time.Millisecond, interrupt)
	code, out, errs := call(ctx, "--host", "unix://"+f.socket, "service", "create", "--name", "web", "--replicas", "2", "image")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("still waiting %s after the interruption", took)
	}
	if code != exitInterrupted || !strings.Contains(errs, "goes on") {
		t.Errorf("code %d, %q, %q", code, out, errs)
	}
	if !strings.Contains(errs, "'miniswarm service ps web' shows it") {
		t.Errorf("the service is not named: %q", errs)
	}
	if len(f.services) != 1 {
		t.Errorf("services: %v", f.services)
	}
}

func TestNamesOfWhatIsWaitedFor(t *testing.T) {
	for line, want := range map[string]string{
		"service create --replicas 2 --name web image sleep 9": "web",
		"service create image":                                 "NAME",
		"service scale web=2 worker=3":                         "web worker",
		"service update --image a=b web":                       "web",
		"stack deploy -c file.yml shop":                        "shop",
	} {
		words := strings.Fields(line)
		root, err := dockerRoot(t.Context(), &env{stdin: io.NopCloser(strings.NewReader("")), stdout: io.Discard, stderr: io.Discard}, defaultHost,
			nouns[slices.IndexFunc(nouns, func(n noun) bool { return n.name == words[0] })])
		if err != nil {
			t.Fatal(err)
		}
		cmd, rest, err := root.Find(words)
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.ParseFlags(rest); err != nil {
			t.Fatal(err)
		}
		if got := waitedFor(cmd); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}
