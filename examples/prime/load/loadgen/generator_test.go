package loadgen

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeService answers in virtual time: each request takes `takes`, and what it says comes from answer.
type fakeService struct {
	takes  time.Duration
	answer func(req *http.Request, nth int) (*http.Response, error)

	mu   sync.Mutex // guards asked
	seen []string
}

func (f *fakeService) RoundTrip(req *http.Request) (*http.Response, error) {
	f.mu.Lock()
	nth := len(f.seen)
	f.seen = append(f.seen, req.URL.String())
	f.mu.Unlock()
	if !sleep(req.Context(), f.takes) {
		return nil, context.Cause(req.Context())
	}
	return f.answer(req, nth)
}

// correct is what a prime service would say, as replica "r".
func correct(req *http.Request, _ int) (*http.Response, error) {
	start, _ := strconv.Atoi(req.URL.Query().Get("start"))
	end, _ := strconv.Atoi(req.URL.Query().Get("end"))
	count := primesUpTo()[end] - primesUpTo()[start-1]
	body := "[" + strings.TrimSuffix(strings.Repeat("7,", count), ",") + "]\n"
	return response(200, body), nil
}

func response(status int, body string) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{"X-Replica": {"r"}}, Body: io.NopCloser(strings.NewReader(body))}
}

func runFor(t *testing.T, d time.Duration, cfg Config) Result {
	t.Helper()
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	result, err := g.Run(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// 300 users who wait exactly 3 s and whose answers take 1 s ask 75 times a second once all are there.
func TestClosedLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := &fakeService{takes: time.Second, answer: correct}
		result := runFor(t, 100*time.Second+time.Millisecond, Config{
			Targets: []string{"http://a"}, Users: 300, ThinkMin: 3 * time.Second, ThinkMax: 3 * time.Second,
			Transport: func(int) http.RoundTripper { return service },
		})
		p := result.Total
		// Every user asks at 0 s, 4 s, ..., 100 s and has an answer to all but the last.
		if p.Requests != 25*300 || p.Failures != 0 || result.Unfinished != 300 {
			t.Errorf("%d requests, %d failures, %d unfinished; want 7500, 0, 300", p.Requests, p.Failures, result.Unfinished)
		}
		if p.RequestsPerSecond < 74.9 || p.RequestsPerSecond > 75 {
			t.Errorf("%.2f requests/s; want 75", p.RequestsPerSecond)
		}
		if p.Latency.P50 < 999 || p.Latency.P50 > 1001 || p.Latency.Max < 999 || p.Latency.Max > 1001 {
			t.Errorf("latency %+v; want 1 s throughout", p.Latency)
		}
		if p.Replicas["r"] != 7500 || p.Targets["http://a"] != (TargetCount{Requests: 7500}) {
			t.Errorf("replicas %v, targets %v", p.Replicas, p.Targets)
		}
	})
}

func TestSpawnRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var users []int
		service := &fakeService{takes: time.Millisecond, answer: correct}
		runFor(t, 12500*time.Millisecond, Config{
			Targets: []string{"http://a"}, Users: 2000, SpawnRate: 200, LiveInterval: 2 * time.Second,
			Live:      func(l Live) { users = append(users, l.Users) },
			Transport: func(int) http.RoundTripper { return service },
		})
		for i, want := range []int{400, 800, 1200, 1600, 2000, 2000} {
			if i >= len(users) || users[i] < want || users[i] > want+1 { // the next one may be due at the very moment
				t.Fatalf("users every 2 s: %v; want 400 more each time up to 2000", users)
			}
		}
	})
}

// The same seed asks the same questions; another seed asks others. All are within the story's ranges.
func TestSeed(t *testing.T) {
	questions := func(seed uint64) []string {
		var seen []string
		synctest.Test(t, func(t *testing.T) {
			service := &fakeService{takes: time.Second, answer: correct}
			runFor(t, time.Minute, Config{
				Targets: []string{"http://a"}, Users: 1, Seed: seed, Transport: func(int) http.RoundTripper { return service },
			})
			seen = service.seen
		})
		return seen
	}
	one, again, other := questions(1), questions(1), questions(2)
	if fmt.Sprint(one) != fmt.Sprint(again) {
		t.Errorf("seed 1 asked\n%v\nand then\n%v", one, again)
	}
	if fmt.Sprint(one) == fmt.Sprint(other) {
		t.Errorf("seeds 1 and 2 asked the same")
	}
	random := rand.New(rand.NewPCG(3, 0))
	for range 10_000 {
		if q := newQuestion(random); q.end < 1000 || q.end > 50_000 || q.start < 1 || q.start > q.end/2 {
			t.Fatalf("out of the story's range: %+v", q)
		}
	}
}

