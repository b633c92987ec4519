package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"

	"github.com/miniswarm/miniswarm/agent/docker"
	"github.com/miniswarm/miniswarm/agent/docker/fake"
	"github.com/miniswarm/miniswarm/cluster"
)

// glazed is an engine with two running containers, of which the task t1's is seen through a window that Docker's own client
// looks through, over connections like those that the leader gets.
type glazed struct {
	engine    *fake.Engine
	mine      string // container ids
	foreign   string
	allowed   cluster.Allowance
	serving   sync.WaitGroup
	cli       *client.Client
	transport *http.Transport
}

func newGlazed(t *testing.T) *glazed {
	t.Helper()
	g := &glazed{engine: fake.New()}
	g.engine.SetImage("web:1", fake.Program{})
	for _, id := range []*string{&g.mine, &g.foreign} {
		var err error
		if *id, err = g.engine.Create(t.Context(), &docker.Container{Name: fmt.Sprintf("c%p", id), Config: container.Config{Image: "web:1"}}); err != nil {
			t.Fatal(err)
		}
		if err := g.engine.Start(t.Context(), *id); err != nil {
			t.Fatal(err)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	h := &window{engine: g.engine, allowed: func() cluster.Allowance { return g.allowed }, container: func(task string) (string, error) {
		if task != "t1" {
			return "", &windowError{http.StatusNotFound, "task " + task + " is not on this node"}
		}
		return g.mine, nil
	}}
	g.serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			g.serving.Go(func() {
				defer context.AfterFunc(ctx, func() { conn.Close() })()
				serveOn(ctx, conn, h, slog.New(slog.DiscardHandler))
			})
		}
	})
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
	}
	g.transport = &http.Transport{DialContext: dial, DisableKeepAlives: true}
	if g.cli, err = client.NewClientWithOpts(client.WithHost("tcp://leader/tasks/t1"), client.WithDialContext(dial), client.WithAPIVersionNegotiation()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.cli.Close()
		ln.Close()
		cancel()
		g.serving.Wait() // every goroutine ends
	})
	return g
}

// run runs a command with an input and gives its output and exit code.
func (g *glazed) run(ctx context.Context, in []byte, words ...string) (out []byte, code int, err error) {
	made, err := g.cli.ContainerExecCreate(ctx, "any name", container.ExecOptions{Cmd: words, AttachStdin: true, AttachStdout: true})
	if err != nil {
		return nil, 0, err
	}
	att, err := g.cli.ContainerExecAttach(ctx, made.ID, container.ExecAttachOptions{})
	if err != nil {
		return nil, 0, err
	}
	defer att.Close()
	wrote := make(chan error, 1)
	go func() {
		_, err := att.Conn.Write(in)
		wrote <- errors.Join(err, att.CloseWrite())
	}()
	var b bytes.Buffer
	if _, err := stdcopy.StdCopy(&b, io.Discard, att.Reader); err != nil {
		return nil, 0, err
	}
	if err := <-wrote; err != nil {
		return nil, 0, err
	}
	st, err := g.cli.ContainerExecInspect(ctx, made.ID)
	return b.Bytes(), st.ExitCode, err
}

func TestCommandsRunThroughTheWindow(t *testing.T) {
	g := newGlazed(t)
	if out, code, err := g.run(t.Context(), nil, "echo", "hello"); err != nil || code != 0 || string(out) != "hello\n" {
		t.Errorf("%q %d %v", out, code, err)
	}
	if _, code, err := g.run(t.Context(), nil, "exit", "42"); err != nil || code != 42 {
		t.Errorf("exit code %d, %v", code, err)
	}
	in := make([]byte, 8<<20)
	_, _ = rand.Read(in)
	if out, _, err := g.run(t.Context(), in, "cat"); err != nil || !bytes.Equal(out, in) {
		t.Errorf("%d bytes went in, %d came out, %v", len(in), len(out), err)
	}
	if err := g.cli.CopyToContainer(t.Context(), "x", "/tmp", bytes.NewReader(in), container.CopyToContainerOptions{}); err != nil {
		t.Errorf("copy in: %v", err)
	}
	g.engine.Kill(g.mine)
	if _, _, err := g.run(t.Context(), nil, "echo"); err == nil || !strings.Contains(err.Error(), "is not running") {
		t.Errorf("in a container that has ended: %v", err)
	}
}

