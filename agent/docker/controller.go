package docker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/go-connections/nat"

	"github.com/miniswarm/miniswarm/cluster"
)

// callLimit bounds calls to the engine that must not be given up halfway: a container whose creation was abandoned could
// appear after it was looked for and found missing.
const callLimit = 2 * time.Minute

var (
	// errUnhealthy is why a container was stopped, in the engine's words that Swarm passes on.
	errUnhealthy = errors.New("dockerexec: unhealthy container")
	// errUnseen is why an exit code of 0 does not make a service's task complete: the engine went away at about that
	// time, and stopped the container with it.
	errUnseen = errors.New("stopped while the engine was away")
)

// ExitError says that a container ended in a way that fails its task.
type ExitError struct {
	Code  int
	Cause error // nil where the code says it all
}

func (e *ExitError) Error() string {
	switch e.Cause {
	case nil:
		return fmt.Sprintf("task: non-zero exit (%d)", e.Code)
	case errUnseen:
		return fmt.Sprintf("task: exit (%d): %v", e.Code, e.Cause)
	}
	return fmt.Sprintf("task: non-zero exit (%d): %v", e.Code, e.Cause) // in Swarm's words even where the code is 0
}

func (e *ExitError) Unwrap() error { return e.Cause }

// Runtime is what the controllers of one node share.
type Runtime struct {
	Engine   Engine
	Watcher  *Watcher
	Images   *Images
	Networks *Networks
	// Node gives the node as it is now.
	Node func() Node
	// Attachment gives the node's own address in a network, waiting for it for as long as ctx and good manners allow.
	Attachment func(ctx context.Context, networkID string) (netip.Prefix, error)
	// Payloads gives secrets and configs, Files is where containers find them. Files nil: tasks that use any are refused.
	Payloads Payloads
	Files    *Files
	// Offline skips pulls of images that are present (DOCKER_SERVICE_PREFER_OFFLINE_IMAGE).
	Offline bool
	// Slots bounds how many containers are being created or started at the same time: a buffered channel, whose
	// capacity is the bound. Nil: no bound. An engine that starts very many at once finishes none for long.
	Slots chan struct{}
	// Listeners is how to see whether a container answers its published ports already, and has accepted what it was sent;
	// see the function [Listeners]. Nil on a node without the data plane, where they do not lead to containers.
	Listeners func(pid int) (map[uint16]int, error)
	Logger    *slog.Logger

	root rootIDs
}

// slot waits for a place among those who create and start; call done to give it up.
func (rt *Runtime) slot(ctx context.Context) (done func(), err error) {
	if rt.Slots == nil {
		return func() {}, nil
	}
	select {
	case rt.Slots <- struct{}{}:
		return func() { <-rt.Slots }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Controller drives the container of one task. Its steps are called one at a time; Status at any time.
type Controller struct {
	rt   *Runtime
	task *cluster.Task
	log  *slog.Logger
	// upEpoch is the watcher's epoch in which the container was last seen to run or asked to; only steps use it.
	upEpoch uint64

	mu     sync.Mutex
	status swarm.ContainerStatus // guarded by mu
	ports  swarm.PortStatus      // guarded by mu
}

// NewController gives the controller of a task; an error means that no node of this kind can ever run it.
func NewController(rt *Runtime, t *cluster.Task) (*Controller, error) {
	if err := Validate(t); err != nil {
		return nil, err
	}
	if rt.Files == nil && len(payloadsOf(t.Spec.ContainerSpec)) > 0 {
		// A process must not be started without the files it was promised.
		return nil, errors.New("secrets and configs cannot be given to containers on this node: it has no place for them")
	}
	c := &Controller{rt: rt, task: t, log: rt.Logger.With("task", t.ID, "service", t.ServiceAnnotations.Name)}
	if s := t.Status.ContainerStatus; s != nil {
		c.status = *s
	}
	c.ports = t.Status.PortStatus
	return c, nil
}

// Status is what is known of the container, and the host ports it was given.
func (c *Controller) Status() (swarm.ContainerStatus, swarm.PortStatus) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status, c.ports
}

// Prepare makes everything ready for Start: networks, image, container. A container that is there already is taken
// over.
func (c *Controller) Prepare(ctx context.Context) error {
	names, gateways := map[string]string{}, map[string]netip.Addr{}
	node := c.rt.Node()
	for _, n := range networksOf(c.task.NetworksAttachments) {
		var gateway netip.Prefix
		if node.FixedAddresses {
			var err error
			if gateway, err = c.rt.Attachment(ctx, n.ID); err != nil {
				return err
			}
		}
		name, err := c.rt.Networks.Make(ctx, Bridge(n, gateway))
		if err != nil {
			return err
		}
		names[n.ID], gateways[n.ID] = name, gateway.Addr()
	}
	if node.Names {
		node.Resolver = resolver(c.task.NetworksAttachments, gateways)
	}
	spec := c.task.Spec.ContainerSpec
	warning, err := c.rt.Images.ensure(ctx, spec.Image, c.task.RegistryAuth, c.rt.Offline)
	if err != nil {
		return err
	}
	if warning != nil {
		c.log.Warn("pull failed; the image on this node is used", "image", spec.Image, "err", warning)
	}
	want, err := Translate(c.task, node, names)
	if err != nil {
		return err
	}
	if err := c.makeFiles(ctx); err != nil {
		return err
	}
	return c.explainUnseen(c.create(ctx, want))
}

func (c *Controller) create(ctx context.Context, want *Container) error {
	done, err := c.rt.slot(ctx)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callLimit)
	defer cancel()
	id, err := c.rt.Engine.Create(ctx, want)
	if !cerrdefs.IsConflict(err) {
		c.created(id)
		return err
	}
	// The name is taken: by this task's container if an earlier attempt came that far.
	have, inspectErr := c.rt.Engine.Inspect(ctx, want.Name)
	if inspectErr != nil || have.Config.Labels[LabelTaskID] != c.task.ID {
		return errors.Join(err, inspectErr)
	}
	if have.State.Status == container.StateCreated && !connected(have, want) {
		// An earlier attempt was cut off between creation and its last network.
		if err := c.rt.Engine.Remove(ctx, have.ID); err != nil {
			return err
		}
		id, err = c.rt.Engine.Create(ctx, want)
		c.created(id)
		return err
	}
	c.created(have.ID)
	return nil
}

