package raftstore

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// TestNobodySpeaksForAnotherMember: neither does a manager that was demoted, whose certificate is still a manager's, make up a member.
func TestNobodySpeaksForAnotherMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, nil)
		g.grow(2)
		m, follower := g.leader(), g.follower()
		for id, role := range map[string]swarm.NodeRole{"demoted": swarm.NodeRoleWorker, "promoted": swarm.NodeRoleManager} {
			n := &cluster.Node{Role: role}
			n.ID = id
			if _, err := m.Propose(t.Context(), &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.CreateOf(n)}}); err != nil {
				t.Fatal(err)
			}
		}
		g.settle()
		var certified time.Time
		ask := func(to *member, from uint64, node string) int {
			r := httptest.NewRequest(http.MethodGet, pathStream, nil)
			r.Header.Set(headerFrom, strconv.FormatUint(from, 16))
			r.Header.Set(headerTo, strconv.FormatUint(to.self, 16))
			r.Header.Set(HeaderNode, node)
			r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{NotBefore: certified}}}
			w := httptest.NewRecorder()
			to.Handler().ServeHTTP(w, r)
			return w.Code
		}
		const unknown, welcome = 4711, http.StatusUpgradeRequired
		for _, c := range []struct {
			from uint64
			node string
			want int
		}{
			{m.self, m.cfg.NodeID, welcome},
			{m.self, "promoted", http.StatusForbidden},
			{m.self, "demoted", http.StatusForbidden},
			{unknown, "demoted", http.StatusForbidden},
			{unknown, "promoted", welcome},
			{unknown, "unheard of", welcome},
			{unknown, "", http.StatusBadRequest},
		} {
			if got := ask(follower, c.from, c.node); got != c.want {
				t.Errorf("%q as member %x: status %d, want %d", c.node, c.from, got, c.want)
			}
		}
		// Without a leader what is known may be old: the one that calls may have been promoted since, and lead.
		g.net.Partition([]uint64{m.self}, []uint64{follower.self})
		time.Sleep(5 * time.Second)
		seen := follower.Snapshot().Node("demoted").UpdatedAt
		for _, c := range []struct {
			node  string
			since time.Time
			want  int
		}{
			{"demoted", seen.Add(-30 * 24 * time.Hour), http.StatusForbidden}, // the certificate is from before it was seen as a worker
			{"demoted", seen.Add(time.Minute - time.Hour), welcome},           // and this one from after it: certificates are set back by an hour
			{"promoted", seen.Add(-30 * 24 * time.Hour), welcome},
			{"unheard of", seen.Add(-30 * 24 * time.Hour), welcome},
		} {
			certified = c.since
			if got := ask(follower, unknown, c.node); got != c.want {
				t.Errorf("without a leader, %q with a certificate of %s: status %d, want %d", c.node, c.since, got, c.want)
			}
		}
		// Removals are noted in the cluster.
		g.net.Partition()
		g.settle()
		cl := &cluster.Cluster{}
		cl.ID = "cluster"
		if _, err := g.leader().Propose(t.Context(), &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.CreateOf(cl)}}); err != nil {
			t.Fatal(err)
		}
		g.settle()
		time.Sleep(time.Second)
		noted := follower.Snapshot().Cluster().UpdatedAt
		for since, want := range map[time.Duration]int{-30 * 24 * time.Hour: http.StatusForbidden, time.Minute - time.Hour: welcome} {
			certified = noted.Add(since)
			if got := ask(follower, unknown, "unheard of"); got != want {
				t.Errorf("a node that is not known, with a certificate of %s: status %d, want %d", certified, got, want)
			}
		}
	})
}
