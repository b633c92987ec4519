package engineapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/pkg/stdcopy"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// following opens a log that follows and gives its lines.
func (w *world) following(path string) (next func() string, stop func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://docker"+path, nil)
	resp, err := w.http.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	pr, pw := io.Pipe()
	go func() {
		_, err := stdcopy.StdCopy(pw, pw, resp.Body)
		pw.CloseWithError(err)
	}()
	scan := bufio.NewScanner(pr)
	w.t.Cleanup(func() { cancel(); resp.Body.Close(); pr.Close() })
	return func() string {
		if !scan.Scan() {
			return fmt.Sprint("end ", scan.Err())
		}
		return scan.Text()
	}, cancel
}

func TestFollowTakesInNewTasksAndNodesThatComeBack(t *testing.T) {
	w := logWorld(t)
	svc := w.control.snapshot().Service("svc1")
	ended := make(chan struct{})
	w.control.setLog("task1", func(ctx context.Context, req protocol.LogRequest, each func(protocol.LogMessage) error) error {
		defer close(ended)
		if err := lines("stdout", "one")(ctx, req, each); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	})
	next, stop := w.following("/services/web/logs?stdout=1&stderr=1&follow=1&tail=3")
	got := []string{next(), next()}
	slices.Sort(got)
	if want := []string{"miniswarm: node node2 is not available; the log goes on when it can be read again", "one"}; !slices.Equal(got, want) {
		t.Fatalf("got %q", got)
	}
	// A new task of the service is taken in when it has a node.
	w.control.setLog("task3", func(ctx context.Context, req protocol.LogRequest, each func(protocol.LogMessage) error) error {
		_ = lines("stdout", "three")(ctx, req, each)
		<-ctx.Done()
		return ctx.Err()
	})
	w.control.put(t, aTask("task3", svc, 3, "node1", swarm.TaskStateRunning))
	if got := next(); got != "three" {
		t.Errorf("the new task: %q", got)
	}
	// Taken up again, a log goes on after the last line.
	var since sync.Map
	w.control.setLog("task2", func(ctx context.Context, req protocol.LogRequest, each func(protocol.LogMessage) error) error {
		since.Store(req.Since+" "+req.Tail, true)
		if req.Since == "" {
			_ = lines("stdout", "first")(ctx, req, each)
			return errors.New("node node2: gone again")
		}
		_ = lines("stdout", "second")(ctx, req, each)
		<-ctx.Done()
		return ctx.Err()
	})
	for _, want := range []string{"first", "miniswarm: node node2: gone again; the log goes on when it can be read again", "second"} {
		if got := next(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if _, ok := since.Load("1970-01-01T00:01:40.000000006Z all"); !ok {
		t.Error("the log was not taken up after its last line")
	}
	stop()
	<-ended // a client that goes away ends the readers
}

// What is gone says nothing any more: a log that is followed ends with its service or its task, after the last line.
func TestFollowEndsWithWhatItIsOf(t *testing.T) {
	for _, c := range []struct {
		path string
		end  func(w *world)
	}{
		{"/services/web", func(w *world) { w.do("DELETE", "/services/web", nil) }},
		{"/tasks/task1", func(w *world) {
			task := *w.control.snapshot().Task("task1")
			task.Status.State = swarm.TaskStateFailed
			w.control.put(t, &task)
		}},
	} {
		w := logWorld(t)
		stopped := make(chan struct{})
		w.control.setLog("task1", func(ctx context.Context, req protocol.LogRequest, each func(protocol.LogMessage) error) error {
			if req.Since != "" {
				return nil // taken up again before it was known that the task has ended
			}
			_ = lines("stdout", "running")(ctx, req, each)
			select {
			case <-stopped:
				return lines("stdout", "last words")(ctx, req, each)
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		w.control.setLog("task2", lines("stdout"))
		next, _ := w.following(c.path + "/logs?stdout=1&follow=1")
		if got := next(); got != "running" {
			t.Errorf("%s: got %q", c.path, got)
		}
		c.end(w)
		for _, id := range []string{"task1", "task2"} { // as the orchestrator has it once the containers have ended
			task := *w.control.snapshot().Task(id)
			task.Status.State = swarm.TaskStateShutdown
			w.control.put(t, &task)
		}
		close(stopped)
		for _, want := range []string{"last words", "end"} {
			if got := next(); !strings.HasPrefix(got, want) {
				t.Errorf("%s: got %q, want %q", c.path, got, want)
			}
		}
	}
}

func TestFollowSurvivesAWatchThatLags(t *testing.T) {
	w := logWorld(t)
	svc := w.control.snapshot().Service("svc1")
	wait := func(ctx context.Context, _ protocol.LogRequest, _ func(protocol.LogMessage) error) error {
		<-ctx.Done()
		return ctx.Err()
	}
	w.control.setLog("task1", wait)
	w.control.setLog("task2", wait)
	w.control.setLog("task4", lines("stdout", "four"))
	next, _ := w.following("/services/web/logs?stdout=1&follow=1")
	w.await("the watch", func() bool { return w.control.watching() == 1 })
	w.control.endWatches()
	w.control.put(t, aTask("task4", svc, 3, "node1", swarm.TaskStateRunning))
	if got := next(); got != "four" {
		t.Errorf("got %q", got)
	}
}

// TestALogThatFollowsForgetsTasksThatAreGone: it may follow for months.
func TestALogThatFollowsForgetsTasksThatAreGone(t *testing.T) {
	w := logWorld(t)
	snap := w.control.snapshot()
	l := newLogStream(nil, w.control, logQuery{}, logSubject{kind: cluster.KindService}, nil) // of nothing that is there to be read
	l.reading["task1"], l.reading["long gone"] = true, true
	l.begin(t.Context(), snap)
	if len(l.reading) != 0 {
		t.Errorf("a new beginning keeps %v", l.reading)
	}
	l.reading["task1"] = true
	l.observe(&cluster.Event{Kind: cluster.KindTask, Old: snap.Task("task1")})
	if len(l.reading) != 0 {
		t.Errorf("the end of a task keeps %v", l.reading)
	}
}
