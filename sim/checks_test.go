package sim

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/agent/docker"
	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/orchestrator"
)

// checks look at a world while it runs, from outside: at engines, at tables of data planes, at the stores of all managers.
type checks struct {
	w         *world
	followers sync.WaitGroup

	mu      sync.Mutex // guards all below
	leaders map[uint64]string
	digests map[uint64]string
	digestN map[*host]uint64 // index that was looked at last
	tasks   map[string]*cluster.Task
	blamed  map[*host]int // faults that strike the host now
	touched map[*host]int // counts what was ever done to the host
	bad     map[*host]time.Time
	allBad  time.Time
	doubles map[string]time.Time // pairs of containers, since when
	gone    map[string]time.Time // endpoints that outlive their container, since when
	alone   map[*host]minority
	members memberBook
}

// minority is what a manager had when it was cut off with those that it still hears.
type minority struct {
	since time.Time
	with  string
	index uint64
}

func newChecks(w *world) *checks {
	return &checks{w: w, leaders: map[uint64]string{}, digests: map[uint64]string{}, digestN: map[*host]uint64{}, tasks: map[string]*cluster.Task{},
		blamed: map[*host]int{}, touched: map[*host]int{}, bad: map[*host]time.Time{}, doubles: map[string]time.Time{}, gone: map[string]time.Time{}, alone: map[*host]minority{}, members: newMemberBook()}
}

// calmAfter is how long after its troubles a host, or the cluster, is held to what holds without any.
const calmAfter = 15 * time.Second

// blame notes that a fault begins or ends to strike hosts.
func (c *checks) blame(hosts []*host, by int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range hosts {
		c.blamed[h] += by
		c.touched[h]++
		c.bad[h], c.allBad = time.Now(), time.Now()
	}
}

// run looks again and again until ctx ends.
func (c *checks) run(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		c.notice()
		c.membership()
		c.slots()
		c.endpoints()
		c.minorities()
		if n%8 == 0 {
			c.states()
		}
		_ = pause(ctx, 250*time.Millisecond)
	}
	c.followers.Wait()
}

// notice keeps book of hosts that are not themselves.
func (c *checks) notice() {
	snap := c.w.leaderSnapshot()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.w.hosts {
		down := snap == nil || snap.Node(h.id()) == nil || snap.Node(h.id()).Status.State != swarm.NodeStateReady
		if c.blamed[h] > 0 || h.process() == nil || down {
			c.bad[h], c.allBad = time.Now(), time.Now()
		}
	}
	for _, p := range c.w.managing() {
		if l := p.store.Leadership(); l.Leader { // I2
			self := fmt.Sprintf("%s (member %x)", p.h, p.raftID)
			if other, ok := c.leaders[l.Term]; ok && other != self {
				c.w.violate("I2: %s and %s both lead in term %d", other, self, l.Term)
			}
			c.leaders[l.Term] = self
		}
	}
}

func (c *checks) wellLocked(h *host) bool { return time.Since(c.bad[h]) > calmAfter }

