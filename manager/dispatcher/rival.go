package dispatcher

import (
	"context"
	"fmt"
	"time"
)

// Two machines can be the same node: somebody has copied a disk, state directory and all. Both have a valid certificate, and without
// a check each new session would end the other's, for ever. The leader tells them apart by the instance in the
// hello, which is another for every run of a daemon.
//
// That alone does not make a copy: a daemon that was restarted has another instance too, and its former session may still stand
// where its machine lost power. What does is that the former one shows itself after the newcomer has come. Then the newcomer is
// refused. It may be the original, but the one that has the session has the node's tasks, and to move them would stop
// what runs. Nothing is stopped on either: a person has to say which one is to go. The store remembers which of them it was, so that
// a new leader, who has no sessions yet, gives that one the time to come first.

const (
	// rivalPatience bounds the wait for a sign of the former session, so that the newcomer's own patience does not end first.
	rivalPatience = 5 * time.Second
	// rivalSilence is how often two machines that are one node are logged.
	rivalSilence = time.Minute
)

// RivalError says that another machine has a session as the same node.
type RivalError struct {
	NodeID string
	// Addr is where the other machine's session comes from, Since when it began.
	Addr  string
	Since time.Time
}

func (e *RivalError) Error() string {
	return fmt.Sprintf("node %s is in session with another machine at %s, since %s: one is a copy of the other's disk. "+
		`On the copy run "docker swarm leave --force", then join the swarm again as a node of its own`,
		e.NodeID, e.Addr, e.Since.UTC().Format(time.RFC3339))
}

// Rival says whether another daemon than that instance has a live session as the node, by a [*RivalError].
func (d *Dispatcher) Rival(nodeID, instance string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.rivalLocked(nodeID, instance)
	if old == nil || time.Since(old.signOfLife()) > d.suspectAfterLocked() {
		return nil
	}
	return &RivalError{NodeID: nodeID, Addr: old.remote, Since: old.began}
}

// rivalLocked gives the session of another daemon as the node, nil if there is none.
func (d *Dispatcher) rivalLocked(nodeID, instance string) *session {
	if old := d.sessions[nodeID]; old != nil && instance != "" && old.instance != "" && old.instance != instance {
		return old
	}
	return nil
}

// awaitRival waits until it is clear that no other daemon lives that has a session as s's node: there is none, or it ends, or it
// says nothing for as long as makes a node suspect. Otherwise it gives a [*RivalError].
func (d *Dispatcher) awaitRival(ctx context.Context, s *session) error {
	came := time.Now()
	d.mu.Lock()
	beat, limit := d.period/beats, min(d.suspectAfterLocked(), rivalPatience)
	d.mu.Unlock()
	look := time.NewTicker(max(beat/4, minNap))
	defer look.Stop()
	for {
		d.mu.Lock()
		old := d.rivalLocked(s.nodeID, s.instance)
		d.mu.Unlock()
		switch {
		case old == nil && d.expects(s, limit):
		case old == nil || time.Since(came) > limit:
			return nil
		case old.signOfLife().Sub(came) > beat/2:
			// What it had sent before the newcomer came was read by then.
			return d.tellRival(&RivalError{NodeID: s.nodeID, Addr: old.remote, Since: old.began}, s.remote)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-look.C:
		}
	}
}

// expects says that s comes so early in a leadership that another daemon, which had the node's session before, may not have
// found the new leader yet.
func (d *Dispatcher) expects(s *session, limit time.Duration) bool {
	n := d.cfg.Store.Snapshot().Node(s.nodeID)
	d.mu.Lock()
	defer d.mu.Unlock()
	return n != nil && s.instance != "" && n.Instance != "" && n.Instance != s.instance && time.Since(d.began) <= limit
}

// tellRival logs the error, but not each time that the refused machine asks again.
func (d *Dispatcher) tellRival(err *RivalError, newcomer string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := time.Now(); now.Sub(d.rivals[err.NodeID]) > rivalSilence {
		d.rivals[err.NodeID] = now
		d.cfg.Logger.Error("two machines are the same node; the one that came later is refused", "node", err.NodeID, "addr", err.Addr, "refused", newcomer, "err", err)
	}
	return err
}

// signOfLife is when the node was last heard, whatever its messages wait for.
func (s *session) signOfLife() time.Time { return s.d.epoch.Add(time.Duration(s.heardAt.Load())) }
