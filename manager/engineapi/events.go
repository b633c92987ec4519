package engineapi

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	timetypes "github.com/docker/docker/api/types/time"
)

// backlogPause is how long past events of the swarm wait for earlier ones of the engine, so that the past is told in
// its order.
const backlogPause = 100 * time.Millisecond

// eventRequest is what a client asks of /events.
type eventRequest struct {
	args         filters.Args
	since, until time.Time // zero: not given
}

func readEventRequest(r *http.Request) (eventRequest, error) {
	var req eventRequest
	q := r.URL.Query()
	for name, at := range map[string]*time.Time{"since": &req.since, "until": &req.until} {
		sec, nano, err := timetypes.ParseTimestamps(q.Get(name), -1)
		if err != nil {
			return req, errorf(http.StatusBadRequest, "invalid value for %s: %v", name, err)
		}
		if sec != -1 {
			*at = time.Unix(sec, nano)
		}
	}
	if !req.until.IsZero() && req.until.Before(req.since) {
		return req, errorf(http.StatusBadRequest, "`since` time (%s) cannot be after `until` time (%s)", q.Get("since"), q.Get("until"))
	}
	var err error
	if req.args, err = filters.FromJSON(q.Get("filters")); err != nil {
		return req, errorf(http.StatusBadRequest, "%v", err)
	}
	return req, nil
}

// swarmOnly says that the engine has nothing to add, so that it need not even be running.
func (q *eventRequest) swarmOnly() bool {
	types, scopes := q.args.Get("type"), q.args.Get("scope")
	return len(types) > 0 && !slices.ContainsFunc(types, func(t string) bool { return !swarmEventTypes[t] }) ||
		len(scopes) > 0 && !slices.ContainsFunc(scopes, func(s string) bool { return s != scopeSwarm })
}

// wants says whether a swarm event is one of those asked for.
func (q *eventRequest) wants(m events.Message) bool {
	at := time.Unix(0, m.TimeNano)
	return !at.Before(q.since) && (q.until.IsZero() || !at.After(q.until)) && eventPasses(q.args, m)
}

// streamEvents merges the engine's events with those of the swarm.
func (s *Server) streamEvents(w http.ResponseWriter, r *http.Request) error {
	req, err := readEventRequest(r)
	if err != nil {
		return err
	}
	past, next, stop := s.events.subscribe()
	defer stop()
	if req.since.IsZero() {
		past = nil
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	var fromEngine io.ReadCloser
	if !req.swarmOnly() {
		resp, err := s.engine.open(ctx, http.MethodGet, versionedPath(r, "/events"), r.URL.Query(), nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return decodeAnswer(resp, nil)
		}
		fromEngine = resp.Body
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(w)
	_ = rc.Flush()
	if r.Method == http.MethodHead {
		return nil
	}
	m := &eventMerger{w: w, flush: rc.Flush, req: req}
	for _, ev := range past {
		if req.wants(ev) {
			m.backlog = append(m.backlog, ev)
		}
	}
	m.run(ctx, cancel, fromEngine, next)
	return nil
}

// eventMerger writes one stream of two.
type eventMerger struct {
	w       io.Writer
	flush   func() error
	req     eventRequest
	backlog []events.Message // past events of the swarm that are not written yet
}

// run writes until the request, its until, or one of the sources ends. A source that ends before its time ends the stream,
// so that the client knows that it misses something.
func (m *eventMerger) run(ctx context.Context, cancel context.CancelFunc, fromEngine io.Reader, fromSwarm <-chan events.Message) {
	var lines chan []byte // nil: the engine has nothing to say
	var reader sync.WaitGroup
	if fromEngine != nil {
		lines = make(chan []byte)
		reader.Go(func() { readLines(ctx, fromEngine, lines) })
	}
	defer func() { cancel(); reader.Wait() }()
	var over <-chan time.Time
	if !m.req.until.IsZero() {
		t := time.NewTimer(max(time.Until(m.req.until), 0))
		defer t.Stop()
		over = t.C
	}
	settled := time.NewTimer(backlogPause)
	defer settled.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-settled.C:
			err = m.writePast(time.Now())
		case line, ok := <-lines:
			if !ok {
				lines = nil
				if over == nil {
					_ = m.writePast(time.Now())
					return
				}
				continue
			}
			err = m.writeLine(line)
		case ev, ok := <-fromSwarm:
			if !ok {
				return
			}
			if err = m.writePast(time.Now()); err == nil && m.req.wants(ev) {
				err = m.write(ev)
			}
		case <-over:
			m.finish(ctx, lines)
			return
		}
		if err != nil {
			return // the client is gone
		}
	}
}

// finish writes what the engine still has to say of a time that is over: it ends its stream by itself.
func (m *eventMerger) finish(ctx context.Context, lines <-chan []byte) {
	grace := time.NewTimer(5 * time.Second)
	defer grace.Stop()
	for lines != nil {
		select {
		case <-ctx.Done():
			return
		case <-grace.C:
			lines = nil
		case line, ok := <-lines:
			if !ok {
				lines = nil
			} else if m.writeLine(line) != nil {
				return
			}
		}
	}
	_ = m.writePast(time.Now())
}

// readLines gives the lines of r until its end or ctx's, and closes lines.
func readLines(ctx context.Context, r io.Reader, lines chan<- []byte) {
	defer close(lines)
	scan := bufio.NewScanner(r)
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		select {
		case lines <- append([]byte(nil), scan.Bytes()...):
		case <-ctx.Done():
			return
		}
	}
}

// writeLine writes an event of the engine as it is, after those of the swarm that came before it.
func (m *eventMerger) writeLine(line []byte) error {
	var at struct {
		TimeNano int64 `json:"timeNano"`
	}
	if len(m.backlog) > 0 && json.Unmarshal(line, &at) == nil {
		if err := m.writePast(time.Unix(0, at.TimeNano)); err != nil {
			return err
		}
	}
	if _, err := m.w.Write(append(line, '\n')); err != nil {
		return err
	}
	return m.flush()
}

// writePast writes the past events of the swarm up to a time.
func (m *eventMerger) writePast(until time.Time) error {
	for len(m.backlog) > 0 && m.backlog[0].TimeNano <= until.UnixNano() {
		ev := m.backlog[0]
		m.backlog = m.backlog[1:]
		if err := m.write(ev); err != nil {
			return err
		}
	}
	return nil
}

func (m *eventMerger) write(ev events.Message) error {
	enc := json.NewEncoder(m.w)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(ev); err != nil {
		return err
	}
	return m.flush()
}
