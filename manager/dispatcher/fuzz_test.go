package dispatcher

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// FuzzSessions sends arbitrary bytes as a node would: the session ends or goes on, and the dispatcher serves others.
func FuzzSessions(f *testing.F) {
	for _, s := range []string{
		`{"Hello":{"DataPlane":true}}` + "\n" + `{"Heartbeat":{}}` + "\n" + `{"Status":{"Seq":1,"Tasks":[{"ID":"t1","Status":{"State":"running"}}]}}`,
		`{"Hello":{"DataAddr":"nonsense"}}{"MeshAck":{"Seq":18446744073709551615}}{"LogChunk":{"ID":"x"}}{"LogEnd":{}}`,
		`{"Hello":{}}{"Hello":{}}{"Status":null}`, `{"Heartbeat":{}}`, `null`, "\x00", `{"Hello":{}}[[[[`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		inWorld(t, func(w *world) {
			w.place("t1", "n1", 1)
			server, client := net.Pipe()
			req := httptest.NewRequest(http.MethodGet, protocol.PathSession, nil)
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				w.d.ServeSession(pipeWriter{httptest.NewRecorder(), server}, req, "n1", "192.0.2.9")
			}()
			in := bufio.NewReader(client)
			if _, err := http.ReadResponse(in, req); err != nil {
				t.Fatal(err)
			}
			go func() { _, _ = io.Copy(io.Discard, in) }()
			_, _ = client.Write(data)
			time.Sleep(time.Second)
			_ = client.Close()
			<-ended
			other := w.connect("n2")
			if !w.d.NodeConnected("n2") {
				t.Error("another node is not served any more")
			}
			other.stop()
			_ = other.conn.Close()
			<-other.ended
		})
	})
}
