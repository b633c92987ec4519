package raftstore

import (
	"context"
	"errors"
)

// Hooks let a simulation stand between a member and its machine: package sim stops, slows, fails and kills members at
// named points. The zero value does nothing, and nothing but tests sets any.
type Hooks struct {
	// At is called at each [Point], in the goroutine that has come there. While it does not return, that goroutine
	// stands still. An error at Append, Appended, SnapshotWritten or SnapshotRecorded counts as the disk's; elsewhere it is
	// ignored. [ErrCrash] kills the member.
	At func(Point) error
	// Crashed is called when a killed member has come to rest: its directory is as a killed process leaves it until
	// Crashed returns. Closing the log, which follows, would write what was still in memory.
	Crashed func()
}

// Point is a place in the code of a member.
type Point string

// The points.
const (
	// Turn is each turn of the raft loop, at least one a tick.
	Turn Point = "turn"
	// Append is before entries, terms and votes are written to the log; Appended is when the disk has them, before anybody
	// hears of it.
	Append   Point = "append"
	Appended Point = "appended"
	// Apply is before committed entries are applied.
	Apply Point = "apply"
	// SnapshotWritten is when the file of an own snapshot is on disk and the log does not say so yet; SnapshotRecorded
	// when it does and what is older is still there.
	SnapshotWritten  Point = "snapshot written"
	SnapshotRecorded Point = "snapshot recorded"
)

// ErrCrash ends a member as SIGKILL would, for simulations: as the cause of the context of Run, or from Hooks.At. Nothing
// is flushed and nobody is told.
var ErrCrash = errors.New("simulated crash")

// at calls the hook of a point.
func (s *Store) at(p Point) error {
	if s.cfg.Hooks.At == nil {
		return nil
	}
	err := s.cfg.Hooks.At(p)
	if errors.Is(err, ErrCrash) {
		s.fail(err)
	}
	return err
}

func (s *Store) crashed(ctx context.Context) bool {
	return errors.Is(context.Cause(ctx), ErrCrash) || s.hasFailed() && errors.Is(s.failure, ErrCrash)
}
