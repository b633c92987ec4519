package engineapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker/docker/api/types/swarm"
	"github.com/docker/docker/pkg/stdcopy"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

type logReader = func(context.Context, protocol.LogRequest, func(protocol.LogMessage) error) error

// lines is a log that ends.
func lines(stream string, text ...string) logReader {
	return func(_ context.Context, _ protocol.LogRequest, each func(protocol.LogMessage) error) error {
		for i, s := range text {
			if err := each(protocol.LogMessage{Timestamp: time.Unix(100+int64(i), 5), Stream: stream, Data: []byte(s + "\n")}); err != nil {
				return err
			}
		}
		return nil
	}
}

// logWorld has a service with a task on each of two nodes.
func logWorld(t *testing.T) *world {
	w := newWorld(t)
	svc := aService("svc1", "web", 2)
	w.control.put(t, aNode("node1", "vm1"), aNode("node2", "vm2"), svc, aTask("task1", svc, 1, "node1", swarm.TaskStateRunning), aTask("task2", svc, 2, "node2", swarm.TaskStateRunning),
		aTask("task3", svc, 2, "", swarm.TaskStatePending))
	return w
}

// demux takes Docker's frames apart with Docker's own code.
func demux(t *testing.T, body string) (stdout, stderr string, err error) {
	t.Helper()
	var o, e strings.Builder
	_, err = stdcopy.StdCopy(&o, &e, strings.NewReader(body))
	return o.String(), e.String(), err
}

// logBody gets a log to its end, not cut at the last line break.
func (w *world) logBody(path string) (string, http.Header) {
	w.t.Helper()
	req, _ := http.NewRequestWithContext(w.t.Context(), "GET", "http://docker"+path, nil)
	resp, err := w.http.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		w.t.Fatalf("%s: %d %v %s", path, resp.StatusCode, err, b)
	}
	return string(b), resp.Header
}

func TestLogsThatAreRefused(t *testing.T) {
	w := logWorld(t)
	for _, what := range []string{"/services/web", "/tasks/task1"} {
		w.refused("GET", what+"/logs", nil, 400, "must specify at least one of 'stdout' or 'stderr'")
		w.refused("GET", what+"/logs?stdout=1&tail=x", nil, 500, `tail value must be a positive integer or "all"`)
		w.refused("GET", what+"/logs?stdout=1&tail=-1", nil, 500, "negative tail values not supported")
		if a := w.do("GET", what+"/logs?stdout=1&since=x", nil); a.status != 400 {
			t.Errorf("since: %d %s", a.status, a.body)
		}
	}
	w.refused("GET", "/services/x/logs?stdout=1", nil, 404, "service x not found")
	w.refused("GET", "/tasks/x/logs?stdout=1", nil, 404, "task x not found")
}

func TestLogsOfSeveralTasks(t *testing.T) {
	w := logWorld(t)
	w.control.setLog("task1", lines("stdout", "one", "two"))
	w.control.setLog("task2", lines("stderr", "oops"))
	body, header := w.logBody("/v1.51/services/web/logs?stdout=1&stderr=1")
	stdout, stderr, err := demux(t, body)
	if err != nil || stdout != "one\ntwo\n" || stderr != "oops\n" || header.Get("Content-Type") != "application/vnd.docker.multiplexed-stream" {
		t.Errorf("%q %q %v %s", stdout, stderr, err, header.Get("Content-Type"))
	}
	if _, header := w.logBody("/v1.41/services/web/logs?stdout=1"); header.Get("Content-Type") != "application/vnd.docker.raw-stream" {
		t.Errorf("content type for an old client: %s", header.Get("Content-Type"))
	}
	body, _ = w.logBody("/services/web/logs?stdout=1&stderr=1&details=1&timestamps=1")
	stdout, stderr, _ = demux(t, body)
	if want := "1970-01-01T00:01:40.000000005Z com.docker.swarm.node.id=node1,com.docker.swarm.service.id=svc1,com.docker.swarm.task.id=task1 one\n" +
		"1970-01-01T00:01:41.000000005Z com.docker.swarm.node.id=node1,com.docker.swarm.service.id=svc1,com.docker.swarm.task.id=task1 two\n"; stdout != want {
		t.Errorf("stdout:\n%swant\n%s", stdout, want)
	}
	if !strings.HasSuffix(stderr, "com.docker.swarm.task.id=task2 oops\n") {
		t.Errorf("stderr: %s", stderr)
	}
	w.control.setLog("task1", func(_ context.Context, req protocol.LogRequest, each func(protocol.LogMessage) error) error {
		if !req.Details {
			return errors.New("details were asked for")
		}
		return each(protocol.LogMessage{Stream: "stdout", Details: "app=a%2Cb,zone=1", Data: []byte("text\n")})
	})
	body, _ = w.logBody("/tasks/task1/logs?stdout=1&details=1")
	stdout, _, _ = demux(t, body)
	if want := "app=a%2Cb,com.docker.swarm.node.id=node1,com.docker.swarm.service.id=svc1,com.docker.swarm.task.id=task1,zone=1 text\n"; stdout != want {
		t.Errorf("with the node's details: %q, want %q", stdout, want)
	}
	body, _ = w.logBody("/tasks/task2/logs?stdout=1&stderr=1")
	if stdout, stderr, _ = demux(t, body); stdout != "" || stderr != "oops\n" {
		t.Errorf("one task: %q %q", stdout, stderr)
	}
	body, _ = w.logBody("/services/web/logs?stdout=1&stderr=0")
	if _, stderr, _ = demux(t, body); stderr != "" {
		t.Errorf("stderr that nobody asked for: %q", stderr)
	}
}

