package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httputil"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/api/types/versions"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/jsonmessage"
)

// aliveTimeout bounds the question whether the engine accepts connections. A unix socket answers at once or never.
const aliveTimeout = time.Second

// replay is how far back the event stream begins: the engine acknowledges the stream a moment before it subscribes to
// events, and what happens in between must not be lost. Hearing of an event twice does no harm.
const replay = 2 * time.Second

// Adapter is an [Engine] that speaks to dockerd. It may be used concurrently.
type Adapter struct {
	cli    *client.Client
	passer *httputil.ReverseProxy
	// negotiated is set once the API version is agreed on; negotiating is full meanwhile. The client would otherwise take
	// its own, newest, version for good when the first question happens to meet an engine that is starting. It is no
	// mutex because who asks with a time limit must not wait longer for an engine that hangs.
	negotiated  atomic.Bool
	negotiating chan struct{}
}

// Open gives an adapter for the engine at host, such as unix:///var/run/docker.sock or tcp://10.0.0.1:2375. It does not
// connect: the engine need not run yet.
func Open(host string) (*Adapter, error) {
	cli, err := client.NewClientWithOpts(client.WithHost(host), client.WithAPIVersionNegotiation())
	if err != nil {
		return nil, fmt.Errorf("engine address %s: %w", host, err)
	}
	return &Adapter{cli: cli, passer: newPasser(cli), negotiating: make(chan struct{}, 1)}, nil
}

// Close releases idle connections.
func (a *Adapter) Close() error { return a.cli.Close() }

var _ Engine = (*Adapter)(nil)

// ready agrees on an API version if that has not happened yet.
func (a *Adapter) ready(ctx context.Context) error {
	if a.negotiated.Load() {
		return nil
	}
	select {
	case a.negotiating <- struct{}{}:
		defer func() { <-a.negotiating }()
	case <-ctx.Done():
		return fmt.Errorf("wait for the engine: %w", context.Cause(ctx))
	}
	if a.negotiated.Load() {
		return nil
	}
	ping, err := a.cli.Ping(ctx)
	if err != nil {
		return a.explain(ctx, err)
	}
	a.cli.NegotiateAPIVersionPing(ping)
	a.negotiated.Store(true)
	return nil
}

// engineError is an engine's answer without the client's preamble, of a kind.
type engineError struct {
	text string
	kind error // ErrUnavailable or nil
	err  error
}

func (e *engineError) Error() string { return e.text }

func (e *engineError) Unwrap() []error {
	if e.kind == nil {
		return []error{e.err}
	}
	return []error{e.kind, e.err}
}

// explain brings an error of the client into the kinds that Engine promises.
func (a *Adapter) explain(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	e := &engineError{text: strings.TrimPrefix(err.Error(), "Error response from daemon: "), err: err}
	switch {
	case client.IsErrConnectionFailed(err), brokenConnection(err):
		e.kind = ErrUnavailable
	case cerrdefs.IsNotFound(err), cerrdefs.IsConflict(err), cerrdefs.IsInvalidArgument(err), cerrdefs.IsPermissionDenied(err), cerrdefs.IsUnauthorized(err):
		// The engine means it.
	default:
		// An engine that shuts down answers with all sorts of internal errors, which are not the task's fault.
		if !a.Alive(ctx) {
			e.kind = ErrUnavailable
		}
	}
	if e.kind != nil {
		e.text = ErrUnavailable.Error() + ": " + e.text
	}
	return e
}

func brokenConnection(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed)
}

// Alive implements Engine.
func (a *Adapter) Alive(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, aliveTimeout)
	defer cancel()
	conn, err := a.cli.Dialer()(ctx)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// Ping says whether the engine answers, which one that is frozen does not: its socket accepts connections all the same. It asks
// until ctx ends.
func (a *Adapter) Ping(ctx context.Context) error {
	_, err := a.cli.Ping(ctx)
	return err
}

