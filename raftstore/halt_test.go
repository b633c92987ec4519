package raftstore

import (
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// TestNothingIsAppliedBehindAMembershipChangeThatRaftDidNotHear: a store ends while it applies what was committed. Raft is gone when it
// comes to a change of members, which is left to the next start, and so must all be that follows: otherwise the store says, and may
// write into a snapshot, that it is beyond the change and does not know of it.
func TestNothingIsAppliedBehindAMembershipChangeThatRaftDidNotHear(t *testing.T) {
	s, err := Open(newGroup(t, 1, func(c *Config) { c.Bootstrap = true }).config("n1", t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	defer s.disk.close()
	close(s.loopDone)
	at := s.applier.index
	entry := func(typ raftpb.EntryType, data []byte, err error) *raftpb.Entry {
		if err != nil {
			t.Fatal(err)
		}
		at++
		return &raftpb.Entry{Type: typ.Enum(), Index: proto.Uint64(at), Term: proto.Uint64(1), Data: data}
	}
	write := func(id string) *raftpb.Entry {
		data, err := encodeEntry(proposalID{}, &cluster.Txn{Changes: []cluster.Change{cluster.CreateOf(config(id, 1))}})
		return entry(raftpb.EntryNormal, data, err)
	}
	before := write("before")
	cc, err := confChange{Kind: confAdd, Member: protocol.Member{RaftID: 7, NodeID: "n7", Addr: "n7:1", Learner: true}}.raftChange()
	if err != nil {
		t.Fatal(err)
	}
	data, err := proto.Marshal(cc)
	change := entry(raftpb.EntryConfChange, data, err)
	if err := s.applier.run([]applyWork{
		{m: &raftpb.Message{Entries: []*raftpb.Entry{before, change, write("after")}}},
		{m: &raftpb.Message{Entries: []*raftpb.Entry{write("later")}}},
	}); err != nil {
		t.Fatal(err)
	}
	st, snap := s.Status(), s.Snapshot()
	if st.Applied != before.GetIndex() || snap.Config("before") == nil || snap.Config("after") != nil || snap.Config("later") != nil {
		t.Errorf("applied up to %d, want %d; has what came before: %v, after: %v, later: %v", st.Applied, before.GetIndex(),
			snap.Config("before") != nil, snap.Config("after") != nil, snap.Config("later") != nil)
	}
	if _, known := s.view.membership().member(7); known {
		t.Error("it knows of the change")
	}
}
