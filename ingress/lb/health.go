package lb

import "time"

// State is what a Balancer thinks of a backend.
type State int

const (
	// Unknown is a backend not checked yet. It gets traffic.
	Unknown State = iota
	// Up gets traffic.
	Up
	// Down gets traffic only while no backend is up.
	Down
)

func (s State) String() string {
	switch s {
	case Up:
		return "up"
	case Down:
		return "down"
	default:
		return "unknown"
	}
}

// health turns the outcomes of checks and connections into a state. It has no clock and no lock of its own.
//
// Invariants: good counts successful checks since the last failure of any kind, bad failed checks since the last success.
// The first check ever decides at once, whatever rise and fall say, so that a Balancer knows its backends after one round.
type health struct {
	rise, fall int
	state      State
	since      time.Time // of state
	good, bad  int
	refused    int       // clients' connections that failed since the last one, or check, that did not
	lastGood   time.Time // when a connection or check last succeeded
	lastErr    error     // why it is down, or failed last
}

// deadSilence is how long nothing at all must have succeeded for failed connections of clients to mean that the backend
// is dead. A node of a cluster passes connections on to replicas on all nodes: while one of those is dying, or starting,
// some connections through every node fail and others do not.
const deadSilence = 250 * time.Millisecond

// checked takes the outcome of a check and returns whether the state changed.
func (h *health) checked(err error, now time.Time) bool {
	if err == nil {
		h.good++
		h.bad, h.refused, h.lastGood = 0, 0, now
		if h.state == Unknown || h.state == Down && h.good >= h.rise {
			return h.become(Up, now)
		}
		return false
	}
	h.good = 0
	h.bad++
	h.lastErr = err
	if h.state == Unknown || h.state == Up && h.bad >= h.fall {
		return h.become(Down, now)
	}
	return false
}

// connectFailed takes a client's failed connection. Fall of them in a row, after a silence, are proof enough: whoever comes
// next must not wait for the checks. So is one, of a backend that nothing good is known of.
func (h *health) connectFailed(err error, now time.Time) bool {
	h.good = 0
	h.refused++
	h.lastErr = err
	if h.state == Down || !h.lastGood.IsZero() && (h.refused < h.fall || now.Sub(h.lastGood) < deadSilence) {
		return false
	}
	return h.become(Down, now)
}

// connected takes a connection that was made, or an answer that came over one. Only checks bring a backend up that is down.
func (h *health) connected(now time.Time) {
	h.refused, h.lastGood = 0, now
}

func (h *health) become(s State, now time.Time) bool {
	h.state, h.since = s, now
	return true
}

// doubtful says that the next check should not wait for its turn: the last one failed, and another one may settle it.
func (h *health) doubtful() bool { return h.state == Up && h.bad > 0 }