// Info implements Engine.
func (a *Adapter) Info(ctx context.Context) (system.Info, error) {
	if err := a.ready(ctx); err != nil {
		return system.Info{}, err
	}
	info, err := a.cli.Info(ctx)
	return info, a.explain(ctx, err)
}

// Image implements Engine.
func (a *Adapter) Image(ctx context.Context, ref string) (string, error) {
	if err := a.ready(ctx); err != nil {
		return "", err
	}
	im, err := a.cli.ImageInspect(ctx, ref)
	return im.ID, a.explain(ctx, err)
}

// Pull implements Engine.
func (a *Adapter) Pull(ctx context.Context, ref, auth string, answered func()) error {
	if err := a.ready(ctx); err != nil {
		return err
	}
	body, err := a.cli.ImagePull(ctx, ref, image.PullOptions{RegistryAuth: auth})
	if err != nil {
		return a.explain(ctx, err)
	}
	defer body.Close()
	dec := json.NewDecoder(body)
	for first := true; ; first = false {
		var m jsonmessage.JSONMessage
		if err := dec.Decode(&m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return a.explain(ctx, fmt.Errorf("pull %s: %w", ref, err))
		}
		if m.Error != nil {
			return fmt.Errorf("pull %s: %s", ref, m.Error.Message)
		}
		if first {
			answered()
		}
	}
}

// Create implements Engine.
func (a *Adapter) Create(ctx context.Context, c *Container) (string, error) {
	if err := a.ready(ctx); err != nil {
		return "", err
	}
	config, host := c.Config, c.Host
	if err := knowsMounts(host.Mounts, a.cli.ClientVersion()); err != nil {
		return "", err
	}
	if versions.LessThan(a.cli.ClientVersion(), "1.44") && config.Healthcheck != nil && config.Healthcheck.StartInterval != 0 {
		// Engines before 25 do not know it; Swarm drops it for them as well.
		h := *config.Healthcheck
		h.StartInterval = 0
		config.Healthcheck = &h
	}
	// Engines before 25 accept one network at creation.
	now, later := c.Networks, []Connection(nil)
	if versions.LessThan(a.cli.ClientVersion(), "1.44") && len(now) > 1 {
		now, later = now[:1], now[1:]
	}
	nets := &network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{}}
	for _, n := range now {
		nets.EndpointsConfig[n.Network] = n.Endpoint.Copy()
	}
	made, err := a.cli.ContainerCreate(ctx, &config, &host, nets, nil, c.Name)
	if err != nil {
		return "", a.explain(ctx, err)
	}
	for _, n := range later {
		if err := a.cli.NetworkConnect(ctx, n.Network, made.ID, n.Endpoint.Copy()); err != nil {
			err = a.explain(ctx, err)
			return "", errors.Join(fmt.Errorf("connect to network %s: %w", n.Network, err), a.Remove(ctx, made.ID))
		}
	}
	return made.ID, nil
}

// knowsMounts refuses what an engine of an older API version would leave out without a word: a service must not see the
// whole of a volume of which it was to see a part.
func knowsMounts(mounts []mount.Mount, version string) error {
	for _, m := range mounts {
		for _, q := range []struct {
			set         bool
			name, since string
		}{
			{m.VolumeOptions != nil && m.VolumeOptions.Subpath != "", "volume-subpath", "1.45"},
			{m.TmpfsOptions != nil && len(m.TmpfsOptions.Options) > 0, "a tmpfs option", "1.46"},
		} {
			if q.set && versions.LessThan(version, q.since) {
				return fmt.Errorf("mount %s: %s requires API v%s or later, the engine of this node has v%s", m.Target, q.name, q.since, version)
			}
		}
	}
	return nil
}

// Start implements Engine.
func (a *Adapter) Start(ctx context.Context, id string) error {
	if err := a.ready(ctx); err != nil {
		return err
	}
	return a.explain(ctx, a.cli.ContainerStart(ctx, id, container.StartOptions{}))
}

