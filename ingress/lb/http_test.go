package lb

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// httpServer is a backend that counts the requests it saw.
type httpServer struct {
	*httptest.Server
	seen atomic.Int64
}

func serveHTTP(t *testing.T, handle http.HandlerFunc) *httpServer {
	t.Helper()
	s := &httpServer{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.seen.Add(1)
		handle(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *httpServer) address() string { return s.Listener.Addr().String() }

func saying(t *testing.T, name string) *httpServer {
	return serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", name, r.Method, body)
	})
}

// dying takes whole requests and then drops the connection without an answer.
func dying(t *testing.T) (*tcpServer, *atomic.Int64) {
	seen := new(atomic.Int64)
	return serveTCP(t, func(conn *net.TCPConn) {
		req, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil {
			return // a check
		}
		_, _ = io.Copy(io.Discard, req.Body)
		seen.Add(1)
	}), seen
}

// never answers nothing; taken is sent to with each request that arrived.
func never(t *testing.T) (server *tcpServer, taken chan string) {
	taken = make(chan string, 100)
	return serveTCP(t, func(conn *net.TCPConn) {
		req, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil {
			return // a check
		}
		taken <- req.URL.Path
		_, _ = io.Copy(io.Discard, conn) // until the balancer gives up
	}), taken
}

