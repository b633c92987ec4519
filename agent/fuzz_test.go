package agent

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/miniswarm/miniswarm/agent/docker/fake"
	"github.com/miniswarm/miniswarm/agent/taskdb"
	"github.com/miniswarm/miniswarm/cluster"
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

// FuzzWhatTheDiskHolds starts an agent with arbitrary records of its database, as a former version or a disk may have left them:
// nobody could start the agent again that falls over them.
func FuzzWhatTheDiskHolds(f *testing.F) {
	for _, s := range []string{
		`{"Tasks":[{"Task":{"ID":"t1","ServiceID":"s","Slot":1,"NodeID":"node1","DesiredState":"running","Status":{"State":"running"},"Spec":{"ContainerSpec":{"Image":"web:1"}}},"Status":{"State":"running","ContainerStatus":{"ContainerID":"c"}}}],"Networks":[{"ID":"n1"}],"Node":{"ID":"node1"},"Managers":[{"Addr":"x"}],"Mesh":{"Seq":1}}`,
		`{"Tasks":[{"Task":{}},{"Task":{"ID":"t1","NetworksAttachments":[{}]},"Status":{"State":"nonsense"}}],"Networks":[{}],"Managers":[{}]}`,
		`{"Tasks":[{"Task":{"ID":"t1","Spec":{"NetworkAttachmentSpec":{}}},"Status":{"State":"complete"}}],"Node":{"Attachments":{"n1":"x"}}}`,
		`{"Mesh":{"Seq":1,"Complete":true,"Services":[{"ServiceID":"s","Networks":[{}],"Backends":[{"TaskID":"t","Addrs":[{"Addr":"x"}]}]}],"Peers":[{"NodeID":"n","Addr":"nonsense"}]}}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var stored taskdb.Content
		if json.Unmarshal([]byte(text), &stored) != nil {
			return
		}
		// What the database itself leaves out.
		stored.Tasks = slices.DeleteFunc(stored.Tasks, func(t taskdb.Task) bool { return t.Task == nil })
		stored.Networks = slices.DeleteFunc(stored.Networks, func(n *cluster.Network) bool { return n == nil })
		engine := fake.New()
		engine.SetImage("web:1", fake.Program{})
		a, err := New(Config{NodeID: nodeID, StateDir: t.TempDir(), Engine: engine, Mesh: &fakeMesh{}, Logger: slog.New(slog.DiscardHandler),
			Dial: func(ctx context.Context, _ string) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		a.worker.ctx = ctx
		a.addManagers(stored.Managers)
		a.mesh.resume(stored.Mesh)
		if stored.Node != nil {
			a.describer.assume(stored.Node.Description)
		}
		a.worker.resume(stored)
		_ = a.mesh.apply(ctx)
		cancel()
		a.worker.wait()
	})
}
