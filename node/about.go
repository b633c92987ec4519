package node

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/node/health"
	"github.com/miniswarm/miniswarm/node/metrics"
)

// stuck is how long a pass of the leader's loop, or a change of the kernel's routes, may take before it counts as hanging.
const stuck = 30 * time.Second

// about answers what others ask of this node: through its socket, its cluster port, and the leader through a stream.
func (n *Node) about() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", n.metrics.Handler())
	mux.Handle("GET /healthz", health.NewPage(n.healthChecks))
	mux.Handle("GET /readyz", health.NewPage(n.readyChecks))
	mux.HandleFunc("GET /doctor", func(w http.ResponseWriter, r *http.Request) { writeJSON(w, n.checkup(r.Context())) })
	mux.HandleFunc("GET /doctor/cluster", func(w http.ResponseWriter, r *http.Request) {
		m := n.current()
		var g *managing
		if m != nil {
			g = m.managing()
		}
		if g == nil || g.manager.Dispatcher() == nil {
			http.Error(w, "this node does not lead", http.StatusMisdirectedRequest)
			return
		}
		writeJSON(w, g.checkCluster(r.Context()))
	})
	return mux
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// localState is the node's part in a swarm, and why that is an error.
func (n *Node) localState() (swarm.LocalNodeState, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.local, n.failed
}

// healthChecks say that nothing hangs. They fail for what a new start of the daemon may cure, and nothing else.
func (n *Node) healthChecks() []health.Check {
	checks := []health.Check{{Name: "daemon", Ask: func(context.Context) error { n.Info(); return nil }}}
	m := n.current()
	if m == nil {
		return checks
	}
	checks = append(checks, health.Check{Name: "agent", Ask: func(context.Context) error {
		if d := m.agent.Status().Routing.Working; d > stuck {
			return fmt.Errorf("the kernel has not taken a change of routes for %s", d.Round(time.Second))
		}
		return nil
	}})
	g := m.managing()
	if g == nil || n.failure() != nil {
		return checks
	}
	return append(checks, health.Check{Name: "raft", Ask: g.store.Responds}, health.Check{Name: "leader", Ask: func(context.Context) error {
		if d := g.manager.Dispatcher(); d != nil {
			d.Load()
		}
		if d := g.manager.Passing(); d > stuck {
			return fmt.Errorf("the leader's loop has been at one pass for %s", d.Round(time.Second))
		}
		return nil
	}})
}

func (n *Node) failure() error {
	_, err := n.localState()
	return err
}

// readyChecks say that the node does its part: it hears from a leader, its routes are those of the cluster, its engine
// answers, and a manager knows all that was committed.
func (n *Node) readyChecks() []health.Check {
	m := n.current()
	checks := []health.Check{{Name: "swarm", Ask: func(context.Context) error {
		switch state, err := n.localState(); {
		case err != nil:
			return err
		case state != swarm.LocalNodeStateActive || m == nil:
			return fmt.Errorf("this machine's part in a swarm is %s", state)
		}
		return nil
	}}}
	if m == nil {
		return checks
	}
	checks = append(checks, health.Check{Name: "session", Ask: func(context.Context) error {
		if st := m.agent.Status(); st.Leader == "" {
			return errors.New("no session with a leader" + since(st.Heard))
		}
		return nil
	}}, health.Check{Name: "engine", Ask: func(ctx context.Context) error {
		if err := m.engine.Ping(ctx); err != nil {
			return fmt.Errorf("the Docker Engine at %s does not answer: %w", n.cfg.Engine, err)
		}
		return nil
	}})
	if m.mesh != nil {
		checks = append(checks, health.Check{Name: "data plane", Ask: func(context.Context) error {
			switch r := m.agent.Status().Routing; {
			case r.Err != nil:
				return r.Err
			case !r.Applied:
				return errors.New("the cluster's routes are not applied yet")
			}
			return nil
		}})
	}
	g := m.managing()
	if g == nil {
		return checks
	}
	return append(checks, health.Check{Name: "manager", Ask: func(ctx context.Context) error {
		st := g.store.Status()
		for _, member := range st.Members {
			if member.RaftID == st.RaftID && member.Learner {
				return errors.New("this manager has yet to catch up with the others")
			}
		}
		_, err := g.store.Read(ctx)
		return err
	}})
}

// since words a moment that may never have been.
func since(t time.Time) string {
	if t.IsZero() {
		return " since the daemon started"
	}
	return fmt.Sprintf(" since %s (%s)", t.UTC().Format(time.RFC3339), time.Since(t).Round(time.Second))
}

// view is how the node is, for its metrics.
func (n *Node) view() *metrics.View {
	state, _ := n.localState()
	v := &metrics.View{Version: n.cfg.Version, State: state}
	m := n.current()
	if m == nil {
		return v
	}
	if c := n.credentials.Current(); c != nil {
		_, v.Certificate = c.Validity()
		v.Root = rootExpiry(c.Root.PEM())
	}
	st := m.agent.Status()
	v.Agent = &st
	if m.mesh != nil {
		stats := m.mesh.Stats()
		v.DataPlane = &stats
	}
	g := m.managing()
	if g == nil {
		return v
	}
	raft := g.store.Status()
	v.Raft, v.Counters = &raft, g.manager.Counters()
	if d := g.manager.Dispatcher(); d != nil {
		v.Leader = &metrics.Leader{Snapshot: g.store.Snapshot(), Passing: g.manager.Passing(), Clocks: d.ClockOffsets()}
		v.Leader.Sessions, v.Leader.Holds = d.Load()
	}
	return v
}

// rootExpiry is when the first of the trusted root certificates expires; zero if there is none.
func rootExpiry(bundle []byte) (first time.Time) {
	for {
		var block *pem.Block
		if block, bundle = pem.Decode(bundle); block == nil {
			return first
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil && (first.IsZero() || cert.NotAfter.Before(first)) {
			first = cert.NotAfter
		}
	}
}
