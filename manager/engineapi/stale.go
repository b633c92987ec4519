package engineapi

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
)

// HeaderStale asks, as a request's header with the value "true", for what the manager that is asked knows by itself, as the query
// stale=true does. In the answer it says how old that may be: "index=N, age=S", the log index and the seconds for which the manager
// has known of no leader ("unknown" if it has not heard of any since it was started).
const HeaderStale = "Miniswarm-Stale"

// wantsStale says whether the request is content with what this manager knows. That is for reading: a manager on its own changes
// nothing.
func wantsStale(r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	for _, v := range []string{r.URL.Query().Get("stale"), r.Header.Get(HeaderStale)} {
		if yes, _ := strconv.ParseBool(v); yes {
			return true
		}
	}
	return false
}

// onItsOwn answers from what this manager has, without a leader if need be, and has the answer say how old that is.
func onItsOwn(c Control, w http.ResponseWriter) Control {
	snap, age, known := c.Stale()
	old := "unknown"
	if known {
		old = strconv.FormatFloat(age.Round(time.Millisecond).Seconds(), 'f', -1, 64)
	}
	w.Header().Set(HeaderStale, fmt.Sprintf("index=%d, age=%s", snap.Index(), old))
	return staleControl{c, snap}
}

// staleControl reads one snapshot, whatever the managers say.
type staleControl struct {
	Control
	snap *cluster.Snapshot
}

func (c staleControl) Read(context.Context) (*cluster.Snapshot, error) { return c.snap, nil }

// Reachability is the leader's to know: whoever follows hears from the leader alone.
func (c staleControl) Reachability(nodeID string) swarm.Reachability {
	r := c.Control.Reachability(nodeID)
	if self, _, _ := c.Leader(); !self && r == swarm.ReachabilityUnreachable {
		r = swarm.ReachabilityUnknown
	}
	return r
}
