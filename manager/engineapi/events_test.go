package engineapi

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// watched runs the server's watcher and waits until it watches.
func (w *world) watched() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- w.api.Run(ctx) }()
	w.t.Cleanup(func() { cancel(); <-done })
	w.await("the watch", func() bool { return w.control.watching() > 0 })
}

func (w *world) await(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("%s did not come about", what)
		}
	}
}

// stream opens /events and gives what comes as "type action name {attributes}".
func (w *world) stream(query string) (next func() string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), "GET", "http://docker/events?"+query, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	resp, err := w.http.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/json" {
		w.t.Fatalf("status %d %s", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	scan := bufio.NewScanner(resp.Body)
	return func() string {
		if !scan.Scan() {
			return "end"
		}
		var m events.Message
		if err := json.Unmarshal(scan.Bytes(), &m); err != nil {
			w.t.Fatalf("%v: %s", err, scan.Text())
		}
		if err := checkEvent(scan.Bytes()); err != nil {
			w.t.Errorf("the event is not the Engine API's: %v", err)
		}
		name := m.Actor.Attributes["name"]
		delete(m.Actor.Attributes, "name")
		text := fmt.Sprintf("%s %s %s", m.Type, m.Action, name)
		if len(m.Actor.Attributes) > 0 {
			text += " " + strings.TrimPrefix(fmt.Sprint(m.Actor.Attributes), "map")
		}
		return text
	}
}

