package raftstore

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miniswarm/miniswarm/cluster"
)

// replay applies the events of a watch to what it began with and checks that each continues where the one before ended.
func replay(w *Watch, until uint64) error {
	versions := map[string]uint64{}
	for c := range w.Start.Configs() {
		versions[c.ID] = c.Version.Index
	}
	last := w.Start.Index()
	for last < until {
		batch, ok := <-w.Events()
		if !ok {
			return w.Err()
		}
		for _, ev := range batch {
			if ev.Index < last || ev.Index <= w.Start.Index() {
				return fmt.Errorf("event of index %d after index %d", ev.Index, last)
			}
			last = ev.Index
			old := uint64(0)
			if ev.Old != nil {
				old = ev.Old.ObjectMeta().Version.Index
			}
			if versions[ev.ID()] != old {
				return fmt.Errorf("event of %s goes on from version %d, but %d was the last", ev.ID(), old, versions[ev.ID()])
			}
			if ev.New == nil {
				delete(versions, ev.ID())
			} else {
				versions[ev.ID()] = ev.New.ObjectMeta().Version.Index
			}
		}
	}
	return nil
}

func TestWatchesMissNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, nil)
		g.grow(3)
		leader := g.leader()
		const writers, each = 8, 60
		var work sync.WaitGroup
		for i := range writers {
			work.Go(func() {
				r := rand.New(rand.NewPCG(1, uint64(i)))
				for n := range each {
					c := cluster.Change{Action: cluster.Update, Kind: cluster.KindConfig, ID: fmt.Sprint("c", i), Object: config(fmt.Sprint("c", i), n)}
					switch {
					case n == 0:
						c.Action = cluster.Create
					case n%10 == 9:
						c.Action, c.Object = cluster.Remove, nil
					case n%10 == 0:
						c.Action = cluster.Create
					}
					if _, err := leader.Propose(t.Context(), &cluster.Txn{Changes: []cluster.Change{c}}); err != nil {
						t.Error(err)
					}
					time.Sleep(time.Duration(r.IntN(3)) * time.Millisecond)
				}
			})
		}
		watching := make(chan error, 100)
		end := leader.Snapshot().Index() + writers*each
		for i := range 20 {
			m := g.members[i%3]
			go func() {
				time.Sleep(time.Duration(i) * 3 * time.Millisecond)
				w := m.Watch(10_000)
				defer w.Close()
				watching <- replay(w, end)
			}()
		}
		work.Wait()
		for range 20 {
			if err := <-watching; err != nil {
				t.Error(err)
			}
		}
	})
}

func TestASlowWatchEndsAndDoesNotSlowOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, nil)
		g.grow(1)
		m := g.leader()
		slow, good := m.Watch(3), m.Watch(100)
		defer slow.Close()
		for i := range 10 {
			m.mustPut(fmt.Sprint("a", i))
		}
		batches := 0
		for range slow.Events() {
			batches++
		}
		if batches != 3 || !errors.Is(slow.Err(), ErrLagged) {
			t.Errorf("the slow watch got %d batches and ended with %v", batches, slow.Err())
		}
		if err := replay(good, m.Snapshot().Index()); err != nil {
			t.Error(err)
		}
		good.Close()
		good.Close()
		if _, ok := <-good.Events(); ok || good.Err() != nil {
			t.Errorf("a closed watch has error %v", good.Err())
		}
	})
}
