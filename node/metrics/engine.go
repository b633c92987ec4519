package metrics

import (
	"context"
	"errors"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/system"

	"github.com/miniswarm/miniswarm/agent/docker"
)

// Engine gives an engine that does what e does, timed. Streams and pulls, which last as long as they last, are not.
func (m *Metrics) Engine(e docker.Engine) docker.Engine { return timedEngine{e, m} }

type timedEngine struct {
	docker.Engine
	m *Metrics
}

// done notes a request that began then.
func (e timedEngine) done(operation string, began time.Time, err error) {
	e.m.engine.WithLabelValues(operation).Observe(time.Since(began).Seconds())
	if err != nil {
		e.m.engineErrors.WithLabelValues(operation, reason(err)).Inc()
	}
}

// reason is the class of an error of the engine.
func reason(err error) string {
	switch {
	case errors.Is(err, docker.ErrUnavailable):
		return "unavailable"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, context.Canceled):
		return "canceled"
	case cerrdefs.IsConflict(err):
		return "conflict"
	case cerrdefs.IsNotFound(err):
		return "not-found"
	}
	return "other"
}

func (e timedEngine) Info(ctx context.Context) (info system.Info, err error) {
	defer func(t time.Time) { e.done("info", t, err) }(time.Now())
	return e.Engine.Info(ctx)
}

func (e timedEngine) Image(ctx context.Context, ref string) (id string, err error) {
	defer func(t time.Time) { e.done("image_inspect", t, err) }(time.Now())
	return e.Engine.Image(ctx, ref)
}

func (e timedEngine) Create(ctx context.Context, c *docker.Container) (id string, err error) {
	defer func(t time.Time) { e.done("container_create", t, err) }(time.Now())
	return e.Engine.Create(ctx, c)
}

func (e timedEngine) Start(ctx context.Context, id string) (err error) {
	defer func(t time.Time) { e.done("container_start", t, err) }(time.Now())
	return e.Engine.Start(ctx, id)
}

func (e timedEngine) Inspect(ctx context.Context, id string) (c container.InspectResponse, err error) {
	defer func(t time.Time) { e.done("container_inspect", t, err) }(time.Now())
	return e.Engine.Inspect(ctx, id)
}

func (e timedEngine) Stop(ctx context.Context, id string, grace *time.Duration) (err error) {
	defer func(t time.Time) { e.done("container_stop", t, err) }(time.Now())
	return e.Engine.Stop(ctx, id, grace)
}

func (e timedEngine) Remove(ctx context.Context, id string) (err error) {
	defer func(t time.Time) { e.done("container_remove", t, err) }(time.Now())
	return e.Engine.Remove(ctx, id)
}

func (e timedEngine) List(ctx context.Context, label, value string) (list []container.Summary, err error) {
	defer func(t time.Time) { e.done("container_list", t, err) }(time.Now())
	return e.Engine.List(ctx, label, value)
}

func (e timedEngine) Networks(ctx context.Context, label, value string) (list []network.Inspect, err error) {
	defer func(t time.Time) { e.done("network_list", t, err) }(time.Now())
	return e.Engine.Networks(ctx, label, value)
}

func (e timedEngine) CreateNetwork(ctx context.Context, name string, o network.CreateOptions) (id string, err error) {
	defer func(t time.Time) { e.done("network_create", t, err) }(time.Now())
	return e.Engine.CreateNetwork(ctx, name, o)
}

func (e timedEngine) RemoveNetwork(ctx context.Context, id string) (err error) {
	defer func(t time.Time) { e.done("network_remove", t, err) }(time.Now())
	return e.Engine.RemoveNetwork(ctx, id)
}
