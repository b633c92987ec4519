package engineapi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

const (
	// logBuffer is how many lines wait between the nodes and the client before the nodes have to wait.
	logBuffer = 256
	// logRetry is the wait before the log of a task that still exists is taken up again, because its node was away or its
	// container is not there yet.
	logRetry = time.Second
	// logSilence is how long a node may say nothing of a log that is there to be read to its end, before its engine is
	// taken to hang and the others' logs are given without it.
	logSilence = 10 * time.Second
)

// logLine is one line of a task's log, or with err set the reason why there is none.
type logLine struct {
	task *cluster.Task
	protocol.LogMessage
	err error
}

// logStream reads the logs of several tasks, each from its node, and writes them as one. Lines of one task keep their
// order; between tasks there is none, as in Swarm.
type logStream struct {
	server  *Server
	control Control
	query   logQuery
	subject logSubject
	out     *logWriter
	lines   chan logLine
	readers sync.WaitGroup
	ended   chan struct{} // says that a reader has ended

	mu     sync.Mutex
	latest map[string]*cluster.Task // guarded by mu; the tasks that are meant, as they were seen last
	nodes  map[string]bool          // guarded by mu; the nodes that are up
	over   bool                     // guarded by mu; no task will come to those that are read
	active int                      // guarded by mu; readers that have not ended

	reading map[string]bool // ids of the tasks, of those that exist, that have or had a reader; run's own
	missing []string        // what could not be read; run's own
}

func newLogStream(s *Server, c Control, q logQuery, subject logSubject, out *logWriter) *logStream {
	return &logStream{server: s, control: c, query: q, subject: subject, out: out, lines: make(chan logLine, logBuffer), ended: make(chan struct{}, 1),
		latest: map[string]*cluster.Task{}, nodes: map[string]bool{}, reading: map[string]bool{}}
}

// run writes until everything is written or, when following, until ctx ends, the client is gone, or what the log is of is gone
// and has said its last.
func (l *logStream) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer func() { cancel(); l.readers.Wait() }()
	if !l.query.follow {
		start, _, stop := l.control.Watch()
		stop()
		l.begin(ctx, start)
		l.drain(ctx)
		return
	}
	for {
		start, changes, stop := l.control.Watch()
		l.begin(ctx, start)
		err := l.follow(ctx, changes)
		stop()
		if _, gone := l.server.cfg.Local.Control(); err != nil || gone != nil {
			return
		}
		select { // the watch lagged; what was missed is in the next snapshot
		case <-ctx.Done():
			return
		case <-time.After(leaderPoll):
		}
	}
}

// drain writes what the readers bring until all have ended, and then what is missing.
func (l *logStream) drain(ctx context.Context) {
	done := make(chan struct{})
	l.readers.Go(func() {}) // so that Wait below cannot run ahead of a first Go
	go func() { l.readers.Wait(); close(done) }()
	for {
		select {
		case <-ctx.Done():
			<-done
			return
		case line := <-l.lines:
			if l.write(line) != nil {
				return
			}
		case <-done:
			for len(l.lines) > 0 {
				if l.write(<-l.lines) != nil {
					return
				}
			}
			if len(l.missing) > 0 {
				slices.Sort(l.missing)
				_ = l.out.systemError("warning: incomplete log stream. some logs could not be retrieved for the following reasons: " +
					strings.Join(slices.Compact(l.missing), ", "))
			}
			_ = l.out.flush()
			return
		}
	}
}

// errLogOver ends a log that is followed: its service or task is gone, and nothing is left to read.
var errLogOver = errors.New("the log is over")

// follow writes lines and takes in new tasks until ctx ends, the client is gone or the log is over (errors) or the watch ends
// (nil).
func (l *logStream) follow(ctx context.Context, changes <-chan []cluster.Event) error {
	for {
		if l.done() && len(l.lines) == 0 {
			return errLogOver
		}
		select {
		case <-l.ended:
		case <-ctx.Done():
			return ctx.Err()
		case line := <-l.lines:
			if err := l.write(line); err != nil {
				return err
			}
		case batch, ok := <-changes:
			if !ok {
				return nil
			}
			for i := range batch {
				l.observe(&batch[i])
				if t, ok := batch[i].New.(*cluster.Task); ok {
					l.add(ctx, t)
				}
			}
		}
	}
}

// begin takes in a snapshot.
func (l *logStream) begin(ctx context.Context, snap *cluster.Snapshot) {
	l.mu.Lock()
	clear(l.latest)
	clear(l.nodes)
	for n := range snap.Nodes() {
		l.nodes[n.ID] = n.Status.State != swarm.NodeStateDown
	}
	l.over = l.subject.over(snap.Object(l.subject.kind, l.subject.id))
	var tasks []*cluster.Task
	for t := range snap.Tasks() {
		if l.subject.meant(t) {
			l.latest[t.ID] = t
			tasks = append(tasks, t)
		}
	}
	maps.DeleteFunc(l.reading, func(id string, _ bool) bool { return l.latest[id] == nil })
	l.mu.Unlock()
	for _, t := range tasks {
		l.add(ctx, t)
	}
}

