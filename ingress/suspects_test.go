package ingress

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/miniswarm/miniswarm/ingress/plan"
)

// A question that could not be asked is asked again soon: a machine may be dead meanwhile.
func TestAQuestionThatFailsIsAskedAgainSoon(t *testing.T) {
	peer := netip.MustParseAddr("192.0.2.1")
	s := &suspects{m: &Mesh{input: plan.Input{Peers: []plan.Node{{Underlay: peer, Suspect: true, Alive: true}}}}, answered: map[netip.Addr]bool{}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if pause, err := s.ask(ctx, time.Unix(1000, 0)); err == nil || pause > patient {
		t.Errorf("the next question is %s away after %v", pause, err)
	}
}

func TestPeersThatNeverAnswerAreAskedLessAndLess(t *testing.T) {
	here, firewalled := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	s := &suspects{answered: map[netip.Addr]bool{}}
	now := time.Unix(1000, 0)
	count := func(all []netip.Addr, long time.Duration) int {
		n := 0
		for end := now.Add(long); now.Before(end); now = now.Add(watchful) {
			if s.due(all, now) {
				n++
				if len(all) > 0 {
					s.answered[here] = true
				}
			}
		}
		return n
	}
	all := []netip.Addr{here, firewalled}
	if n := count(all, 15*time.Second); n != 4 {
		t.Errorf("asked %d times in the first 15 s, want 4: with pauses of 1, 2, 4 and 8 s", n)
	}
	if n := count(all, time.Minute); n != 6 {
		t.Errorf("asked %d times in a later minute, want 6", n)
	}
	if n := count(all[:1], time.Second); n != 1 || s.answered[firewalled] || !s.answered[here] {
		t.Errorf("asked %d times within 1 s after the peers changed, want 1; have answered: %v", n, s.answered)
	}
	if n := count(all[:1], time.Minute); n != 6 {
		t.Errorf("asked %d times in a minute, want 6 where all answer", n)
	}
}

func TestOnlySuspicionThatLastsMakesPatient(t *testing.T) {
	s := &suspects{}
	peer := []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	for range 10 * watchfulRounds {
		if pause := s.patience(nil); pause != watchful {
			t.Fatalf("nobody is suspect, and the next look is %v away, want %v", pause, watchful)
		}
	}
	for i := range watchfulRounds {
		if pause := s.patience(peer); pause != watchful {
			t.Fatalf("look %d at a suspect: pause of %v, want %v", i, pause, watchful)
		}
	}
	if pause := s.patience(peer); pause != patient {
		t.Errorf("after %d looks: pause of %v, want %v", watchfulRounds, pause, patient)
	}
}