func client(t *testing.T) *http.Client {
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

// fetch makes a request and reads its answer.
func fetch(ctx context.Context, c *http.Client, method, url, body string) (status int, answer string, err error) {
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, reader)
	if err != nil {
		return 0, "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(all), err
}

// request is fetch for the test's own goroutine, which it ends when there is no answer.
func request(t *testing.T, c *http.Client, method, url, body string) (status int, answer string) {
	t.Helper()
	status, answer, err := fetch(t.Context(), c, method, url, body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return status, answer
}

func TestHTTPPassesThrough(t *testing.T) {
	server := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Replica", "r1")
		w.WriteHeader(http.StatusTeapot)
		fmt.Fprint(w, r.Method, " ", r.Host, " ", r.URL, " ", r.Header.Get("X-Forwarded-For"), " ", r.Header.Get("X-Forwarded-Host"))
	})
	_, address, _ := start(t, Config{Mode: HTTP, Source: Static{server.address()}})
	req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://"+address+"/a%2Fb?q=1", nil)
	req.Host = "shop.example"
	req.Header.Set("X-Forwarded-For", "1.2.3.4") // a client cannot pretend
	resp, err := client(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, _ := io.ReadAll(resp.Body)
	if want := "GET shop.example /a%2Fb?q=1 127.0.0.1 shop.example"; string(got) != want || resp.StatusCode != 418 || resp.Header.Get("X-Replica") != "r1" {
		t.Errorf("got %d %q, %v; want %q", resp.StatusCode, got, resp.Header, want)
	}
}

// A backend that drops a request without an answer: a request that can be repeated is, any other is not.
func TestHTTPResends(t *testing.T) {
	for _, tc := range []struct {
		method, body string
		want         int
		wantSeen     int64 // by the dying backend, which gets every request first
	}{
		{"GET", "", 200, 1},
		{"HEAD", "", 200, 1},
		{"OPTIONS", "", 200, 1},
		{"POST", "order", 502, 1},
		{"POST", "", 502, 1},
		{"DELETE", "", 502, 1},
		{"GET", "a body", 502, 1},
	} {
		t.Run(fmt.Sprintf("%s %q", tc.method, tc.body), func(t *testing.T) {
			bad, seen := dying(t)
			good := saying(t, "good")
			b, address, _ := start(t, Config{Mode: HTTP, Policy: RoundRobin, Source: Static{bad.address(), good.address()}})
			status, _ := request(t, client(t), tc.method, "http://"+address+"/", tc.body)
			if status != tc.want || seen.Load() != tc.wantSeen {
				t.Errorf("status %d, %d times at the dying one; want %d, %d", status, seen.Load(), tc.want, tc.wantSeen)
			}
			if resent := b.Stats().Resent; (resent == 1) != (tc.want == 200) {
				t.Errorf("%d requests were sent again", resent)
			}
			eventually(t, "both are released", func() bool {
				s := b.Stats()
				return s.Backends[0].Active == 0 && s.Backends[1].Active == 0
			})
		})
	}
}

// What could not be sent can go anywhere, whatever it is.
func TestHTTPUnsentGoesElsewhere(t *testing.T) {
	good := saying(t, "good")
	_, address, _ := start(t, Config{
		Mode: HTTP, Source: Static{refusing(t), good.address(), blackHole(t)}, DialTimeout: 50 * time.Millisecond,
		Check: Check{Interval: time.Hour},
	})
	for range 20 {
		if status, answer := request(t, client(t), "POST", "http://"+address+"/", "order"); status != 200 || answer != "good POST order" {
			t.Errorf("got %d %q", status, answer)
		}
	}
}

// A request that ruins every backend it meets is not given to all of them.
func TestHTTPPoisonIsContained(t *testing.T) {
	var list Static
	var seen []*atomic.Int64
	for range 6 {
		server, n := dying(t)
		list, seen = append(list, server.address()), append(seen, n)
	}
	_, address, _ := start(t, Config{Mode: HTTP, Source: list})
	if status, _ := request(t, client(t), "GET", "http://"+address+"/boom", ""); status != http.StatusBadGateway {
		t.Errorf("status %d; want 502", status)
	}
	total := int64(0)
	for _, n := range seen {
		total += n.Load()
	}
	if total != maxSends {
		t.Errorf("the request was sent %d times; want %d", total, maxSends)
	}
}

// A node loses power with requests under way: as soon as the checks say so, the requests are answered by another.
func TestHTTPMarkedDownMidRequest(t *testing.T) {
	bad, taken := never(t)
	good := saying(t, "good")
	b, address, _ := start(t, Config{
		Mode: HTTP, Policy: RoundRobin, Source: Static{bad.address(), good.address()}, Check: Check{Interval: 20 * time.Millisecond},
	})
	eventually(t, "both are up", func() bool {
		return stateOf(b, bad.address()) == "up" && stateOf(b, good.address()) == "up"
	})
	type answer struct {
		status int
		body   string
		err    error
	}
	answers := make(chan answer, 10)
	var clients sync.WaitGroup
	for range 10 {
		c := client(t)
		clients.Go(func() {
			status, body, err := fetch(t.Context(), c, "GET", "http://"+address+"/slow", "")
			answers <- answer{status, body, err}
		})
	}
	for range 5 {
		<-taken
	}
	bad.Close()
	clients.Wait()
	for range 10 {
		if got := <-answers; got.err != nil || got.status != 200 || got.body != "good GET " {
			t.Errorf("got %+v", got)
		}
	}
	if s := b.Stats(); s.Resent != 5 || s.TurnedAway != 0 {
		t.Errorf("%d sent again, %d turned away; want 5, 0", s.Resent, s.TurnedAway)
	}
}

// A request with an effect stays where it was sent, however the checks judge: its answer may still come.
func TestHTTPPostStays(t *testing.T) {
	release := make(chan struct{})
	arrived := make(chan struct{}, 1)
	slow := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		arrived <- struct{}{}
		<-release
		fmt.Fprintf(w, "done %s", body)
	})
	b, address, _ := start(t, Config{Mode: HTTP, Source: Static{slow.address()}, Check: Check{Interval: 20 * time.Millisecond}})
	c := client(t)
	answered := make(chan string, 1)
	go func() {
		_, body, err := fetch(t.Context(), c, "POST", "http://"+address+"/", "order")
		answered <- fmt.Sprint(body, err)
	}()
	<-arrived
	slow.Listener.Close()
	eventually(t, "the backend is down", func() bool { return stateOf(b, slow.address()) == "down" })
	close(release)
	if got := <-answered; got != "done order<nil>" {
		t.Errorf("got %q", got)
	}
}

func TestHTTPFirstByteTimeout(t *testing.T) {
	slow, taken := never(t)
	good := saying(t, "good")
	b, address, _ := start(t, Config{
		Mode: HTTP, Policy: RoundRobin, Source: Static{slow.address(), good.address()}, FirstByteTimeout: 50 * time.Millisecond,
	})
	if status, body := request(t, client(t), "GET", "http://"+address+"/x", ""); status != 200 || body != "good GET " {
		t.Errorf("got %d %q", status, body)
	}
	<-taken
	if got := stateOf(b, slow.address()); got == "down" {
		t.Error("slowness is taken for death")
	}
}

