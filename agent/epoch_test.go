package agent

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miniswarm/miniswarm/agent/docker/fake"
)

// Two managers lead, of the cluster as it was and as it was recovered. The node changes sides once, keeps its containers,
// and does not go back, whoever answers first and even where the recovered one is away.
func TestANodeDoesNotFlapBetweenTwoLivesOfItsCluster(t *testing.T) {
	withWorld(t, func(w *world) {
		w.engine.SetImage("web:1", fake.Program{})
		a, b := w.manager("a"), w.manager("b")
		a.complete(w.task("t1", running))
		b.leads()
		b.set(func() { b.epoch = 7 })
		<-w.agent.Seek("b")
		w.settle()
		b.complete(w.task("t1", running))
		before := a.heard().sessions
		if n := b.heard().sessions; n != 1 {
			t.Fatalf("%d sessions with the recovered cluster's manager, want 1", n)
		}
		for range 5 {
			b.hangUp()
			w.settle()
		}
		if n := a.heard().sessions; n > before+5 {
			t.Errorf("%d sessions with the old cluster's manager", n)
		}
		b.die()
		time.Sleep(time.Minute)
		assigned := a.heard().beats
		time.Sleep(time.Minute)
		if n := a.heard().beats; n != assigned {
			t.Error("the node has a session with the old cluster's manager")
		}
		w.revive("b")
		b = w.manager("b")
		b.leads()
		b.set(func() { b.epoch = 7 })
		time.Sleep(10 * time.Second)
		b.complete(w.task("t1", running))
		b.wantTasks("t1 running started")
		if h := b.heard().hellos; len(h) == 0 || h[0].Epoch != 7 {
			t.Errorf("the node says hello with %+v, want epoch 7", h)
		}
		for _, id := range w.engine.Ids() {
			if n := w.engine.Starts(id); n != 1 {
				t.Errorf("container %s was started %d times", id, n)
			}
		}
	})
}

// What the disk does not know would be forgotten at the next start, and the node would go back.
func TestAnEpochThatCannotBeNotedIsNotFollowed(t *testing.T) {
	withWorld(t, func(w *world) {
		_ = w.stop()
		var full atomic.Bool
		var noted atomic.Uint64
		full.Store(true)
		w.config.OnEpoch = func(e uint64) error {
			if full.Load() {
				return errors.New("disk full")
			}
			noted.Store(e)
			return nil
		}
		a := w.manager("a")
		a.set(func() { a.epoch = 7 })
		w.start()
		time.Sleep(time.Minute)
		if a.heard().beats > 0 && w.agent.seenEpoch() != 0 {
			t.Error("the epoch was followed")
		}
		full.Store(false)
		time.Sleep(10 * time.Second)
		if noted.Load() != 7 || w.agent.seenEpoch() != 7 {
			t.Errorf("noted epoch %d, followed %d, want 7", noted.Load(), w.agent.seenEpoch())
		}
	})
}
