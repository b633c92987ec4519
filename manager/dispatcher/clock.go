package dispatcher

import (
	"sync"
	"time"
)

const (
	// clockBeats is over how many heartbeats a node's clock is read. Each reading is late by the time that the heartbeat was
	// on its way, which a stall of either side makes long; the earliest of several is near the truth.
	clockBeats = 8
	// maxClockOffset is how far a node's clock may be from the leader's before that is logged. Certificates stand an hour
	// (see package identity); logs and events get confusing long before.
	maxClockOffset = 2 * time.Second
)

// clock is how far a node's clock is ahead of this machine's.
type clock struct {
	mu       sync.Mutex
	readings [clockBeats]time.Duration // guarded by mu; a ring
	n        int                       // guarded by mu; how many were taken
	wrong    bool                      // guarded by mu; it was logged that the offset is too large
}

// read takes a reading and gives the offset if it can be told; turned is true when it has become too large, or tolerable again.
func (c *clock) read(offset time.Duration) (now time.Duration, turned bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readings[c.n%clockBeats] = offset
	c.n++
	now, known := c.offsetLocked()
	if !known {
		return 0, false
	}
	// Half the threshold to be well again: an offset at the threshold is not worth a line every other second.
	if far := now.Abs(); !c.wrong && far > maxClockOffset || c.wrong && far < maxClockOffset/2 {
		c.wrong, turned = !c.wrong, true
	}
	return now, turned
}

// offsetLocked is the offset by the reading that was the shortest time on its way, once there are enough.
func (c *clock) offsetLocked() (time.Duration, bool) {
	if c.n < clockBeats {
		return 0, false
	}
	best := c.readings[0]
	for _, r := range c.readings[1:] {
		best = max(best, r)
	}
	return best, true
}

// readClock compares what a heartbeat says of the node's clock with this machine's.
func (s *session) readClock(theirs time.Time) {
	if theirs.IsZero() {
		return // an agent that does not say
	}
	switch offset, turned := s.clock.read(time.Until(theirs)); {
	case turned && offset.Abs() > maxClockOffset:
		s.d.cfg.Logger.Warn("a node's clock is not the leader's: set both right, for example by NTP", "node", s.nodeID, "ahead", offset.Round(time.Millisecond))
	case turned:
		s.d.cfg.Logger.Info("a node's clock is right again", "node", s.nodeID, "ahead", offset.Round(time.Millisecond))
	}
}

// ClockOffsets gives how far the clock of each node that has had a session for some heartbeats is ahead of this machine's,
// negative where it is behind, by node id. It is exact to the time a message takes.
func (d *Dispatcher) ClockOffsets() map[string]time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make(map[string]time.Duration, len(d.sessions))
	for id, s := range d.sessions {
		s.clock.mu.Lock()
		if offset, known := s.clock.offsetLocked(); known {
			out[id] = offset
		}
		s.clock.mu.Unlock()
	}
	return out
}