func TestLogRequestsReachTheNodes(t *testing.T) {
	w := logWorld(t)
	var mu sync.Mutex
	var got []protocol.LogRequest
	read := func(_ context.Context, req protocol.LogRequest, _ func(protocol.LogMessage) error) error {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, req)
		return nil
	}
	w.control.setLog("task1", read)
	w.logBody("/tasks/task1/logs?stdout=1&stderr=1&tail=5&since=1500000000.5")
	w.logBody("/tasks/task1/logs?stderr=1")
	want := []protocol.LogRequest{
		{TaskID: "task1", Stdout: true, Stderr: true, Tail: "5", Since: "2017-07-14T02:40:00.5Z"},
		{TaskID: "task1", Stderr: true, Tail: "all"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v", got)
	}
}

func TestMissingNodesAreNamedAfterTheOthers(t *testing.T) {
	w := logWorld(t)
	w.control.setLog("task1", lines("stdout", "one"))
	body, _ := w.logBody("/services/web/logs?stdout=1&stderr=1")
	stdout, _, err := demux(t, body)
	if stdout != "one\n" || err == nil || !strings.Contains(err.Error(), "Error grabbing logs: warning: incomplete log stream. some logs could not be retrieved for the following reasons: node node2 is not available") {
		t.Errorf("%q %v", stdout, err)
	}
}

// What ran on a node that was removed is history as much as a container that is gone: the log is complete without it.
func TestRemovedNodesAreNotMissing(t *testing.T) {
	w := logWorld(t)
	w.control.setLog("task1", lines("stdout", "one"))
	gone := aTask("task4", w.control.snapshot().Service("svc1"), 2, "removed", swarm.TaskStateOrphaned)
	w.control.put(t, gone, aTask("task5", w.control.snapshot().Service("svc1"), 1, "removed", swarm.TaskStateFailed))
	w.control.setLog("task2", lines("stdout", "two"))
	body, _ := w.logBody("/services/web/logs?stdout=1&stderr=1")
	stdout, _, err := demux(t, body)
	if got := strings.Fields(stdout); err != nil || !slices.Contains(got, "one") || !slices.Contains(got, "two") {
		t.Errorf("%q %v", stdout, err)
	}
}

// An engine that hangs says nothing and ends nothing. A client that takes its time is none.
func TestANodeThatHangsIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFakeControl()
		svc := aService("svc1", "web", 2)
		c.put(t, aNode("node1", "vm1"), aNode("node2", "vm2"), svc, aTask("task1", svc, 1, "node1", swarm.TaskStateRunning), aTask("task2", svc, 2, "node2", swarm.TaskStateComplete))
		c.setLog("task1", lines("stdout", "one", "two"))
		c.setLog("task2", func(ctx context.Context, _ protocol.LogRequest, each func(protocol.LogMessage) error) error {
			time.Sleep(logSilence - time.Second)
			if err := each(protocol.LogMessage{Stream: "stdout", Data: []byte("late\n")}); err != nil {
				return err
			}
			<-ctx.Done()
			return ctx.Err()
		})
		q := logQuery{stdout: true, tail: "all"}
		var out bytes.Buffer
		slow := func() error { time.Sleep(3 * logSilence); return nil }
		s := &Server{cfg: Config{Local: &fakeLocal{control: c}}}
		newLogStream(s, c, q, logSubject{cluster.KindService, "svc1"}, newLogWriter(&out, slow, q, false)).run(t.Context())
		stdout, _, err := demux(t, out.String())
		if stdout != "one\ntwo\nlate\n" || err == nil || !strings.HasSuffix(strings.TrimSpace(err.Error()), "for the following reasons: node node2 has not answered for 10s") {
			t.Errorf("%q %v", stdout, err)
		}
	})
}

