package sim

import (
	"fmt"
	"slices"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/identity"
)

// memberBook is what the checks know of the raft group. It is guarded by checks.mu.
type memberBook struct {
	at      map[uint64]string         // members by log index
	last    map[*managing]seenMembers // of each store, when it last applied something
	term    uint64                    // of the latest leader
	group   string                    // its voters
	removed map[uint64]uint64         // raft ids of former members, and the term in which they were seen to be gone
	ever    map[uint64]bool           // raft ids of members
	away    map[*host]time.Time       // since when a host has had no daemon or reaches nobody
	lost    map[*host]stranded        // hosts that know of no manager any more
}

type seenMembers struct {
	led     uint64 // the term that the store's member led, 0: none
	members []protocol.Member
}

func newMemberBook() memberBook {
	return memberBook{at: map[uint64]string{}, last: map[*managing]seenMembers{}, removed: map[uint64]uint64{}, ever: map[uint64]bool{}, away: map[*host]time.Time{}, lost: map[*host]stranded{}}
}

// stranded is a host that knows no present manager but itself.
type stranded struct {
	since time.Time
	well  bool // though nothing had happened to it for a while
}

// surelyAway is how long a host must have been away for a leader to have known when it judged a change that took effect just now.
const surelyAway = 6500 * time.Millisecond

func voters(members []protocol.Member) (ids []uint64) {
	for _, m := range members {
		if !m.Learner {
			ids = append(ids, m.RaftID)
		}
	}
	return ids
}

// applies looks at a store that is about to apply more: a leader changes one member at a time.
func (c *checks) applies(g *managing) {
	if g.store == nil {
		return
	}
	now := seenMembers{members: g.store.Members()}
	if l := g.store.Leadership(); l.Leader {
		now.led = l.Term
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	before, known := c.members.last[g]
	c.members.last[g] = now
	if !known || before.led == 0 || before.led != now.led {
		return
	}
	if n := differences(before.members, now.members); n > 1 {
		c.w.violate("members: %s changed %d members at once: %v to %v", g.h, n, before.members, now.members)
	}
}

// differences counts the members that are in one list only or different in the other.
func differences(a, b []protocol.Member) int {
	byID := map[uint64]protocol.Member{}
	for _, m := range a {
		byID[m.RaftID] = m
	}
	n := 0
	for _, m := range b {
		if old, ok := byID[m.RaftID]; !ok || old != m {
			n++
		}
		delete(byID, m.RaftID)
	}
	return n + len(byID)
}

// membership looks at the groups that the stores of all managers know.
func (c *checks) membership() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.absencesLocked()
	for _, g := range c.w.managing() {
		st := g.store.Status()
		text := fmt.Sprint(st.Members)
		if other, ok := c.members.at[st.Applied]; ok && other != text && st.Applied > 0 { // I3; before its first entry a newcomer has what it was told
			c.w.violate("I3: %s has the members %s at index %d, another manager had %s", g.h, text, st.Applied, other)
		}
		c.members.at[st.Applied] = text
		l := g.store.Leadership()
		if !l.Leader {
			continue
		}
		if gone, ok := c.members.removed[g.raftID]; ok && l.Term > gone {
			c.w.violate("members: %s, member %x, was removed in term %d and leads in term %d", g.h, g.raftID, gone, l.Term)
		}
		if l.Term >= c.members.term {
			c.members.term = l.Term
			c.groupLocked(g, st.Members)
			c.lostLocked(st.Members)
		}
	}
}

// lostLocked looks for nodes that were told in vain who the managers are. That happens to who is away while all that it knows
// are demoted; to who was there it must not.
func (c *checks) lostLocked(members []protocol.Member) {
	for _, h := range c.w.hosts {
		if h.finds(members) {
			delete(c.members.lost, h)
			continue
		}
		l, known := c.members.lost[h]
		if !known {
			l = stranded{since: time.Now(), well: c.wellLocked(h)}
			c.members.lost[h] = l
			c.w.trace("%s knows no manager: %v", h, h.remembered())
		}
		if l.well && time.Since(l.since) > 2*time.Second {
			c.w.violate("members: %s was well and knows no manager any more: it knows %v, they are %v", h, h.remembered(), members)
		}
	}
}

// finds says whether the managers that a host remembers lead to one that there is.
func (h *host) finds(members []protocol.Member) bool {
	return slices.ContainsFunc(h.remembered(), func(a protocol.ManagerAddr) bool {
		return slices.ContainsFunc(members, func(m protocol.Member) bool { return m.Addr == a.Addr })
	})
}

