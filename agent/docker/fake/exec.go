package fake

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"
)

// command is an exec instance. What it does its first word says: "cat" repeats its input until that ends, "echo" says the
// other words, "exit" ends with the code in the second word, "wait" ends with its connection, "drop" loses its connection and goes on.
type command struct {
	id, container string
	words         []string
	tty           bool
	running       bool
	code          int
	rows, columns string
}

// ExecContainer implements docker.Engine.
func (e *Engine) ExecContainer(ctx context.Context, execID string) (string, error) {
	if err := e.enter(ctx); err != nil {
		return "", err
	}
	defer e.mu.Unlock()
	c := e.commands[execID]
	if c == nil {
		//lint:ignore ST1005 the engine's words
		return "", fmt.Errorf("No such exec instance: %s: %w", execID, cerrdefs.ErrNotFound)
	}
	return c.container, nil
}

// Pass implements docker.Engine, for the calls that run commands and copy files. A container has one file, which is
// whatever archive was put into it last.
func (e *Engine) Pass(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	if strings.HasPrefix(path, "/v") {
		_, path, _ = strings.Cut(path[1:], "/")
		path = "/" + path
	}
	words := strings.Split(path[1:], "/")
	if path == "/_ping" {
		w.Header().Set("Api-Version", "1.41")
		return
	}
	if err := e.enter(r.Context()); err != nil {
		refuse(w, http.StatusBadGateway, err.Error())
		return
	}
	switch r.Method + " " + words[0] + " " + words[2] {
	case "POST containers exec":
		e.createCommand(w, r, words[1])
	case "GET containers json":
		c, err := e.findLocked(words[1])
		e.mu.Unlock()
		if err != nil {
			refuse(w, http.StatusNotFound, err.Error())
			return
		}
		answer(w, http.StatusOK, container.InspectResponse{ContainerJSONBase: &container.ContainerJSONBase{ID: c.id, Name: "/" + c.want.Name}})
	case "PUT containers archive":
		e.mu.Unlock()
		data, _ := io.ReadAll(r.Body)
		e.mu.Lock()
		e.archives[words[1]] = data
		e.mu.Unlock()
	case "GET containers archive", "HEAD containers archive":
		data := e.archives[words[1]]
		e.mu.Unlock()
		stat, _ := json.Marshal(container.PathStat{Name: "any", Mode: fs.ModeDir | 0o755})
		w.Header().Set("X-Docker-Container-Path-Stat", base64.StdEncoding.EncodeToString(stat))
		_, _ = w.Write(data)
	case "POST exec start":
		e.startCommand(w, r, words[1])
	case "POST exec resize":
		c := e.commands[words[1]]
		c.rows, c.columns = r.URL.Query().Get("h"), r.URL.Query().Get("w")
		e.mu.Unlock()
	case "GET exec json":
		c := *e.commands[words[1]]
		e.mu.Unlock()
		answer(w, http.StatusOK, container.ExecInspect{ExecID: c.id, ContainerID: c.container, Running: c.running, ExitCode: c.code})
	default:
		e.mu.Unlock()
		refuse(w, http.StatusNotFound, "page not found")
	}
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, status int, text string) {
	answer(w, status, types.ErrorResponse{Message: text})
}

// createCommand is called with the lock held and gives it up.
func (e *Engine) createCommand(w http.ResponseWriter, r *http.Request, id string) {
	defer e.mu.Unlock()
	var o container.ExecOptions
	if err := json.NewDecoder(r.Body).Decode(&o); err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	c, err := e.findLocked(id)
	switch {
	case err != nil:
		refuse(w, http.StatusNotFound, err.Error())
	case !c.state.Running:
		refuse(w, http.StatusConflict, "Container "+id+" is not running")
	default:
		x := &command{id: e.idLocked(), container: c.id, words: o.Cmd, tty: o.Tty}
		e.commands[x.id] = x
		answer(w, http.StatusCreated, container.ExecCreateResponse{ID: x.id})
	}
}

// startCommand is called with the lock held and gives it up.
func (e *Engine) startCommand(w http.ResponseWriter, r *http.Request, id string) {
	c := e.commands[id]
	c.running = true
	stopped := e.containers[c.container].stopped
	e.mu.Unlock()
	_, _ = io.Copy(io.Discard, r.Body) // what comes after it is the command's input
	conn, in, err := w.(http.Hijacker).Hijack()
	if err != nil {
		refuse(w, http.StatusInternalServerError, err.Error())
		return
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	var out io.Writer = conn
	if !c.tty {
		out = stdcopy.NewStdWriter(conn, stdcopy.Stdout)
	}
	if c.words[0] == "drop" {
		return
	}
	done := make(chan int, 1)
	go func() { done <- c.run(in.Reader, out) }()
	var code int
	select {
	case code = <-done:
	case <-stopped:
		code = 137
		conn.Close()
		<-done
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c.running, c.code = false, code
}

func (c *command) run(in *bufio.Reader, out io.Writer) (code int) {
	switch c.words[0] {
	case "cat":
		_, err := io.Copy(out, in)
		if err != nil && !errors.Is(err, net.ErrClosed) {
			return 1
		}
	case "echo":
		_, _ = fmt.Fprintln(out, strings.Join(c.words[1:], " "))
	case "exit":
		_, _ = fmt.Sscan(c.words[1], &code)
	case "wait":
		_, _ = io.Copy(io.Discard, in)
	}
	return code
}

// Commands says how many commands run in containers at present.
func (e *Engine) Commands() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := 0
	for _, c := range e.commands {
		if c.running {
			n++
		}
	}
	return n
}
