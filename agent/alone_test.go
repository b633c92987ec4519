package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miniswarm/miniswarm/agent/docker/fake"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// A node that is cut off for two hours and a half says so when it begins, after a minute, after ten, and every hour.
func TestANodeThatIsCutOffSaysSoRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		tries := 0
		a, err := New(Config{NodeID: "n1", StateDir: t.TempDir(), Engine: fake.New(), Managers: []protocol.ManagerAddr{{NodeID: "m1", Addr: "10.0.0.1:2377"}},
			Dial:   func(context.Context, string) (net.Conn, error) { tries++; return nil, errors.New("no route to host") },
			Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 150*time.Minute)
		defer cancel()
		if err := a.sessions(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it ended with %v", err)
		}
		if n := strings.Count(log.String(), "no session with a leader; containers go on"); n != 5 || tries < 1000 {
			t.Errorf("%d lines for %d attempts:\n%s", n, tries, log.String())
		}
	})
}
