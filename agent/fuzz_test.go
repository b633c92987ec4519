package agent

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/miniswarm/miniswarm/agent/docker/fake"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// FuzzWhatLeadersSay hands arbitrary messages of a leader to the agent: it may refuse them, and must not fall over them, for
// its node's containers would be nobody's.
func FuzzWhatLeadersSay(f *testing.F) {
	for _, s := range []string{
		`{"Assignments":{"Seq":1,"Complete":true,"Tasks":[{"ID":"t1","ServiceID":"s","Slot":1,"NodeID":"node1","DesiredState":"running","Status":{"State":"assigned"},"Spec":{"ContainerSpec":{"Image":"web:1"}}}],"Networks":[{"ID":"n1"}],"Node":{"ID":"node1"}}}`,
		`{"Assignments":{"Seq":1,"Complete":true,"Tasks":[null],"Networks":[null],"Secrets":[null],"Configs":[null]}}`,
		`{"Assignments":{"Seq":1,"Complete":true,"Tasks":[{"ID":"t1"},{}],"RemoveTasks":["t1"]}}`,
		`{"Mesh":{"Seq":1,"Complete":true,"Services":[{"ServiceID":"s","Networks":[{}],"Backends":[{"TaskID":"t","Addrs":[{"Addr":"x"}]}]}],"Peers":[{"NodeID":"n","Addr":"nonsense"}]}}`,
		`{"Welcome":{"HeartbeatPeriod":-1,"Managers":[{}]}}`, `{"LogRequest":{"ID":"l","TaskID":"t1"}}`, `{"LogCancel":{}}`, `{"Managers":[{"Addr":"x"}]}`, `{"StatusAck":{"Seq":9}}`, `{}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var m protocol.ToAgent
		if json.Unmarshal([]byte(text), &m) != nil {
			return
		}
		engine := fake.New()
		engine.SetImage("web:1", fake.Program{})
		a, err := New(Config{NodeID: nodeID, StateDir: t.TempDir(), Engine: engine, Mesh: &fakeMesh{}, Logger: slog.New(slog.DiscardHandler),
			Dial: func(ctx context.Context, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		a.worker.ctx = ctx
		ours, theirs := net.Pipe()
		go func() { // what the agent answers
			buf := make([]byte, 4096)
			for {
				if _, err := theirs.Read(buf); err != nil {
					return
				}
			}
		}()
		s := &session{a: a, conn: ours, leader: "a", periods: make(chan time.Duration, 1)}
		s.logs.begin(ctx)
		s.streams.begin(ctx)
		_ = s.handle(&m)
		_ = a.mesh.apply(ctx)
		cancel()
		a.worker.wait()
		s.logs.end()
		s.streams.end()
		_ = ours.Close()
		_ = theirs.Close()
	})
}
