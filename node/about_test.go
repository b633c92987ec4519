package node

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/node/doctor"
)

// page gets a page from a node's socket.
func page(t *testing.T, n *Node, path string) (int, string) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", n.cfg.Socket)
	}}
	return get(t, tr, "http://socket"+path)
}

func get(t *testing.T, tr http.RoundTripper, url string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	must(t, err)
	resp, err := tr.RoundTrip(req)
	must(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp.StatusCode, string(body)
}

// has looks for a finding.
func has(fs []doctor.Finding, check string, level doctor.Level, says string) bool {
	return slices.ContainsFunc(fs, func(f doctor.Finding) bool {
		return f.Check == check && f.Level == level && strings.Contains(f.Says, says) && (level == doctor.Ok) == (f.Cure == "")
	})
}

// TestANodeTellsHowItIs goes through the life of a node: part of no swarm, a manager, a worker beside it. There is no engine,
// and that is what they complain of.
func TestANodeTellsHowItIs(t *testing.T) {
	first := newNode(t)
	run(t, first)
	if status, body := page(t, first, "/healthz"); status != 200 {
		t.Errorf("healthz of an idle node: %d %s", status, body)
	}
	if status, body := page(t, first, "/readyz"); status != 503 || !strings.Contains(body, "swarm: this machine's part in a swarm is inactive") {
		t.Errorf("readyz of an idle node: %d %s", status, body)
	}
	if _, body := page(t, first, "/metrics"); !strings.Contains(body, `miniswarm_node_state{state="inactive"} 1`) || strings.Contains(body, "miniswarm_raft_term") {
		t.Errorf("metrics of an idle node: %s", body)
	}

	first.setState(swarm.LocalNodeStateLocked, nil)
	if status, body := page(t, first, "/readyz"); status != 503 || !strings.Contains(body, "in a swarm is locked") {
		t.Errorf("readyz of a locked manager: %d %s", status, body)
	}
	if r := first.checkup(t.Context()); !has(r.Findings, "swarm", doctor.Failure, "locked") {
		t.Errorf("a locked manager: %+v", r)
	}
	first.setState(swarm.LocalNodeStateInactive, nil)

	_, err := first.Init(t.Context(), swarm.InitRequest{ListenAddr: freePort(t)})
	must(t, err)
	addr := first.current().state.AdvertiseAddr
	worker := newNode(t)
	run(t, worker)
	must(t, worker.Join(t.Context(), swarm.JoinRequest{ListenAddr: freePort(t), RemoteAddrs: []string{addr}, JoinToken: snapshot(t, first).Cluster().JoinTokens.Worker}))
	if status, body := page(t, first, "/v1.41/healthz"); status != 200 || !strings.Contains(body, "raft: ok") || !strings.Contains(body, "leader: ok") {
		t.Errorf("healthz of a manager: %d %s", status, body)
	}
	waitFor(t, "a manager that lacks only its engine", func() bool {
		status, body := page(t, first, "/readyz")
		return status == 503 && strings.Contains(body, "engine: the Docker Engine at unix://") && strings.Contains(body, "session: ok") && strings.Contains(body, "manager: ok")
	})
	for _, series := range []string{"miniswarm_raft_term ", "miniswarm_leader_sessions 2", "miniswarm_raft_fsync_duration_seconds_count ", "miniswarm_leader_pass_duration_seconds_count ",
		`miniswarm_cluster_nodes{availability="active",role="worker",state="ready"} 1`, "miniswarm_agent_session 1"} {
		waitFor(t, series, func() bool { _, body := page(t, first, "/metrics"); return strings.Contains(body, "\n"+series) })
	}

	// The leader shows pages of the worker, and the worker those of itself and of nobody else.
	id := worker.Info().NodeID
	if status, body := page(t, first, "/miniswarm/nodes/"+id+"/metrics"); status != 200 || !strings.Contains(body, "miniswarm_agent_session 1") || strings.Contains(body, "miniswarm_raft_term") {
		t.Errorf("metrics of the worker: %d %s", status, body)
	}
	for path, want := range map[string]int{"/miniswarm/nodes/" + id + "/healthz": 200, "/miniswarm/nodes/" + id + "/readyz": 503, "/miniswarm/nodes/nobody/metrics": 404, "/miniswarm/nodes/" + id + "/secrets": 404} {
		if status, body := page(t, first, path); status != want {
			t.Errorf("%s: %d %s, want %d", path, status, body, want)
		}
	}
	for of, want := range map[string]int{id: 200, first.Info().NodeID: 503} {
		if status, _ := page(t, worker, "/miniswarm/nodes/"+of+"/metrics"); status != want {
			t.Errorf("a worker answers for node %s with %d, want %d", of, status, want)
		}
	}

	// On the cluster port nodes may look, and nobody else.
	if status, body := get(t, worker.current().transports.to(first.Info().NodeID), "https://"+addr+"/metrics"); status != 200 || !strings.Contains(body, "miniswarm_raft_term") {
		t.Errorf("metrics at the cluster port: %d %s", status, body)
	}
	stranger := worker.current().transports.to(first.Info().NodeID).Clone()
	stranger.TLSClientConfig.GetClientCertificate = nil
	for _, path := range []string{"/metrics", "/healthz", "/readyz"} {
		if status, _ := get(t, stranger, "https://"+addr+path); status != http.StatusForbidden {
			t.Errorf("%s for a stranger: %d", path, status)
		}
	}

	var report doctor.Report
	_, body := page(t, worker, "/miniswarm/doctor")
	must(t, json.Unmarshal([]byte(body), &report))
	if report.NodeID != id || report.Role != "worker" || !has(report.Findings, "engine", doctor.Failure, "does not answer") || !has(report.Findings, "session", doctor.Ok, addr) ||
		!has(report.Findings, "managers", doctor.Ok, "1 of 1") || !has(report.Findings, "clock", doctor.Ok, "") || !has(report.Findings, "certificate", doctor.Ok, "") {
		t.Errorf("the worker's report: %s", body)
	}
	if report.Findings[0].Level != doctor.Failure {
		t.Errorf("the worst does not come first: %s", body)
	}
	var all doctor.Cluster
	_, body = page(t, first, "/miniswarm/doctor/cluster")
	must(t, json.Unmarshal([]byte(body), &all))
	if len(all.Nodes) != 2 || !has(all.Findings, "quorum", doctor.Ok, "one manager") || !has(all.Findings, "nodes", doctor.Ok, "2 of 2 are ready") {
		t.Errorf("the cluster's report: %s", body)
	}
}
