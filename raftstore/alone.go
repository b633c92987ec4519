package raftstore

import (
	"context"
	"errors"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// Alone gives a Transport that reaches nobody, for a group that never grows beyond one member: tests and tools.
func Alone() Transport { return &alone{} }

type alone struct{ local Local }

func (a *alone) Attach(local Local)            { a.local = local }
func (a *alone) SetMembers([]protocol.Member)  {}
func (a *alone) Meet(protocol.Member)          {}
func (a *alone) Run(ctx context.Context) error { <-ctx.Done(); return nil }

var errAlone = errors.New("this member has no transport to others")

func (a *alone) Send(msgs []*raftpb.Message) {
	for _, m := range msgs {
		if m.GetType() == raftpb.MsgSnap {
			a.local.SnapshotSent(m.GetTo(), errAlone)
		} else {
			a.local.Unreachable(m.GetTo())
		}
	}
}
