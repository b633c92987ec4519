package raftstore

import (
	"slices"

	"go.etcd.io/raft/v3"
)

// Two followers that miss their leader in the same moment split the votes, and raft's candidates then wait for a whole election
// timeout, drawn anew. So a candidate that has neither won nor lost stands again much sooner, one after the other in the order of the
// raft ids: the first to do so gets the votes of the others. It does so once until there is a leader, because where voting
// takes longer than this, on slow disks, standing again ends one's own election; raft's own timeouts help there.

const (
	// runoffTicks is how long a candidate waits for the votes; an election takes some round trips and a write on each side.
	runoffTicks = 3
	// runoffGap is the time between two candidates.
	runoffGap = 2
)

// runoff is a second candidacy.
type runoff struct {
	at   uint64 // the tick at which to stand again; 0: not
	used bool   // since there was a leader
}

// noteCandidacy plans the second candidacy when the first begins.
func (l *loop) noteCandidacy(now *raft.SoftState) {
	switch {
	case now.Lead != 0:
		l.runoff = runoff{}
	case now.RaftState != raft.StateCandidate:
		l.runoff.at = 0
	case !l.runoff.used:
		before := max(slices.Index(l.s.voters(), l.s.self), 0)
		l.runoff = runoff{at: l.ticks + uint64(runoffTicks+runoffGap*before), used: true}
	}
}

// standAgain stands for election a second time if it is time to.
func (l *loop) standAgain() {
	if l.runoff.at == 0 || l.ticks < l.runoff.at || l.stopping > 0 {
		return
	}
	l.runoff.at = 0
	_ = l.node.Campaign() // refused only where there is nothing to win
}