func connected(have container.InspectResponse, want *Container) bool {
	for _, n := range want.Networks {
		if have.NetworkSettings == nil || have.NetworkSettings.Networks[n.Network] == nil {
			return false
		}
	}
	return true
}

func (c *Controller) created(id string) {
	if id == "" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.ContainerID = id
}

// Start starts the container and returns when it runs and, if it has a health check, is healthy; without one, when it
// listens on the ports that the routing mesh leads to it, or after a few seconds. A container that was started before is
// not started again. One that has ended with exit code 0 counts as started.
func (c *Controller) Start(ctx context.Context) error {
	sub := c.rt.Watcher.Subscribe(c.task.ID)
	defer sub.Close()
	have, err := c.inspect(ctx)
	if err != nil {
		return err
	}
	listens := false
	if have.State.Status == container.StateCreated {
		// They are there, unless the machine was switched off in between.
		if err := c.makeFiles(ctx); err != nil {
			return err
		}
		if err := c.start(ctx, have.ID); err != nil {
			return err
		}
	}
	for {
		epoch := c.rt.Watcher.Epoch()
		have, err := c.inspect(ctx)
		if err != nil {
			return err
		}
		if !have.State.Running {
			return c.exit(ctx, have)
		}
		c.upEpoch = epoch
		switch health(have) {
		case container.NoHealthcheck:
			if listens {
				return nil
			}
			if err := c.awaitListeners(ctx, sub, have); err != nil {
				return err
			}
			listens = true
			continue // it may have ended meanwhile
		case container.Healthy:
			return nil
		case container.Unhealthy:
			return c.stopUnhealthy(ctx)
		}
		if err := await(ctx, sub); err != nil {
			return err
		}
	}
}

func (c *Controller) start(ctx context.Context, id string) error {
	done, err := c.rt.slot(ctx)
	if err != nil {
		return err
	}
	defer done()
	c.upEpoch = c.rt.Watcher.Epoch()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callLimit)
	defer cancel()
	err = c.rt.Engine.Start(ctx, id)
	if err != nil && !errors.Is(err, ErrUnavailable) {
		err = fmt.Errorf("starting container failed: %w", err)
	}
	return err
}

// Wait waits for the container to end: nil for exit code 0, an [ExitError] otherwise. A container that becomes unhealthy is
// stopped.
func (c *Controller) Wait(ctx context.Context) error {
	sub := c.rt.Watcher.Subscribe(c.task.ID)
	defer sub.Close()
	for {
		epoch := c.rt.Watcher.Epoch()
		have, err := c.inspect(ctx)
		if err != nil {
			return err
		}
		if !have.State.Running {
			return c.exit(ctx, have)
		}
		c.upEpoch = epoch
		if health(have) == container.Unhealthy {
			return c.stopUnhealthy(ctx)
		}
		if err := await(ctx, sub); err != nil {
			return err
		}
	}
}

