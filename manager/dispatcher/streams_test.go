package dispatcher

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// dialled is what came of a Dial.
type dialled struct {
	conn net.Conn
	err  error
}

func (w *world) dial(nodeID string) <-chan dialled {
	done := make(chan dialled, 1)
	go func() {
		conn, err := w.d.Dial(w.t.Context(), nodeID)
		done <- dialled{conn, err}
	}()
	synctest.Wait()
	return done
}

// asked gives the id of the last stream the agent was asked for.
func (a *fakeAgent) asked() (id string) {
	a.look(func() {
		if len(a.streams) > 0 {
			id = a.streams[len(a.streams)-1]
		}
	})
	return id
}

// open opens a stream as a node's agent does, and gives its end and the answer.
func (w *world) open(nodeID, id string) (net.Conn, *bufio.Reader, int) {
	server, client := net.Pipe()
	rec := httptest.NewRecorder()
	req := httptest.NewRequest(http.MethodGet, protocol.PathStreams+"/"+id, nil)
	served := make(chan struct{})
	go func() {
		defer close(served)
		w.d.ServeStream(pipeWriter{rec, server}, req, nodeID, id)
	}()
	in := bufio.NewReader(client)
	status := make(chan int, 1)
	go func() {
		if resp, err := http.ReadResponse(in, req); err == nil {
			status <- resp.StatusCode
		}
	}()
	synctest.Wait()
	select {
	case s := <-status:
		return client, in, s
	default:
		<-served
		client.Close()
		return client, in, rec.Code
	}
}

func TestStreamsAreOpenedByTheNode(t *testing.T) {
	inWorld(t, func(w *world) {
		if _, err := w.d.Dial(w.t.Context(), "n1"); err == nil || !strings.Contains(err.Error(), "node n1 is not available") {
			t.Errorf("without a session: %v", err)
		}
		a, other := w.connect("n1"), w.connect("n2")
		defer a.close()
		defer other.close()
		dial := w.dial("n1")
		id := a.asked()
		if _, _, status := w.open("n2", id); status != http.StatusNotFound {
			t.Errorf("another node's stream was answered with %d", status)
		}
		agent, in, status := w.open("n1", id)
		if status != http.StatusSwitchingProtocols {
			t.Fatalf("status %d", status)
		}
		got := <-dial
		if got.err != nil {
			t.Fatal(got.err)
		}
		go func() { _, _ = io.WriteString(got.conn, "to the agent\n") }()
		if line, err := in.ReadString('\n'); err != nil || line != "to the agent\n" {
			t.Errorf("the agent read %q, %v", line, err)
		}
		go func() { _, _ = io.WriteString(agent, "to the caller") }()
		buf := make([]byte, 13)
		if _, err := io.ReadFull(got.conn, buf); err != nil || string(buf) != "to the caller" {
			t.Errorf("the caller read %q, %v", buf, err)
		}
		if _, _, status := w.open("n1", id); status != http.StatusNotFound {
			t.Errorf("opened twice: %d", status)
		}
		_ = got.conn.Close()
		w.nothingKept(t)
	})
}

// nothingKept checks that the dispatcher remembers no stream.
func (w *world) nothingKept(t *testing.T) {
	t.Helper()
	w.d.mu.Lock()
	defer w.d.mu.Unlock()
	if len(w.d.calls) > 0 || len(w.d.streams) > 0 {
		t.Errorf("%d calls and %d streams are kept", len(w.d.calls), len(w.d.streams))
	}
}

func TestStreamsEndWithTheSession(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.connect("n1")
		dial := w.dial("n1")
		w.open("n1", a.asked())
		standing, waiting := <-dial, w.dial("n1")
		late := a.asked()
		a.close() // power cord
		if _, err := standing.conn.Read(make([]byte, 1)); err == nil {
			t.Error("a stream to a lost node still stands")
		}
		if got := <-waiting; got.err == nil || !strings.Contains(got.err.Error(), "node n1 disconnected unexpectedly") {
			t.Errorf("who waited for a lost node: %v", got.err)
		}
		if _, _, status := w.open("n1", late); status != http.StatusNotFound {
			t.Errorf("a stream for nobody was answered with %d", status)
		}
		w.nothingKept(t)
	})
}

func TestANodeThatOpensNoStreamIsNotWaitedForLong(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.connect("n1")
		defer a.close()
		began := time.Now()
		got := <-w.dial("n1")
		if got.err == nil || !strings.Contains(got.err.Error(), "node n1 does not answer") || time.Since(began) != callTimeout {
			t.Errorf("%v after %v", got.err, time.Since(began))
		}
		if _, _, status := w.open("n1", a.asked()); status != http.StatusNotFound {
			t.Errorf("too late, and answered with %d", status)
		}
		w.nothingKept(t)
	})
}

func TestHalfAStreamCanBeClosedWhereTheConnectionCan(t *testing.T) {
	s := &nodeStream{}
	server, client := net.Pipe()
	defer client.Close()
	s.Conn = server
	if err := s.CloseWrite(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a pipe: %v", err)
	}
}
