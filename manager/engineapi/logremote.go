package engineapi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// errLeaderGone ends a log that was read through a leader that is no more. It can be taken up again through the next one.
var errLeaderGone = errors.New("the leader through which the log was read does not answer any more")

// logFlush is how long lines wait for others on their way from the leader.
const logFlush = 20 * time.Millisecond

// relayedLine is one document of the answer to GET /miniswarm/tasks/{id}/log: a line, or the end.
type relayedLine struct {
	Line *protocol.LogMessage `json:",omitempty"`
	End  *protocol.LogEnd     `json:",omitempty"`
}

// readTaskLog reads a task's log: through this manager if it leads, and else through the leader, since only that has
// sessions with the nodes.
func (s *Server) readTaskLog(ctx context.Context, c Control, t *cluster.Task, req protocol.LogRequest, each func(protocol.LogMessage) error) error {
	self, id, addr := c.Leader()
	switch {
	case self:
		return c.TaskLogs(ctx, t.NodeID, req, each)
	case addr == "":
		return errLeaderGone
	}
	q := url.Values{"node": {t.NodeID}, "since": {req.Since}, "tail": {req.Tail}}
	for name, on := range map[string]bool{"stdout": req.Stdout, "stderr": req.Stderr, "follow": req.Follow, "details": req.Details} {
		q.Set(name, strconv.FormatBool(on))
	}
	u := url.URL{Scheme: "https", Host: addr, Path: protocol.PathEngine + "/miniswarm/tasks/" + t.ID + "/log", RawQuery: q.Encode()}
	hr, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	hr.Header.Set(headerForwarded, s.cfg.Local.Info().NodeID)
	resp, err := c.Forward(id).RoundTrip(hr)
	if err != nil {
		return fmt.Errorf("%w: %w", errLeaderGone, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusMisdirectedRequest {
		return errLeaderGone
	}
	if resp.StatusCode != http.StatusOK {
		return decodeAnswer(resp, nil)
	}
	for dec := json.NewDecoder(resp.Body); ; {
		var d relayedLine
		switch err := dec.Decode(&d); {
		case err != nil:
			return fmt.Errorf("%w: %w", errLeaderGone, err)
		case d.End != nil && d.End.Err != "":
			return errors.New(d.End.Err)
		case d.End != nil:
			return nil
		case d.Line != nil:
			if err := each(*d.Line); err != nil {
				return err
			}
		}
	}
}

// relayTaskLog is the leader's side of readTaskLog.
func (s *Server) relayTaskLog(c Control, w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	req := protocol.LogRequest{TaskID: r.PathValue("id"), Stdout: flag(r, "stdout"), Stderr: flag(r, "stderr"), Follow: flag(r, "follow"),
		Details: flag(r, "details"), Since: q.Get("since"), Tail: q.Get("tail")}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	out := &batchWriter{buf: bufio.NewWriterSize(w, 32<<10), send: http.NewResponseController(w).Flush}
	defer out.close()
	enc := json.NewEncoder(out)
	err := c.TaskLogs(r.Context(), q.Get("node"), req, func(m protocol.LogMessage) error { return enc.Encode(relayedLine{Line: &m}) })
	end := protocol.LogEnd{}
	if err != nil {
		end.Err = err.Error()
	}
	_ = enc.Encode(relayedLine{End: &end}) // an error is that of a connection that nobody reads any more
	return nil
}

// batchWriter sends what is written within a short time together.
type batchWriter struct {
	mu    sync.Mutex
	buf   *bufio.Writer // guarded by mu
	send  func() error
	timer *time.Timer // guarded by mu; nil while nothing waits
	done  bool        // guarded by mu
}

func (b *batchWriter) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timer == nil {
		b.timer = time.AfterFunc(logFlush, b.flush)
	}
	return b.buf.Write(p)
}

func (b *batchWriter) flush() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.done {
		return
	}
	b.timer = nil
	if b.buf.Flush() == nil {
		_ = b.send()
	}
}

// close sends the rest. Afterwards no timer touches the connection.
func (b *batchWriter) close() {
	b.flush()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done = true
	if b.timer != nil {
		b.timer.Stop()
	}
}
