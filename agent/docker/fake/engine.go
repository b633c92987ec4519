// Package fake is a container engine in memory that behaves like the real one as far as the agent can tell: containers
// have names, states, exit codes, health, networks and logs, events are sent for what happens to them, and the engine as a
// whole can go away and come back. It keeps time by the time package, so that tests may run it under testing/synctest.
//
// What a container does once started is decided by its image's [Program].
package fake

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/api/types/system"

	"github.com/miniswarm/miniswarm/agent/docker"
)

// Program is what containers of an image do.
type Program struct {
	// Exits ends the container by itself after that time, with ExitCode; 0: it runs until stopped.
	Exits    time.Duration
	ExitCode int
	// Term is the exit code after a stop signal; Deaf containers ignore it and have to be killed.
	Term int
	Deaf bool
	// Health gives the image a health check: healthy after that time. Sick makes it unhealthy instead.
	Health time.Duration
	Sick   bool
	// CreateError and StartError make creating and starting fail.
	CreateError, StartError string
}

// Registry is what a pull of a reference does.
type Registry struct {
	// Silent says nothing until the pull is given up.
	Silent bool
	// Takes is how long the pull takes after the registry has answered.
	Takes time.Duration
	// Err fails the pull at once.
	Err string
}

// Engine is an engine in memory. Its methods may be called concurrently.
type Engine struct {
	mu         sync.Mutex
	down       bool                   // guarded by mu
	stopping   bool                   // guarded by mu; takes no new connections but still answers
	gone       chan struct{}          // guarded by mu; closed when the engine goes down
	images     map[string]string      // guarded by mu; ref -> id
	programs   map[string]Program     // guarded by mu; by ref
	registry   map[string]Registry    // guarded by mu; by ref
	containers map[string]*instance   // guarded by mu; by id
	networks   map[string]*netw       // guarded by mu; by id
	commands   map[string]*command    // guarded by mu; by id
	archives   map[string][]byte      // guarded by mu; by container id
	listeners  map[*listener]struct{} // guarded by mu
	pulls      map[string]int         // guarded by mu
	hang       chan struct{}          // guarded by mu; calls wait for it to be closed, nil: they do not
	next       int                    // guarded by mu
	info       system.Info            // guarded by mu
}

type netw struct {
	network.Inspect
	members map[string]bool // container ids
}

// listener takes the events of containers with a label, or with an empty label of all that go.
type listener struct {
	label, value string
	c            chan events.Message
	gone         chan struct{}
}

var _ docker.Engine = (*Engine)(nil)

// New gives an engine without images, on a machine of two processors and 2 GiB.
func New() *Engine {
	return &Engine{
		gone: make(chan struct{}), images: map[string]string{}, programs: map[string]Program{}, registry: map[string]Registry{},
		containers: map[string]*instance{}, networks: map[string]*netw{}, commands: map[string]*command{}, archives: map[string][]byte{}, listeners: map[*listener]struct{}{}, pulls: map[string]int{},
		info: system.Info{
			Name: "vm1", NCPU: 2, MemTotal: 2 << 30, OSType: "linux", Architecture: "x86_64", ServerVersion: "20.10.24", Labels: []string{"disk=ssd"},
			Plugins:          system.PluginsInfo{Volume: []string{"local"}, Network: []string{"bridge", "host"}, Log: []string{"json-file"}},
			GenericResources: []swarm.GenericResource{{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: "SSD", Value: 2}}},
		},
	}
}

// SetInfo changes what Info answers.
func (e *Engine) SetInfo(change func(*system.Info)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change(&e.info)
}

// SetImage makes an image present on the node.
func (e *Engine) SetImage(ref string, p Program) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.images[ref] = "sha256:" + ref
	e.programs[ref] = p
}

// SetRegistry decides about pulls of ref, and what containers of the pulled image do. References never set do not exist.
func (e *Engine) SetRegistry(ref string, r Registry, p Program) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.registry[ref] = r
	e.programs[ref] = p
}

// Pulls counts the pulls of ref that were begun.
func (e *Engine) Pulls(ref string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.pulls[ref]
}

// Hang makes every call wait until release is called, as a machine does whose disk is stuck.
func (e *Engine) Hang() (release func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := make(chan struct{})
	e.hang = c
	return sync.OnceFunc(func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.hang = nil
		close(c)
	})
}

