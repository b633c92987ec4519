package raftstore

import (
	"bytes"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// FuzzFrames reads what a peer may send on its stream: messages or an error, and what was read can be sent on.
func FuzzFrames(f *testing.F) {
	var stream bytes.Buffer
	w := &frameWriter{}
	for _, m := range []*raftpb.Message{
		{Type: raftpb.MsgHeartbeat.Enum(), From: proto.Uint64(1), To: proto.Uint64(2), Term: proto.Uint64(3)},
		{Type: raftpb.MsgApp.Enum(), From: proto.Uint64(1), To: proto.Uint64(2), Entries: []*raftpb.Entry{{Index: proto.Uint64(5), Data: []byte("data")}}},
		{Type: raftpb.MsgSnap.Enum(), Snapshot: &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: proto.Uint64(7), ConfState: raftpb.EnsureConfState(nil)}}},
	} {
		if err := w.write(&stream, m); err != nil {
			f.Fatal(err)
		}
		f.Add(bytes.Clone(stream.Bytes()))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 4 && data[0] != 0 {
			return // lengths that only cost memory
		}
		r, in := &frameReader{}, bytes.NewReader(data)
		for {
			m, err := r.read(in)
			if err != nil {
				return
			}
			if err := (&frameWriter{}).write(&bytes.Buffer{}, m); err != nil {
				t.Fatalf("what was read cannot be written: %v", err)
			}
		}
	})
}

// FuzzMembershipChanges decodes membership changes as they come from the log, or from a leader.
func FuzzMembershipChanges(f *testing.F) {
	for _, kind := range []confKind{confAdd, confPromote, confRemove, confAddress} {
		cc, err := confChange{Boot: 1, Seq: 2, Kind: kind, Member: protocol.Member{RaftID: 3, NodeID: "n", Addr: "a:1"}}.raftChange()
		if err != nil {
			f.Fatal(err)
		}
		data, err := proto.Marshal(cc)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(_ *testing.T, data []byte) {
		_, _, _ = decodeConf(&raftpb.Entry{Type: raftpb.EntryConfChange.Enum(), Data: data})
	})
}
