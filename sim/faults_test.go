package sim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/raftstore"
)

type faultKind string

const (
	kill      faultKind = "kill"      // SIGKILL of the daemon; its containers go on
	amnesia   faultKind = "amnesia"   // the same, and the agent's task database is gone
	power     faultKind = "power"     // the machine's power is cut
	die       faultKind = "die"       // SIGKILL at a point of the store; systemd starts the daemon again
	freeze    faultKind = "freeze"    // SIGSTOP of the daemon, or a machine that has no time for it
	isolate   faultKind = "isolate"   // no packets to or from a host
	oneWay    faultKind = "one way"   // no packets from a host
	oneLink   faultKind = "one link"  // no packets from one host to another
	split     faultKind = "split"     // two groups of hosts
	flaky     faultKind = "flaky"     // delays, resets; between stores also loss and doubles
	slowDisk  faultKind = "slow disk" // syncs take long
	fullDisk  faultKind = "full disk" // writes fail
	sickDisk  faultKind = "sick disk" // one sync fails
	engineOff faultKind = "engine off"
	engineDie faultKind = "engine dies"  // with its containers
	engineHup faultKind = "engine hangs" // calls wait
	clockJump faultKind = "clock"
	exit      faultKind = "exit"     // a container ends by itself
	transfer  faultKind = "transfer" // leadership is handed over
	blackout  faultKind = "blackout" // all managers are killed at once
	away      faultKind = "away"     // SIGKILL, and for long
	lost      faultKind = "lost"     // a machine is gone for good; its node is removed, and another machine joins in its place
)

var allFaults = []faultKind{kill, kill, amnesia, power, die, die, die, freeze, isolate, isolate, oneWay, oneLink, split, flaky, flaky, slowDisk, fullDisk, sickDisk,
	engineOff, engineDie, engineHup, clockJump, exit, exit, transfer, blackout}

// memberFaults are drawn as well where roles change.
var memberFaults = []faultKind{away, away, lost, lost}

// fault is one entry of the plan.
type fault struct {
	kind  faultKind
	at    time.Duration // from the begin of the troubles
	lasts time.Duration
	host  *host
	other *host
	size  int64
	side  []bool // of split, by host
}

func (f fault) String() string {
	s := fmt.Sprintf("%s of %s for %s", f.kind, f.host, f.lasts)
	switch f.kind {
	case oneLink:
		s += fmt.Sprintf(" to %s", f.other)
	case split:
		s += fmt.Sprint(" ", f.side)
	case die:
		s += fmt.Sprintf(" at %q", f.point())
	}
	return s
}

// troubles is how long faults begin.
const troubles = 40 * time.Second

// plan draws the faults of a seed.
func (w *world) plan(r *rand.Rand, kinds []faultKind) []fault {
	if kinds == nil {
		kinds = allFaults
		if w.changing {
			kinds = slices.Concat(allFaults, memberFaults)
		}
	}
	var all []fault
	for range 4 + r.IntN(14) {
		f := fault{kind: kinds[r.IntN(len(kinds))], at: time.Duration(r.Int64N(int64(troubles))), lasts: 200*time.Millisecond + time.Duration(r.Int64N(int64(6*time.Second))), size: r.Int64()}
		f.host, f.other = w.hosts[r.IntN(len(w.hosts))], w.hosts[r.IntN(len(w.hosts))]
		switch f.kind {
		case die, slowDisk, fullDisk, sickDisk, clockJump:
			may := w.eligible()
			f.host = may[r.IntN(len(may))]
		case away:
			f.lasts += surelyAway
		case freeze:
			f.lasts = min(f.lasts, 4*time.Second)
		}
		for range w.hosts {
			f.side = append(f.side, r.IntN(2) == 0)
		}
		f.at, f.lasts = f.at.Round(time.Millisecond), f.lasts.Round(time.Millisecond)
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b fault) int { return cmp.Compare(a.at, b.at) })
	return all
}

// point is where a die fault strikes.
func (f fault) point() raftstore.Point {
	points := []raftstore.Point{raftstore.Append, raftstore.Appended, raftstore.Appended, raftstore.Turn, raftstore.Apply, raftstore.SnapshotWritten, raftstore.SnapshotRecorded}
	return points[uint64(f.size)%uint64(len(points))]
}

// trouble carries out a plan. It returns when the last fault has ended.
func (w *world) trouble(ctx context.Context, plan []fault) {
	begin := time.Now()
	var ends sync.WaitGroup
	for _, f := range plan {
		_ = pause(ctx, time.Until(begin.Add(f.at)))
		ends.Go(func() {
			w.trace("begin %s", f)
			hosts := f.concerned(w)
			w.checks.blame(hosts, 1)
			f.strike(ctx, w)
			w.checks.blame(hosts, -1)
			w.trace("end %s", f)
		})
	}
	ends.Wait()
}

