package main

import (
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// With --stale every request of a command that looks asks for what the manager knows, and the command says how old that is.
func TestStaleIsAskedForAndTold(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "d.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	plain := 0
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case strings.HasSuffix(r.URL.Path, "/_ping"):
			w.Header().Set("API-Version", "1.41")
		case r.Header.Get(headerStale) != "true":
			plain++
			w.WriteHeader(http.StatusInternalServerError)
		case strings.HasSuffix(r.URL.Path, "/nodes"):
			w.Header().Set(headerStale, "index=42, age=7.5")
			_, _ = w.Write([]byte(`[{"ID":"n1","Description":{"Hostname":"vm1"}}]`))
		default:
			_, _ = w.Write([]byte("{}"))
		}
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	for _, words := range [][]string{{"--stale", "node", "ls"}, {"node", "ls", "--stale"}, {"node", "--stale", "ls"}} {
		code, out, errs := call(t.Context(), append([]string{"--host", "unix://" + socket}, words...)...)
		if code != 0 || !strings.Contains(out, "vm1") || !strings.Contains(errs, "(index 42); it knew of a leader 7.5 s ago") || plain != 0 {
			t.Errorf("%v: code %d, %q, %q; %d requests did not ask for it", words, code, out, errs, plain)
		}
	}
	if code, _, errs := call(t.Context(), "--host", "unix://"+socket, "node", "ls"); code == 0 || strings.Contains(errs, "index") || plain == 0 {
		t.Errorf("without the flag: code %d, %q", code, errs)
	}
	if code, _, errs := call(t.Context(), "--host", "unix://"+socket, "node", "rm", "--stale", "n1"); code == 0 || !strings.Contains(errs, "unknown flag: --stale") {
		t.Errorf("a change that is content with old knowledge: code %d, %q", code, errs)
	}
}
