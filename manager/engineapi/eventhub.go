package engineapi

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"

	"github.com/miniswarm/miniswarm/cluster"
)

const (
	// eventsKept is how many past events can be asked for with since, as many as Docker keeps.
	eventsKept = 256
	// eventsWaiting is how far a reader may lag before its stream ends, so that it knows that it missed something.
	eventsWaiting = 1024
	// watchRetry is the wait for this node to become a manager, or for a watch that ended to begin anew.
	watchRetry = 250 * time.Millisecond
)

// eventHub turns committed changes into Docker's swarm events, remembers the latest and hands them to readers.
type eventHub struct {
	mu      sync.Mutex
	past    []events.Message             // guarded by mu; the latest, oldest first
	readers map[chan events.Message]bool // guarded by mu
}

func newEventHub() *eventHub { return &eventHub{readers: map[chan events.Message]bool{}} }

// publish hands a message to all readers. A reader that lags is cut off: its channel is closed.
func (h *eventHub) publish(m events.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.past) == eventsKept {
		h.past = append(h.past[:0], h.past[1:]...)
	}
	h.past = append(h.past, m)
	for ch := range h.readers {
		select {
		case ch <- m:
		default:
			delete(h.readers, ch)
			close(ch)
		}
	}
}

// subscribe gives the past events and a channel with those to come, which is closed when its reader lags. stop ends it.
func (h *eventHub) subscribe() (past []events.Message, next <-chan events.Message, stop func()) {
	ch := make(chan events.Message, eventsWaiting)
	h.mu.Lock()
	defer h.mu.Unlock()
	past = append(past, h.past...)
	h.readers[ch] = true
	return past, ch, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.readers, ch)
	}
}

// Run keeps the swarm's events flowing while this node is a manager, until ctx ends. Without it /events has only the
// engine's.
func (s *Server) Run(ctx context.Context) error {
	for {
		if c, err := s.cfg.Local.Control(); err == nil {
			s.follow(ctx, c)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(watchRetry):
		}
	}
}

// follow publishes what changes until the watch ends.
func (s *Server) follow(ctx context.Context, c Control) {
	_, changes, stop := c.Watch()
	defer stop()
	for {
		select {
		case <-ctx.Done():
			return
		case batch, ok := <-changes:
			if !ok {
				return
			}
			for i := range batch {
				if m, ok := messageOf(&batch[i], time.Now()); ok {
					s.events.publish(m)
				}
			}
		}
	}
}

// messageOf words a change as Docker does (swarm-semantics, 10.7). Clusters and tasks have no events there.
func messageOf(ev *cluster.Event, now time.Time) (events.Message, bool) {
	o := ev.New
	if o == nil {
		o = ev.Old
	}
	m := events.Message{Scope: scopeSwarm, Actor: events.Actor{ID: o.ObjectID(), Attributes: map[string]string{"name": o.ObjectName()}}}
	at := o.ObjectMeta().UpdatedAt
	switch ev.Action {
	case cluster.Create:
		m.Action, at = events.ActionCreate, o.ObjectMeta().CreatedAt
	case cluster.Remove:
		m.Action, at = events.ActionRemove, now
	default:
		m.Action = events.ActionUpdate
	}
	m.Time, m.TimeNano = at.Unix(), at.UnixNano()
	switch o := o.(type) {
	case *cluster.Node:
		m.Type = events.NodeEventType
		m.Actor.Attributes["name"] = o.Spec.Name
		if o.Spec.Name == "" {
			m.Actor.Attributes["name"] = o.Description.Hostname
		}
		if old, ok := ev.Old.(*cluster.Node); ok && ev.New != nil {
			nodeChanges(m.Actor.Attributes, old, o)
		}
	case *cluster.Service:
		m.Type = events.ServiceEventType
		if old, ok := ev.Old.(*cluster.Service); ok && ev.New != nil {
			serviceChanges(m.Actor.Attributes, old, o)
		}
	case *cluster.Network:
		m.Type = events.NetworkEventType
	case *cluster.Secret:
		m.Type = events.SecretEventType
	case *cluster.Config:
		m.Type = events.ConfigEventType
	default:
		return m, false
	}
	return m, true
}

// changed notes an attribute that differs.
func changed[T ~string](attributes map[string]string, name string, old, new T) {
	if old != new {
		attributes[name+".old"], attributes[name+".new"] = string(old), string(new)
	}
}

func nodeChanges(attributes map[string]string, old, new *cluster.Node) {
	changed(attributes, "availability", old.Spec.Availability, new.Spec.Availability)
	changed(attributes, "role", old.Role, new.Role)
	changed(attributes, "state", old.Status.State, new.Status.State)
}

func serviceChanges(attributes map[string]string, old, new *cluster.Service) {
	if a, b := old.Spec.TaskTemplate.ContainerSpec, new.Spec.TaskTemplate.ContainerSpec; a != nil && b != nil {
		changed(attributes, "image", a.Image, b.Image)
	}
	if a, b := old.Spec.Mode.Replicated, new.Spec.Mode.Replicated; a != nil && b != nil && a.Replicas != nil && b.Replicas != nil {
		changed(attributes, "replicas", strconv.FormatUint(*a.Replicas, 10), strconv.FormatUint(*b.Replicas, 10))
	}
	switch a, b := old.UpdateStatus, new.UpdateStatus; {
	case b == nil:
	case a == nil:
		attributes["updatestate.new"] = string(b.State)
	default:
		changed(attributes, "updatestate", a.State, b.State)
	}
}

// swarmEventTypes are the types that only the swarm has; networks are the engine's as well.
var swarmEventTypes = map[string]bool{string(events.NodeEventType): true, string(events.ServiceEventType): true,
	string(events.SecretEventType): true, string(events.ConfigEventType): true}

// nameFilters are the filters that an event's id or name must begin with, whatever its type, as in Docker.
var nameFilters = []events.Type{events.DaemonEventType, events.ContainerEventType, events.PluginEventType, events.VolumeEventType,
	events.NetworkEventType, events.NodeEventType, events.ServiceEventType, events.SecretEventType, events.ConfigEventType}

// eventPasses judges a swarm event by the filters of /events.
func eventPasses(args filters.Args, m events.Message) bool {
	if !args.ExactMatch("event", string(m.Action)) || !args.ExactMatch("type", string(m.Type)) || !args.ExactMatch("scope", m.Scope) ||
		!args.MatchKVList("label", m.Actor.Attributes) || !args.ExactMatch("image", m.Actor.ID) {
		return false
	}
	for _, t := range nameFilters {
		if !args.FuzzyMatch(string(t), m.Actor.ID) && !args.FuzzyMatch(string(t), m.Actor.Attributes["name"]) {
			return false
		}
	}
	return true
}
