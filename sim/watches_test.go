package sim

import (
	"time"

	"github.com/miniswarm/miniswarm/cluster"
)

// follow watches a manager's store for as long as it lives: every change of every object comes once and in order, also
// across watches that were too slow.
func (c *checks) follow(p *managing) {
	slow := c.w.stream(2000 + uint64(p.h.i))
	c.followers.Go(func() {
		last := uint64(0)
		for {
			watch := p.store.Watch(64)
			if watch.Start.Index() < last {
				c.w.violate("watch: %s begins at index %d, after events up to %d", p.h, watch.Start.Index(), last)
			}
			last = watch.Start.Index()
			have := map[string]uint64{}
			for _, k := range cluster.Kinds() {
				for o := range watch.Start.Objects(k) {
					have[k.String()+o.ObjectID()] = o.ObjectMeta().Version.Index
					c.know(o)
				}
			}
			for batch := range watch.Events() {
				for _, ev := range batch {
					last = c.event(p.h, have, last, ev)
				}
				if slow.IntN(200) == 0 {
					time.Sleep(3 * time.Second)
				}
			}
			if err := watch.Err(); err != nil && p.ctx.Err() == nil && p.live() {
				c.w.trace("%s: watch ended: %v", p.h, err)
			} else {
				c.compare(p, have, last)
				watch.Close()
				return
			}
			watch.Close()
		}
	})
}

// live says whether the manager's store still works.
func (p *managing) live() bool {
	select {
	case <-p.done:
		return false
	default:
		watch := p.store.Watch(1)
		defer watch.Close()
		return watch.Err() == nil
	}
}

func (c *checks) know(o cluster.Object) {
	if t, ok := o.(*cluster.Task); ok {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.tasks[t.ID] = t
	}
}

// event checks one event against what went before.
func (c *checks) event(h *host, have map[string]uint64, last uint64, ev cluster.Event) uint64 {
	key := ev.Kind.String() + ev.ID()
	before, known := have[key]
	switch {
	case ev.Index < last:
		c.w.violate("watch: %s tells of index %d after %d", h, ev.Index, last)
	case (ev.Old != nil) != known:
		c.w.violate("watch: %s tells of %s of %s at %d, known before: %v", h, ev.Action, key, ev.Index, known)
	case ev.Old != nil && ev.Old.ObjectMeta().Version.Index != before:
		c.w.violate("watch: %s has missed a change of %s: version %d follows %d", h, key, ev.Old.ObjectMeta().Version.Index, before)
	}
	if ev.New == nil {
		delete(have, key)
	} else {
		have[key] = ev.New.ObjectMeta().Version.Index
		c.know(ev.New)
	}
	return ev.Index
}

// compare holds what the events made against the tables when both have come to rest.
func (c *checks) compare(p *managing, have map[string]uint64, last uint64) {
	snap := p.store.Snapshot()
	if snap.Index() != last { // entries that were applied and not published when it was killed
		return
	}
	n := 0
	for _, k := range cluster.Kinds() {
		for o := range snap.Objects(k) {
			n++
			if have[k.String()+o.ObjectID()] != o.ObjectMeta().Version.Index {
				c.w.violate("watch: %s: the events made another %s %s than the tables have", p.h, k, o.ObjectID())
			}
		}
	}
	if n != len(have) {
		c.w.violate("watch: %s: the events made %d objects, the tables have %d", p.h, len(have), n)
	}
}
