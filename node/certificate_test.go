package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/agent"
	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/manager/identity"
)

// ask sends a request to a node's socket, as clients do.
func ask(t *testing.T, n *Node, method, path string, body, into any) error {
	t.Helper()
	raw, err := json.Marshal(body)
	must(t, err)
	req, err := http.NewRequestWithContext(t.Context(), method, "http://node"+path, bytes.NewReader(raw))
	must(t, err)
	req.Header.Set("Content-Type", "application/json")
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", n.cfg.Socket)
	}}
	resp, err := transport.RoundTrip(req)
	must(t, err)
	defer resp.Body.Close()
	raw, err = io.ReadAll(resp.Body)
	must(t, err)
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, raw)
	}
	if into != nil {
		must(t, json.Unmarshal(raw, into))
	}
	return nil
}

// reroot asks a manager for another root CA and returns the swarm as it is shown afterwards.
func reroot(t *testing.T, n *Node, edit func(*swarm.CAConfig)) swarm.Swarm {
	t.Helper()
	var now swarm.Swarm
	must(t, ask(t, n, http.MethodGet, "/swarm", nil, &now))
	edit(&now.Spec.CAConfig)
	must(t, ask(t, n, http.MethodPost, fmt.Sprintf("/swarm/update?version=%d", now.Version.Index), now.Spec, nil))
	must(t, ask(t, n, http.MethodGet, "/swarm", nil, &now))
	return now
}

// restart runs a node that was stopped as a new process would, with the clock ahead by some time.
func restart(t *testing.T, n *Node, ahead time.Duration) *Node {
	t.Helper()
	cfg := n.cfg
	cfg.Now = func() time.Time { return time.Now().Add(ahead) }
	again, err := New(cfg)
	must(t, err)
	run(t, again)
	return again
}

func (n *Node) issuedBy(info swarm.TLSInfo) bool {
	return sameIssuer(n.credentials.Current().TLSInfo(), info)
}

// TestTheRootRotates goes through a rotation that another one replaces and that a node sleeps through.
func TestTheRootRotates(t *testing.T) {
	t.Parallel()
	first := newNode(t)
	run(t, first)
	_, err := first.Init(t.Context(), swarm.InitRequest{ListenAddr: freePort(t)})
	must(t, err)
	remote := []string{first.current().state.AdvertiseAddr}
	tokens := snapshot(t, first).Cluster().JoinTokens
	join := func(token string) (*Node, func() error) {
		n := newNode(t)
		stop := run(t, n)
		must(t, n.Join(t.Context(), swarm.JoinRequest{ListenAddr: freePort(t), RemoteAddrs: remote, JoinToken: token}))
		return n, stop
	}
	second, _ := join(tokens.Manager)
	worker, _ := join(tokens.Worker)
	sleeper, stop := join(tokens.Worker)
	old := first.credentials.Current().TLSInfo()
	waitFor(t, "nodes that have shown their certificates", func() bool {
		shown := 0
		for n := range snapshot(t, first).Nodes() {
			if sameIssuer(n.Description.TLSInfo, old) {
				shown++
			}
		}
		return shown == 4
	})
	must(t, stop())

	made := reroot(t, first, func(c *swarm.CAConfig) { c.ForceRotate++ })
	waitFor(t, "nodes with certificates of the new root", func() bool {
		return first.issuedBy(made.TLSInfo) && second.issuedBy(made.TLSInfo) && worker.issuedBy(made.TLSInfo)
	})
	if got := worker.credentials.Current().TLSInfo().TrustRoot; got != old.TrustRoot {
		t.Error("a node shows another root than the old one before the rotation is over")
	}

	ca, err := identity.NewCA(identity.CAConfig{})
	must(t, err)
	key, err := ca.KeyPEM()
	must(t, err)
	brought := reroot(t, second, func(c *swarm.CAConfig) { c.SigningCACert, c.SigningCAKey = string(ca.Root().PEM()), string(key) })
	waitFor(t, "nodes with certificates of the root that was brought", func() bool {
		return first.issuedBy(brought.TLSInfo) && second.issuedBy(brought.TLSInfo) && worker.issuedBy(brought.TLSInfo)
	})
	newcomer, _ := join(tokens.Worker)
	if !newcomer.issuedBy(brought.TLSInfo) {
		t.Error("a node that joins in the course of a rotation gets a certificate of the old root")
	}
	if c := snapshot(t, first).Cluster(); c.Rotation == nil || c.JoinTokens != tokens {
		t.Fatal("the rotation is over although a node has not got its certificate")
	}

	sleeper = restart(t, sleeper, 0)
	waitFor(t, "the end of the rotation", func() bool { return snapshot(t, first).Cluster().Rotation == nil })
	after := snapshot(t, first).Cluster()
	if !bytes.Equal(after.RootCA, ca.Root().PEM()) || !bytes.Equal(after.RootCAKey, key) || after.RootRotationInProgress || after.TLSInfo.TrustRoot != string(ca.Root().PEM()) {
		t.Errorf("after the rotation the cluster shows %+v", after.TLSInfo)
	}
	all := []*Node{first, second, worker, sleeper, newcomer}
	waitFor(t, "nodes that trust the new root alone, and say so", func() bool {
		snap := snapshot(t, first)
		for _, n := range all {
			if !bytes.Equal(n.credentials.Current().Root.PEM(), after.RootCA) || snap.Node(n.Info().NodeID).Description.TLSInfo.TrustRoot != string(after.RootCA) {
				return false
			}
		}
		return true
	})
	late := newNode(t)
	run(t, late)
	err = late.Join(t.Context(), swarm.JoinRequest{ListenAddr: freePort(t), RemoteAddrs: remote, JoinToken: tokens.Worker})
	if !errors.Is(err, identity.ErrOtherCluster) {
		t.Errorf("joining with a token of the old root: %v", err)
	}
	join(after.JoinTokens.Manager)
}

