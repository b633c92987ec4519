package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/streams"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/client"
)

// observedCLI is what Docker's commands run in. Its client sees what they write, so that what comes after, waiting and
// showing, knows; in a dry run it writes nothing.
type observedCLI struct {
	command.Cli
	once   sync.Once
	client *observer
	// mute keeps what a command prints from standard output.
	mute bool
}

func (c *observedCLI) Client() client.APIClient { return c.observer() }

func (c *observedCLI) Out() *streams.Out {
	if c.mute {
		return streams.NewOut(io.Discard)
	}
	return c.Cli.Out()
}

// observer connects to the daemon when it is first asked for.
func (c *observedCLI) observer() *observer {
	c.once.Do(func() { c.client = &observer{APIClient: c.Cli.Client()} })
	return c.client
}

// observer is Docker's client with an eye on what is written.
type observer struct {
	client.APIClient
	// adjust changes what a stack's objects are to be before they are written; nil leaves them.
	adjust *stackAdjuster
	// plan collects what would be written, where nothing is to be; nil writes.
	plan *planRequest
	// written are the ids of the services created and updated, in order.
	written []string
	// stopping is what the writes are about to stop, found before they are made.
	stopping []stopped
	// showStops says that stopping is to be found.
	showStops bool
	// nodes are the specifications of nodes that commands have read, by id.
	nodes map[string]json.RawMessage
}

func (o *observer) ServiceCreate(ctx context.Context, spec swarm.ServiceSpec, opts swarm.ServiceCreateOptions) (swarm.ServiceCreateResponse, error) {
	o.adjust.service(&spec)
	if o.plan != nil {
		o.plan.Services = append(o.plan.Services, plannedService{Spec: spec})
		return swarm.ServiceCreateResponse{ID: spec.Name}, nil
	}
	resp, err := o.APIClient.ServiceCreate(ctx, spec, opts)
	if err == nil {
		o.written = append(o.written, resp.ID)
	}
	return resp, err
}

func (o *observer) ServiceUpdate(ctx context.Context, id string, version swarm.Version, spec swarm.ServiceSpec, opts swarm.ServiceUpdateOptions) (swarm.ServiceUpdateResponse, error) {
	o.adjust.service(&spec)
	if o.plan != nil {
		o.plan.Services = append(o.plan.Services, plannedService{ID: id, Spec: spec, Rollback: opts.Rollback == "previous"})
		return swarm.ServiceUpdateResponse{}, nil
	}
	resp, err := o.APIClient.ServiceUpdate(ctx, id, version, spec, opts)
	if err == nil {
		o.written = append(o.written, id)
	}
	return resp, err
}

func (o *observer) ServiceRemove(ctx context.Context, id string) error {
	if o.plan != nil {
		o.plan.Remove = append(o.plan.Remove, id)
		return nil
	}
	if o.showStops {
		o.stopping = append(o.stopping, runningTasks(ctx, o.APIClient, id)...)
	}
	return o.APIClient.ServiceRemove(ctx, id)
}

func (o *observer) NetworkCreate(ctx context.Context, name string, opts network.CreateOptions) (network.CreateResponse, error) {
	if o.plan != nil {
		if slices.ContainsFunc(o.plan.Networks, func(n network.CreateRequest) bool { return n.Name == name }) {
			return network.CreateResponse{ID: name}, nil // by an earlier wave
		}
		o.plan.Networks = append(o.plan.Networks, network.CreateRequest{Name: name, CreateOptions: opts})
		return network.CreateResponse{ID: name}, nil
	}
	return o.APIClient.NetworkCreate(ctx, name, opts)
}

func (o *observer) SecretCreate(ctx context.Context, spec swarm.SecretSpec) (swarm.SecretCreateResponse, error) {
	o.adjust.secret(&spec)
	if o.plan != nil {
		o.plan.Secrets = planned(o.plan.Secrets, spec.Name)
		return swarm.SecretCreateResponse{ID: plannedID(spec.Name)}, nil
	}
	return o.APIClient.SecretCreate(ctx, spec)
}