func TestAHundredCommandsAtATime(t *testing.T) {
	g := newGlazed(t)
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			in := fmt.Appendf(nil, "input of %d", i)
			if out, _, err := g.run(t.Context(), in, "cat"); err != nil || !bytes.Equal(out, in) {
				t.Errorf("command %d: %q, %v", i, out, err)
			}
		})
	}
	all.Wait()
	if n := g.engine.Commands(); n != 0 {
		t.Errorf("%d commands go on", n)
	}
}

// TestTheWindowShowsOneContainer: whatever managers ask, nothing else of the node is reached through it.
func TestTheWindowShowsOneContainer(t *testing.T) {
	g := newGlazed(t)
	call := func(method, path, body string) (int, string) {
		t.Helper()
		req, _ := http.NewRequestWithContext(t.Context(), method, "http://leader"+path, strings.NewReader(body))
		resp, err := g.transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	// A command in the other container, made behind the window's back.
	_, made := answerOf(g.engine.Pass, "POST", "/containers/"+g.foreign+"/exec", `{"Cmd":["echo"]}`)
	var foreign container.ExecCreateResponse
	if err := json.Unmarshal([]byte(made), &foreign); err != nil || foreign.ID == "" {
		t.Fatalf("%s %v", made, err)
	}
	for _, tt := range []struct {
		method, path, body string
		status             int
		text               string
	}{
		{"GET", "/tasks/t1/v1.41/containers/" + g.foreign + "/json", "", 200, g.mine},
		{"GET", "/tasks/t2/containers/x/json", "", 404, "task t2 is not on this node"},
		{"GET", "/tasks/t1/_ping", "", 200, ""},
		{"GET", "/tasks/t1/info", "", 404, "page not found"},
		{"GET", "/tasks/t1/containers/json", "", 404, "page not found"},
		{"POST", "/tasks/t1/containers/x/kill", "", 404, "page not found"},
		{"DELETE", "/tasks/t1/containers/x", "", 404, "page not found"},
		{"POST", "/tasks/t1/containers/x/../" + g.foreign + "/exec", "{}", 404, "page not found"},
		{"GET", "/containers/x/json", "", 404, "page not found"},
		{"POST", "/tasks/t1/exec/" + foreign.ID + "/start", "{}", 404, "No such exec instance"},
		{"GET", "/tasks/t1/exec/" + foreign.ID + "/json", "", 404, "No such exec instance"},
		{"GET", "/tasks/t1/exec/nothing/json", "", 404, "No such exec instance"},
		{"POST", "/tasks/t1/containers/x/exec", `{"Cmd":["echo"],"Privileged":true}`, 403, "does not allow privileged commands"},
		{"POST", "/tasks/t1/containers/x/exec", `{"Cmd":["echo"],"Privileged":true} {}`, 403, "does not allow privileged commands"},
		{"POST", "/tasks/t1/containers/x/exec", `{"Cmd":["echo"],"ConsoleSize":"new","Privileged":true}`, 403, "does not allow privileged commands"},
		{"POST", "/tasks/t1/containers/x/exec", `{`, 400, ""},
	} {
		status, text := call(tt.method, tt.path, tt.body)
		if status != tt.status || !strings.Contains(text, tt.text) {
			t.Errorf("%s %s: %d %s, want %d %s", tt.method, tt.path, status, text, tt.status, tt.text)
		}
	}
	g.allowed.Privileged = true
	if status, text := call("POST", "/tasks/t1/containers/x/exec", `{"Cmd":["echo"],"Privileged":true}`); status != 201 {
		t.Errorf("allowed by the node: %d %s", status, text)
	}
	g.engine.Vanish()
	if status, text := call("POST", "/tasks/t1/containers/x/exec", `{}`); status != 502 {
		t.Errorf("no engine: %d %s", status, text)
	}
}

// answerOf has a handler answer a request.
func answerOf(h http.HandlerFunc, method, path, body string) (int, string) {
	rec := httptest.NewRecorder()
	h(rec, httptest.NewRequest(method, path, strings.NewReader(body)))
	return rec.Code, rec.Body.String()
}

// TestACommandEndsWithItsStream: who goes away leaves nothing behind, and a session that ends takes its streams along.
func TestACommandEndsWithItsStream(t *testing.T) {
	g := newGlazed(t)
	made, err := g.cli.ContainerExecCreate(t.Context(), "x", container.ExecOptions{Cmd: []string{"wait"}, AttachStdin: true})
	if err != nil {
		t.Fatal(err)
	}
	att, err := g.cli.ContainerExecAttach(t.Context(), made.ID, container.ExecAttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	g.engine.Kill(g.mine)
	if _, err := att.Reader.ReadByte(); err == nil {
		t.Error("the stream outlives the container")
	}
	att.Close() // and newGlazed's cleanup waits for the rest
}
