package ingress

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/miniswarm/miniswarm/ingress/ping"
	"github.com/miniswarm/miniswarm/ingress/plan"
)

const (
	// acquaint is how often peers are asked while nothing is wrong: only the silence of a machine that used to answer
	// says anything. Those that have never answered are asked sooner at first, in case they are starting.
	acquaint    = 10 * time.Second
	acquaintNew = time.Second
	// watchful is the pause between questions while a peer is suspect, and patient the one after watchfulRounds of them:
	// a machine that is cut off suspects everyone for as long as that lasts.
	watchful       = 200 * time.Millisecond
	watchfulRounds = 50
	patient        = time.Second
	// unheardRounds is how long a suspect that has never answered is given to answer for the first time.
	unheardRounds = 5
)

// suspects finds out which peers with a silent daemon are dead machines, long before the managers give them up:
// connections to their replicas are cut at once then, so that clients connect anew and reach others.
type suspects struct {
	m        *Mesh
	answered map[netip.Addr]bool // peers that have ever answered
	all      []netip.Addr        // the peers, as of the last question to all
	asked    time.Time           // when that was
	pause    time.Duration       // until the next one
	suspect  []netip.Addr        // who was suspect at the last look
	rounds   int                 // questions to just these
}

// ask asks the peers if it is time to, and lets the mesh know. It gives the pause until it should be called again.
func (s *suspects) ask(ctx context.Context, now time.Time) (time.Duration, error) {
	s.m.mu.Lock()
	peers := s.m.input.Peers
	s.m.mu.Unlock()
	var all, suspect []netip.Addr
	for _, p := range peers {
		all = append(all, p.Underlay)
		if p.Suspect && p.Alive {
			suspect = append(suspect, p.Underlay)
		}
	}
	patience := s.patience(suspect)
	question := suspect
	if s.due(all, now) {
		question = all
	}
	if len(question) == 0 {
		return watchful, s.m.bury(ctx, nil)
	}
	alive, err := ping.Answering(ctx, question)
	if err != nil {
		return patient, err // clients of a dead machine wait meanwhile
	}
	for a := range alive {
		s.answered[a] = true
	}
	dead := map[netip.Addr]bool{}
	var strange []netip.Addr // those whose silence says nothing, for they have never answered
	for _, a := range suspect {
		switch {
		case alive[a]:
		case s.answered[a]:
			dead[a] = true
		default:
			strange = append(strange, a)
		}
	}
	if s.rounds > unheardRounds {
		s.unresolved(strange, dead)
	}
	return patience, s.m.bury(ctx, dead)
}

// unresolved adds the peers on our own segments whose link address the kernel cannot find out although they were just sent
// something. No firewall hides that: nothing can be sent to them. A daemon that has started on a machine that was cut off has
// no other way to know, as its peers have never answered it.
func (s *suspects) unresolved(addrs []netip.Addr, dead map[netip.Addr]bool) {
	if len(addrs) == 0 {
		return
	}
	segments, err := s.m.kernel.Segments(addrs)
	if err != nil {
		return // asked again soon
	}
	for a, seg := range segments {
		if seg.MAC == (plan.MAC{}) {
			dead[a] = true
		}
	}
}

// patience is the pause until the next look. Only suspicion that lasts makes patient: who becomes suspect after a quiet
// time is found out at once.
func (s *suspects) patience(suspect []netip.Addr) time.Duration {
	if len(suspect) == 0 || !slices.Equal(suspect, s.suspect) {
		s.suspect, s.rounds = suspect, 0
	}
	if s.rounds++; s.rounds > watchfulRounds {
		return patient
	}
	return watchful
}

// due says whether it is time to ask all peers. Where some never answer, as behind a firewall, the questions become
// as rare as elsewhere.
func (s *suspects) due(all []netip.Addr, now time.Time) bool {
	if !slices.Equal(all, s.all) {
		s.all, s.pause = all, 0
		maps.DeleteFunc(s.answered, func(a netip.Addr, _ bool) bool { return !slices.Contains(all, a) })
	}
	if now.Sub(s.asked) < max(s.pause, acquaintNew) {
		return false
	}
	s.asked, s.pause = now, min(max(2*s.pause, acquaintNew), acquaint)
	if len(s.answered) == len(all) {
		s.pause = acquaint
	}
	return true
}

// bury takes over which suspect machines do not answer, and changes the rules if that is news.
func (m *Mesh) bury(ctx context.Context, dead map[netip.Addr]bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if maps.Equal(dead, m.dead) || !m.applied {
		return nil
	}
	for a := range dead {
		if !m.dead[a] {
			m.log.Warn("a machine does not answer and is taken for dead: connections to its replicas are cut", "addr", a)
		}
	}
	m.dead = dead
	_, err := m.reconcile(ctx)
	return err
}

// withoutDead marks the peers that are dead. A manager that hears of one again ends the suspicion.
func (m *Mesh) withoutDead(peers []plan.Node) []plan.Node {
	for i := range peers {
		if peers[i].Suspect && m.dead[peers[i].Underlay] {
			peers[i].Alive = false
		}
	}
	return peers
}
