package engineapi

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// echoAgent is a node's end of a stream: it says what it was asked, and upgrades what wants to be a stream to one that
// repeats its input in capitals once that has ended.
func echoAgent(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	r, err := http.ReadRequest(in)
	if err != nil {
		return
	}
	body, _ := io.ReadAll(r.Body)
	if r.Header.Get("Upgrade") != "" {
		fmt.Fprint(conn, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
		said, _ := io.ReadAll(in)
		fmt.Fprint(conn, strings.ToUpper(string(said)))
		return
	}
	text := fmt.Sprintf("%s %s %d bytes", r.Method, r.RequestURI, len(body))
	fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
}

// withReplica gives a cluster in which task1 runs on vm2, whose agent answers.
func withReplica(t *testing.T) *world {
	w := newWorld(t)
	w.control.put(t, aCluster()...)
	n := aManager("node2", "vm2")
	task := &cluster.Task{}
	task.ID, task.NodeID, task.Status.State = "task1", "node2", swarm.TaskStateRunning
	homeless := &cluster.Task{}
	homeless.ID, homeless.Status.State = "task2", swarm.TaskStatePending
	w.control.put(t, n, task, homeless)
	w.control.agents = map[string]func() net.Conn{"node2": func() net.Conn {
		ours, theirs := tcpPair(t)
		go echoAgent(theirs)
		return ours
	}}
	return w
}

// tcpPair gives both ends of a TCP connection, which can be closed by halves.
func tcpPair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if a, err = net.DialTCP("tcp", nil, ln.Addr().(*net.TCPAddr)); err != nil {
		t.Fatal(err)
	}
	if b, err = ln.AcceptTCP(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func TestATaskIsReachedOnItsNode(t *testing.T) {
	leader := withReplica(t)
	for name, w := range map[string]*world{"leader": leader, "follower": follower(t, leader)} {
		t.Run(name, func(t *testing.T) {
			w.t = t
			for _, tt := range []struct {
				method, path string
				body         any
				status       int
				want         string
			}{
				{"GET", "/miniswarm/tasks/task1/engine/v1.41/containers/c/json?size=1", nil, 200, "GET /tasks/task1/v1.41/containers/c/json?size=1 0 bytes"},
				{"PUT", "/miniswarm/tasks/task1/engine/containers/c/archive?path=%2Ftmp", strings.Repeat("x", 3<<20), 200, "PUT /tasks/task1/containers/c/archive?path=%2Ftmp 3145728 bytes"},
				{"POST", "/miniswarm/tasks/nothing/engine/containers/c/exec", nil, 404, "task nothing not found"},
				{"POST", "/miniswarm/tasks/task2/engine/containers/c/exec", nil, 409, "task task2 has no node yet: it is pending"},
			} {
				a := w.do(tt.method, tt.path, tt.body)
				if a.status != tt.status || !strings.Contains(a.body, tt.want) {
					t.Errorf("%s %s: %d %.200s", tt.method, tt.path, a.status, a.body)
				}
			}
			if got := w.converse("/miniswarm/tasks/task1/engine/v1.41/exec/e/start", "some input"); got != "SOME INPUT" {
				t.Errorf("a stream gave %q", got)
			}
		})
	}
}

// converse upgrades a request to a stream, says something, ends its half, and gives the answer.
func (w *world) converse(path, say string) string {
	w.t.Helper()
	req, _ := http.NewRequestWithContext(w.t.Context(), "POST", "http://docker"+path, nil)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "tcp")
	resp, err := w.http.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	stream, ok := resp.Body.(io.ReadWriteCloser)
	if resp.StatusCode != http.StatusSwitchingProtocols || !ok {
		w.t.Fatalf("%s: %s", path, resp.Status)
	}
	if _, err := io.WriteString(stream, say); err != nil {
		w.t.Fatal(err)
	}
	if err := stream.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		w.t.Fatal(err)
	}
	got, err := io.ReadAll(stream)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(got)
}

func TestATaskOnALostNode(t *testing.T) {
	w := withReplica(t)
	path := "/miniswarm/tasks/task1/engine/containers/c/json"
	w.control.mu.Lock()
	w.control.agents = nil
	w.control.mu.Unlock()
	w.refused("GET", path, nil, http.StatusServiceUnavailable, "reach task task1 on node vm2: node node2 is not available")
	n := *w.control.snapshot().Node("node2")
	n.Status.State = swarm.NodeStateDown
	w.control.put(t, &n)
	w.refused("GET", path, nil, http.StatusServiceUnavailable, "node vm2 of task task1 is down")
}

// TestNothingIsSentTwice: the body of a request is gone once it was sent, so that a change of leader is told.
func TestNothingIsSentTwice(t *testing.T) {
	leader := withReplica(t)
	f := follower(t, leader)
	leader.control.setLeader(false, "node3", "10.0.0.3:2377")
	a := f.do("PUT", "/miniswarm/tasks/task1/engine/containers/c/archive", "data")
	if a.status != http.StatusServiceUnavailable || !strings.Contains(a.message(), "the leader changed") {
		t.Errorf("%d %s", a.status, a.body)
	}
}
