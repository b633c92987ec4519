package docker

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/system"
)

// ErrUnavailable is matched by every error that says that the engine did not answer: it is down, starting, or going
// down. Whether the call had an effect is unknown; repeat it when the engine is back.
var ErrUnavailable = errors.New("the Docker Engine does not answer")

// Engine is what the agent asks of a container engine. Calls may be made concurrently and repeated. Errors match
// [ErrUnavailable], errdefs.ErrNotFound or errdefs.ErrConflict where one applies. Arguments are not kept or modified.
type Engine interface {
	// Info describes the engine and its machine.
	Info(ctx context.Context) (system.Info, error)
	// Alive says whether the engine accepts new connections; an engine that shuts down stops doing so before it stops
	// its containers.
	Alive(ctx context.Context) bool

	// Image gives the id of a local image; ErrNotFound if there is none.
	Image(ctx context.Context, ref string) (id string, err error)
	// Pull fetches an image. auth is an X-Registry-Auth value or empty. answered is called as soon as the registry has
	// been heard of.
	Pull(ctx context.Context, ref, auth string, answered func()) error

	// Create creates a container, connected to all its networks; ErrConflict if its name is taken.
	Create(ctx context.Context, c *Container) (id string, err error)
	// Start starts a created container; one that runs already is left alone.
	Start(ctx context.Context, id string) error
	// Inspect describes a container, given its id or name.
	Inspect(ctx context.Context, id string) (container.InspectResponse, error)
	// Stop sends the container's stop signal, waits for grace (rounded down to seconds; nil: the container's own
	// stop timeout), then kills it. It returns when the container has stopped.
	Stop(ctx context.Context, id string, grace *time.Duration) error
	// Remove removes a container by force, with its anonymous volumes. A container that is gone is no error.
	Remove(ctx context.Context, id string) error
	// List lists all containers, running or not, that carry label=value.
	List(ctx context.Context, label, value string) ([]container.Summary, error)
	// Logs opens a container's log.
	Logs(ctx context.Context, id string, o container.LogsOptions) (io.ReadCloser, error)
	// Pass answers a request of the engine's API as the engine does, streams and hijacked connections included.
	Pass(w http.ResponseWriter, r *http.Request)
	// ExecContainer gives the container that a command (exec instance) belongs to.
	ExecContainer(ctx context.Context, execID string) (containerID string, err error)
	// Events follows the events of containers that carry label=value until ctx ends or the stream breaks; it always
	// returns an error. opened is called when the stream stands: what happens from then on is not missed. each is
	// called for every event, from one goroutine.
	Events(ctx context.Context, label, value string, opened func(), each func(events.Message)) error

	// Endpoints lists the places that all containers, running or not and whoever made them, have on networks.
	Endpoints(ctx context.Context) ([]Endpoint, error)
	// Departures follows, until ctx ends or the stream breaks, that containers are removed or taken off a network, as
	// Events does. each may be called when nothing of the kind has happened.
	Departures(ctx context.Context, opened, each func()) error
	// Disconnect takes a container off a network by force. One that is gone, or not on it, is no error.
	Disconnect(ctx context.Context, network, containerID string) error

	// Networks lists the networks that carry label=value, or the label with any value if value is "".
	Networks(ctx context.Context, label, value string) ([]network.Inspect, error)
	// CreateNetwork creates a network; ErrConflict if its name is taken.
	CreateNetwork(ctx context.Context, name string, o network.CreateOptions) (id string, err error)
	// RemoveNetwork removes a network that nothing is connected to. A network that is gone is no error.
	RemoveNetwork(ctx context.Context, id string) error
}