func TestBalance(t *testing.T) {
	for _, tc := range []struct {
		balance Balance
		user1   string // whom the second of two users asks, as last letters of the hosts
	}{
		{Sticky, "b b b b"},
		{RoundRobin, "b c a b"},
	} {
		synctest.Test(t, func(t *testing.T) {
			services := []*fakeService{{answer: correct}, {answer: correct}}
			runFor(t, 3500*time.Millisecond, Config{
				Targets: []string{"http://a", "http://b/", "http://c"}, Users: 2, Balance: tc.balance,
				ThinkMin: time.Second, ThinkMax: time.Second, Transport: func(user int) http.RoundTripper { return services[user] },
			})
			var hosts []string
			for _, url := range services[1].seen {
				hosts = append(hosts, strings.Split(url, "/")[2])
			}
			if got := strings.Join(hosts, " "); got != tc.user1 {
				t.Errorf("%s: user 1 asked %q; want %q", tc.balance, got, tc.user1)
			}
		})
	}
}

func TestPhases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		service := &fakeService{takes: 100 * time.Millisecond, answer: func(req *http.Request, nth int) (*http.Response, error) {
			if broken.Load() {
				return response(503, "busy"), nil
			}
			return correct(req, nth)
		}}
		g, err := New(Config{
			Targets: []string{"http://a"}, Users: 1, ThinkMin: 900 * time.Millisecond, ThinkMax: 900 * time.Millisecond,
			Transport: func(int) http.RoundTripper { return service },
		})
		if err != nil {
			t.Fatal(err)
		}
		g.Phase("before") // renames the first
		ctx, cancel := context.WithTimeout(t.Context(), 30500*time.Millisecond)
		defer cancel()
		go func() {
			time.Sleep(10500 * time.Millisecond)
			broken.Store(true)
			g.Phase("during")
			time.Sleep(10 * time.Second)
			broken.Store(false)
			g.Phase("after")
		}()
		result, err := g.Run(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range result.Phases {
			got = append(got, fmt.Sprintf("%s %.1f s: %d, %d failed", p.Name, p.Seconds, p.Requests, p.Failures))
		}
		want := []string{"before 10.5 s: 11, 0 failed", "during 10.0 s: 10, 10 failed", "after 10.0 s: 10, 0 failed"}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
		during := result.Phases[1]
		if during.Classes["http 503"] != 10 || during.FailingFrom != 0.6 || during.FailingTo != 9.6 {
			t.Errorf("classes %v from %g s to %g s; want 10 x http 503 from 0.6 to 9.6", during.Classes, during.FailingFrom, during.FailingTo)
		}
		if result.Total.Requests != 31 || result.Total.Failures != 10 {
			t.Errorf("total: %d, %d failed", result.Total.Requests, result.Total.Failures)
		}

		data, err := json.Marshal(result)
		if err != nil {
			t.Fatal(err)
		}
		var back Result
		if err := json.Unmarshal(data, &back); err != nil || back.Phases[1].Classes["http 503"] != 10 {
			t.Errorf("through JSON: %v, %+v", err, back)
		}
		var table bytes.Buffer
		if err := result.WriteTable(&table); err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{"before", "during", "after", "total", "10  http 503, such as: http status 503", "31  r"} {
			if !strings.Contains(table.String(), part) {
				t.Errorf("the table lacks %q:\n%s", part, table.String())
			}
		}
	})
}

