package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/swarm"
)

// everyone asks n times and says whether by now each of the replicas, keyed by the host name of its container, has
// answered. An answer by somebody else, none at all, or one to another client than expected is an error; an empty client
// stands for any.
func everyone(replicas map[string]string, n int, ask func() (answer, error), client string) error {
	seen := map[string]int{}
	for range n * 4 {
		a, err := ask()
		if err != nil {
			return err
		}
		if replicas[a.Replica] == "" {
			return fmt.Errorf("%s answered, which is no replica", a.Replica)
		}
		if client != "" && a.from() != client {
			return fmt.Errorf("the replica on %s saw %s, not the client %s", replicas[a.Replica], a.Client, client)
		}
		if seen[a.Replica]++; len(seen) == len(replicas) {
			return nil
		}
	}
	return fmt.Errorf("of %d replicas only these answered: %v", len(replicas), seen)
}

// primeReplica asks the prime service which replica answers, over a connection of its own.
func primeReplica(ctx context.Context, addr string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/primes?start=1&end=10", nil)
	if err != nil {
		return "", err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var primes []int
	if err := json.NewDecoder(resp.Body).Decode(&primes); err != nil || len(primes) != 4 {
		return "", fmt.Errorf("%s: %s, primes %v: %w", addr, resp.Status, primes, err)
	}
	return resp.Header.Get("X-Replica"), nil
}

// witnessIn runs the witness as a client among the processes of a host.
func (c *testCluster) witnessIn(t *testing.T, host string, args ...string) (answer, error) {
	return parse(c.Output(t.Context(), host, append([]string{c.witnessBinary()}, args...)...))
}

func (c *testCluster) witnessBinary() string {
	return filepath.Join(filepath.Dir(c.binary), "witness")
}

func parse(out string, err error) (a answer, _ error) {
	if err != nil {
		return a, err
	}
	return a, json.Unmarshal([]byte(out), &a)
}

// tasks lists the tasks of a service that should run.
func (c *testCluster) tasks(ctx context.Context, service string) ([]swarm.Task, error) {
	return c.swarm(c.leader()).TaskList(ctx, swarm.TaskListOptions{Filters: filters.NewArgs(filters.Arg("service", service), filters.Arg("desired-state", "running"))})
}

// hostOf is an address without its port.
func hostOf(addr string) string {
	host, _, _ := net.SplitHostPort(addr)
	return host
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// writeFile puts a file where the hosts see it as well: they share the machine's disk.
func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