// concerned are the hosts that are not themselves because of the fault.
func (f fault) concerned(w *world) []*host {
	switch f.kind {
	case flaky, split, blackout, clockJump:
		return w.hosts
	case transfer, exit:
		return nil
	case oneLink:
		return []*host{f.host, f.other}
	}
	return []*host{f.host}
}

// strike does the fault for as long as it lasts.
func (f fault) strike(ctx context.Context, w *world) {
	h := f.host
	wait := func() { _ = pause(ctx, f.lasts) }
	cuts := func(cut func(a, b *host) bool) {
		for _, by := range []int{1, -1} {
			for _, a := range w.hosts {
				for _, b := range w.hosts {
					if a != b && cut(a, b) {
						w.cut(a.i, b.i, by)
					}
				}
			}
			if by == 1 {
				wait()
			}
		}
	}
	switch f.kind {
	case kill, away:
		h.down(wait)
	case lost:
		w.replace(ctx, h, []identity.Role{identity.Worker, identity.Manager}[f.size&1])
	case amnesia:
		h.down(func() {
			if err := os.Remove(h.tasks()); err != nil && !errors.Is(err, fs.ErrNotExist) {
				w.violate("%s: %v", h, err)
			}
			wait()
		})
	case power:
		h.powerless(wait)
	case blackout:
		var all sync.WaitGroup
		for _, m := range w.managing() {
			all.Go(func() { m.h.down(wait) })
		}
		all.Wait()
	case die:
		h.disk.set(func() {
			h.disk.crashAt, h.disk.countdown, h.disk.tear = f.point(), 1+int(uint64(f.size)>>8%4), f.size&64 != 0
		})
		wait()
		h.disk.set(func() { h.disk.crashAt, h.disk.tear = "", false })
	case freeze:
		h.frozen.Add(1)
		release := h.hang()
		for _, o := range w.hosts {
			if o != h {
				w.cut(h.i, o.i, 1)
				w.cut(o.i, h.i, 1)
			}
		}
		wait()
		for _, o := range w.hosts {
			if o != h {
				w.cut(h.i, o.i, -1)
				w.cut(o.i, h.i, -1)
			}
		}
		release()
		h.frozen.Add(-1)
	case isolate:
		wait = func() { w.checks.keeps(h, func(d time.Duration) { _ = pause(ctx, d) }, f.lasts) }
		cuts(func(a, b *host) bool { return a == h || b == h })
	case oneWay:
		cuts(func(a, b *host) bool { return a == h })
	case oneLink:
		cuts(func(a, b *host) bool { return a == h && b == f.other })
	case split:
		cuts(func(a, b *host) bool { return f.side[a.i] != f.side[b.i] })
	case flaky:
		late := time.Duration(f.size&0x7f) * time.Millisecond
		w.net.setFaults(late, float64(f.size>>8&0xf)/1000)
		if w.messages != nil {
			w.messages.SetFaults(float64(f.size>>16&0xf)/80, late)
			w.messages.SetDoubles(float64(f.size>>24&0xf) / 80)
		}
		wait()
		w.calm()
	case slowDisk:
		h.disk.set(func() { h.disk.slow = time.Duration(1+f.size&0x1ff) * time.Millisecond })
		wait()
		h.disk.set(func() { h.disk.slow = 0 })
	case fullDisk:
		h.disk.set(func() { h.disk.full = true })
		wait()
		h.disk.set(func() { h.disk.full = false })
	case sickDisk:
		h.disk.set(func() { h.disk.sick = true })
		wait()
		h.disk.set(func() { h.disk.sick = false })
	case engineOff:
		h.engine.Vanish()
		wait()
		h.back()
	case engineDie:
		h.engine.Crash()
		wait()
		h.back()
	case engineHup:
		release := h.hang()
		wait()
		release()
	case clockJump:
		jump := time.Duration(f.size % int64(time.Hour))
		if w.changing {
			jump /= 8 // certificates are made, and clocks that are an hour apart do not agree on new ones
		}
		h.skew.Add(int64(jump))
		w.trace("%s: clock jumps by %s", h, jump)
		wait()
		if f.size&1 == 0 {
			h.skew.Add(-int64(jump))
		}
	case exit:
		running := h.running()
		if len(running) > 0 {
			c := running[uint64(f.size)%uint64(len(running))]
			w.trace("%s: container %s ends", h, c.Name)
			w.checks.touch(h)
			h.engine.Exit(c.ID, 1)
		}
	case transfer:
		if p := w.leader(); p != nil {
			try, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			w.trace("%s hands leadership over: %v", p.h, p.store.TransferLeadership(try, 0))
		}
	}
}

// calm ends the network's faults but for cuts.
func (w *world) calm() {
	w.net.setFaults(0, 0)
	if w.messages != nil {
		w.messages.SetFaults(0, 0)
		w.messages.SetDoubles(0)
	}
}
