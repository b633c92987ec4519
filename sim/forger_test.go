package sim

import (
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/miniswarm/miniswarm/raftstore"
)

// forgery is what a forger does.
type forgery string

const (
	// ghosts: every heartbeat is answered, whoever is dead. To everybody else that is a leader that judges removals without asking.
	ghosts forgery = "ghosts"
	// hollow: learners are said to have the snapshot that they never get. To everybody else that is a leader that makes voters of
	// members that have not caught up.
	hollow forgery = "hollow"
)

// forger is a transport that answers in the name of those to whom it sends.
type forger struct {
	raftstore.Transport
	how   forgery
	local raftstore.Local
}

func (f *forger) Attach(local raftstore.Local) {
	f.local = local
	f.Transport.Attach(local)
}

func (f *forger) Send(msgs []*raftpb.Message) {
	store, _ := f.local.(*raftstore.Store)
	learners := map[uint64]bool{}
	for _, m := range store.Members() {
		learners[m.RaftID] = m.Learner
	}
	passed := make([]*raftpb.Message, 0, len(msgs))
	for _, m := range msgs {
		answer := &raftpb.Message{From: proto.Uint64(m.GetTo()), To: proto.Uint64(m.GetFrom()), Term: proto.Uint64(m.GetTerm())}
		switch {
		case f.how == ghosts && m.GetType() == raftpb.MsgHeartbeat:
			answer.Type = raftpb.MsgHeartbeatResp.Enum()
			passed = append(passed, m)
		case f.how == hollow && m.GetType() == raftpb.MsgSnap && learners[m.GetTo()]:
			answer.Type = raftpb.MsgAppResp.Enum()
			answer.Index = proto.Uint64(m.GetSnapshot().GetMetadata().GetIndex())
			f.local.SnapshotSent(m.GetTo(), nil)
		default:
			passed = append(passed, m)
			continue
		}
		_ = f.local.Receive(answer)
	}
	f.Transport.Send(passed)
}