func (o *observer) SecretUpdate(ctx context.Context, id string, version swarm.Version, spec swarm.SecretSpec) error {
	o.adjust.secret(&spec)
	if o.plan != nil {
		return nil
	}
	return o.APIClient.SecretUpdate(ctx, id, version, spec)
}

func (o *observer) SecretList(ctx context.Context, opts swarm.SecretListOptions) ([]swarm.Secret, error) {
	all, err := o.APIClient.SecretList(ctx, opts)
	if err == nil && o.plan != nil {
		for _, p := range o.plan.Secrets {
			all = append(all, swarm.Secret{ID: p.ID, Spec: swarm.SecretSpec{Annotations: swarm.Annotations{Name: p.Name}}})
		}
	}
	return all, err
}

func (o *observer) ConfigCreate(ctx context.Context, spec swarm.ConfigSpec) (swarm.ConfigCreateResponse, error) {
	o.adjust.config(&spec)
	if o.plan != nil {
		o.plan.Configs = planned(o.plan.Configs, spec.Name)
		return swarm.ConfigCreateResponse{ID: plannedID(spec.Name)}, nil
	}
	return o.APIClient.ConfigCreate(ctx, spec)
}

func (o *observer) ConfigUpdate(ctx context.Context, id string, version swarm.Version, spec swarm.ConfigSpec) error {
	o.adjust.config(&spec)
	if o.plan != nil {
		return nil
	}
	return o.APIClient.ConfigUpdate(ctx, id, version, spec)
}

func (o *observer) ConfigList(ctx context.Context, opts swarm.ConfigListOptions) ([]swarm.Config, error) {
	all, err := o.APIClient.ConfigList(ctx, opts)
	if err == nil && o.plan != nil {
		for _, p := range o.plan.Configs {
			all = append(all, swarm.Config{ID: p.ID, Spec: swarm.ConfigSpec{Annotations: swarm.Annotations{Name: p.Name}}})
		}
	}
	return all, err
}

// planned adds what would be made, once.
func planned(all []plannedPayload, name string) []plannedPayload {
	p := plannedPayload{ID: plannedID(name), Name: name}
	if slices.Contains(all, p) {
		return all
	}
	return append(all, p)
}

// plannedID stands for the id of what is not created.
func plannedID(name string) string { return "planned-" + name }

// stopped is a task that a command stops.
type stopped struct{ id, service, name, node, container string }

func (s stopped) String() string {
	line := fmt.Sprintf("stops %s (task %.12s) on %s", s.name, s.id, s.node)
	if s.container != "" {
		line += fmt.Sprintf(", container %.12s", s.container)
	}
	return line
}

// runningTasks gives the tasks of a service that run or are about to. An error means that there is nothing to show: the
// command itself will say what is wrong.
func runningTasks(ctx context.Context, cl client.APIClient, service string) []stopped {
	svc, _, err := cl.ServiceInspectWithRaw(ctx, service, swarm.ServiceInspectOptions{})
	if err != nil {
		return nil
	}
	tasks, err := cl.TaskList(ctx, swarm.TaskListOptions{Filters: filterOf("service", svc.ID, "desired-state", "running")})
	if err != nil {
		return nil
	}
	names := nodeNames(ctx, cl)
	var out []stopped
	for _, t := range tasks {
		s := stopped{id: t.ID, service: svc.ID, name: fmt.Sprintf("%s.%d", svc.Spec.Name, t.Slot), node: "no node"}
		if t.Slot == 0 {
			s.name = svc.Spec.Name + "." + t.NodeID
		}
		if t.NodeID != "" {
			s.node = names(t.NodeID)
		}
		if t.Status.ContainerStatus != nil {
			s.container = t.Status.ContainerStatus.ContainerID
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b stopped) int { return strings.Compare(a.name, b.name) })
	return out
}

// nodeNames gives a function from ids of nodes to their host names.
func nodeNames(ctx context.Context, cl client.APIClient) func(id string) string {
	names := make(map[string]string)
	if nodes, err := cl.NodeList(ctx, swarm.NodeListOptions{}); err == nil {
		for _, n := range nodes {
			names[n.ID] = n.Description.Hostname
		}
	}
	return func(id string) string {
		if names[id] != "" {
			return names[id]
		}
		return id
	}
}
