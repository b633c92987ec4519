package cluster

import (
	"testing"
	"time"
)

func TestEpochsAreOrdered(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	first := NextEpoch(0, at, 7)
	if got := EpochTime(first); !got.Equal(at) {
		t.Errorf("an epoch of %v says %v", at, got)
	}
	for _, c := range []struct {
		name          string
		former, other uint64
	}{
		{"a recovery of what was recovered, by a clock that is a year behind", first, NextEpoch(first, at.AddDate(-1, 0, 0), 0)},
		{"the other half, recovered a second later", first, NextEpoch(0, at.Add(time.Second), 0)},
		{"the other half in the same millisecond", first, NextEpoch(0, at, 8)},
		{"a clock before 1970", 0, NextEpoch(0, time.Date(1960, 1, 1, 0, 0, 0, 0, time.UTC), 0)},
	} {
		if c.other <= c.former {
			t.Errorf("%s: %d is not later than %d", c.name, c.other, c.former)
		}
	}
	if !EpochTime(0).IsZero() {
		t.Error("the first life of a cluster was no recovery")
	}
}
