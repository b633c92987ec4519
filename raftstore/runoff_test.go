package raftstore

import (
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// TestASplitVoteIsDecidedSoon: both survivors of three are candidates of the same term, and each has voted for itself.
func TestASplitVoteIsDecidedSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 1, nil)
		g.grow(3)
		g.leader().mustPut("a")
		g.settle()
		g.leader().kill()
		one, other := g.members[0], g.members[1]
		g.net.Partition([]uint64{one.self}, []uint64{other.self})
		for _, m := range g.members {
			from := one.self
			if m == one {
				from = other.self
			}
			m.inbox.put(func(in *inboxItems) {
				in.calls = append(in.calls, func(l *loop) {
					_ = l.node.ForgetLeader()
					_ = l.node.Campaign()
					// The other one would have voted for it before it stood itself.
					term := l.node.BasicStatus().GetTerm() + 1
					_ = l.node.Step(&raftpb.Message{Type: raftpb.MsgPreVoteResp.Enum(), From: &from, To: &m.self, Term: proto.Uint64(term)})
				})
			})
		}
		synctest.Wait()
		for _, m := range g.members {
			state := make(chan raft.BasicStatus, 1)
			m.inbox.put(func(in *inboxItems) {
				in.calls = append(in.calls, func(l *loop) { state <- l.node.BasicStatus() })
			})
			if st := <-state; st.RaftState != raft.StateCandidate {
				t.Fatalf("%s is %v in term %d, want a candidate", m.cfg.NodeID, st.RaftState, st.GetTerm())
			}
		}
		g.net.Partition()
		begin := time.Now()
		g.leader().mustPut("b")
		if took := time.Since(begin); took > 800*time.Millisecond {
			t.Errorf("the next write took %v after a split vote", took)
		}
	})
}