// Crash takes the engine down with its containers, like kill -9 of dockerd in its own process namespace.
func (e *Engine) Crash() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.containers {
		if c.state.Running {
			e.endLocked(c, 255, false)
		}
	}
	e.goLocked()
}

// Shutdown takes the engine down as systemctl stop does: no new connections, then every container gets its stop signal
// while event streams still run, then the rest.
func (e *Engine) Shutdown() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stopping = true
	for _, c := range e.containers {
		if c.state.Running {
			e.endLocked(c, c.program.Term, true)
		}
	}
	e.goLocked()
}

// Vanish takes the engine down and leaves its containers running (live restore).
func (e *Engine) Vanish() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.goLocked()
}

func (e *Engine) goLocked() {
	if !e.down {
		e.down = true
		close(e.gone)
	}
}

// Return brings the engine back, if it is away.
func (e *Engine) Return() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.down {
		return
	}
	e.down, e.stopping, e.gone = false, false, make(chan struct{})
}

// enter begins a call: it takes the lock, or says why it cannot. On success the caller unlocks.
func (e *Engine) enter(ctx context.Context) error {
	e.mu.Lock()
	for e.hang != nil {
		hang := e.hang
		e.mu.Unlock()
		select {
		case <-hang:
		case <-ctx.Done():
			return ctx.Err()
		}
		e.mu.Lock()
	}
	if e.down {
		e.mu.Unlock()
		return fmt.Errorf("%w: connection refused", docker.ErrUnavailable)
	}
	if err := ctx.Err(); err != nil {
		e.mu.Unlock()
		return err
	}
	return nil
}

// Info implements docker.Engine.
func (e *Engine) Info(ctx context.Context) (system.Info, error) {
	if err := e.enter(ctx); err != nil {
		return system.Info{}, err
	}
	defer e.mu.Unlock()
	return e.info, nil
}

// Alive implements docker.Engine.
func (e *Engine) Alive(context.Context) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return !e.down && !e.stopping
}

// Image implements docker.Engine.
func (e *Engine) Image(ctx context.Context, ref string) (string, error) {
	if err := e.enter(ctx); err != nil {
		return "", err
	}
	defer e.mu.Unlock()
	id, ok := e.images[ref]
	if !ok {
		//lint:ignore ST1005 the engine's words
		return "", fmt.Errorf("No such image: %s: %w", ref, cerrdefs.ErrNotFound)
	}
	return id, nil
}

