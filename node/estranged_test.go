package node

import (
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/node/doctor"
)

// lines counts what a logger says.
type lines struct {
	mu   sync.Mutex
	text strings.Builder // guarded by mu
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), what)
}

// TestRemovedWhileTheRootRotated: a node was off while the root CA rotated, and was removed so that this could end. It cannot be told by
// anybody whom it trusts, but says what it sees.
func TestRemovedWhileTheRootRotated(t *testing.T) {
	t.Parallel()
	first := newNode(t)
	run(t, first)
	_, err := first.Init(t.Context(), swarm.InitRequest{ListenAddr: freePort(t)})
	must(t, err)
	remote := first.current().state.AdvertiseAddr
	sleeper := newNode(t)
	stop := run(t, sleeper)
	must(t, sleeper.Join(t.Context(), swarm.JoinRequest{ListenAddr: freePort(t), RemoteAddrs: []string{remote}, JoinToken: snapshot(t, first).Cluster().JoinTokens.Worker}))
	if why := sleeper.Info().Error; why != "" {
		t.Errorf("a node that joined says %s", why)
	}
	must(t, stop())

	made := reroot(t, first, func(c *swarm.CAConfig) { c.ForceRotate++ })
	waitFor(t, "a manager with a certificate of the new root", func() bool { return first.issuedBy(made.TLSInfo) })
	c, err := first.Control()
	must(t, err)
	_, err = c.Update(t.Context(), func(snap *cluster.Snapshot) (*cluster.Txn, error) {
		return &cluster.Txn{Changes: []cluster.Change{cluster.RemoveOf(snap.Node(sleeper.credentials.Current().Identity.NodeID))}}, nil
	})
	must(t, err)
	waitFor(t, "the end of the rotation", func() bool { return snapshot(t, first).Cluster().Rotation == nil })

	log := &lines{}
	sleeper.cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	sleeper = restart(t, sleeper, 0)
	waitFor(t, "a node that says what it most likely is", func() bool { return strings.Contains(sleeper.Info().Error, textStranger) })
	if got := sleeper.Info(); got.LocalNodeState != swarm.LocalNodeStateActive {
		t.Errorf("it gave up by itself: %+v", got)
	}
	cures := map[string]string{}
	for _, f := range sleeper.checkup(t.Context()).Findings {
		if f.Level != doctor.Ok {
			cures[f.Check] = f.Cure
		}
	}
	if cures["managers"] != cureStranger || cures["session"] != cureStranger {
		t.Errorf("the doctor advises %v", cures)
	}
	if err := sleeper.Rejoin(t.Context(), remote); err == nil || !strings.Contains(err.Error(), textStranger) || !strings.Contains(err.Error(), cureStranger) {
		t.Errorf("rejoin says %v", err)
	}
	if n := log.count(textStranger); n != 1 {
		t.Errorf("the log says it %d times:\n%s", n, log.text.String())
	}
}