func TestEventsOfTheSwarm(t *testing.T) {
	w := newWorld(t)
	w.watched()
	next := w.stream("")
	three := uint64(3)
	node := aNode("node2", "vm2")
	svc := aService("svc1", "web", 2)
	w.control.put(t, aCluster()...)
	w.control.put(t, node, svc)
	drained := *node
	drained.Spec.Availability, drained.Status.State = "drain", "down"
	w.control.put(t, &drained)
	changed := *svc
	changed.Spec = serviceSpec("web")
	changed.Spec.TaskTemplate.ContainerSpec.Image = "app:2"
	changed.Spec.Mode.Replicated.Replicas = &three
	changed.UpdateStatus = &swarm.UpdateStatus{State: "updating"}
	w.control.put(t, &changed)
	done := changed
	done.UpdateStatus = &swarm.UpdateStatus{State: "completed"}
	w.control.put(t, &done)
	w.control.put(t, aTask("task1", svc, 1, "node2", swarm.TaskStateRunning)) // tasks have no events
	must[struct{ ID string }](w, 201, "POST", "/secrets/create", map[string]any{"Name": "pass", "Data": []byte("x")})
	must[struct{ ID string }](w, 201, "POST", "/configs/create", map[string]any{"Name": "conf", "Data": []byte("x")})
	for _, kind := range []cluster.Kind{cluster.KindSecret, cluster.KindConfig} {
		name := map[cluster.Kind]string{cluster.KindSecret: "pass", cluster.KindConfig: "conf"}[kind]
		var version uint64
		for o := range w.control.snapshot().Objects(kind) {
			version = o.ObjectMeta().Version.Index
		}
		w.do("POST", fmt.Sprintf("/%ss/%s/update?version=%d", kind, name, version), map[string]any{"Name": name, "Labels": map[string]string{"a": "b"}})
	}
	w.do("DELETE", "/services/web", nil)
	must[struct{ ID string }](w, 201, "POST", "/networks/create", map[string]any{"Name": "back", "Driver": "overlay"})
	for _, path := range []string{"/secrets/pass", "/configs/conf", "/networks/back", "/nodes/node2"} {
		w.do("DELETE", path, nil)
	}
	for _, want := range []string{
		"network create ingress", "node create vm2", "service create web", "node update vm2 [availability.new:drain availability.old:active state.new:down state.old:ready]",
		"service update web [image.new:app:2 image.old:app:1 replicas.new:3 replicas.old:2 updatestate.new:updating]", "service update web [updatestate.new:completed updatestate.old:updating]",
		"secret create pass", "config create conf", "secret update pass", "config update conf", "service remove web", "network create back",
		"secret remove pass", "config remove conf", "network remove back", "node remove vm2",
	} {
		if got := next(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestEventsAreMergedAndFiltered(t *testing.T) {
	w := newWorld(t)
	w.watched()
	all, services, named, scoped := w.stream(""), w.stream(filtersOf("type", "service")), w.stream(filtersOf("service", "we")), w.stream(filtersOf("scope", "swarm", "event", "remove"))
	w.engine.events <- `{"Type":"container","Action":"start","Actor":{"ID":"c1","Attributes":{"name":"x"}},"time":1,"timeNano":1000000000,"scope":"local"}`
	if got := all(); got != "container start x" {
		t.Errorf("the engine's: %q", got)
	}
	w.control.put(t, aService("svc1", "web", 1))
	w.control.put(t, aNode("node2", "vm2"))
	w.do("DELETE", "/services/web", nil)
	for _, c := range []struct {
		name string
		next func() string
		want []string
	}{
		{"all", all, []string{"service create web", "node create vm2", "service remove web"}},
		{"services", services, []string{"service create web", "service remove web"}},
		{"named", named, []string{"service create web", "service remove web"}},
		{"scope and event", scoped, []string{"service remove web"}},
	} {
		for _, want := range c.want {
			if got := c.next(); got != want {
				t.Errorf("%s: got %q, want %q", c.name, got, want)
			}
		}
	}
	if strings.Contains(w.engine.seen(), "service%22%5D%7D HTTP") || strings.Count(w.engine.seen(), "GET /events") != 2 {
		t.Errorf("the engine is asked only for what it may know:\n%s", w.engine.seen())
	}
}

func TestPastEvents(t *testing.T) {
	w := newWorld(t)
	w.watched()
	for i := range eventsKept + 10 {
		w.control.now = time.Unix(int64(1000+i), 0)
		w.control.put(t, aService(fmt.Sprintf("svc%d", i), fmt.Sprintf("web%d", i), 1))
	}
	w.await("the events", func() bool {
		w.api.events.mu.Lock()
		defer w.api.events.mu.Unlock()
		past := w.api.events.past
		return len(past) == eventsKept && past[eventsKept-1].Actor.ID == fmt.Sprintf("svc%d", eventsKept+9)
	})
	next := w.stream(filtersOf("type", "service") + "&since=1&until=1011")
	for _, want := range []string{"service create web10", "service create web11", "end"} {
		if got := next(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	next = w.stream(filtersOf("type", "service") + "&since=1264")
	for _, want := range []string{"service create web264", "service create web265"} {
		if got := next(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	// Past events of both are told in the order of their time.
	both := w.stream("since=1264")
	w.engine.events <- `{"Type":"container","Action":"start","Actor":{"Attributes":{"name":"x"}},"time":1264,"timeNano":1264500000000}`
	for _, want := range []string{"service create web264", "container start x", "service create web265"} {
		if got := both(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	w.refused("GET", "/events?since=20&until=10", nil, 400, "`since` time (20) cannot be after `until` time (10)")
	if a := w.do("GET", "/events?since=yesterday", nil); a.status != 400 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := w.do("GET", "/events?filters="+url.QueryEscape("{"), nil); a.status != 400 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := w.do("HEAD", "/events?"+filtersOf("type", "node"), nil); a.status != 200 {
		t.Errorf("HEAD: %d", a.status)
	}
}

func TestTheEventStreamEndsWithTheEngines(t *testing.T) {
	w := newWorld(t)
	next := w.stream("")
	close(w.engine.events)
	if got := next(); got != "end" {
		t.Errorf("got %q", got)
	}
}

func TestTheWatchIsTakenUpAgain(t *testing.T) {
	w := newWorld(t)
	w.local.set(swarm.Info{}, nil, errNever) // at first this node is no manager
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.api.Run(ctx) }()
	w.local.set(swarm.Info{}, w.control, nil)
	w.await("the watch", func() bool { return w.control.watching() == 1 })
	w.control.endWatches()
	w.await("another watch", func() bool { return w.control.watching() == 1 })
	next := w.stream(filtersOf("type", "node"))
	w.control.put(t, aNode("node2", "vm2"))
	if got := next(); got != "node create vm2" {
		t.Errorf("got %q", got)
	}
	cancel()
	if err := <-done; err != context.Canceled {
		t.Errorf("Run: %v", err)
	}
}

func TestAReaderThatLagsIsCutOff(t *testing.T) {
	h := newEventHub()
	_, slow, stop := h.subscribe()
	defer stop()
	for range eventsWaiting + 1 {
		h.publish(events.Message{})
	}
	n := 0
	for range slow {
		n++
	}
	if n != eventsWaiting || len(h.readers) != 0 {
		t.Errorf("%d events, %d readers", n, len(h.readers))
	}
}

func TestEventTimes(t *testing.T) {
	now := time.Unix(99, 5)
	n := aNode("node1", "vm1")
	n.CreatedAt, n.UpdatedAt = time.Unix(10, 0), time.Unix(20, 7)
	for _, c := range []struct {
		ev   cluster.Event
		want time.Time
	}{
		{cluster.Event{Action: cluster.Create, New: n}, n.CreatedAt},
		{cluster.Event{Action: cluster.Update, Old: n, New: n}, n.UpdatedAt},
		{cluster.Event{Action: cluster.Remove, Old: n}, now},
	} {
		m, ok := messageOf(&c.ev, now)
		if !ok || m.Time != c.want.Unix() || m.TimeNano != c.want.UnixNano() || m.Scope != "swarm" || m.Actor.ID != "node1" {
			t.Errorf("%v: %+v", c.ev.Action, m)
		}
	}
}
