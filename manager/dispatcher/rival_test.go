package dispatcher

import (
	"strings"
	"testing"
	"time"

	"github.com/miniswarm/miniswarm/cluster"
)

func TestACopyOfANodeIsRefused(t *testing.T) {
	inWorld(t, func(w *world) {
		original := w.connectAs("n1", "first")
		defer original.close()
		for range 3 { // however often it asks
			copied := w.connectAs("n1", "second")
			time.Sleep(defaultPeriod)
			copied.look(func() {
				if !strings.Contains(copied.refused, "in session with another machine at 192.0.2.9") || !strings.Contains(copied.refused, `"docker swarm leave --force"`) || copied.left != "" {
					t.Errorf("told %q, to leave: %q", copied.refused, copied.left)
				}
			})
			<-copied.ended
			copied.close()
		}
		select {
		case <-original.ended:
			t.Error("the original has lost its session")
		default:
		}
		if err := w.d.Rival("n1", "second"); err == nil {
			t.Error("the copy could take the manager's place")
		}
		if err := w.d.Rival("n1", "first"); err != nil {
			t.Errorf("the original is a copy of itself: %v", err)
		}
	})
}

// A daemon that was restarted after a power failure has another instance too, and its former session may still stand.
func TestARestartedDaemonIsNoCopy(t *testing.T) {
	inWorld(t, func(w *world) {
		before := w.connectAs("n1", "first")
		before.stop() // silent, but not closed
		after := w.connectAs("n1", "second")
		defer after.close()
		time.Sleep(defaultPeriod)
		<-before.ended
		after.look(func() {
			if after.refused != "" || after.period == 0 {
				t.Errorf("refused: %q, period %v", after.refused, after.period)
			}
		})
		before.close()
		again := w.connectAs("n1", "second") // the same daemon, over another connection
		defer again.close()
		again.look(func() {
			if again.period == 0 {
				t.Error("the same daemon has to wait for itself")
			}
		})
	})
}

// A new leader has no session yet that tells the original from its copy. The copy may be the first to call.
func TestANewLeaderWaitsForTheOriginal(t *testing.T) {
	inWorld(t, func(w *world) {
		w.commit(cluster.PatchNode("n1", cluster.NodePatch{Instance: "first"}))
		copied := w.connectAs("n1", "second")
		time.Sleep(defaultPeriod / 2)
		original := w.connectAs("n1", "first")
		defer original.close()
		time.Sleep(2 * defaultPeriod)
		<-copied.ended
		copied.close()
		original.look(func() {
			if copied.refused == "" || original.refused != "" || original.period == 0 {
				t.Errorf("the copy was told %q, the original %q", copied.refused, original.refused)
			}
		})
		original.close()
		again := w.connectAs("n1", "third") // later on nobody has to wait
		defer again.close()
		again.look(func() {
			if again.period == 0 {
				t.Error("a daemon that was restarted has to wait")
			}
		})
	})
}