// Inspect implements Engine.
func (a *Adapter) Inspect(ctx context.Context, id string) (container.InspectResponse, error) {
	if err := a.ready(ctx); err != nil {
		return container.InspectResponse{}, err
	}
	c, err := a.cli.ContainerInspect(ctx, id)
	if err == nil && (c.ContainerJSONBase == nil || c.State == nil || c.Config == nil) {
		err = errors.New("the engine's description of the container is incomplete")
	}
	return c, a.explain(ctx, err)
}

// Stop implements Engine.
func (a *Adapter) Stop(ctx context.Context, id string, grace *time.Duration) error {
	if err := a.ready(ctx); err != nil {
		return err
	}
	var o container.StopOptions
	if grace != nil {
		seconds := int(grace.Seconds())
		o.Timeout = &seconds
	}
	return a.explain(ctx, a.cli.ContainerStop(ctx, id, o))
}

// Remove implements Engine.
func (a *Adapter) Remove(ctx context.Context, id string) error {
	if err := a.ready(ctx); err != nil {
		return err
	}
	err := a.explain(ctx, a.cli.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true}))
	if cerrdefs.IsNotFound(err) || cerrdefs.IsConflict(err) && strings.Contains(err.Error(), "already in progress") {
		return nil
	}
	return err
}

// List implements Engine.
func (a *Adapter) List(ctx context.Context, label, value string) ([]container.Summary, error) {
	if err := a.ready(ctx); err != nil {
		return nil, err
	}
	list, err := a.cli.ContainerList(ctx, container.ListOptions{All: true, Filters: labelled(label, value)})
	return list, a.explain(ctx, err)
}

func labelled(label, value string) filters.Args {
	return filters.NewArgs(filters.Arg("label", label+"="+value))
}

// Logs implements Engine.
func (a *Adapter) Logs(ctx context.Context, id string, o container.LogsOptions) (io.ReadCloser, error) {
	if err := a.ready(ctx); err != nil {
		return nil, err
	}
	r, err := a.cli.ContainerLogs(ctx, id, o)
	return r, a.explain(ctx, err)
}

// Events implements Engine.
func (a *Adapter) Events(ctx context.Context, label, value string, opened func(), each func(events.Message)) error {
	f := labelled(label, value)
	f.Add("type", string(events.ContainerEventType))
	return a.follow(ctx, f, opened, each)
}

// follow follows the events that pass a filter.
func (a *Adapter) follow(ctx context.Context, f filters.Args, opened func(), each func(events.Message)) error {
	if err := a.ready(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	since := strconv.FormatInt(time.Now().Add(-replay).Unix(), 10)
	messages, errs := a.cli.Events(ctx, events.ListOptions{Filters: f, Since: since})
	select {
	case err := <-errs:
		return a.explain(ctx, err)
	default:
		opened()
	}
	for {
		select {
		case m := <-messages:
			each(m)
		case err := <-errs:
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("event stream: %w", io.ErrUnexpectedEOF)
			}
			return a.explain(ctx, err)
		}
	}
}

// Networks implements Engine.
func (a *Adapter) Networks(ctx context.Context, label, value string) ([]network.Inspect, error) {
	if err := a.ready(ctx); err != nil {
		return nil, err
	}
	carry := labelled(label, value)
	if value == "" {
		carry = filters.NewArgs(filters.Arg("label", label))
	}
	list, err := a.cli.NetworkList(ctx, network.ListOptions{Filters: carry})
	return list, a.explain(ctx, err)
}

// CreateNetwork implements Engine.
func (a *Adapter) CreateNetwork(ctx context.Context, name string, o network.CreateOptions) (string, error) {
	if err := a.ready(ctx); err != nil {
		return "", err
	}
	made, err := a.cli.NetworkCreate(ctx, name, o)
	return made.ID, a.explain(ctx, err)
}

// RemoveNetwork implements Engine.
func (a *Adapter) RemoveNetwork(ctx context.Context, id string) error {
	if err := a.ready(ctx); err != nil {
		return err
	}
	if err := a.explain(ctx, a.cli.NetworkRemove(ctx, id)); err != nil && !cerrdefs.IsNotFound(err) {
		return err
	}
	return nil
}
