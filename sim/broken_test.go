package sim

import (
	"strings"
	"testing"
)

// caught plays seeds of a world that is broken on purpose until the simulator finds one of the violations that the fault must
// lead to, and fails if it does not.
func caught(t *testing.T, o options, within int, violations ...string) {
	t.Helper()
	t.Parallel()
	for o.seed = 1; o.seed <= uint64(within); o.seed++ {
		for _, found := range run(t, o).violations {
			for _, v := range violations {
				if strings.Contains(found, v) {
					t.Logf("caught by seed %d: %s", o.seed, found)
					return
				}
			}
		}
	}
	t.Errorf("%d seeds of a world with %+v showed none of %q: the simulator is blind to it", within, o.broken, violations)
}

// TestBrokenLogIsCaught: a store that acknowledges what is not on disk yet loses it when it is killed.
func TestBrokenLogIsCaught(t *testing.T) {
	caught(t, options{broken: broken{lyingDisk: true}, faults: []faultKind{blackout, blackout, kill, die}}, 12, "I1: ", "I3: ")
}

// TestBrokenAgentIsCaught: an agent that reports a container as stopped which still runs has two in one slot.
func TestBrokenAgentIsCaught(t *testing.T) {
	caught(t, options{broken: broken{hasty: true}, faults: []faultKind{exit, transfer}}, 6, "I4: ")
}

// TestBrokenReadsAreCaught: a manager that answers from what it has itself tells of the past.
func TestBrokenReadsAreCaught(t *testing.T) {
	caught(t, options{broken: broken{staleReads: true}, faults: []faultKind{isolate, split, oneWay, flaky, slowDisk}}, 12, "I1: the history")
}

// TestBrokenJudgementIsCaught: a leader that hears answers of the dead lets go of members that the living cannot do without.
func TestBrokenJudgementIsCaught(t *testing.T) {
	caught(t, options{broken: broken{forge: ghosts}, faults: []faultKind{away}}, 16, "left without a majority")
}

// TestBrokenLearnersAreCaught: a member that votes before it has what it is said to have cannot go on from there.
func TestBrokenLearnersAreCaught(t *testing.T) {
	caught(t, options{broken: broken{forge: hollow}, faults: []faultKind{kill, flaky}}, 4, "impossible")
}