func (l *logStream) observe(ev *cluster.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ev.ID() == l.subject.id {
		l.over = l.subject.over(ev.New)
	}
	switch o := ev.New.(type) {
	case *cluster.Task:
		if l.subject.meant(o) {
			l.latest[o.ID] = o
		}
	case *cluster.Node:
		l.nodes[o.ID] = o.Status.State != swarm.NodeStateDown
	case nil:
		delete(l.latest, ev.ID())
		delete(l.nodes, ev.ID())
		delete(l.reading, ev.ID()) // it does not come back
	}
}

// add starts to read a task's log if it is meant, has one and is not read already.
func (l *logStream) add(ctx context.Context, t *cluster.Task) {
	if !l.subject.meant(t) || l.reading[t.ID] || !hasLog(t, l.query.follow) {
		return
	}
	l.reading[t.ID] = true
	l.mu.Lock()
	l.active++
	l.mu.Unlock()
	l.readers.Go(func() {
		l.read(ctx, t)
		l.mu.Lock()
		l.active--
		l.mu.Unlock()
		select {
		case l.ended <- struct{}{}:
		default: // it is said already
		}
	})
}

// done says whether all has been read that can be.
func (l *logStream) done() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.over && l.active == 0
}

// read brings a task's log. When following it takes the log up again after every break until the task has ended.
func (l *logStream) read(ctx context.Context, t *cluster.Task) {
	var last time.Time
	told := false
	for {
		var from time.Time
		if !last.IsZero() {
			from = last.Add(time.Nanosecond)
		}
		err := l.readOnce(ctx, t, from, func(m protocol.LogMessage) error {
			last, told = m.Timestamp, false
			return l.send(ctx, logLine{task: t, LogMessage: m})
		})
		now, away := l.state(t)
		ended := now == nil || cluster.Terminal(now.Status.State)
		// The container of a task that has ended may be gone, which is no loss worth telling, and that of one that is
		// being prepared is not there yet. An election is over in a moment.
		worth := err != nil && !told && (!l.query.follow || !errors.Is(err, errLeaderGone)) &&
			(away || !ended && now.Status.State == swarm.TaskStateRunning || errors.As(err, new(*silentError)))
		if worth && ctx.Err() == nil {
			told = true
			if l.send(ctx, logLine{task: t, err: err}) != nil {
				return
			}
		}
		if !l.query.follow || ended && !errors.Is(err, errLeaderGone) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(logRetry):
		}
	}
}

// silentError: a node has not said anything for logSilence.
type silentError struct{ node string }

func (e *silentError) Error() string {
	return fmt.Sprintf("node %s has not answered for %s", e.node, logSilence)
}

// readOnce reads a task's log until its end or a break. Without follow there is always something to hear: the next line or
// the end.
func (l *logStream) readOnce(ctx context.Context, t *cluster.Task, from time.Time, each func(protocol.LogMessage) error) error {
	req := l.query.request(t.ID, from)
	if l.query.follow {
		return l.server.readTaskLog(ctx, l.control, t, req, each)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	silence := time.AfterFunc(logSilence, func() { cancel(&silentError{t.NodeID}) })
	defer func() { silence.Stop(); cancel(nil) }()
	err := l.server.readTaskLog(ctx, l.control, t, req, func(m protocol.LogMessage) error {
		silence.Stop() // while the client takes its time
		defer silence.Reset(logSilence)
		return each(m)
	})
	if silent := new(silentError); err != nil && errors.As(context.Cause(ctx), &silent) {
		return silent
	}
	return err
}

// state gives the task as it was seen last, nil if it is gone, and whether its node is away and may come back with its logs. What was on
// a node that was removed is history, as what was in a container that is gone.
func (l *logStream) state(t *cluster.Task) (now *cluster.Task, away bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	up, known := l.nodes[t.NodeID]
	return l.latest[t.ID], known && !up
}

func (l *logStream) send(ctx context.Context, line logLine) error {
	select {
	case l.lines <- line:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// write writes one line, and sends off what is written when no other waits. What is missing is told at the end; a stream
// that follows has none, and an error in it would make clients stop reading, so there it is a line of the task.
func (l *logStream) write(line logLine) error {
	switch {
	case line.err == nil:
		if err := l.out.line(line.task, line.LogMessage); err != nil {
			return err
		}
	case l.query.follow:
		note := protocol.LogMessage{Timestamp: time.Now(), Stream: "stderr",
			Data: []byte("miniswarm: " + line.err.Error() + "; the log goes on when it can be read again\n")}
		if err := l.out.line(line.task, note); err != nil {
			return err
		}
	default:
		l.missing = append(l.missing, line.err.Error())
	}
	if len(l.lines) == 0 {
		return l.out.flush()
	}
	return nil
}