// rejoin does for hosts that were away while all managers that they knew went what their operators would: they are told where to look.
func (w *world) rejoin() {
	leader := w.leader()
	if leader == nil {
		return
	}
	for _, h := range w.hosts {
		p := h.process()
		if p == nil || h.finds(leader.store.Members()) {
			continue
		}
		w.trace("%s is told to look for its managers at %s", h, leader.h)
		p.agent.Seek(address(leader.h.i))
		h.learnManagers(append(h.remembered(), protocol.ManagerAddr{NodeID: leader.h.id(), Addr: address(leader.h.i)}))
	}
}

// groupLocked judges the group of the latest leader when it has another one: those that were there to be asked must be a majority.
func (c *checks) groupLocked(g *managing, members []protocol.Member) {
	ids := voters(members)
	for id := range c.members.ever {
		if !slices.ContainsFunc(members, func(m protocol.Member) bool { return m.RaftID == id }) {
			c.members.removed[id] = c.members.term
			delete(c.members.ever, id)
		}
	}
	for _, m := range members {
		c.members.ever[m.RaftID] = true
	}
	text := fmt.Sprint(ids)
	if text == c.members.group {
		return
	}
	c.members.group = text
	var there, away []string
	for _, m := range members {
		if m.Learner {
			continue
		}
		h := c.w.hostOf(m.NodeID)
		if h == nil {
			away = append(away, m.NodeID)
			continue
		}
		if since, ok := c.members.away[h]; ok && time.Since(since) > surelyAway {
			away = append(away, h.String())
		} else {
			there = append(there, h.String())
		}
	}
	c.w.trace("%s leads %v, away are %v", g.h, there, away)
	if len(there) <= len(ids)/2 {
		c.w.violate("members: %s leads a group of %d of whom only %v are there: it was left without a majority", g.h, len(ids), there)
	}
}

// absencesLocked keeps book of hosts that nobody can reach.
func (c *checks) absencesLocked() {
	for _, h := range c.w.hosts {
		if h.process() == nil || c.w.alone(h) {
			if _, known := c.members.away[h]; !known {
				c.members.away[h] = time.Now()
			}
			continue
		}
		delete(c.members.away, h)
	}
}

// alone says whether a host reaches no other one both ways.
func (w *world) alone(h *host) bool {
	return !slices.ContainsFunc(w.hosts, func(o *host) bool { return o != h && !w.net.isCut(h.i, o.i) && !w.net.isCut(o.i, h.i) })
}

// misplaced says what of the raft group is not as the nodes' roles have it: its members are the nodes that are to be managers.
func (w *world) misplaced(snap *cluster.Snapshot) string {
	leader := w.leader()
	if leader == nil {
		return "there is no leader"
	}
	members := map[string]protocol.Member{}
	for _, m := range leader.store.Members() {
		members[m.NodeID] = m
	}
	for n := range snap.Nodes() {
		m, member := members[n.ID]
		h := w.hostOf(n.ID)
		is := n.Spec.Role == swarm.NodeRoleManager
		switch {
		case h == nil:
			return fmt.Sprintf("node %s is there still", n.ID)
		case n.Role != n.Spec.Role:
			return fmt.Sprintf("%s is a %s and is to be a %s", h, n.Role, n.Spec.Role)
		case member != is:
			return fmt.Sprintf("%s is a %s, and a member of the raft group: %v", h, n.Role, member)
		case is && m.Learner:
			return fmt.Sprintf("%s is still a learner", h)
		case is && (n.RaftID != m.RaftID || n.ManagerAddr != m.Addr):
			return fmt.Sprintf("%s is member %x at %s, its node says %x at %s", h, m.RaftID, m.Addr, n.RaftID, n.ManagerAddr)
		case h.role() != identity.Role(n.Role):
			return fmt.Sprintf("%s is a %s and has the certificate of a %s", h, n.Role, h.role())
		case (h.managing() != nil) != is:
			return fmt.Sprintf("%s is a %s and runs a manager: %v", h, n.Role, !is)
		case !is && (h.raftID.Load() != 0 || h.disk.holds()):
			return fmt.Sprintf("%s is a %s and has the replica of a manager on its disk", h, n.Role)
		}
		delete(members, n.ID)
	}
	if len(members) > 0 {
		return fmt.Sprintf("%v are members of the raft group and no nodes", members)
	}
	return ""
}
