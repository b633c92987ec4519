package agent

import (
	"context"
	"fmt"
	"sync"

	"github.com/miniswarm/miniswarm/agent/docker"
	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// payloads holds the secrets and configs that tasks of this node use, as the leader has sent them. They are in memory
// only: after a restart of the agent they come with the first complete list, and tasks that need them wait for it.
type payloads struct {
	mu       sync.Mutex
	secrets  map[string]*cluster.Secret // guarded by mu; by id
	configs  map[string]*cluster.Config // guarded by mu; by id
	complete bool                       // guarded by mu; a complete list has arrived in this process
	changed  chan struct{}              // guarded by mu; closed and replaced by every change
}

var _ docker.Payloads = (*payloads)(nil)

func newPayloads() *payloads {
	return &payloads{secrets: map[string]*cluster.Secret{}, configs: map[string]*cluster.Config{}, changed: make(chan struct{})}
}

// apply takes what came with assignments. Tasks of the same message come after it.
func (p *payloads) apply(a *protocol.Assignments) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a.Complete {
		clear(p.secrets)
		clear(p.configs)
		p.complete = true
	}
	for _, s := range a.Secrets {
		p.secrets[s.ID] = s
	}
	for _, c := range a.Configs {
		p.configs[c.ID] = c
	}
	for _, id := range a.RemoveSecrets {
		delete(p.secrets, id)
	}
	for _, id := range a.RemoveConfigs {
		delete(p.configs, id)
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

// Secret implements docker.Payloads.
func (p *payloads) Secret(ctx context.Context, id string) (*cluster.Secret, error) {
	return awaitPayload(ctx, p, p.secrets, cluster.KindSecret, id)
}

// Config implements docker.Payloads.
func (p *payloads) Config(ctx context.Context, id string) (*cluster.Config, error) {
	return awaitPayload(ctx, p, p.configs, cluster.KindConfig, id)
}

// awaitPayload gives an object of a table. A leader sends what a task uses no later than the task, so that what is not there
// after a complete list does not exist.
func awaitPayload[T any](ctx context.Context, p *payloads, table map[string]*T, k cluster.Kind, id string) (*T, error) {
	for {
		p.mu.Lock()
		o, complete, changed := table[id], p.complete, p.changed
		p.mu.Unlock()
		switch {
		case o != nil:
			return o, nil
		case complete:
			return nil, fmt.Errorf("%s %s not found", k, id)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