// TestEverybodysCertificateHasExpired: the whole cluster was off for longer than its certificates live (F19).
func TestEverybodysCertificateHasExpired(t *testing.T) {
	t.Parallel()
	var all []*Node
	var stops []func() error
	add := func() *Node {
		n := newNode(t)
		all, stops = append(all, n), append(stops, run(t, n))
		return n
	}
	_, err := add().Init(t.Context(), swarm.InitRequest{ListenAddr: freePort(t)})
	must(t, err)
	remote := []string{all[0].current().state.AdvertiseAddr}
	tokens := snapshot(t, all[0]).Cluster().JoinTokens
	for _, token := range []string{tokens.Manager, tokens.Manager, tokens.Worker, tokens.Worker} {
		must(t, add().Join(t.Context(), swarm.JoinRequest{ListenAddr: freePort(t), RemoteAddrs: remote, JoinToken: token}))
	}
	waitFor(t, "three voters and workers that know them", func() bool {
		voters := 0
		for _, m := range all[0].current().managing().store.Members() {
			if !m.Learner {
				voters++
			}
		}
		return voters == 3 && len(all[3].Info().RemoteManagers) == 3 && len(all[4].Info().RemoteManagers) == 3
	})
	must(t, stops[4]())
	c, err := all[0].Control()
	must(t, err)
	_, err = c.Update(t.Context(), func(snap *cluster.Snapshot) (*cluster.Txn, error) {
		return &cluster.Txn{Changes: []cluster.Change{cluster.RemoveOf(snap.Node(all[4].credentials.Current().Identity.NodeID))}}, nil
	})
	must(t, err)
	for _, stop := range stops[:4] {
		must(t, stop())
	}

	const away = 91 * 24 * time.Hour
	ids := map[string]bool{}
	for i, n := range all {
		ids[n.credentials.Current().Identity.NodeID] = i < 4
		all[i] = restart(t, n, away)
	}
	waitFor(t, "certificates that are valid", func() bool {
		for _, n := range all[:4] {
			if c := n.credentials.Current(); c == nil || c.CheckTime(n.cfg.Now()) != nil {
				return false
			}
		}
		return true
	})
	waitFor(t, "a cluster in which all are ready", func() bool {
		ready := 0
		snap := snapshot(t, all[0])
		if snap == nil {
			return false
		}
		for n := range snap.Nodes() {
			if n.Status.State == swarm.NodeStateReady {
				ready++
			}
		}
		return ready == 4
	})
	for _, n := range all[:4] {
		if info := n.Info(); !ids[info.NodeID] || info.Error != "" {
			t.Errorf("after the renewal: %+v", info)
		}
	}
	// With its engine away, the removed node is still about to take down its containers.
	err = all[4].current().renew(t.Context())
	if _, ok := errors.AsType[*agent.RemovedError](err); !ok || !strings.Contains(err.Error(), "removed") {
		t.Errorf("the renewal of a node that was removed ends with %v", err)
	}
}