// slots: at most one container of a slot runs on hosts that are well (I4).
func (c *checks) slots() {
	type place struct {
		h    *host
		name string
		task *cluster.Task
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	bySlot := map[string][]place{}
	for _, h := range c.w.hosts {
		if !c.wellLocked(h) {
			continue
		}
		for _, i := range h.running() {
			t := c.taskLocked(i.Labels[docker.LabelTaskID])
			if t == nil {
				if i.Started.Before(time.Now().Add(-time.Second)) {
					c.w.violate("I10: %s runs container %s of a task that no manager ever had", h, i.Name)
				}
				continue
			}
			if t.ServiceAnnotations.Name == serviceName(3) { // start-first
				continue
			}
			slot := t.ServiceID + "." + t.SlotName()
			bySlot[slot] = append(bySlot[slot], place{h, i.Name, t})
		}
	}
	now := map[string]time.Time{}
	for slot, all := range bySlot {
		if len(all) < 2 {
			continue
		}
		key := fmt.Sprint(slot, " ", all[0].name, " on ", all[0].h, ", ", all[1].name, " on ", all[1].h)
		since, known := c.doubles[key]
		if !known {
			since = time.Now()
		}
		now[key] = since
		if time.Since(since) > 400*time.Millisecond {
			c.w.violate("I4: two containers of one slot run: %s", key)
		}
	}
	c.doubles = now
}

// taskLocked gives a task that a manager has or had, however slow its followers are.
func (c *checks) taskLocked(id string) *cluster.Task {
	for _, p := range c.w.managing() {
		if c.tasks[id] != nil {
			break
		}
		if t := p.store.Snapshot().Task(id); t != nil {
			c.tasks[id] = t
		}
	}
	return c.tasks[id]
}

// endpoints: where the whole cluster is well, no data plane sends anybody to a container that has ended (I8).
func (c *checks) endpoints() {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := map[string]time.Time{}
	if time.Since(c.allBad) > calmAfter {
		running := map[string]bool{}
		for _, h := range c.w.hosts {
			for _, i := range h.running() {
				running[i.Labels[docker.LabelTaskID]] = true
			}
		}
		for _, h := range c.w.hosts {
			for service, backends := range h.mesh.backends() {
				for task, b := range backends {
					if running[task] {
						continue
					}
					key := fmt.Sprintf("%s sends connections for service %s to %s of task %s, which does not run", h, service, b.Addr, task)
					since, known := c.gone[key]
					if !known {
						since = time.Now()
					}
					now[key] = since
					if time.Since(since) > 2*time.Second {
						c.w.violate("I8: %s, for %s", key, time.Since(since))
					}
				}
			}
		}
	}
	c.gone = now
}

// minorities: a manager that is cut off for longer than it may believe to lead applies nothing new (I13).
func (c *checks) minorities() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.w.hosts {
		p := h.managing()
		with, minor := c.w.hears(h)
		with += fmt.Sprint(" at change ", c.w.cuts.Load())
		if p == nil || !minor {
			delete(c.alone, h)
			continue
		}
		at := p.store.Snapshot().Index()
		m, known := c.alone[h]
		if !known || m.with != with { // others may bring what they heard elsewhere
			c.alone[h] = minority{since: time.Now(), with: with, index: at}
			continue
		}
		if time.Since(m.since) < 3*time.Second {
			m.index = at
			c.alone[h] = m
			continue
		}
		if at != m.index {
			c.w.violate("I13: %s is cut off since %s and went from index %d to %d", h, time.Since(m.since), m.index, at)
		}
	}
}

// touch notes that something was done to a host's containers.
func (c *checks) touch(h *host) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.touched[h]++
}

// keeps lets a host that is cut off be so for a time: nothing of what runs there ends for that (I13).
func (c *checks) keeps(h *host, let func(time.Duration), lasts time.Duration) {
	const settle = 2 * time.Second // what was on its way arrives and is done
	let(min(lasts, settle))
	if lasts <= settle {
		return
	}
	c.mu.Lock()
	touched := c.touched[h]
	c.mu.Unlock()
	before := h.running()
	_, minor := c.w.hears(h)
	let(lasts - settle)
	if _, still := c.w.hears(h); !minor || !still {
		return // where it is the only manager it goes on
	}
	c.mu.Lock()
	same := touched == c.touched[h]
	c.mu.Unlock()
	now := map[string]bool{}
	for _, i := range h.running() {
		now[i.ID] = true
	}
	for _, i := range before {
		if same && !now[i.ID] && i.Image != sick && i.Image != done {
			c.w.violate("I13: %s is cut off and has ended %s", h, i.Name)
		}
	}
}