// Once an answer has begun, it is the client's, however long it takes and whatever becomes of the backend's state.
func TestHTTPAnswerThatBeganStays(t *testing.T) {
	goOn := make(chan struct{})
	server := serveHTTP(t, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "first ")
		w.(http.Flusher).Flush()
		<-goOn
		fmt.Fprint(w, "second")
	})
	b, address, _ := start(t, Config{
		Mode: HTTP, Source: Static{server.address()}, Check: Check{Interval: 20 * time.Millisecond}, FirstByteTimeout: time.Second,
	})
	resp, err := client(t).Get("http://" + address + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 6)); err != nil { // it is passed on while it is being made
		t.Fatal(err)
	}
	server.Listener.Close()
	eventually(t, "the backend is down", func() bool { return stateOf(b, server.address()) == "down" })
	close(goOn)
	if rest, err := io.ReadAll(resp.Body); err != nil || string(rest) != "second" {
		t.Errorf("rest %q, %v", rest, err)
	}
}

func TestHTTPAllDown(t *testing.T) {
	_, address, _ := start(t, Config{Mode: HTTP, Source: Static{refusing(t)}, Patience: 100 * time.Millisecond})
	resp, err := client(t).Get("http://" + address + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("got %s, %v; want 503 with Retry-After", resp.Status, resp.Header)
	}
}

// A client that leaves frees its backend.
func TestHTTPClientLeaves(t *testing.T) {
	server, taken := never(t)
	b, address, _ := start(t, Config{Mode: HTTP, Source: Static{server.address()}})
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+address+"/", nil)
	go func() {
		<-taken
		cancel()
	}()
	if _, err := client(t).Do(req); !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
	eventually(t, "the backend is released", func() bool { return b.Stats().Backends[0].Active == 0 })
	if s := b.Stats(); s.Resent != 0 || s.TurnedAway != 0 || s.Backends[0].State == "down" {
		t.Errorf("the client's leaving is held against the backend: %+v", s)
	}
}

// Upgraded connections (WebSocket and the like) go through both ways, and end with the grace.
func TestHTTPUpgrade(t *testing.T) {
	server := serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "echo" {
			http.Error(w, "want an upgrade", http.StatusBadRequest)
			return
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprint(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		rw.Flush()
		_, _ = io.Copy(conn, rw)
	})
	b, address, stop := start(t, Config{Mode: HTTP, Source: Static{server.address()}, Grace: 50 * time.Millisecond, Reuse: 1})
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	reader := bufio.NewReader(conn)
	resp, err := http.ReadResponse(reader, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", resp, err)
	}
	for range 3 {
		fmt.Fprintln(conn, "hello")
		if line, err := reader.ReadString('\n'); err != nil || line != "hello\n" {
			t.Fatalf("echo %q, %v", line, err)
		}
	}
	if got := b.Stats().Backends[0].Active; got != 1 {
		t.Errorf("%d under way; want 1", got)
	}
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if _, err := reader.ReadByte(); err == nil {
		t.Error("the upgraded connection outlives Run")
	}
}