// await waits for news of the container. It goes on when the watcher looks at everything again, too.
func await(ctx context.Context, sub *Subscription) error {
	select {
	case <-sub.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// exit judges a container that does not run.
//
// An exit code of 0 of a service's task counts only if it was seen to happen while the engine was there. An engine that
// shuts down (with its machine, usually) stops containers politely, and many then exit with 0; taken at its word, a service
// with restart condition on-failure would be gone after a reboot. A job's task has done its work if it says so.
func (c *Controller) exit(ctx context.Context, have container.InspectResponse) error {
	code := have.State.ExitCode
	switch {
	case code != 0:
		var cause error
		if have.State.Error != "" {
			cause = errors.New(have.State.Error)
		}
		return &ExitError{Code: code, Cause: cause}
	case c.task.JobIteration != nil:
		return nil
	}
	epoch := c.rt.Watcher.Epoch()
	if epoch == 0 || c.upEpoch != epoch || !c.rt.Engine.Alive(ctx) {
		return &ExitError{Cause: errUnseen}
	}
	return nil
}

func health(have container.InspectResponse) container.HealthStatus {
	if have.State.Health == nil || have.State.Health.Status == "" {
		return container.NoHealthcheck
	}
	return have.State.Health.Status
}

func (c *Controller) stopUnhealthy(ctx context.Context) error {
	if err := c.stop(ctx); err != nil {
		return err
	}
	have, err := c.inspect(ctx)
	if err != nil {
		return err
	}
	return &ExitError{Code: have.State.ExitCode, Cause: errUnhealthy}
}

// Shutdown stops the container once it has accepted the connections that wait for it, giving it the grace of its spec. A
// container that does not run or does not exist is stopped already.
func (c *Controller) Shutdown(ctx context.Context) error {
	c.awaitAccepted(ctx)
	return c.stop(ctx)
}

func (c *Controller) stop(ctx context.Context) error {
	id, err := c.find(ctx)
	if id == "" || err != nil {
		return err
	}
	err = c.rt.Engine.Stop(ctx, id, c.task.Spec.ContainerSpec.StopGracePeriod)
	if cerrdefs.IsNotFound(err) {
		return nil
	}
	if err == nil {
		// For the exit code in the last status; the container may be gone by now, which is fine too.
		_, _ = c.inspect(ctx)
	}
	return err
}

// Remove removes the container, its anonymous volumes and its files, whether it runs or not.
func (c *Controller) Remove(ctx context.Context) error {
	id, err := c.find(ctx)
	if err == nil && id != "" {
		err = c.rt.Engine.Remove(ctx, id)
	}
	if err != nil {
		return err
	}
	return c.Discard()
}

// find gives the id of the task's container, "" if there is none. Before its id is known it is looked for by name, and
// must be labelled as this task's: somebody else's container of that name is not to be touched.
func (c *Controller) find(ctx context.Context) (id string, err error) {
	if st, _ := c.Status(); st.ContainerID != "" {
		return st.ContainerID, nil
	}
	have, err := c.rt.Engine.Inspect(ctx, c.task.FullName())
	switch {
	case cerrdefs.IsNotFound(err):
		return "", nil
	case err != nil: // have is empty: even asking for its id would panic
		return "", err
	case have.Config.Labels[LabelTaskID] != c.task.ID:
		return "", nil
	}
	return have.ID, nil
}

// inspect looks at the container and remembers what a task's status tells of it.
func (c *Controller) inspect(ctx context.Context) (have container.InspectResponse, err error) {
	id, err := c.find(ctx)
	if err != nil {
		return have, err
	}
	if id != "" {
		have, err = c.rt.Engine.Inspect(ctx, id)
	}
	if id == "" || cerrdefs.IsNotFound(err) {
		//lint:ignore ST1005 the engine's words, which clients match on
		return have, fmt.Errorf("No such container: %s", c.task.FullName())
	}
	if err != nil {
		return have, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status = swarm.ContainerStatus{ContainerID: have.ID, PID: have.State.Pid, ExitCode: have.State.ExitCode}
	if have.State.Running {
		c.ports = portStatus(c.task, have)
	}
	return have, nil
}

// portStatus tells on which host ports the engine published the task's host-mode ports.
func portStatus(t *cluster.Task, have container.InspectResponse) swarm.PortStatus {
	var out swarm.PortStatus
	if have.NetworkSettings == nil {
		return out
	}
	for _, p := range endpointPorts(t) {
		if p.PublishMode != swarm.PortConfigPublishModeHost {
			continue
		}
		seen := map[string]bool{} // an engine lists a port once for IPv4 and once for IPv6
		for _, b := range have.NetworkSettings.Ports[nat.Port(containerPort(p))] {
			n, err := strconv.ParseUint(b.HostPort, 10, 16)
			if err != nil || seen[b.HostPort] {
				continue
			}
			seen[b.HostPort] = true
			out.Ports = append(out.Ports, swarm.PortConfig{Protocol: p.Protocol, TargetPort: p.TargetPort,
				PublishedPort: uint32(n), PublishMode: swarm.PortConfigPublishModeHost})
		}
	}
	return out
}