// hears tells from which hosts something can come to one, also by way of others, and whether the managers among them are a minority
// of the group as each of them knows it.
func (w *world) hears(h *host) (with string, minor bool) {
	w.net.mu.Lock()
	heard := map[*host]bool{h: true}
	for again := true; again; {
		again = false
		for _, o := range w.hosts {
			for by := range heard {
				if !heard[o] && !w.net.isCutLocked(o.i, by.i) {
					heard[o], again = true, true
				}
			}
		}
	}
	w.net.mu.Unlock()
	minor = true
	for _, o := range w.hosts {
		if !heard[o] {
			continue
		}
		with += " " + o.String()
		g := o.managing()
		if g == nil {
			minor = minor && (!w.changing || o.raftID.Load() == 0) // what a daemon that is down knows of the group is on its disk
			continue
		}
		with += fmt.Sprint(g.store.Members())
		there, of := 0, voters(g.store.Members())
		for _, id := range of {
			for o := range heard {
				if o.raftID.Load() == id {
					there++
				}
			}
		}
		minor = minor && there <= len(of)/2
	}
	return with, minor
}

// states: what managers have at the same index is the same (I3), addresses are nobody else's (I9), and what the
// orchestrator decides can be decided again (I12).
func (c *checks) states() {
	c.mu.Lock()
	defer c.mu.Unlock()
	var newest *cluster.Snapshot
	for _, p := range c.w.managing() {
		h, snap := p.h, p.store.Snapshot()
		if snap.Index() == c.digestN[h] {
			continue
		}
		c.digestN[h] = snap.Index()
		d, err := snap.Digest()
		if err != nil {
			c.w.violate("I3: %v", err)
			continue
		}
		if other, ok := c.digests[snap.Index()]; ok && other != d {
			c.w.violate("I3: %s has another state at index %d than another manager had", h, snap.Index())
		}
		c.digests[snap.Index()] = d
		if newest == nil || snap.Index() > newest.Index() {
			newest = snap
		}
	}
	if newest != nil {
		c.addresses(newest)
		c.reproduce(newest)
	}
}

func (c *checks) addresses(snap *cluster.Snapshot) {
	owner := map[string]string{}
	claim := func(network, addr, who string) {
		if addr == "" {
			return
		}
		key := network + " " + addr
		if other, taken := owner[key]; taken && other != who {
			c.w.violate("I9: at index %d %s and %s both have %s", snap.Index(), other, who, key)
		}
		owner[key] = who
	}
	for n := range snap.Nodes() {
		for network, addr := range n.Attachments {
			claim(network, addr, "node "+n.ID)
		}
	}
	for s := range snap.Services() {
		for _, v := range s.Endpoint.VirtualIPs {
			claim(v.NetworkID, v.Addr, "service "+s.ID)
		}
	}
	for t := range snap.Tasks() {
		if cluster.Terminal(t.Status.State) {
			continue
		}
		for _, a := range t.NetworksAttachments {
			for _, addr := range a.Addresses {
				claim(a.Network.ID, addr, "task "+t.ID)
			}
		}
	}
}

func (c *checks) reproduce(snap *cluster.Snapshot) {
	now := time.Now()
	first, second := orchestrator.Next(snap, now, cluster.SeededIDs(1)), orchestrator.Next(snap, now, cluster.SeededIDs(1))
	a, aerr := json.Marshal(first)
	b, berr := json.Marshal(second)
	if aerr != nil || berr != nil || string(a) != string(b) {
		c.w.violate("I12: the same state at index %d and the same time give two plans (%v, %v)", snap.Index(), aerr, berr)
	}
}

// wantedTasks lists the tasks of a service that are to run, and those of them that do.
func wantedTasks(snap *cluster.Snapshot, service string) (running, wanted []*cluster.Task) {
	for t := range snap.TasksOfService(service) {
		if t.Wanted() && !cluster.Terminal(t.Status.State) {
			wanted = append(wanted, t)
			if t.Running() {
				running = append(running, t)
			}
		}
	}
	slices.SortFunc(running, func(a, b *cluster.Task) int { return a.Slot - b.Slot })
	return running, wanted
}
