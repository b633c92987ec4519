package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/miniswarm/miniswarm/examples/prime/load/loadgen"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRun(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Replica", "r1")
		fmt.Fprintln(w, "[2,3,5]") // hardly ever right
	}))
	defer server.Close()
	file := filepath.Join(t.TempDir(), "load.json")
	var stdout, stderr bytes.Buffer
	err := run(t.Context(), []string{
		"-users", "2", "-spawn-rate", "0", "-think-min", "5ms", "-think-max", "10ms", "-phases", "one=300ms,two=300ms",
		"-json", file, "-max-failures", "3", server.URL,
	}, &stdout, &stderr, false)
	if err == nil || !strings.Contains(err.Error(), "requests failed, more than the 3 allowed") {
		t.Errorf("err = %v; want one about failures", err)
	}
	for _, part := range []string{"one ", "two ", "total ", "wrong answer", "r1"} {
		if !strings.Contains(stdout.String(), part) {
			t.Errorf("stdout lacks %q:\n%s", part, stdout.String())
		}
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var result loadgen.Result
	if err := json.Unmarshal(data, &result); err != nil || len(result.Phases) != 2 || result.Phases[1].Name != "two" {
		t.Errorf("json: %v, %+v", err, result)
	}
}

// An interrupt ends a run without end, and the account is still given.
func TestInterrupt(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { cancel() }))
	defer server.Close()
	var stdout, stderr bytes.Buffer
	if err := run(ctx, []string{"-users", "1", "-duration", "0", server.URL}, &stdout, &stderr, true); err != nil {
		t.Error(err)
	}
	if !strings.Contains(stdout.String(), "PHASE") {
		t.Errorf("no account: %q", stdout.String())
	}
}

func TestMistakes(t *testing.T) {
	for _, tc := range []struct{ args, want string }{
		{"", "no target"},
		{"-balance x http://a", "balance must be sticky or round-robin"},
		{"-phases a=1s,b http://a", `phase "b" is not NAME=DURATION`},
		{"-phases a=0s http://a", `phase "a=0s"`},
		{"-json /no/such/folder/x.json -users 1 -duration 1ms http://127.0.0.1:9", "write account"},
	} {
		var out bytes.Buffer
		err := run(t.Context(), strings.Fields(tc.args), &out, &out, false)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: err = %v; want one with %q", tc.args, err, tc.want)
		}
	}
}
