package fake

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/pkg/stdcopy"

	"github.com/miniswarm/miniswarm/agent/docker"
)

// instance is one container.
type instance struct {
	id      string
	want    docker.Container
	program Program
	state   container.State
	stopped chan struct{} // closed when it has stopped
	log     bytes.Buffer
	// detailed is log with the details that are asked for now and then.
	detailed bytes.Buffer
	starts   int
	files    map[string]string // what the files bound into it held when it was started, by their place
	// concealed is why it is not described.
	concealed error
}

// Create implements docker.Engine.
func (e *Engine) Create(ctx context.Context, want *docker.Container) (string, error) {
	if err := e.enter(ctx); err != nil {
		return "", err
	}
	defer e.mu.Unlock()
	if _, err := e.findLocked(want.Name); err == nil {
		return "", fmt.Errorf("the container name %q is already in use: %w", want.Name, cerrdefs.ErrConflict)
	}
	if _, ok := e.images[want.Config.Image]; !ok {
		//lint:ignore ST1005 the engine's words
		return "", fmt.Errorf("No such image: %s: %w", want.Config.Image, cerrdefs.ErrNotFound)
	}
	for _, n := range want.Networks {
		if e.networkLocked(n.Network) == nil {
			return "", fmt.Errorf("network %s not found: %w", n.Network, cerrdefs.ErrNotFound)
		}
	}
	if _, err := bound(want); err != nil {
		return "", err
	}
	if text := e.programs[want.Config.Image].CreateError; text != "" {
		return "", errors.New(text)
	}
	c := &instance{id: e.idLocked(), want: *want, program: e.programs[want.Config.Image], stopped: make(chan struct{})}
	c.state.Status = container.StateCreated
	e.containers[c.id] = c
	e.emitLocked(c, events.ActionCreate)
	return c.id, nil
}

// Start implements docker.Engine.
func (e *Engine) Start(ctx context.Context, id string) error {
	if err := e.enter(ctx); err != nil {
		return err
	}
	defer e.mu.Unlock()
	c, err := e.findLocked(id)
	if err != nil {
		return err
	}
	if c.state.Running {
		return nil
	}
	if c.program.StartError != "" {
		c.state.ExitCode, c.state.Error = 127, c.program.StartError
		return errors.New(c.program.StartError)
	}
	files, err := bound(&c.want)
	if err != nil {
		return err
	}
	c.files = files
	for _, n := range c.want.Networks {
		e.networkLocked(n.Network).members[c.id] = true
	}
	c.starts++
	c.stopped = make(chan struct{})
	e.next++
	c.state = container.State{Status: container.StateRunning, Running: true, Pid: e.next, StartedAt: time.Now().UTC().Format(time.RFC3339Nano)}
	e.emitLocked(c, events.ActionStart)
	if c.program.Exits > 0 {
		e.laterLocked(c, c.program.Exits, func() { e.endLocked(c, c.program.ExitCode, true) })
	}
	if c.program.Health > 0 {
		c.state.Health = &container.Health{Status: container.Starting}
		e.laterLocked(c, c.program.Health, func() {
			status, action := container.Healthy, events.ActionHealthStatusHealthy
			if c.program.Sick {
				status, action = container.Unhealthy, events.ActionHealthStatusUnhealthy
			}
			c.state.Health = &container.Health{Status: status}
			e.emitLocked(c, action)
		})
	}
	return nil
}

// bound reads the files that a container binds from the machine, by their place in it. As with the real engine they must
// be there, when it is created and when it is started.
func bound(want *docker.Container) (map[string]string, error) {
	files := map[string]string{}
	for _, m := range want.Host.Mounts {
		if m.Type != mount.TypeBind {
			continue
		}
		info, err := os.Stat(m.Source)
		if err != nil {
			return nil, fmt.Errorf("invalid mount config for type %q: bind source path does not exist: %s: %w", m.Type, m.Source, cerrdefs.ErrInvalidArgument)
		}
		if info.IsDir() {
			continue
		}
		data, err := os.ReadFile(m.Source)
		if err != nil {
			return nil, err
		}
		files[m.Target] = string(data)
	}
	return files, nil
}

// laterLocked does something to a container after a time, unless it has stopped by then.
func (e *Engine) laterLocked(c *instance, after time.Duration, do func()) {
	stopped := c.stopped
	timer := time.NewTimer(after)
	go func() {
		defer timer.Stop()
		select {
		case <-stopped:
		case <-timer.C:
			e.mu.Lock()
			defer e.mu.Unlock()
			if c.stopped == stopped && c.state.Running {
				do()
			}
		}
	}()
}

// endLocked ends a running container.
func (e *Engine) endLocked(c *instance, code int, tell bool) {
	c.state = container.State{Status: container.StateExited, ExitCode: code}
	for _, n := range c.want.Networks {
		if nw := e.networkLocked(n.Network); nw != nil {
			delete(nw.members, c.id)
		}
	}
	close(c.stopped)
	if tell {
		e.emitLocked(c, events.ActionDie)
	}
}

// Inspect implements docker.Engine.
func (e *Engine) Inspect(ctx context.Context, id string) (container.InspectResponse, error) {
	if err := e.enter(ctx); err != nil {
		return container.InspectResponse{}, err
	}
	defer e.mu.Unlock()
	c, err := e.findLocked(id)
	if err == nil {
		err = c.concealed
	}
	if err != nil {
		return container.InspectResponse{}, err
	}
	state, config := c.state, c.want.Config
	nets := map[string]*network.EndpointSettings{}
	for _, n := range c.want.Networks {
		nets[n.Network] = n.Endpoint.Copy()
	}
	settings := &container.NetworkSettings{Networks: nets}
	settings.Ports = c.want.Host.PortBindings
	return container.InspectResponse{
		ContainerJSONBase: &container.ContainerJSONBase{ID: c.id, Name: "/" + c.want.Name, State: &state},
		Config:            &config,
		NetworkSettings:   settings,
	}, nil
}

