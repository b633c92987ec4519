package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// relayBytes bounds the log data of one request that waits for a slow reader. Waiting must not reach back into the
// session, whose heartbeats travel on the same connection; past the bound the request ends with an error instead.
const relayBytes = 64 << 20

// lineOverhead is what a line takes besides its text and details.
const lineOverhead = 128

// errSlowReader ends a log request whose reader does not keep up.
var errSlowReader = errors.New("the reader of the log is too slow; ask for less with --tail or --since")

// logRelay carries one task's log from its node to one reader.
type logRelay struct {
	session *session      // through which it comes
	more    chan struct{} // capacity 1: something was added or the log ended

	mu    sync.Mutex
	lines []protocol.LogMessage // guarded by mu
	bytes int                   // guarded by mu
	ended bool                  // guarded by mu
	err   error                 // guarded by mu
}

func (r *logRelay) add(m protocol.LogMessage) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return
	}
	if r.bytes += len(m.Data) + len(m.Details) + lineOverhead; r.bytes > relayBytes {
		r.ended, r.err = true, errSlowReader
	} else {
		r.lines = append(r.lines, m)
	}
	r.signal()
}

func (r *logRelay) end(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ended {
		r.ended, r.err = true, err
		r.signal()
	}
}

func (r *logRelay) signal() { kick(r.more) }

// take gives what has arrived and whether the log has ended behind it.
func (r *logRelay) take() (lines []protocol.LogMessage, ended bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	lines, r.lines, r.bytes = r.lines, nil, 0
	return lines, r.ended, r.err
}

// TaskLogs reads the log of a task from its node and calls each for every line, until the log ends (nil), the node
// goes away, or ctx ends. req.ID is filled in.
func (d *Dispatcher) TaskLogs(ctx context.Context, nodeID string, req protocol.LogRequest, each func(protocol.LogMessage) error) error {
	req.ID = d.cfg.IDs.Next()
	d.mu.Lock()
	s := d.sessions[nodeID]
	if s == nil {
		d.mu.Unlock()
		return fmt.Errorf("node %s is not available", nodeID)
	}
	r := &logRelay{session: s, more: make(chan struct{}, 1)}
	d.logs[req.ID] = r
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		delete(d.logs, req.ID)
		d.mu.Unlock()
		s.post(protocol.ToAgent{LogCancel: &protocol.LogCancel{ID: req.ID}})
	}()
	s.post(protocol.ToAgent{LogRequest: &req})
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.more:
		}
		lines, ended, err := r.take()
		for _, m := range lines {
			if err := each(m); err != nil {
				return err
			}
		}
		if ended {
			return err
		}
	}
}

// relay passes a line on to who asked this session for it.
func (d *Dispatcher) relay(from *session, m protocol.LogMessage) {
	if r := d.relayOf(from, m.ID); r != nil {
		r.add(m)
	}
}

func (d *Dispatcher) endRelay(from *session, e protocol.LogEnd) {
	r := d.relayOf(from, e.ID)
	switch {
	case r == nil:
	case e.Err != "":
		r.end(fmt.Errorf("node %s: %s", from.nodeID, e.Err))
	default:
		r.end(nil)
	}
}

func (d *Dispatcher) relayOf(from *session, id string) *logRelay {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r := d.logs[id]; r != nil && r.session == from {
		return r
	}
	return nil
}
