package sim

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/docker/docker/api/types/container"

	"github.com/miniswarm/miniswarm/agent/docker/fake"
)

// hasty is an engine whose containers are said to have stopped as soon as they are told to, and run on for a while: the agent
// above it behaves as one that reports SHUTDOWN too early.
type hasty struct {
	*fake.Engine
	mu       sync.Mutex
	stopping map[string]bool // guarded by mu
}

const hastily = 6 * time.Second

func (e *hasty) Stop(ctx context.Context, ref string, _ *time.Duration) error {
	have, err := e.Engine.Inspect(ctx, ref)
	if err != nil || !have.State.Running {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.stopping[have.ID] {
		e.stopping[have.ID] = true
		time.AfterFunc(hastily, func() { _ = e.Engine.Remove(context.Background(), have.ID) })
	}
	return nil
}

func (e *hasty) has(id string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.stopping[id]
}

func (e *hasty) Inspect(ctx context.Context, ref string) (container.InspectResponse, error) {
	have, err := e.Engine.Inspect(ctx, ref)
	if err == nil && e.has(have.ID) {
		have.State.Running, have.State.Status = false, container.StateExited
	}
	return have, err
}

func (e *hasty) Remove(ctx context.Context, ref string) error {
	if have, err := e.Engine.Inspect(ctx, ref); err == nil && e.has(have.ID) {
		return nil
	}
	return e.Engine.Remove(ctx, ref)
}

func (e *hasty) List(ctx context.Context, label, value string) ([]container.Summary, error) {
	list, err := e.Engine.List(ctx, label, value)
	return slices.DeleteFunc(list, func(c container.Summary) bool { return e.has(c.ID) }), err
}
