package role

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/lab/claim"
	"github.com/miniswarm/miniswarm/manager/identity"
)

// own is the manager on this machine.
type own struct {
	leads bool
	alone error
}

func (o own) Leader() (self bool, nodeID, addr string) { return o.leads, "", "" }

func (o own) RenewHere(context.Context, []byte) (identity.IssueResponse, error) {
	return identity.IssueResponse{NodeID: "by itself"}, nil
}

func (o own) RenewAlone([]byte) (identity.IssueResponse, error) {
	return identity.IssueResponse{NodeID: "by what is on its disk"}, o.alone
}

// TestWhoCertifies: who is asked for a certificate, in which order, and what comes of it where nobody gives one.
func TestWhoCertifies(t *testing.T) {
	ca, err := identity.NewCA(identity.CAConfig{})
	must(t, err)
	f := fakeManagers{t, ca}
	var mu sync.Mutex
	var asked []string // guarded by mu
	answers := func(name string, status int) string {
		return f.serve(identity.Manager, func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			asked = append(asked, name)
			mu.Unlock()
			refuse(status, "this is "+name)(w, r)
		})
	}
	one, two := answers("one", http.StatusServiceUnavailable), answers("two", http.StatusServiceUnavailable)
	leader, former, dead := answers("leader", http.StatusServiceUnavailable), answers("former", http.StatusForbidden), claim.Addr(t).String()
	creds := f.credentials("newcomer", identity.Manager)
	for _, c := range []struct {
		name    string
		renewal Renewal
		asked   []string
		by      string
		err     string
	}{
		{"the leader asks nobody", Renewal{Own: own{leads: true}, Managers: known(one)()}, nil, "by itself", ""},
		{"a worker asks all that it knows", Renewal{Managers: known(one, dead, two)()}, []string{"one", "two"}, "", "this is two"},
		{"the leader first", Renewal{Managers: known(one, leader, two)(), Leader: leader}, []string{"leader", "one", "two"}, "", "this is leader"},
		{"also one that its log does not know", Renewal{Own: own{}, Managers: known(one)(), Leader: leader}, []string{"leader", "one"}, "", "this is one"},
		{"not itself", Renewal{Own: own{}, Managers: append(known(one)(), protocol.ManagerAddr{NodeID: "newcomer", Addr: two})}, []string{"one"}, "", "this is one"},
		{"nor where it is reached", Renewal{Own: own{}, Managers: known(one)(), Leader: "192.0.2.9:2377"}, []string{"one"}, "", "this is one"},
		{"but another one at an address that it had", Renewal{Own: own{}, Managers: []protocol.ManagerAddr{{NodeID: "newcomer", Addr: two}}, Leader: two}, []string{"two"}, "", "this is two"},
		{"nobody is known", Renewal{}, nil, "", "no manager is known"},
		{"a manager whose certificate has expired, and those of others too", Renewal{Own: own{}, Managers: known(one)(), Expired: true}, []string{"one"}, "by what is on its disk", ""},
		{"one that was refused", Renewal{Own: own{}, Managers: known(former, one)(), Expired: true}, []string{"former", "one"}, "", "this is former"},
		{"one that cannot certify either", Renewal{Own: own{alone: errors.New("no key")}, Managers: known(one)(), Expired: true}, []string{"one"}, "", "no key"},
		{"a worker whose certificate has expired", Renewal{Managers: known(one)(), Expired: true}, []string{"one"}, "", "this is one"},
	} {
		t.Run(c.name, func(t *testing.T) {
			asked = nil
			c.renewal.Client, c.renewal.Store = identity.NewClient(identity.ClientConfig{}), creds
			c.renewal.NodeID, c.renewal.Addr = "newcomer", "192.0.2.9:2377"
			got, err := c.renewal.Certify(t.Context(), []byte("request"))
			if got.NodeID != c.by && err == nil || (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("certified %q, %v; want %q, %q", got.NodeID, err, c.by, c.err)
			}
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(asked, c.asked) {
				t.Errorf("asked %v, want %v", asked, c.asked)
			}
		})
	}
}
