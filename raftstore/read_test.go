package raftstore

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// A read ends also where its answer takes longer than it is waited for before it is asked for again, and what it gives has all that
// was acknowledged before.
func TestReadsEndOverALongWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, nil)
		g.grow(3)
		g.leader().mustPut("first")
		g.net.SetFaults(0, 600*time.Millisecond) // a read of a follower takes four such ways, of 1.2 s together on the average
		for i := range 10 {
			name := fmt.Sprint("written", i)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			if err := g.leader().put(name); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			snap, err := g.follower().Read(ctx)
			cancel()
			if err != nil {
				t.Fatalf("read %d: %v", i, err)
			}
			if snap.Config(name) == nil {
				t.Errorf("read %d has not what was acknowledged before", i)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("read %d took %s", i, took)
			}
		}
	})
}