func TestHTTPDrain(t *testing.T) {
	release := make(chan struct{})
	arrived := make(chan struct{}, 1)
	server := serveHTTP(t, func(w http.ResponseWriter, _ *http.Request) {
		arrived <- struct{}{}
		<-release
		fmt.Fprint(w, "late")
	})
	_, address, stop := start(t, Config{Mode: HTTP, Source: Static{server.address()}, Grace: 10 * time.Second})
	c := client(t)
	answered := make(chan string, 1)
	go func() {
		_, body, err := fetch(t.Context(), c, "GET", "http://"+address+"/", "")
		answered <- fmt.Sprint(body, err)
	}()
	<-arrived
	ended := make(chan error, 1)
	go func() { ended <- stop() }()
	eventually(t, "it accepts no more", func() bool {
		late, err := net.Dial("tcp", address)
		if err == nil {
			late.Close()
		}
		return err != nil
	})
	close(release)
	if got := <-answered; got != "late<nil>" {
		t.Errorf("got %q", got)
	}
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// Connections to a backend are used again, but not for ever: a mesh behind it spreads connections.
func TestHTTPReuse(t *testing.T) {
	server := saying(t, "x")
	var made atomic.Int64
	_, address, _ := start(t, Config{
		Mode: HTTP, Source: Static{server.address()}, Reuse: 10, Check: Check{Interval: time.Hour},
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			made.Add(1)
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	})
	c := client(t)
	for range 100 {
		request(t, c, "GET", "http://"+address+"/", "")
	}
	if got := made.Load() - 1; got < 9 || got > 12 { // less the check's
		t.Errorf("%d connections for 100 requests; want about 10", got)
	}
}

// Clients keep asking while one backend after the other stops and returns. They lose nothing.
func TestHTTPRollingRestartUnderLoad(t *testing.T) {
	var addresses Static
	servers := make([]*http.Server, 3)
	serve := func(i int, address string) string {
		ln, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		servers[i] = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(time.Millisecond)
			fmt.Fprint(w, "ok")
		})}
		go func(s *http.Server) { _ = s.Serve(ln) }(servers[i])
		return ln.Addr().String()
	}
	for i := range servers {
		addresses = append(addresses, serve(i, "127.0.0.1:0"))
	}
	b, address, _ := start(t, Config{Mode: HTTP, Source: addresses, Check: Check{Interval: 20 * time.Millisecond}})
	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	var answered atomic.Int64
	for range 8 {
		c := client(t)
		clients.Go(func() {
			for ctx.Err() == nil {
				status, body, err := fetch(t.Context(), c, "GET", "http://"+address+"/", "")
				if err != nil || status != 200 || body != "ok" {
					t.Errorf("got %d %q, %v", status, body, err)
				}
				answered.Add(1)
			}
		})
	}
	for range 2 {
		for i, address := range addresses {
			eventually(t, "all are up", func() bool {
				for _, a := range addresses {
					if stateOf(b, a) != "up" {
						return false
					}
				}
				return true
			})
			before := answered.Load()
			eventually(t, "clients are served", func() bool { return answered.Load() > before+50 })
			servers[i].Close() // at once, requests and all
			eventually(t, "its death is known", func() bool { return stateOf(b, address) == "down" })
			serve(i, address)
		}
	}
	cancel()
	clients.Wait()
	for _, s := range servers {
		s.Close()
	}
	s := b.Stats()
	t.Logf("%d answered, %d of them sent again, %d turned away", answered.Load(), s.Resent, s.TurnedAway)
	if s.TurnedAway != 0 {
		t.Errorf("%d requests were lost", s.TurnedAway)
	}
}

// The list of backends changes all the time while clients ask, in both modes. They lose nothing, since those that leave
// finish what they have.
func TestListChangesUnderLoad(t *testing.T) {
	for _, mode := range []Mode{TCP, HTTP} {
		t.Run(mode.String(), func(t *testing.T) {
			lists := [][]string{{saying(t, "ok").address(), saying(t, "ok").address()}, {saying(t, "ok").address()}}
			b, address, _ := start(t, Config{Mode: mode, Source: Static(lists[0]), Check: Check{Interval: 5 * time.Millisecond}})
			ctx, cancel := context.WithCancel(t.Context())
			var clients sync.WaitGroup
			var answered atomic.Int64
			for i := range 4 {
				c := client(t)
				c.Transport.(*http.Transport).DisableKeepAlives = i%2 == 0
				clients.Go(func() {
					for ctx.Err() == nil {
						if status, body, err := fetch(t.Context(), c, "POST", "http://"+address+"/", "x"); err != nil || status != 200 || body != "ok POST x" {
							t.Errorf("got %d %q, %v", status, body, err)
						}
						answered.Add(1)
					}
				})
			}
			for i := range 100 {
				before := answered.Load()
				if err := b.SetBackends(lists[i%2]); err != nil {
					t.Error(err)
				}
				eventually(t, "clients are served", func() bool { return answered.Load() > before+3 })
			}
			cancel()
			clients.Wait()
			if s := b.Stats(); s.TurnedAway != 0 || s.Resent != 0 {
				t.Errorf("%d turned away, %d sent again", s.TurnedAway, s.Resent)
			}
		})
	}
}

// An answer that breaks off is asked for again: the client has seen nothing of a short one yet.
func TestHTTPAnswerThatBreaksOff(t *testing.T) {
	broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "10")
		_, _ = io.WriteString(w, "half ")
		panic(http.ErrAbortHandler)
	}))
	defer broken.Close()
	good := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "whole text") }))
	defer good.Close()
	b, err := New(Config{Mode: HTTP, Policy: RoundRobin, Listen: "127.0.0.1:0", Source: Static{broken.Listener.Addr().String(), good.Listener.Addr().String()}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- b.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	}()
	<-b.Ready()
	for range 4 {
		resp, err := http.Get("http://" + b.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || string(body) != "whole text" {
			t.Errorf("got %q, %v", body, err)
		}
	}
	if s := b.Stats(); s.Resent == 0 || s.TurnedAway != 0 {
		t.Errorf("%d sent again, %d turned away; want some, 0", s.Resent, s.TurnedAway)
	}
	http.DefaultClient.CloseIdleConnections()
}
