package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/miniswarm/miniswarm/examples/prime/load/loadgen"
)

// Without a terminal, progress says each thing once.
func TestFilter(t *testing.T) {
	var out bytes.Buffer
	f := &filter{to: &out}
	for _, part := range []string{
		"Creating service x\noverall progress: 0 out of 4 tasks\n1/4:  \noverall pro", "gress: 0 out of 4 tasks\noverall progress: 0 out of 4 tasks\n",
		"overall progress: 4 out of 4 tasks\nverify: Waiting 5 seconds to verify\nverify: Waiting 4 seconds to verify\nverify: Service x converged\na\na\nlast",
	} {
		if _, err := f.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	f.end()
	want := "Creating service x\noverall progress: 0 out of 4 tasks\n1/4:  \noverall progress: 0 out of 4 tasks\n" +
		"overall progress: 4 out of 4 tasks\nverify: Waiting 5 seconds to verify\nverify: Service x converged\na\na\nlast\n"
	if out.String() != want {
		t.Errorf("got %q\nwant %q", out.String(), want)
	}
}

// Connections that come to nothing count from the failure on, refused ones apart.
func TestProbe(t *testing.T) {
	alive, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	p := startProbe(t.Context(), nil)
	defer p.stop()
	p.connect(t.Context(), closed.Addr().String()) // before the failure
	p.since(time.Now())
	p.connect(t.Context(), alive.Addr().String())
	p.connect(t.Context(), closed.Addr().String())
	if p.begun != 2 || p.early != 1 || p.lost != 0 || p.recovered() != 0 {
		t.Errorf("%d begun, %d early, %d lost, recovered %s", p.begun, p.early, p.lost, p.recovered())
	}
	ended, end := context.WithCancel(t.Context())
	end()
	p.connect(ended, alive.Addr().String())
	if p.begun != 2 {
		t.Error("a connection that the end of the demo cut off was counted")
	}
}

// The report is written whether or not all was as told, and says which.
func TestReport(t *testing.T) {
	for _, failed := range []error{nil, errors.New("not as told: 3/4")} {
		path := filepath.Join(t.TempDir(), "out", "report.json")
		r := newReport()
		r.phase("1 container", loadgen.Phase{Seconds: 8, Answered: 600, AnsweredPerSecond: 75, Failures: 200, Replicas: map[string]int64{"a": 600}})
		if err := r.finish(path, failed); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var back report
		if err := json.Unmarshal(text, &back); err != nil {
			t.Fatal(err)
		}
		if back.AsTold != (failed == nil) || (back.Failed == "") != (failed == nil) || len(back.Phases) != 1 || back.Phases[0].failing() != 0.25 {
			t.Errorf("%s", text)
		}
	}
}

func TestWhatIsPrinted(t *testing.T) {
	if !initialized.MatchString("Swarm initialized: current node (k6e11y1ir0r474dljpwkfh9je) is now a manager.\n") {
		t.Error("init")
	}
	line := joinLine.FindStringSubmatch("    miniswarm join --token SWMTKN-1-a-b 10.0.0.1:2377\n")
	if line == nil || line[1] != "SWMTKN-1-a-b" || line[2] != "10.0.0.1:2377" {
		t.Errorf("join: %q", line)
	}
	if !containerName.MatchString("/fastapi_fastapi-app.12.k6e11y1ir0r474dljpwkfh9je") || containerName.MatchString("/fastapi_fastapi-app.12") {
		t.Error("container name")
	}
}
