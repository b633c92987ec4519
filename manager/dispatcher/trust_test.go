package dispatcher

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

func TestNodesAreToldWhatToTrust(t *testing.T) {
	inWorld(t, func(w *world) {
		w.commitCluster(func(c *cluster.Cluster) { c.RootCA = []byte("old") })
		a := w.connect("n1")
		defer a.close()
		w.commitCluster(func(c *cluster.Cluster) {
			c.Rotation = &cluster.RootRotation{RootCA: []byte("new"), RootCAKey: []byte("key")}
		})
		w.commitCluster(func(c *cluster.Cluster) { c.Spec.Labels = map[string]string{"a": "b"} })
		w.d.RemindOfTrust([]string{"n1", "n2"})
		synctest.Wait()
		b := w.connect("n2")
		defer b.close()
		w.commitCluster(func(c *cluster.Cluster) { c.RootCA, c.Rotation = c.Rotation.RootCA, nil })
		old, both, fresh := protocol.Trust{Root: "old"}, protocol.Trust{Root: "old", Next: "new"}, protocol.Trust{Root: "new"}
		a.look(func() {
			if want := []protocol.Trust{old, both, both, fresh}; !slices.Equal(a.trust, want) {
				t.Errorf("it was told %v, want %v", a.trust, want)
			}
		})
		b.look(func() {
			if want := []protocol.Trust{both, fresh}; !slices.Equal(b.trust, want) {
				t.Errorf("one that came later was told %v, want %v", b.trust, want)
			}
		})
	})
}

func TestClocksAreCompared(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.connect("n1")
		defer a.close()
		b := w.connect("n2")
		defer b.close()
		a.look(func() { a.ahead = -time.Hour })
		if got := w.d.ClockOffsets(); len(got) != 0 {
			t.Errorf("before a heartbeat: %v", got)
		}
		time.Sleep(clockBeats * 250 * time.Millisecond)
		synctest.Wait()
		if got := w.d.ClockOffsets(); len(got) != 2 || got["n1"] != -time.Hour || got["n2"] != 0 {
			t.Errorf("offsets are %v", got)
		}
		a.look(func() { a.ahead = time.Second })
		time.Sleep(clockBeats * 250 * time.Millisecond)
		synctest.Wait()
		if got := w.d.ClockOffsets()["n1"]; got != time.Second {
			t.Errorf("once the clock is set the offset is %v", got)
		}
	})
}

// TestAClockIsReadInSpiteOfStalls: late heartbeats make a clock seem slow; and what is said of it is said once.
func TestAClockIsReadInSpiteOfStalls(t *testing.T) {
	var c clock
	said := 0
	for i := range 100 {
		offset := 10 * time.Millisecond
		if i%4 != 0 {
			offset -= 30 * time.Second
		}
		if _, turned := c.read(offset); turned {
			said++
		}
	}
	if got, known := c.offsetLocked(); said != 0 || !known || got != 10*time.Millisecond {
		t.Errorf("read as %v, said %d times", got, said)
	}
	for i := range 100 { // around the threshold
		if _, turned := c.read(maxClockOffset + time.Duration(i%5-2)*100*time.Millisecond); turned {
			said++
		}
	}
	if said != 1 {
		t.Errorf("a clock at the threshold is named %d times", said)
	}
	for range 2 * clockBeats {
		if _, turned := c.read(-time.Millisecond); turned {
			said++
		}
	}
	if said != 2 {
		t.Errorf("a clock that is right again is named %d times", said-1)
	}
}
