package engineapi

import (
	"bufio"
	"encoding/binary"
	"io"
	"net/url"
	"slices"
	"strings"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// The streams of Docker's multiplexed format.
const (
	streamStdout = 1
	streamStderr = 2
	streamSystem = 3
)

// stampForm is RFC 3339 with all nine digits of the fraction, so that stamps are equally long.
const stampForm = "2006-01-02T15:04:05.000000000Z07:00"

// logWriter writes log lines as Docker frames them (swarm-semantics, 10.6): for a TTY as they are, and otherwise each in a
// frame of {stream, 0, 0, 0, length as 4 bytes big-endian} and the text. It is used by one goroutine.
type logWriter struct {
	w       *bufio.Writer
	send    func() error
	query   logQuery
	tty     bool
	scratch []byte
}

func newLogWriter(w io.Writer, send func() error, q logQuery, tty bool) *logWriter {
	return &logWriter{w: bufio.NewWriterSize(w, 32<<10), send: send, query: q, tty: tty}
}

// line writes a line of a task: [timestamp ][details ]text.
func (l *logWriter) line(t *cluster.Task, m protocol.LogMessage) error {
	stream := byte(streamStdout)
	if m.Stream == "stderr" {
		stream = streamStderr
	}
	if stream == streamStdout && !l.query.stdout || stream == streamStderr && !l.query.stderr {
		return nil
	}
	b := l.scratch[:0]
	if l.query.timestamps {
		b = append(m.Timestamp.UTC().AppendFormat(b, stampForm), ' ')
	}
	if l.query.details {
		b = append(appendDetails(b, t, m.Details), ' ')
	}
	b = append(b, m.Data...)
	l.scratch = b
	return l.frame(stream, b)
}

// appendDetails appends where a line comes from and what the node added to it, in the order of the keys. Clients that show
// task and node names depend on the first.
func appendDetails(b []byte, t *cluster.Task, more string) []byte {
	details := []string{"com.docker.swarm.node.id=" + url.QueryEscape(t.NodeID), "com.docker.swarm.service.id=" + url.QueryEscape(t.ServiceID),
		"com.docker.swarm.task.id=" + url.QueryEscape(t.ID)}
	if more != "" {
		details = append(details, strings.Split(more, ",")...)
		slices.Sort(details)
	}
	return append(b, strings.Join(details, ",")...)
}

// systemError writes an error into the stream; clients show it and stop reading.
func (l *logWriter) systemError(text string) error {
	return l.frame(streamSystem, []byte("Error grabbing logs: "+text+"\n"))
}

func (l *logWriter) frame(stream byte, text []byte) error {
	if !l.tty {
		head := [8]byte{stream}
		binary.BigEndian.PutUint32(head[4:], uint32(len(text)))
		if _, err := l.w.Write(head[:]); err != nil {
			return err
		}
	}
	_, err := l.w.Write(text)
	return err
}

// flush sends off what was written.
func (l *logWriter) flush() error {
	if err := l.w.Flush(); err != nil {
		return err
	}
	return l.send()
}
