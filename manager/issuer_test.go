package manager

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/manager/identity"
)

// TestNothingIsLeftOfAMachineThatCouldNotJoin: no node appears of which a rotation of the root CA would wait for a certificate.
func TestNothingIsLeftOfAMachineThatCouldNotJoin(t *testing.T) {
	s := newSolo(t)
	c := *s.store.Snapshot().Cluster()
	c.Spec.CAConfig.ExternalCAs = []*swarm.ExternalCA{{Protocol: swarm.ExternalCAProtocolCFSSL, URL: "https://127.0.0.1:1/sign"}}
	if _, err := s.store.Propose(t.Context(), &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.UpdateOf(&c)}}); err != nil {
		t.Fatal(err)
	}
	_, csr, err := identity.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{m: s.m}
	req := identity.IssueRequest{CSR: string(csr), Token: c.JoinTokens.Worker, Availability: swarm.NodeAvailabilityDrain}
	_, err = i.Issue(t.Context(), req, nil, "127.0.0.1:5")
	if refusal, ok := errors.AsType[*identity.StatusError](err); !ok || refusal.Status != http.StatusServiceUnavailable || !strings.Contains(err.Error(), "external CA https://127.0.0.1:1/sign: dial tcp") {
		t.Errorf("joining while the external CA is away: %v", err)
	}
	for n := range s.store.Snapshot().Nodes() {
		if n.ID != soloNode {
			t.Errorf("there is a node %s", n.ID)
		}
	}

	back := *s.store.Snapshot().Cluster()
	back.Spec.CAConfig.ExternalCAs = nil
	if _, err := s.store.Propose(t.Context(), &cluster.Txn{Time: time.Now(), Changes: []cluster.Change{cluster.UpdateOf(&back)}}); err != nil {
		t.Fatal(err)
	}
	got, err := i.Issue(t.Context(), req, nil, "127.0.0.1:5")
	if err != nil {
		t.Fatal(err)
	}
	if n := s.store.Snapshot().Node(got.NodeID); n == nil || n.Spec.Availability != swarm.NodeAvailabilityDrain || n.Role != swarm.NodeRoleWorker {
		t.Errorf("the node that joined: %+v", n)
	}
	again, err := i.Issue(t.Context(), req, nil, "127.0.0.1:5") // the answer was lost
	if err != nil || again.NodeID != got.NodeID {
		t.Errorf("asking again: %+v, %v", again, err)
	}
	// Between the signature and the admission the root may have been replaced.
	old := back
	old.RootCA = append([]byte("another "), back.RootCA...)
	if _, err := i.admit(t.Context(), &old, identity.Grant{NodeID: "newcomer", Role: identity.Worker}, "", ""); err == nil || !strings.Contains(err.Error(), "has just been rotated") {
		t.Errorf("admitted with a certificate of the root before: %v", err)
	}
}
