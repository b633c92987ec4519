package engineapi

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"
)

// TestAnAnswerBeforeTheEndOfTheBodyIsTheLast: who passes the body on may still read it when the handler has returned, in the
// way of the next request.
func TestAnAnswerBeforeTheEndOfTheBodyIsTheLast(t *testing.T) {
	w := newWorld(t)
	conn, err := net.Dial("unix", w.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answered := bufio.NewReader(conn)
	ask := func(request string) *http.Response {
		t.Helper()
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(answered, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp
	}
	if resp := ask("POST /nothing HTTP/1.1\r\nHost: docker\r\nContent-Length: 0\r\n\r\n"); resp.StatusCode != http.StatusNotFound || resp.Close {
		t.Errorf("without a body: %s, close %v", resp.Status, resp.Close)
	}
	// More than a server reads for nothing before it answers.
	if resp := ask("POST /nothing HTTP/1.1\r\nHost: docker\r\nContent-Length: 1048576\r\n\r\nthe beginning"); resp.StatusCode != http.StatusNotFound || !resp.Close {
		t.Errorf("with a body on its way: %s, close %v", resp.Status, resp.Close)
	}
}
