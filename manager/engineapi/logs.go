package engineapi

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/swarm"
	timetypes "github.com/docker/docker/api/types/time"
	"github.com/docker/docker/api/types/versions"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// logQuery is what a client asks of a log.
type logQuery struct {
	stdout, stderr, follow, timestamps, details bool
	since                                       time.Time // zero: from the beginning
	tail                                        string    // "all" or a number of lines of each task
}

// readLogQuery reads the query with Docker's words (swarm-semantics, 10.6).
func readLogQuery(r *http.Request) (logQuery, error) {
	q := logQuery{stdout: flag(r, "stdout"), stderr: flag(r, "stderr"), follow: flag(r, "follow"), timestamps: flag(r, "timestamps"),
		details: flag(r, "details"), tail: "all"}
	if !q.stdout && !q.stderr {
		return q, errorf(http.StatusBadRequest, "must specify at least one of 'stdout' or 'stderr'")
	}
	if raw := r.URL.Query().Get("tail"); raw != "" && raw != "all" {
		n, err := strconv.Atoi(raw)
		switch {
		case err != nil:
			return q, errorf(http.StatusInternalServerError, `tail value must be a positive integer or "all"`)
		case n < 0:
			return q, errorf(http.StatusInternalServerError, "negative tail values not supported")
		}
		q.tail = strconv.Itoa(n)
	}
	if raw := r.URL.Query().Get("since"); raw != "" {
		sec, nano, err := timetypes.ParseTimestamps(raw, 0)
		if err != nil {
			return q, errorf(http.StatusBadRequest, "could not parse since timestamp: %v", err)
		}
		if sec != 0 || nano != 0 {
			q.since = time.Unix(sec, nano)
		}
	}
	return q, nil
}

// request gives what to ask a task's node. from overrides since where it is later, when a log is taken up again.
func (q *logQuery) request(taskID string, from time.Time) protocol.LogRequest {
	req := protocol.LogRequest{TaskID: taskID, Stdout: q.stdout, Stderr: q.stderr, Follow: q.follow, Details: q.details, Tail: q.tail}
	since := q.since
	if from.After(since) {
		since, req.Tail = from, "all"
	}
	if !since.IsZero() {
		req.Since = since.UTC().Format(time.RFC3339Nano)
	}
	return req
}

func (s *Server) serviceLogs(w http.ResponseWriter, r *http.Request) error {
	return s.logs(w, r, func(snap *cluster.Snapshot, ref string) (*swarm.ContainerSpec, logSubject, error) {
		svc, err := find[*cluster.Service](snap, cluster.KindService, ref)
		if err != nil {
			return nil, logSubject{}, err
		}
		return svc.Spec.TaskTemplate.ContainerSpec, logSubject{cluster.KindService, svc.ID}, nil
	})
}

func (s *Server) taskLogs(w http.ResponseWriter, r *http.Request) error {
	return s.logs(w, r, func(snap *cluster.Snapshot, ref string) (*swarm.ContainerSpec, logSubject, error) {
		t, err := findTask(snap, ref)
		if err != nil {
			return nil, logSubject{}, err
		}
		return t.Spec.ContainerSpec, logSubject{cluster.KindTask, t.ID}, nil
	})
}

// logSubject is what a log is of: a service with all its tasks, or one task.
type logSubject struct {
	kind cluster.Kind
	id   string
}

// meant says whether a task's log is part of it.
func (s logSubject) meant(t *cluster.Task) bool {
	if s.kind == cluster.KindService {
		return t.ServiceID == s.id
	}
	return t.ID == s.id
}

// over says whether nothing can come any more that is not there yet: o is the subject as it is now, nil once it is gone.
func (s logSubject) over(o cluster.Object) bool {
	t, isTask := o.(*cluster.Task)
	return o == nil || isTask && cluster.Terminal(t.Status.State)
}

// whose finds what a log is asked of, and the specification of its containers.
type whose func(snap *cluster.Snapshot, ref string) (*swarm.ContainerSpec, logSubject, error)

// logs answers with the logs of all tasks that are meant. Every manager does that by itself, so that a log goes on when the
// leader changes; only the lines come through the leader. From the first byte on errors can only be told in the stream.
func (s *Server) logs(w http.ResponseWriter, r *http.Request, find whose) error {
	c, err := s.cfg.Local.Control()
	if err != nil {
		return err
	}
	q, err := readLogQuery(r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), managerTimeout)
	defer cancel()
	snap, err := c.Read(ctx)
	if err != nil {
		return err
	}
	spec, subject, err := find(snap, r.PathValue("id"))
	switch {
	case err != nil:
		return err
	case spec == nil:
		return errorf(http.StatusInternalServerError, "logs only supported on container tasks")
	}
	here := func(c Control, w http.ResponseWriter, r *http.Request) error {
		s.streamLogs(c, w, r, q, spec.TTY, subject)
		return nil
	}
	if self, _, _ := c.Leader(); !self && tooManyLogs(snap, q.follow, subject) {
		s.streaming(here).ServeHTTP(w, r)
		return nil
	}
	return here(c, w, r)
}

// maxRemoteLogs is how many logs a manager reads through the leader, with a connection for each. Of more the leader makes
// one stream, which ends with its term.
const maxRemoteLogs = 64

func tooManyLogs(snap *cluster.Snapshot, follow bool, subject logSubject) bool {
	n := 0
	for t := range snap.Tasks() {
		if subject.meant(t) && hasLog(t, follow) {
			n++
		}
	}
	return n > maxRemoteLogs
}

func (s *Server) streamLogs(c Control, w http.ResponseWriter, r *http.Request, q logQuery, tty bool, subject logSubject) {
	contentType := types.MediaTypeRawStream
	if !tty && !versions.LessThan(apiVersion(r), "1.42") {
		contentType = types.MediaTypeMultiplexedStream
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(w)
	_ = rc.Flush()
	if r.Method == http.MethodHead {
		return
	}
	newLogStream(s, c, q, subject, newLogWriter(w, rc.Flush, q, tty)).run(r.Context())
}

// hasLog says whether a task may have something to read: without follow only what has run, as in Swarm.
func hasLog(t *cluster.Task, follow bool) bool {
	return t.NodeID != "" && (follow && !cluster.Before(t.Status.State, swarm.TaskStateAssigned) || !cluster.Before(t.Status.State, swarm.TaskStateRunning))
}
