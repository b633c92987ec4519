package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/agent/docker"
	"github.com/miniswarm/miniswarm/cluster"
)

const (
	// settleTime is how long after the agent's start a container may still appear that its former life had asked the engine
	// for; until then none is missed.
	settleTime = 5 * time.Second
	// lookEvery has attachments looked at in case the engine dropped an event.
	lookEvery = time.Minute
)

// attachments watches over the places that containers of people's own have on networks of the swarm. Each is a task of its
// own kind, whose address is held as long as the engine has a container with that address on the network, running or not:
// the engine's word alone counts, so that nothing is forgotten that a person did while the agent was away.
type attachments struct {
	engine   docker.Engine
	networks *docker.Networks
	gateway  func(ctx context.Context, networkID string) (netip.Prefix, error)
	// seen is called when it is known which container a place belongs to.
	seen  func()
	log   *slog.Logger
	began time.Time
	wake  chan struct{} // capacity 1: somebody waits for a departure

	mu      sync.Mutex
	making  map[string]bool               // guarded by mu; ids of tasks whose containers are being made: not missed
	waiting map[*attachment]chan struct{} // guarded by mu; each of capacity 1
	doubts  int                           // guarded by mu; how often something was heard that may have changed what the engine has

	asking chan struct{} // capacity 1, filled while the engine is asked, so that all who wait for an answer share it
	heard  *engineHas    // guarded by asking
}

// engineHas is what the engine has said about containers on networks.
type engineHas struct {
	doubts    int       // as many were known when it was asked
	at        time.Time // when it was asked
	endpoints []docker.Endpoint
	parts     map[string][]string // the engine's names of the networks asked about, by the swarm's id
}

// shared is how long an answer of the engine serves others, unless there is reason for doubt. One event has all attachments
// looked at.
const shared = time.Second

// on gives the containers on the engine's networks that are this node's part of a network.
func (as *attachments) on(ctx context.Context, networkID string) ([]docker.Endpoint, error) {
	as.mu.Lock()
	doubts := as.doubts
	as.mu.Unlock()
	select {
	case as.asking <- struct{}{}:
		defer func() { <-as.asking }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if h := as.heard; h == nil || h.doubts < doubts || time.Since(h.at) > shared {
		h := &engineHas{doubts: doubts, at: time.Now(), parts: map[string][]string{}}
		var err error
		if h.endpoints, err = as.engine.Endpoints(ctx); err != nil {
			return nil, fmt.Errorf("list containers on networks: %w", err)
		}
		as.heard = h
	}
	names, known := as.heard.parts[networkID]
	if !known {
		parts, err := as.engine.Networks(ctx, docker.LabelNetworkID, networkID)
		if err != nil {
			return nil, fmt.Errorf("look for the part of network %s: %w", networkID, err)
		}
		for _, n := range parts {
			names = append(names, n.Name)
		}
		as.heard.parts[networkID] = names
	}
	var on []docker.Endpoint
	for _, e := range as.heard.endpoints {
		if slices.Contains(names, e.Network) {
			on = append(on, e)
		}
	}
	return on, nil
}

func newAttachments(e docker.Engine, networks *docker.Networks, gateway func(context.Context, string) (netip.Prefix, error), log *slog.Logger) *attachments {
	return &attachments{engine: e, networks: networks, gateway: gateway, log: log, seen: func() {}, began: time.Now(), wake: make(chan struct{}, 1),
		asking: make(chan struct{}, 1), making: map[string]bool{}, waiting: map[*attachment]chan struct{}{}}
}

// begin says that a container is being made for a task; settle that it is there, or will never be.
func (as *attachments) begin(taskID string) {
	as.mu.Lock()
	defer as.mu.Unlock()
	as.making[taskID] = true
}

func (as *attachments) settle(taskID string) {
	as.mu.Lock()
	defer as.mu.Unlock()
	delete(as.making, taskID)
	as.lookLocked()
}

// look has every attachment looked at.
func (as *attachments) look() {
	as.mu.Lock()
	defer as.mu.Unlock()
	as.lookLocked()
}

// doubt has the engine asked by whoever wants to know what it has from now on.
func (as *attachments) doubt() {
	as.mu.Lock()
	defer as.mu.Unlock()
	as.doubts++
}

func (as *attachments) lookLocked() {
	as.doubts++
	for _, c := range as.waiting {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// run follows the engine's events while there is any attachment, until ctx ends.
func (as *attachments) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-as.wake:
		}
		for as.any() {
			_ = as.engine.Departures(ctx, as.look, as.depart)
			if !pauseFor(ctx, maxRetry) { // the engine is away
				return context.Cause(ctx)
			}
		}
	}
}

func (as *attachments) depart() { as.look() }

func (as *attachments) any() bool {
	as.mu.Lock()
	defer as.mu.Unlock()
	return len(as.waiting) > 0
}

// gone gives the ids of the attachments whose containers are no more.
func (as *attachments) gone(ctx context.Context) (ids []string) {
	as.doubt() // no event may have come yet
	as.mu.Lock()
	all := slices.Collect(maps.Keys(as.waiting))
	as.mu.Unlock()
	for _, a := range all {
		if gone, err := a.gone(ctx); err == nil && gone {
			ids = append(ids, a.task.ID)
		}
	}
	return ids
}

