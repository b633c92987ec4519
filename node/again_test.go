package node

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"
)

// What kept a node from its part in the swarm is gone: it takes it up without being asked.
func TestAFailureThatPassesIsTakenUpAgain(t *testing.T) {
	n := newNode(t)
	stop := run(t, n)
	addr := freePort(t)
	id, err := n.Init(t.Context(), swarm.InitRequest{ListenAddr: addr})
	must(t, err)
	must(t, stop())

	taken, err := net.Listen("tcp", addr)
	must(t, err)
	defer taken.Close()
	again, err := New(n.cfg)
	must(t, err)
	stop = run(t, again)
	waitFor(t, "the error", func() bool { return strings.Contains(again.Info().Error, "another process may have it") })
	first := again.current()
	waitFor(t, "another attempt", func() bool { return again.current() != first })
	taken.Close()
	waitFor(t, "its part in the swarm", func() bool {
		c, err := again.Control()
		if err != nil {
			return false
		}
		self, _, _ := c.Leader()
		return self
	})
	if info := again.Info(); info.NodeID != id || info.Error != "" || info.LocalNodeState != swarm.LocalNodeStateActive {
		t.Errorf("after the port was free: %+v", info)
	}
	must(t, stop())
}

// A machine starts with a clock that is far behind, until NTP has set it. Its node is told so once, and not each time that it looks at
// the clock again.
func TestAClockThatIsBehindIsToldOnce(t *testing.T) {
	n := newNode(t)
	stop := run(t, n)
	_, err := n.Init(t.Context(), swarm.InitRequest{ListenAddr: freePort(t)})
	must(t, err)
	must(t, stop())
	var behind atomic.Int64
	behind.Store(int64(26 * time.Hour))
	cfg := n.cfg
	cfg.Now = func() time.Time { return time.Now().Add(-time.Duration(behind.Load())) }
	told := &counter{Handler: slog.DiscardHandler, of: "this node could not resume its part in the swarm"}
	cfg.Logger = slog.New(told)
	again, err := New(cfg)
	must(t, err)
	run(t, again)
	waitFor(t, "the error", func() bool { return strings.Contains(again.Info().Error, "set the clock right") })
	first := again.Info().Error
	waitFor(t, "another look at the clock", func() bool { return again.Info().Error != first })
	behind.Store(0)
	waitFor(t, "its part in the swarm", func() bool { return again.Info().LocalNodeState == swarm.LocalNodeStateActive })
	if got := told.n.Load(); got != 1 {
		t.Errorf("told %d times", got)
	}
}

// counter counts the lines of a log that have a message.
type counter struct {
	slog.Handler
	of string
	n  atomic.Int64
}

func (c *counter) Enabled(context.Context, slog.Level) bool { return true }

func (c *counter) WithAttrs([]slog.Attr) slog.Handler { return c }

func (c *counter) Handle(_ context.Context, r slog.Record) error {
	if r.Message == c.of {
		c.n.Add(1)
	}
	return nil
}