// Real peers that misbehave in each way are told apart.
func TestClasses(t *testing.T) {
	handler := func(h http.HandlerFunc) string {
		server := httptest.NewServer(h)
		t.Cleanup(server.Close)
		return server.URL
	}
	raw := func(serve func(net.Conn)) string {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var conns sync.WaitGroup
		conns.Go(func() {
			for {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				conns.Go(func() { serve(conn) })
			}
		})
		t.Cleanup(func() { ln.Close(); conns.Wait() })
		return "http://" + ln.Addr().String()
	}
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	readRequest := func(conn net.Conn) { _, _ = conn.Read(make([]byte, 4096)) }

	for _, tc := range []struct {
		target string
		want   Class
	}{
		{"http://" + gone.Addr().String(), Refused},
		{"http://no-such-host.invalid", NoSuchHost},
		{handler(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(502) }), "http 502"},
		{handler(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/docs", http.StatusFound) }), "http 302"},
		{handler(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "[1,2]") }), WrongAnswer},
		{handler(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>1</html>") }), WrongAnswer},
		{raw(func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn); conn.Close() }), Timeout},
		{raw(func(conn net.Conn) { readRequest(conn); conn.Close() }), Closed},
		{raw(func(conn net.Conn) {
			readRequest(conn)
			fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[2,3")
			conn.Close()
		}), Closed},
		{raw(func(conn net.Conn) {
			readRequest(conn)
			_ = conn.(*net.TCPConn).SetLinger(0) // close with a reset
			conn.Close()
		}), Reset},
	} {
		g, err := New(Config{Targets: []string{tc.target}, Users: 1, Timeout: 200 * time.Millisecond, NewConnections: true})
		if err != nil {
			t.Fatal(err)
		}
		transport := g.cfg.Transport(0)
		done := g.ask(t.Context(), transport, tc.target, question{1, 1000})
		if done.err == nil || classify(done.err) != tc.want {
			t.Errorf("%s: %v is %q; want %q", tc.target, done.err, classify(done.err), tc.want)
		}
	}
}

// Users who keep their connections use one each; users who do not use one a request.
func TestConnections(t *testing.T) {
	for _, fresh := range []bool{false, true} {
		var mu sync.Mutex
		conns, requests := 0, 0
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			requests++
			mu.Unlock()
			resp, _ := correct(r, 0)
			_, _ = io.Copy(w, resp.Body)
		}))
		server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				mu.Lock()
				conns++
				mu.Unlock()
			}
		}
		server.Start()
		ctx, cancel := context.WithCancel(t.Context())
		g, err := New(Config{
			Targets: []string{server.URL}, Users: 3, ThinkMin: -1, ThinkMax: -1, NewConnections: fresh,
			LiveInterval: time.Millisecond,
			Live: func(l Live) {
				if l.Requests >= 60 {
					cancel()
				}
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		result, err := g.Run(ctx)
		server.Close()
		if err != nil || result.Total.Failures != 0 {
			t.Fatalf("%v, %+v", err, result.Total)
		}
		if !fresh && conns != 3 {
			t.Errorf("keep-alive: %d connections for %d requests of 3 users", conns, requests)
		}
		if fresh && conns < requests {
			t.Errorf("new connections: %d for %d requests", conns, requests)
		}
	}
}

func TestConfigMistakes(t *testing.T) {
	for want, cfg := range map[string]Config{
		"0 users":             {Targets: []string{"http://a"}},
		"no target":           {Users: 1},
		`"vm1:80" is not an`:  {Users: 1, Targets: []string{"vm1:80"}},
		"spawn rate -1":       {Users: 1, Targets: []string{"http://a"}, SpawnRate: -1},
		"from 2s to 1s":       {Users: 1, Targets: []string{"http://a"}, ThinkMin: 2 * time.Second, ThinkMax: time.Second},
		"from -1s to 1s is n": {Users: 1, Targets: []string{"http://a"}, ThinkMin: -time.Second, ThinkMax: time.Second},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("err = %v; want one with %q", err, want)
		}
	}
	if _, err := ParseBalance("random"); err == nil {
		t.Error(`balance "random" is accepted`)
	}
}

func TestLiveLine(t *testing.T) {
	for want, l := range map[string]Live{
		" 1m1s  load          users 2000     612.4 requests/s  failures 3 (0.5/s)  p50 12.3ms  p95 1.23s": {
			Elapsed: 61200 * time.Millisecond, Phase: "load", Users: 2000, RequestsPerSecond: 612.44, Failures: 3, FailuresPerSecond: 0.5,
			P50: 12345 * time.Microsecond, P95: 1234567 * time.Microsecond,
		},
		"   1s  dead          users 1          0.0 requests/s  failures 0 (0.0/s)  p50 -  p95 -": {Elapsed: time.Second, Phase: "dead", Users: 1},
	} {
		if got := l.String(); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}

// However many replicas answer, the memory for their names is bounded, and no answer goes uncounted.
func TestReplicasAreBounded(t *testing.T) {
	tl := newTally("x", time.Time{})
	for i := range 3 * maxNames {
		tl.add(outcome{target: "t", replica: strconv.Itoa(i), took: time.Millisecond}, time.Time{})
	}
	if len(tl.replicas) != maxNames+1 || tl.replicas[otherName] != 2*maxNames {
		t.Errorf("%d names, %d others", len(tl.replicas), tl.replicas[otherName])
	}
}
