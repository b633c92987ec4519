package main

import (
	"context"
	"encoding/csv"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// TestLocust runs the story's Locust file for real: 20 users for 5 seconds against the service on loopback. With
// MINISWARM_LAB=1 a machine without Locust fails the test; without it the test is left out, being slow.
func TestLocust(t *testing.T) {
	if os.Getenv("MINISWARM_LAB") != "1" {
		t.Skip("takes 10 s and needs python3-locust: set MINISWARM_LAB=1")
	}
	locust, err := exec.LookPath("locust")
	if err != nil {
		t.Fatalf("locust is missing: apt-get install python3-locust: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	base, ended := startServe(t, ctx, settings{grace: 20 * time.Second, replica: "r1"})
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	}()

	prefix := filepath.Join(t.TempDir(), "out")
	limited, stop := context.WithTimeout(ctx, 90*time.Second)
	defer stop()
	cmd := exec.CommandContext(limited, locust, "-f", "locustfile.py", "--headless", "--users", "20", "--spawn-rate", "20",
		"--run-time", "5s", "--exit-code-on-error", "1", "--csv", prefix, "--host", base)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("locust: %v\n%s", err, out)
	}

	file, err := os.Open(prefix + "_stats.csv")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	rows, err := csv.NewReader(file).ReadAll()
	if err != nil || len(rows) == 0 {
		t.Fatalf("locust's statistics: %v, %v", rows, err)
	}
	column := map[string]int{}
	for i, name := range rows[0] {
		column[name] = i
	}
	for _, row := range rows[1:] {
		if row[column["Name"]] != "/primes" {
			continue
		}
		requests, _ := strconv.Atoi(row[column["Request Count"]])
		failures, _ := strconv.Atoi(row[column["Failure Count"]])
		t.Logf("%d requests, %d failures, median %s ms", requests, failures, row[column["Median Response Time"]])
		if requests < 20 || failures != 0 { // every user asks at once, then waits
			t.Errorf("%d requests, %d failures; want at least 20 and none", requests, failures)
		}
		return
	}
	t.Errorf("locust asked for no /primes: %v", rows)
}
