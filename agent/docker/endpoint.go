package docker

import (
	"context"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
)

// Endpoint is a container's place on a network.
type Endpoint struct {
	ContainerID string
	// Network is the engine's name of the network.
	Network string
	// Address is the IPv4 address that the container was made with, which it keeps when it stops; empty where the engine
	// chooses one at each start.
	Address string
}

// Endpoints implements Engine.
func (a *Adapter) Endpoints(ctx context.Context) ([]Endpoint, error) {
	if err := a.ready(ctx); err != nil {
		return nil, err
	}
	list, err := a.cli.ContainerList(ctx, container.ListOptions{All: true})
	if err != nil {
		return nil, a.explain(ctx, err)
	}
	var out []Endpoint
	for _, c := range list {
		if c.NetworkSettings == nil {
			continue
		}
		for name, e := range c.NetworkSettings.Networks {
			at := Endpoint{ContainerID: c.ID, Network: name}
			if e != nil && e.IPAMConfig != nil {
				at.Address = e.IPAMConfig.IPv4Address
			}
			out = append(out, at)
		}
	}
	return out, nil
}

// Departures implements Engine.
func (a *Adapter) Departures(ctx context.Context, opened, each func()) error {
	f := filters.NewArgs(filters.Arg("type", string(events.ContainerEventType)), filters.Arg("type", string(events.NetworkEventType)),
		filters.Arg("event", string(events.ActionDestroy)), filters.Arg("event", string(events.ActionDisconnect)))
	return a.follow(ctx, f, opened, func(events.Message) { each() })
}

// Disconnect implements Engine.
func (a *Adapter) Disconnect(ctx context.Context, network, containerID string) error {
	if err := a.ready(ctx); err != nil {
		return err
	}
	err := a.explain(ctx, a.cli.NetworkDisconnect(ctx, network, containerID, true))
	if cerrdefs.IsNotFound(err) || err != nil && strings.Contains(err.Error(), "is not connected to") {
		return nil
	}
	return err
}
