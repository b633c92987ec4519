package orchestrator

import (
	"time"

	"github.com/miniswarm/miniswarm/cluster"
)

// Times in the store are those of the leader that wrote them. Where its clock was ahead of the present leader's, what it
// wrote lies in the future, and a wait that is counted from there would last as long as the two clocks differ. So a wait
// is counted at the latest from when this leader first met the time.

// maxAhead bounds how many such times are remembered.
const maxAhead = 10_000

// past gives a stored time, or where that had not come yet when this leader first met it, that moment: also later, when the time
// has come, for a wait that began does not begin again.
func (x *pass) past(at time.Time) time.Time {
	if met, known := x.ahead[at.UnixNano()]; known {
		return met
	}
	if !at.After(x.now) {
		return at
	}
	if x.ahead == nil || len(x.ahead) >= maxAhead {
		x.ahead = make(map[int64]time.Time)
	}
	x.ahead[at.UnixNano()] = x.now
	return x.now
}

// startOf is when a task may start: its StartAfter, by this leader's clock.
func (x *pass) startOf(t *cluster.Task) time.Time {
	if t.CreatedAt.IsZero() || t.StartAfter.IsZero() {
		return t.StartAfter // created in this pass, or at once
	}
	return x.past(t.CreatedAt).Add(t.StartAfter.Sub(t.CreatedAt))
}