// Stop implements docker.Engine.
func (e *Engine) Stop(ctx context.Context, id string, grace *time.Duration) error {
	if err := e.enter(ctx); err != nil {
		return err
	}
	c, err := e.findLocked(id)
	if err != nil || !c.state.Running {
		e.mu.Unlock()
		return err
	}
	if !c.program.Deaf {
		e.endLocked(c, c.program.Term, true)
		e.mu.Unlock()
		return nil
	}
	stopped, gone := c.stopped, e.gone
	e.mu.Unlock()
	wait := 10 * time.Second
	if grace != nil {
		wait = grace.Truncate(time.Second)
	}
	select {
	case <-stopped:
		return nil
	case <-gone:
		return fmt.Errorf("stop: %w", docker.ErrUnavailable)
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(wait):
	}
	e.Kill(id)
	return nil
}

// Remove implements docker.Engine.
func (e *Engine) Remove(ctx context.Context, id string) error {
	if err := e.enter(ctx); err != nil {
		return err
	}
	defer e.mu.Unlock()
	c, err := e.findLocked(id)
	if err != nil {
		return nil
	}
	if c.state.Running {
		e.endLocked(c, 137, true)
	}
	delete(e.containers, c.id)
	e.emitLocked(c, events.ActionDestroy)
	return nil
}

// Logs implements docker.Engine. The log ends when the container does.
func (e *Engine) Logs(ctx context.Context, id string, o container.LogsOptions) (io.ReadCloser, error) {
	if err := e.enter(ctx); err != nil {
		return nil, err
	}
	defer e.mu.Unlock()
	c, err := e.findLocked(id)
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	content := bytes.Clone(c.log.Bytes())
	if o.Details {
		content = bytes.Clone(c.detailed.Bytes())
	}
	stopped, running := c.stopped, c.state.Running
	go func() {
		_, _ = w.Write(content)
		if o.Follow && running {
			select {
			case <-stopped:
			case <-ctx.Done():
			}
		}
		_ = w.Close()
	}()
	return r, nil
}

// Print appends a line, with a timestamp in front as the engine puts it, to the log of a container. With details it has the
// labels that the container's log option "labels" names in between.
func (e *Engine) Print(id, stream string, at time.Time, line string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c, err := e.findLocked(id)
	if err != nil {
		return
	}
	kind := stdcopy.Stdout
	if stream == "stderr" {
		kind = stdcopy.Stderr
	}
	var details []string
	for name := range strings.SplitSeq(c.want.Host.LogConfig.Config["labels"], ",") {
		if v, ok := c.want.Config.Labels[name]; ok {
			details = append(details, url.QueryEscape(name)+"="+url.QueryEscape(v))
		}
	}
	stamp := at.UTC().Format(time.RFC3339Nano)
	_, _ = io.WriteString(stdcopy.NewStdWriter(&c.log, kind), stamp+" "+line+"\n")
	_, _ = io.WriteString(stdcopy.NewStdWriter(&c.detailed, kind), stamp+" "+strings.Join(details, ",")+" "+line+"\n")
}

// Kill ends a container as kill -9 does.
func (e *Engine) Kill(id string) { e.Exit(id, 137) }

// Exit ends a container with a code, as if its process had returned.
func (e *Engine) Exit(id string, code int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c, err := e.findLocked(id); err == nil && c.state.Running {
		e.endLocked(c, code, true)
	}
}

// Conceal has the engine answer with err when it is asked to describe a container, as one does that is in trouble.
func (e *Engine) Conceal(id string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c, findErr := e.findLocked(id); findErr == nil {
		c.concealed = err
	}
}

// Sicken makes a running container unhealthy.
func (e *Engine) Sicken(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c, err := e.findLocked(id); err == nil && c.state.Running {
		c.state.Health = &container.Health{Status: container.Unhealthy}
		e.emitLocked(c, events.ActionHealthStatusUnhealthy)
	}
}

// Ids lists the ids of all containers, sorted.
func (e *Engine) Ids() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []string
	for id := range e.containers {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// Files gives what the files bound into a container held when it was started, by their place in it.
func (e *Engine) Files(id string) map[string]string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c, err := e.findLocked(id); err == nil {
		return c.files
	}
	return nil
}

// Starts counts how often a container was started.
func (e *Engine) Starts(id string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c, err := e.findLocked(id); err == nil {
		return c.starts
	}
	return 0
}

// Describe shows the engine as text, one line a container and a network, sorted by name: for comparing in tests.
func (e *Engine) Describe() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var lines []string
	for _, c := range e.containers {
		line := fmt.Sprintf("container %s %s %s", c.want.Name, c.want.Config.Image, c.state.Status)
		if c.state.Status == container.StateExited {
			line += fmt.Sprintf(" (%d)", c.state.ExitCode)
		}
		for _, n := range c.want.Networks {
			line += " " + n.Network
			if n.Endpoint.IPAMConfig != nil {
				line += "=" + n.Endpoint.IPAMConfig.IPv4Address
			}
		}
		lines = append(lines, line)
	}
	for _, n := range e.networks {
		line := "network " + n.Name
		for _, cfg := range n.IPAM.Config {
			line += " " + cfg.Subnet + " via " + cfg.Gateway
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
