package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"

	"github.com/miniswarm/miniswarm/agent/docker"
	"github.com/miniswarm/miniswarm/cluster"
)

// window lets the cluster's managers see, under /tasks/{id}, as much of this node's engine as concerns the container of that
// task: to run commands in it and to copy files. Whatever name a path gives to the container, the task's is meant.
type window struct {
	engine docker.Engine
	// container gives the container of a task.
	container func(taskID string) (id string, err error)
	// allowed says what this node's containers may have beyond the ordinary.
	allowed func() cluster.Allowance
}

var windowPath = regexp.MustCompile(`^/tasks/([^/]+)(/v[0-9]+\.[0-9]+)?(/.*)$`)

// maxExecRequest bounds the description of a command.
const maxExecRequest = 1 << 20

// windowError is a refusal with its status.
type windowError struct {
	status int
	text   string
}

func (e *windowError) Error() string { return e.text }

// ServeHTTP implements http.Handler.
func (v *window) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	out, err := v.narrow(r)
	if err != nil {
		status := http.StatusInternalServerError
		var refused *windowError
		switch {
		case errors.As(err, &refused):
			status = refused.status
		case errors.Is(err, docker.ErrUnavailable):
			status = http.StatusBadGateway
		case cerrdefs.IsNotFound(err):
			status = http.StatusNotFound
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(types.ErrorResponse{Message: err.Error()})
		return
	}
	v.engine.Pass(w, out)
}

// narrow turns a request into one for the engine, or refuses it.
func (v *window) narrow(r *http.Request) (*http.Request, error) {
	unknown := &windowError{http.StatusNotFound, "page not found"}
	m := windowPath.FindStringSubmatch(r.URL.Path)
	if m == nil {
		return nil, unknown
	}
	task, version, rest := m[1], m[2], m[3]
	if rest == "/_ping" {
		return to(r, rest), nil
	}
	id, err := v.container(task)
	if err != nil {
		return nil, err
	}
	words := strings.Split(rest[1:], "/")
	if len(words) != 3 {
		return nil, unknown
	}
	switch r.Method + " /" + words[0] + "/{id}/" + words[2] {
	case "POST /containers/{id}/exec":
		if err := v.mayExec(r); err != nil {
			return nil, err
		}
		fallthrough
	case "GET /containers/{id}/json", "GET /containers/{id}/archive", "HEAD /containers/{id}/archive", "PUT /containers/{id}/archive":
		return to(r, version+"/containers/"+id+"/"+words[2]), nil
	case "POST /exec/{id}/start", "POST /exec/{id}/resize", "GET /exec/{id}/json":
		owner, err := v.engine.ExecContainer(r.Context(), words[1])
		switch {
		case err != nil:
			return nil, err
		case owner != id:
			return nil, &windowError{http.StatusNotFound, "No such exec instance: " + words[1]}
		}
		return to(r, version+rest), nil
	}
	return nil, unknown
}

func to(r *http.Request, path string) *http.Request {
	out := r.Clone(r.Context())
	out.URL.Path, out.URL.RawPath = path, ""
	return out
}

// mayExec refuses a privileged command where the node allows no privileged containers.
func (v *window) mayExec(r *http.Request) error {
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxExecRequest))
	if err != nil {
		return &windowError{http.StatusBadRequest, "read the description of the command: " + err.Error()}
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	// Read as engines read it: old ones look at nothing after the first value, and each leaves out what it does not know.
	var o struct{ Privileged bool }
	if err := json.NewDecoder(bytes.NewReader(body)).Decode(&o); err != nil {
		return &windowError{http.StatusBadRequest, "read the description of the command: " + err.Error()}
	}
	if o.Privileged && !v.allowed().Privileged {
		return &windowError{http.StatusForbidden, "this node does not allow privileged commands; 'miniswarm node update --allow privileged NODE' does"}
	}
	return nil
}

// containerOf gives the container of a task of this node.
func (a *Agent) containerOf(taskID string) (string, error) {
	r := a.worker.runnerOf(taskID)
	if r == nil {
		return "", &windowError{http.StatusNotFound, "task " + taskID + " is not on this node"}
	}
	_, st := r.current()
	if st.ContainerStatus == nil || st.ContainerStatus.ContainerID == "" {
		return "", &windowError{http.StatusConflict, fmt.Sprintf("task %s has no container: it is %s", taskID, st.State)}
	}
	return st.ContainerStatus.ContainerID, nil
}