// clear takes all containers of people's own off the networks of the swarm, which this node is about to leave.
func (as *attachments) clear(ctx context.Context, nodeID string) error {
	parts, err := as.engine.Networks(ctx, docker.LabelNetworkNode, nodeID)
	if err != nil {
		return fmt.Errorf("list networks of this node: %w", err)
	}
	all, err := as.engine.Endpoints(ctx)
	if err != nil {
		return fmt.Errorf("list containers on networks: %w", err)
	}
	for _, e := range all {
		if slices.ContainsFunc(parts, func(n network.Inspect) bool { return n.Name == e.Network }) {
			err = errors.Join(err, as.engine.Disconnect(ctx, e.Network, e.ContainerID))
		}
	}
	return err
}

// attachment is the controller of one such task.
type attachment struct {
	all  *attachments
	task *cluster.Task

	mu      sync.Mutex
	network string       // guarded by mu; the engine's name of the network, "" until it is made
	gateway netip.Prefix // guarded by mu; the node's own address there
	holder  string       // guarded by mu; the id of the container, "" until it was seen
	stuck   bool         // guarded by mu; Shutdown has failed, so that a container may still have the address
}

// part gives what Prepare has made, and the container if it was seen.
func (a *attachment) part() (network string, gateway netip.Prefix, holder string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.network, a.gateway, a.holder
}

// Prepare makes the engine's network.
func (a *attachment) Prepare(ctx context.Context) error {
	if len(a.task.NetworksAttachments) != 1 || !a.address().IsValid() {
		return fmt.Errorf("attachment %s: it names no network and address", a.task.ID)
	}
	n := a.task.NetworksAttachments[0].Network
	gateway, err := a.all.gateway(ctx, n.ID)
	if err != nil {
		return err
	}
	name, err := a.all.networks.Make(ctx, docker.Bridge(n, gateway))
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.network, a.gateway = name, gateway
	return nil
}

// address is the container's address on the network.
func (a *attachment) address() netip.Addr {
	for _, n := range a.task.NetworksAttachments {
		if len(n.Addresses) > 0 {
			p, _ := netip.ParsePrefix(n.Addresses[0])
			return p.Addr()
		}
	}
	return netip.Addr{}
}

// Start has nothing to start: that is the person's affair.
func (a *attachment) Start(context.Context) error { return nil }

// Wait returns when no container has the address any more, because it was removed, taken off the network or never made.
func (a *attachment) Wait(ctx context.Context) error {
	look := make(chan struct{}, 1)
	a.all.mu.Lock()
	a.all.waiting[a] = look
	a.all.mu.Unlock()
	defer func() {
		a.all.mu.Lock()
		defer a.all.mu.Unlock()
		delete(a.all.waiting, a)
	}()
	select {
	case a.all.wake <- struct{}{}:
	default:
	}
	for {
		gone, err := a.gone(ctx)
		if err != nil && !errors.Is(err, docker.ErrUnavailable) && ctx.Err() == nil {
			a.all.log.Debug("an attached container cannot be looked for", "task", a.task.ID, "err", err)
		}
		next := lookEvery
		if early := time.Until(a.all.began.Add(settleTime)); gone && early > 0 {
			gone, next = false, early
		}
		if gone {
			return nil
		}
		if err != nil {
			next = maxRetry
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-look:
		case <-time.After(next):
		}
	}
}

// gone says that there is no such container, and none is being made.
func (a *attachment) gone(ctx context.Context) (bool, error) {
	// Asked first: a container that is made meanwhile is there when the engine is asked.
	a.all.mu.Lock()
	making := a.all.making[a.task.ID]
	a.all.mu.Unlock()
	holders, err := a.holders(ctx)
	if err != nil {
		return false, err
	}
	if len(holders) == 0 {
		return !making, nil
	}
	a.mu.Lock()
	known := a.holder == holders[0].ContainerID
	a.holder = holders[0].ContainerID
	a.mu.Unlock()
	if !known {
		a.all.seen()
	}
	return false, nil
}

// holders are the containers that have the address on the network; there is one at most.
func (a *attachment) holders(ctx context.Context) ([]docker.Endpoint, error) {
	if len(a.task.NetworksAttachments) == 0 {
		return nil, nil
	}
	on, err := a.all.on(ctx, a.task.NetworksAttachments[0].Network.ID)
	if err != nil {
		return nil, fmt.Errorf("look for the container of attachment %s: %w", a.task.ID, err)
	}
	want := a.address().String()
	return slices.DeleteFunc(on, func(e docker.Endpoint) bool { return e.Address != want }), nil
}

// Shutdown takes the container off the network, whose address is given to somebody else from now on. It runs on.
func (a *attachment) Shutdown(ctx context.Context) error {
	a.all.doubt()
	holders, err := a.holders(ctx)
	for _, h := range holders {
		a.all.log.Info("a container is taken off a network of the swarm", "task", a.task.ID, "container", h.ContainerID, "network", h.Network)
		err = errors.Join(err, a.all.engine.Disconnect(ctx, h.Network, h.ContainerID))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stuck = err != nil
	return err
}

// Remove finishes a Shutdown that has failed, since the address is somebody else's once the task is gone. After one that
// has not, nothing is looked for: whoever has the address by now has it rightly.
func (a *attachment) Remove(ctx context.Context) error {
	a.mu.Lock()
	stuck := a.stuck
	a.mu.Unlock()
	if !stuck {
		return nil
	}
	return a.Shutdown(ctx)
}

// Discard has nothing to discard.
func (a *attachment) Discard() error { return nil }

// Status says nothing: the container is no replica, which others could reach through the managers.
func (a *attachment) Status() (swarm.ContainerStatus, swarm.PortStatus) {
	return swarm.ContainerStatus{}, swarm.PortStatus{}
}
