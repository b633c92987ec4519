package engineapi

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// A manager without a leader answers who is content with what it knows, and says how old that may be; it changes nothing.
func TestStaleReadsNeedNoLeader(t *testing.T) {
	w := newWorld(t)
	w.control.put(t, append(aCluster(), aManager("node1", "vm1"))...)
	w.control.setLeader(false, "node2", "10.0.0.2:2377")
	nodes := must[[]swarm.Node](w, http.StatusOK, "GET", "/nodes?stale=true", nil)
	if len(nodes) == 0 {
		t.Error("no nodes are listed")
	}
	for _, path := range []string{"/services?stale=1", "/tasks?stale=true", "/secrets?stale=true", "/configs?stale=true", "/swarm?stale=true", "/info?stale=true", "/nodes/" + nodes[0].ID + "?stale=true"} {
		a := w.do("GET", path, nil)
		if got := a.header.Get(HeaderStale); a.status != http.StatusOK || !strings.HasSuffix(got, "age=12.3") || !strings.HasPrefix(got, "index=") || strings.HasPrefix(got, "index=0") {
			t.Errorf("%s: %d, stale %q", path, a.status, got)
		}
	}
	w.control.setLeader(false, "", "")
	if a := w.do("GET", "/v1.41/nodes", nil, HeaderStale, "true"); a.status != http.StatusOK || !strings.HasSuffix(a.header.Get(HeaderStale), "age=unknown") {
		t.Errorf("asked by a header: %d, stale %q", a.status, a.header.Get(HeaderStale))
	}
	w.refused("POST", "/services/create?stale=true", serviceSpec("web"), http.StatusInternalServerError, errNoLeader.Error())
	w.control.setLeader(true, "node1", "")
	if a := w.do("GET", "/nodes", nil); a.header.Get(HeaderStale) != "" {
		t.Errorf("an answer of the leader's says that it is stale: %q", a.header.Get(HeaderStale))
	}
}

// alone is a manager to which no majority answers; leads says whether it still takes itself for the leader.
type alone struct {
	Control
	leads bool
}

func (a alone) Leader() (self bool, nodeID, addr string) { return a.leads, "", "" }

func (a alone) Read(ctx context.Context) (*cluster.Snapshot, error) {
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

// Whoever asks the leader in the moment in which it loses the others waits no longer than those who ask later.
func TestAReadWaitsNoLongerThanForALeader(t *testing.T) {
	for _, tc := range []struct {
		leads bool
		after time.Duration
		err   error
	}{
		{false, electionPatience, errNoLeader},
		{true, managerTimeout, context.DeadlineExceeded},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), managerTimeout)
			defer cancel()
			began := time.Now()
			_, err := patientControl{alone{leads: tc.leads}}.Read(ctx)
			if took := time.Since(began); took != tc.after || !errors.Is(err, tc.err) {
				t.Errorf("leads %v: %v after %s, want %v after %s", tc.leads, err, took, tc.err, tc.after)
			}
		})
	}
}
