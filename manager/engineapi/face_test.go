package engineapi

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

// Every answer has the headers that the engine's have, each once, whoever gives it.
func TestEveryAnswerHasDockersHeaders(t *testing.T) {
	w := newWorld(t)
	w.control.put(t, aCluster()...)
	want := map[string]string{"Api-Version": "1.41", "Docker-Experimental": "false", "Ostype": "linux", "Server": "Docker/20.10.24 (linux)"}
	for _, c := range []struct{ method, path string }{
		{"GET", "/info"}, {"HEAD", "/_ping"}, {"GET", "/_ping"}, {"GET", "/version"}, {"GET", "/nodes"}, {"GET", "/services/nothing"}, {"GET", "/networks"},
		{"GET", "/swarm"}, {"POST", "/swarm/leave"}, {"GET", "/miniswarm/nothing"}, {"GET", "/echo"}, {"DELETE", "/networks/none"}, {"POST", "/services/create"},
	} {
		a := w.do(c.method, c.path, nil)
		for k, v := range want {
			if got := a.header.Values(k); len(got) != 1 || got[0] != v {
				t.Errorf("%s %s: %s is %q", c.method, c.path, k, got)
			}
		}
		ct, text := a.header.Get("Content-Type"), map[bool]string{true: "text/plain; charset=utf-8", false: "application/json"}[c.path == "/_ping"]
		if a.body != "" && c.path != "/echo" && ct != text {
			t.Errorf("%s %s: Content-Type is %q", c.method, c.path, ct)
		}
	}
}

// An engine that is stopped holds nobody up for long, and what it said before is told with its age.
func TestAFrozenEngineHoldsNobodyUp(t *testing.T) {
	w := newWorld(t)
	w.control.put(t, aCluster()...)
	type info struct {
		NCPU     int
		Warnings []string
	}
	if before := must[info](w, http.StatusOK, "GET", "/v1.41/info", nil); before.NCPU != 2 || len(before.Warnings) != 1 {
		t.Fatalf("%+v", before)
	}
	w.engine.freeze(true)
	began := time.Now()
	if a := w.do("HEAD", "/_ping", nil); a.status != http.StatusOK || a.header.Get("Server") == "" {
		t.Errorf("ping: %d %v", a.status, a.header)
	}
	after := must[info](w, http.StatusOK, "GET", "/v1.41/info", nil)
	if after.NCPU != 2 || len(after.Warnings) != 2 || !strings.Contains(after.Warnings[1], "does not answer") || !strings.Contains(after.Warnings[1], "What is shown of it is") {
		t.Errorf("%+v", after)
	}
	if a := w.do("GET", "/v1.41/networks", nil); a.status != http.StatusOK || !strings.Contains(a.body, "ingress") {
		t.Errorf("networks: %d %s", a.status, a.body)
	}
	if took := time.Since(began); took > pingTimeout+2*engineTimeout+3*time.Second {
		t.Errorf("took %s", took)
	}
	w.engine.freeze(false)
	if again := must[info](w, http.StatusOK, "GET", "/v1.41/info", nil); len(again.Warnings) != 1 {
		t.Errorf("%+v", again)
	}
}
