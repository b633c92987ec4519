package agent

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"

	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// maxLogLine bounds a line of a log; longer ones are cut into several, as the engine itself does at 16 KiB.
const maxLogLine = 64 << 10

// logRequests are the running log requests of a session. start and cancel are called by the session's reader.
type logRequests struct {
	ctx     context.Context
	wg      sync.WaitGroup
	mu      sync.Mutex
	running map[string]context.CancelFunc // guarded by mu; by request id
}

func (l *logRequests) begin(ctx context.Context) {
	l.ctx, l.running = ctx, map[string]context.CancelFunc{}
}

// end waits for all; their context must have ended.
func (l *logRequests) end() { l.wg.Wait() }

func (l *logRequests) start(a *Agent, send func(protocol.FromAgent) error, req protocol.LogRequest) {
	ctx, cancel := context.WithCancel(l.ctx)
	l.mu.Lock()
	l.running[req.ID] = cancel
	l.mu.Unlock()
	l.wg.Go(func() {
		defer l.cancel(req.ID)
		end := protocol.LogEnd{ID: req.ID}
		if err := a.sendLog(ctx, send, req); err != nil {
			end.Err = err.Error()
		}
		if ctx.Err() == nil {
			_ = send(protocol.FromAgent{LogEnd: &end})
		}
	})
}

func (l *logRequests) cancel(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if cancel := l.running[id]; cancel != nil {
		cancel()
		delete(l.running, id)
	}
}

// sendLog sends the log of a task line by line. Following a task that has not been started waits for it.
func (a *Agent) sendLog(ctx context.Context, send func(protocol.FromAgent) error, req protocol.LogRequest) error {
	r := a.worker.runnerOf(req.TaskID)
	if r == nil {
		return fmt.Errorf("task %s is not on this node", req.TaskID)
	}
	if req.Follow && !r.begun(ctx) {
		return nil // it has ended without saying anything
	}
	_, st := r.current()
	if st.ContainerStatus == nil || st.ContainerStatus.ContainerID == "" {
		return fmt.Errorf("task %s has not been started", req.TaskID)
	}
	c, err := a.cfg.Engine.Inspect(ctx, st.ContainerStatus.ContainerID)
	if err != nil {
		return fmt.Errorf("log of task %s: %w", req.TaskID, err)
	}
	body, err := a.cfg.Engine.Logs(ctx, c.ID, container.LogsOptions{ShowStdout: req.Stdout, ShowStderr: req.Stderr, Follow: req.Follow,
		Details: req.Details, Since: req.Since, Tail: req.Tail, Timestamps: true})
	if err != nil {
		return fmt.Errorf("log of task %s: %w", req.TaskID, err)
	}
	defer body.Close()
	unblock := context.AfterFunc(ctx, func() { _ = body.Close() })
	defer unblock()

	line := func(stream string) *lineWriter {
		return &lineWriter{details: req.Details, emit: func(m protocol.LogMessage) error {
			m.ID, m.Stream = req.ID, stream
			return send(protocol.FromAgent{LogChunk: &m})
		}}
	}
	stdout, stderr := line("stdout"), line("stderr")
	if c.Config.Tty {
		_, err = io.Copy(stdout, body)
	} else {
		_, err = stdcopy.StdCopy(stdout, stderr, body)
	}
	for _, w := range []*lineWriter{stdout, stderr} {
		if err == nil {
			err = w.flush()
		}
	}
	if err != nil {
		return fmt.Errorf("log of task %s: %w", req.TaskID, err)
	}
	return nil
}

// lineWriter cuts what is written into lines of the form "TIMESTAMP text", or with details "TIMESTAMP DETAILS text".
type lineWriter struct {
	details bool
	emit    func(protocol.LogMessage) error
	rest    []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.rest = append(w.rest, p...)
	for {
		i := bytes.IndexByte(w.rest, '\n')
		if i < 0 && len(w.rest) < maxLogLine {
			return len(p), nil
		}
		if i < 0 {
			i = len(w.rest) - 1
		}
		if err := w.line(w.rest[:i+1]); err != nil {
			return 0, err
		}
		w.rest = w.rest[i+1:]
	}
}

func (w *lineWriter) flush() error {
	if len(w.rest) == 0 {
		return nil
	}
	return w.line(w.rest)
}

func (w *lineWriter) line(raw []byte) error {
	var m protocol.LogMessage
	if stamp, text, ok := bytes.Cut(raw, []byte(" ")); ok {
		if at, err := time.Parse(time.RFC3339Nano, string(stamp)); err == nil {
			m.Timestamp, raw = at, text
			if details, text, ok := bytes.Cut(raw, []byte(" ")); ok && w.details { // empty where there are none
				m.Details, raw = string(details), text
			}
		}
	}
	m.Data = bytes.Clone(raw)
	return w.emit(m)
}