// Pull implements docker.Engine.
func (e *Engine) Pull(ctx context.Context, ref, _ string, answered func()) error {
	if err := e.enter(ctx); err != nil {
		return err
	}
	e.pulls[ref]++
	r, known := e.registry[ref]
	gone := e.gone
	e.mu.Unlock()
	switch {
	case !known:
		return fmt.Errorf("pull access denied for %s: %w", ref, cerrdefs.ErrNotFound)
	case r.Err != "":
		return errors.New(r.Err)
	}
	var done <-chan time.Time
	if !r.Silent {
		answered()
		done = time.After(r.Takes)
	}
	select {
	case <-done:
	case <-gone:
		return fmt.Errorf("pull %s: %w", ref, docker.ErrUnavailable)
	case <-ctx.Done():
		return ctx.Err()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.images[ref] = "sha256:" + ref
	return nil
}

// Events implements docker.Engine.
func (e *Engine) Events(ctx context.Context, label, value string, opened func(), each func(events.Message)) error {
	if err := e.enter(ctx); err != nil {
		return err
	}
	l := &listener{label: label, value: value, c: make(chan events.Message, 1024), gone: e.gone}
	e.listeners[l] = struct{}{}
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.listeners, l)
	}()
	opened()
	for {
		select {
		case m := <-l.c:
			each(m)
			continue
		default:
		}
		select {
		case m := <-l.c:
			each(m)
		case <-l.gone:
			return fmt.Errorf("event stream: %w", docker.ErrUnavailable)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (e *Engine) emitLocked(c *instance, action events.Action) {
	m := events.Message{Type: events.ContainerEventType, Action: action, Actor: events.Actor{ID: c.id, Attributes: c.want.Config.Labels}}
	for l := range e.listeners {
		goes := action == events.ActionDestroy || action == events.ActionDisconnect
		if l.label == "" && goes || l.label != "" && action != events.ActionDisconnect && c.want.Config.Labels[l.label] == l.value {
			select {
			case l.c <- m:
			default: // a slow listener misses events, as with the real engine
			}
		}
	}
}

// Endpoints implements docker.Engine.
func (e *Engine) Endpoints(ctx context.Context) ([]docker.Endpoint, error) {
	if err := e.enter(ctx); err != nil {
		return nil, err
	}
	defer e.mu.Unlock()
	var out []docker.Endpoint
	for _, c := range e.containers {
		for _, n := range c.want.Networks {
			at := docker.Endpoint{ContainerID: c.id, Network: n.Network}
			if n.Endpoint.IPAMConfig != nil {
				at.Address = n.Endpoint.IPAMConfig.IPv4Address
			}
			out = append(out, at)
		}
	}
	return out, nil
}

// Departures implements docker.Engine.
func (e *Engine) Departures(ctx context.Context, opened, each func()) error {
	return e.Events(ctx, "", "", opened, func(events.Message) { each() })
}

// Disconnect implements docker.Engine.
func (e *Engine) Disconnect(ctx context.Context, network, containerID string) error {
	if err := e.enter(ctx); err != nil {
		return err
	}
	defer e.mu.Unlock()
	c, err := e.findLocked(containerID)
	if err != nil {
		return nil
	}
	c.want.Networks = slices.DeleteFunc(slices.Clone(c.want.Networks), func(n docker.Connection) bool { return n.Network == network })
	if n := e.networkLocked(network); n != nil {
		delete(n.members, c.id)
	}
	e.emitLocked(c, events.ActionDisconnect)
	return nil
}

// Networks implements docker.Engine.
func (e *Engine) Networks(ctx context.Context, label, value string) ([]network.Inspect, error) {
	if err := e.enter(ctx); err != nil {
		return nil, err
	}
	defer e.mu.Unlock()
	var out []network.Inspect
	for _, n := range e.networks {
		if has, ok := n.Labels[label]; ok && (value == "" || has == value) {
			out = append(out, n.Inspect)
		}
	}
	return out, nil
}

// CreateNetwork implements docker.Engine.
func (e *Engine) CreateNetwork(ctx context.Context, name string, o network.CreateOptions) (string, error) {
	if err := e.enter(ctx); err != nil {
		return "", err
	}
	defer e.mu.Unlock()
	for _, n := range e.networks {
		if n.Name == name {
			return "", fmt.Errorf("network with name %s already exists: %w", name, cerrdefs.ErrConflict)
		}
	}
	n := &netw{members: map[string]bool{}, Inspect: network.Inspect{Name: name, ID: e.idLocked(), Driver: o.Driver, Internal: o.Internal,
		Options: o.Options, Labels: o.Labels}}
	if o.IPAM != nil {
		n.IPAM = *o.IPAM
	}
	e.networks[n.ID] = n
	return n.ID, nil
}

// RemoveNetwork implements docker.Engine.
func (e *Engine) RemoveNetwork(ctx context.Context, id string) error {
	if err := e.enter(ctx); err != nil {
		return err
	}
	defer e.mu.Unlock()
	n := e.networks[id]
	if n == nil {
		return nil
	}
	if len(n.members) > 0 {
		return fmt.Errorf("network %s has active endpoints: %w", n.Name, cerrdefs.ErrPermissionDenied)
	}
	delete(e.networks, id)
	return nil
}

func (e *Engine) networkLocked(name string) *netw {
	for _, n := range e.networks {
		if n.Name == name || n.ID == name {
			return n
		}
	}
	return nil
}

func (e *Engine) idLocked() string {
	e.next++
	return fmt.Sprintf("%064x", e.next)
}

// find gives a container by id or name.
func (e *Engine) findLocked(ref string) (*instance, error) {
	if c := e.containers[ref]; c != nil {
		return c, nil
	}
	for _, c := range e.containers {
		if c.want.Name == ref {
			return c, nil
		}
	}
	//lint:ignore ST1005 the engine's words
	return nil, fmt.Errorf("No such container: %s: %w", ref, cerrdefs.ErrNotFound)
}

// List implements docker.Engine.
func (e *Engine) List(ctx context.Context, label, value string) ([]container.Summary, error) {
	if err := e.enter(ctx); err != nil {
		return nil, err
	}
	defer e.mu.Unlock()
	var out []container.Summary
	for _, c := range e.containers {
		if c.want.Config.Labels[label] == value {
			out = append(out, container.Summary{ID: c.id, Names: []string{"/" + c.want.Name}, Labels: c.want.Config.Labels,
				Image: c.want.Config.Image, State: c.state.Status})
		}
	}
	return out, nil
}
