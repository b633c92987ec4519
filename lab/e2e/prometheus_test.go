package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/miniswarm/miniswarm/lab"
)

// Debian's Prometheus, with the example's configuration and nothing else, finds nodes, services and tasks through the socket
// of a manager and scrapes the prime service on all of them, and miniswarm's own metrics of managers and workers.
func TestPrometheus(t *testing.T) {
	c := onShared(t)
	program, err := exec.LookPath("prometheus")
	if err != nil {
		t.Fatalf("prometheus is missing (scripts/setup.sh test installs it): %v", err)
	}
	if said, err := exec.CommandContext(t.Context(), "promtool", "test", "rules", "../../examples/monitoring/alerts_test.yml").CombinedOutput(); err != nil {
		t.Errorf("alerts do not fire as they should: %v\n%s", err, said)
	}
	t.Setenv("IMAGE", c.prime+":1")
	c.miniswarm(t, "vm1", "stack", "deploy", "-c", "../../examples/monitoring/compose.yml", "shop")
	c.running(t, "shop_prime", 4)
	p := startPrometheus(t, c, program)

	nodes := append(slices.Clone(c.managers), c.workers...)
	eventually(t, "all targets are found and well", patience, func() error {
		return p.up(map[string][]string{"replicas": {"1", "2", "3", "4"}, "services": {""}, "nodes": nodes, "miniswarm": nodes})
	})
	eventually(t, "miniswarm tells of the cluster and of every node", patience, func() error {
		return errors.Join(p.query(`sum(miniswarm_cluster_tasks{state="running",desired="yes"})`, "4"), p.query(`sum(miniswarm_leader_sessions)`, "3"),
			p.query(`count(count by (node) (miniswarm_agent_session == 1))`, "3"), p.query(`sum(miniswarm_agent_tasks{state="running"})`, "4"))
	})
	for range 20 {
		if _, err := primeReplica(t.Context(), c.addr("vm2", 80)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the requests are counted", patience, func() error {
		return p.query(`sum(prime_requests_total{job="replicas",service="shop_prime",stack="shop",path="/primes",status="200"})`, "20")
	})
	eventually(t, "the replicas are seen on their nodes", patience, func() error {
		return p.query(`count(count by (node) (up{job="replicas"} == 1))`, "3")
	})

	c.miniswarm(t, "vm1", "service", "scale", "shop_prime=6")
	eventually(t, "new replicas are found", patience, func() error {
		return p.up(map[string][]string{"replicas": {"1", "2", "3", "4", "5", "6"}, "services": {""}, "nodes": nodes, "miniswarm": nodes})
	})
	if err := p.quiet(); err != nil {
		t.Error(err)
	}
	c.miniswarm(t, "vm1", "stack", "rm", "shop")
	eventually(t, "replicas that are gone are no targets any more", patience, func() error {
		found, err := p.targets()
		if err == nil && len(found["replicas"])+len(found["services"]) > 0 {
			err = fmt.Errorf("still there: %v", found)
		}
		return err
	})
}

// prometheus is a Prometheus that runs on vm1.
type prometheus struct {
	ctx  context.Context
	base string
	log  *lockedBuffer
}

// startPrometheus starts it as a process of the test, which ends with the test.
func startPrometheus(t *testing.T, c *testCluster, program string) *prometheus {
	t.Helper()
	addr := c.addr("vm1", 9090)
	p := &prometheus{ctx: t.Context(), base: "http://" + addr, log: &lockedBuffer{}}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 2)
	go func() {
		ended <- c.Exec(ctx, "vm1", []string{c.binary, "metrics", "--listen", "127.0.0.1:9323"}, lab.Stdio{Out: p.log, Err: p.log})
	}()
	go func() {
		ended <- c.Exec(ctx, "vm1", []string{program, "--config.file=../../examples/monitoring/prometheus.yml", "--storage.tsdb.path=" + t.TempDir(), "--web.listen-address=" + addr},
			lab.Stdio{Out: p.log, Err: p.log})
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		<-ended
		if t.Failed() {
			t.Logf("prometheus said:\n%s", p.log)
		}
	})
	return p
}

// quiet says whether all alerts of the example are known and none is firing.
func (p *prometheus) quiet() error {
	var data struct {
		Groups []struct {
			Rules []struct{ Name, State, Health, LastError string }
		}
	}
	if err := p.ask("/api/v1/rules", &data); err != nil {
		return err
	}
	rules := 0
	for _, g := range data.Groups {
		for _, r := range g.Rules {
			rules++
			if r.Health != "ok" && r.Health != "unknown" || r.State == "firing" {
				return fmt.Errorf("alert %s is %s, %s: %s", r.Name, r.State, r.Health, r.LastError)
			}
		}
	}
	if rules < 10 {
		return fmt.Errorf("only %d alerts", rules)
	}
	return nil
}

// ask gets a page of its API and decodes the data in it.
func (p *prometheus) ask(path string, v any) error {
	ctx, cancel := context.WithTimeout(p.ctx, askLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.base+path, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var said struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.NewDecoder(resp.Body).Decode(&said); err != nil {
		return fmt.Errorf("%s: %s: %w", path, resp.Status, err)
	}
	if said.Status != "success" {
		return fmt.Errorf("%s: %s: %s", path, resp.Status, said.Error)
	}
	return json.Unmarshal(said.Data, v)
}

// targets gives the state of every target by its job and by what tells it from the others of the job: its slot or its node.
func (p *prometheus) targets() (map[string]map[string]string, error) {
	var data struct {
		ActiveTargets []struct {
			ScrapePool, ScrapeURL, Health, LastError string
			Labels                                   map[string]string
		}
	}
	if err := p.ask("/api/v1/targets?state=active", &data); err != nil {
		return nil, err
	}
	found := map[string]map[string]string{}
	for _, t := range data.ActiveTargets {
		if found[t.ScrapePool] == nil {
			found[t.ScrapePool] = map[string]string{}
		}
		who := t.Labels["slot"]
		if t.ScrapePool == "nodes" || t.ScrapePool == "miniswarm" {
			who = t.Labels["node"]
		}
		state := t.Health
		if state != "up" {
			state += " (" + t.ScrapeURL + ": " + t.LastError + ")"
		}
		if had := found[t.ScrapePool][who]; had != "" {
			state = had + ", twice"
		}
		found[t.ScrapePool][who] = state
	}
	return found, nil
}

// up says whether exactly these targets are there, and all well.
func (p *prometheus) up(want map[string][]string) error {
	found, err := p.targets()
	if err != nil {
		return err
	}
	for job, names := range want {
		if got := slices.Sorted(maps.Keys(found[job])); !slices.Equal(got, slices.Sorted(slices.Values(names))) {
			return fmt.Errorf("job %s has the targets %v, want %v", job, got, names)
		}
		for name, state := range found[job] {
			if state != "up" {
				return fmt.Errorf("job %s, target %q: %s", job, name, state)
			}
		}
	}
	return nil
}

// query asks for an expression of one value.
func (p *prometheus) query(expr, want string) error {
	var data struct {
		Result []struct{ Value [2]any }
	}
	if err := p.ask("/api/v1/query?query="+url.QueryEscape(expr), &data); err != nil {
		return err
	}
	if len(data.Result) != 1 || data.Result[0].Value[1] != want {
		return fmt.Errorf("%s is %v, want %s", expr, data.Result, want)
	}
	return nil
}

// lockedBuffer is written by a process and read by its test.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.TrimSpace(b.buf.String())
}