func TestTTYLogsAreRaw(t *testing.T) {
	w := newWorld(t)
	svc := aService("svc1", "web", 1)
	svc.Spec.TaskTemplate.ContainerSpec.TTY = true
	w.control.put(t, aNode("node1", "vm1"), svc, aTask("task1", svc, 1, "node1", swarm.TaskStateRunning))
	w.control.setLog("task1", lines("stdout", "raw"))
	body, header := w.logBody("/v1.51/services/web/logs?stdout=1")
	if body != "raw\n" || header.Get("Content-Type") != "application/vnd.docker.raw-stream" {
		t.Errorf("%q %s", body, header.Get("Content-Type"))
	}
}

func TestHeadOfALogDoesNotRead(t *testing.T) {
	w := logWorld(t)
	if a := w.do("HEAD", "/services/web/logs?stdout=1&follow=1", nil); a.status != 200 {
		t.Errorf("%d", a.status)
	}
}

func TestLogsThroughAFollowerSurviveTheLeader(t *testing.T) {
	first, second := logWorld(t), logWorld(t)
	stopped := make(chan struct{})
	first.control.setLog("task1", func(ctx context.Context, req protocol.LogRequest, each func(protocol.LogMessage) error) error {
		_ = lines("stdout", "one", "two")(ctx, req, each)
		select {
		case <-stopped:
		case <-ctx.Done():
		}
		return nil
	})
	first.control.setLog("task2", lines("stderr"))
	resumed := make(chan protocol.LogRequest, 10)
	second.control.setLog("task1", func(ctx context.Context, req protocol.LogRequest, each func(protocol.LogMessage) error) error {
		resumed <- req
		_ = each(protocol.LogMessage{Timestamp: time.Unix(200, 0), Stream: "stdout", Data: []byte("three\n")})
		<-ctx.Done()
		return ctx.Err()
	})
	second.control.setLog("task2", lines("stderr"))

	f, ports := logWorld(t), map[string]*httptest.Server{}
	for id, leader := range map[string]*world{"first": first, "second": second} {
		ports[id] = httptest.NewTLSServer(http.StripPrefix("/engine", leader.api.Cluster()))
		defer ports[id].Close()
	}
	f.control.forward = func(id string) http.RoundTripper { return ports[id].Client().Transport }
	lead := func(id string) { f.control.setLeader(false, id, strings.TrimPrefix(ports[id].URL, "https://")) }
	lead("first")
	next, stop := f.following("/services/web/logs?stdout=1&stderr=1&follow=1&tail=10")
	for _, want := range []string{"one", "two"} {
		if got := next(); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	ports["first"].CloseClientConnections() // the leader dies
	lead("second")
	if got := next(); got != "three" {
		t.Errorf("through the new leader: %q", got)
	}
	if req := <-resumed; req.Since != "1970-01-01T00:01:41.000000006Z" || req.Tail != "all" || !req.Stdout || !req.Stderr || !req.Follow {
		t.Errorf("taken up with %+v", req)
	}
	close(stopped)
	stop()

	second.control.setLog("task1", lines("stdout", "whole"))
	body, _ := f.logBody("/tasks/task1/logs?stdout=1")
	if stdout, _, err := demux(t, body); stdout != "whole\n" || err != nil {
		t.Errorf("without follow: %q %v", stdout, err)
	}
	second.control.setLog("task1", nil)
	body, _ = f.logBody("/tasks/task1/logs?stdout=1")
	if _, _, err := demux(t, body); err == nil || !strings.Contains(err.Error(), "node node1 is not available") {
		t.Errorf("a node that is away: %v", err)
	}
}

func TestManyLogsAreOneStreamOfTheLeader(t *testing.T) {
	leader := logWorld(t)
	f := follower(t, leader)
	svc := aService("svc1", "web", maxRemoteLogs+1)
	f.control.put(t, aNode("node1", "vm1"), svc)
	for i := range maxRemoteLogs + 1 {
		f.control.put(t, aTask(fmt.Sprintf("many%d", i), svc, i+1, "node1", swarm.TaskStateRunning))
	}
	leader.control.setLog("task1", lines("stdout", "the leader's"))
	leader.control.setLog("task2", lines("stdout"))
	body, _ := f.logBody("/services/web/logs?stdout=1")
	if stdout, _, err := demux(t, body); stdout != "the leader's\n" || err != nil {
		t.Errorf("%q %v", stdout, err)
	}
}
