package main

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestAnswers(t *testing.T) {
	for _, tc := range []struct {
		method, target string
		status         int
		body           string // a part of it
	}{
		{"GET", "/primes?start=1&end=10", 200, "[2,3,5,7]\n"},
		{"GET", "/primes?start=24&end=28", 200, "[]\n"},
		{"GET", "/primes?start=x&end=10", 400, `{"error":"start must be a whole number, not \"x\""}`},
		{"GET", "/primes", 400, `start is missing`},
		{"POST", "/primes?start=1&end=10", 405, `{"error":"POST is not served here: use GET"}`},
		{"GET", "/nothing", 404, `{"error":"no such page`},
		{"GET", "/docs", 200, "<title>Primes</title>"},
		{"GET", "/", 302, "/docs"},
		{"GET", "/healthz", 200, `"status":"ok"`},
	} {
		t.Run(tc.method+" "+tc.target, func(t *testing.T) {
			w := httptest.NewRecorder()
			newService("r1", slog.New(slog.DiscardHandler)).handler().ServeHTTP(w, httptest.NewRequest(tc.method, tc.target, nil))
			if w.Code != tc.status || !strings.Contains(w.Body.String(), tc.body) {
				t.Errorf("got %d %q; want %d and %q", w.Code, w.Body, tc.status, tc.body)
			}
			if got := w.Header().Get(replicaHeader); got != "r1" {
				t.Errorf("%s = %q; want r1", replicaHeader, got)
			}
			if tc.status >= 400 {
				var said struct{ Error string }
				if err := json.Unmarshal(w.Body.Bytes(), &said); err != nil || said.Error == "" {
					t.Errorf("the error is not JSON: %v in %q", err, w.Body)
				}
			}
		})
	}
}

func TestDrainingSaysSo(t *testing.T) {
	svc := newService("r1", slog.New(slog.DiscardHandler))
	svc.drain()
	w := httptest.NewRecorder()
	svc.handler().ServeHTTP(w, httptest.NewRequest("GET", "/healthz", nil))
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Connection") != "close" {
		t.Errorf("healthz while stopping: %d, Connection %q", w.Code, w.Header().Get("Connection"))
	}
	w = httptest.NewRecorder()
	svc.handler().ServeHTTP(w, httptest.NewRequest("GET", "/primes?start=1&end=10", nil))
	if w.Code != http.StatusOK || w.Header().Get("Connection") != "close" {
		t.Errorf("primes while stopping: %d, Connection %q", w.Code, w.Header().Get("Connection"))
	}
}

// The page asks for its connection to end, so that its next question may meet another replica.
func TestCloseOnRequest(t *testing.T) {
	svc := newService("r1", slog.New(slog.DiscardHandler))
	for target, want := range map[string]string{
		"/primes?start=1&end=10":         "",
		"/primes?start=1&end=10&close=1": "close",
	} {
		w := httptest.NewRecorder()
		svc.handler().ServeHTTP(w, httptest.NewRequest("GET", target, nil))
		if got := w.Header().Get("Connection"); got != want {
			t.Errorf("%s: Connection = %q; want %q", target, got, want)
		}
	}
}

func TestPageIsSelfContained(t *testing.T) {
	page := string(docsPage)
	for _, outside := range []string{"https://", "src=", "@import", "url("} {
		if strings.Contains(page, outside) {
			t.Errorf("the page reaches outside: it has %q", outside)
		}
	}
	if !strings.Contains(page, replicaHeader) {
		t.Errorf("the page does not read %s", replicaHeader)
	}
}

func TestAccessLog(t *testing.T) {
	var out bytes.Buffer
	svc := newService("r1", slog.New(slog.NewJSONHandler(&out, nil)))
	req := httptest.NewRequest("GET", "/primes?start=1&end=10", nil)
	svc.handler().ServeHTTP(httptest.NewRecorder(), req)
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatalf("%v in %q", err, out.String())
	}
	for key, want := range map[string]any{"method": "GET", "uri": "/primes?start=1&end=10", "client": req.RemoteAddr, "status": 200.0, "bytes": 10.0} {
		if line[key] != want {
			t.Errorf("%s = %v; want %v", key, line[key], want)
		}
	}
	if line["msg"] != "request" {
		t.Errorf("msg = %v", line["msg"])
	}
}
