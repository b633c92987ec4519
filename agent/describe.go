package agent

import (
	"cmp"
	"context"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/api/types/system"

	"github.com/miniswarm/miniswarm/agent/docker"
)

const (
	// describeEvery is how often the engine is asked about itself, as in Swarm.
	describeEvery = 20 * time.Second
	// describeRetry is the same while there is no answer.
	describeRetry = time.Second
)

// describe gives the node description of an engine (swarm-semantics.md, 12.1).
func describe(info system.Info) swarm.NodeDescription {
	d := swarm.NodeDescription{
		Hostname: info.Name,
		Platform: swarm.Platform{Architecture: info.Architecture, OS: info.OSType},
		Resources: swarm.Resources{NanoCPUs: int64(info.NCPU) * 1e9, MemoryBytes: info.MemTotal,
			GenericResources: info.GenericResources},
		Engine: swarm.EngineDescription{EngineVersion: info.ServerVersion, Labels: map[string]string{}},
	}
	for _, l := range info.Labels {
		k, v, _ := strings.Cut(l, "=")
		d.Engine.Labels[k] = v // the last one wins
	}
	add := func(kind string, names []string) {
		for _, n := range names {
			d.Engine.Plugins = append(d.Engine.Plugins, swarm.PluginDescription{Type: kind, Name: n})
		}
	}
	add("Volume", info.Plugins.Volume)
	// The engine offers overlay networks to Swarm only; here they are the agent's, on every engine.
	add("Network", append(slices.Clone(info.Plugins.Network), "overlay"))
	add("Authorization", info.Plugins.Authorization)
	add("Log", info.Plugins.Log)
	slices.SortFunc(d.Engine.Plugins, func(a, b swarm.PluginDescription) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Name, b.Name))
	})
	d.Engine.Plugins = slices.Compact(d.Engine.Plugins)
	return d
}

// describer knows what the node is like.
type describer struct {
	engine  docker.Engine
	tls     func() swarm.TLSInfo // may be nil
	log     *slog.Logger
	changed func() // called after each change

	mu      sync.Mutex
	current swarm.NodeDescription // guarded by mu
	known   chan struct{}         // closed once the engine has answered
	once    sync.Once
}

func newDescriber(e docker.Engine, hostname string, tls func() swarm.TLSInfo, log *slog.Logger, changed func()) *describer {
	return &describer{engine: e, tls: tls, log: log, changed: changed, known: make(chan struct{}),
		current: swarm.NodeDescription{Hostname: hostname}}
}

// description is the newest.
func (d *describer) description() swarm.NodeDescription {
	d.mu.Lock()
	now := d.current
	d.mu.Unlock()
	if d.tls != nil {
		now.TLSInfo = d.tls()
	}
	return now
}

// assume takes what the node was like when the agent last ran, until the engine says what it is like now: a node whose
// engine is away for a moment must not seem to have shrunk to nothing.
func (d *describer) assume(last swarm.NodeDescription) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if last.Engine.EngineVersion != "" {
		d.current = last
	}
}

// await waits for the engine's first answer, not longer than limit.
func (d *describer) await(ctx context.Context, limit time.Duration) {
	select {
	case <-d.known:
	case <-ctx.Done():
	case <-time.After(limit):
	}
}

// run asks again and again until ctx ends.
func (d *describer) run(ctx context.Context) error {
	for {
		pause := describeEvery
		if err := d.ask(ctx); err != nil {
			pause = describeRetry
		}
		if !pauseFor(ctx, pause) {
			return context.Cause(ctx)
		}
	}
}

func (d *describer) ask(ctx context.Context) error {
	info, err := d.engine.Info(ctx)
	if err != nil {
		return err
	}
	next := describe(info)
	d.mu.Lock()
	next.TLSInfo = d.current.TLSInfo // whose changes are told by Redescribe
	same := reflect.DeepEqual(next, d.current)
	d.current = next
	d.mu.Unlock()
	if !same {
		d.changed()
	}
	d.once.Do(func() {
		close(d.known)
		d.log.Info("engine", "version", info.ServerVersion, "hostname", info.Name, "cpus", info.NCPU, "memory", info.MemTotal)
	})
	return nil
}
