package engineapi

import (
	"context"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// group is a Control that knows a raft group.
type group struct {
	Control
	members []protocol.Member
	dead    string // letters of the nodes that cannot be reached
	heard   *bool  // the dead are found out by a roll call only
}

func (g group) RollCall(context.Context) error {
	*g.heard = true
	return nil
}

func (g group) Members() []protocol.Member { return g.members }

func (g group) Reachability(id string) swarm.Reachability {
	if *g.heard && strings.Contains(g.dead, id) {
		return swarm.ReachabilityUnreachable
	}
	return swarm.ReachabilityReachable
}

func TestMayDemote(t *testing.T) {
	const quorum = "can't remove member from the raft: this would result in a loss of quorum: of "
	for _, c := range []struct {
		name string
		// Nodes are letters: those that are to be managers, those that are to be workers, voters, learners, unreachable ones.
		managers, workers, voters, learners, dead string
		demote, want                              string
	}{
		{"the last", "a", "b", "a", "", "", "a", "attempting to demote the last manager of the swarm"},
		{"the last that is not being demoted", "a", "b", "ab", "", "", "a", "attempting to demote the last manager of the swarm"},
		{"one of two", "ab", "", "ab", "", "", "b", ""},
		{"the living one of two", "ab", "", "ab", "", "b", "a", quorum + "1 managers that would remain 0 can be reached, and 1 are needed"},
		{"the dead one of two", "ab", "", "ab", "", "b", "b", ""},
		{"one of three", "abc", "", "abc", "", "", "b", ""},
		{"one of three while another is being demoted", "ab", "c", "abc", "", "", "b", ""},
		{"one of three with one dead", "abc", "", "abc", "", "c", "b", quorum + "2 managers that would remain 1 can be reached, and 2 are needed"},
		{"one of three while a dead one is being demoted", "ab", "c", "abc", "", "c", "b", ""},
		{"one of five with two dead", "abcde", "", "abcde", "", "de", "b", quorum + "4 managers that would remain 2 can be reached, and 3 are needed"},
		{"one of seven with two dead", "abcdefg", "", "abcdefg", "", "fg", "b", ""},
		{"the only voter", "ab", "", "a", "b", "", "a", quorum + "0 managers that would remain 0 can be reached, and 1 are needed (1 more are still catching up)"},
		{"a learner", "abc", "", "ab", "c", "b", "c", ""},
		{"one that has not joined", "abc", "", "ab", "", "b", "c", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newFakeControl()
			for role, ids := range map[swarm.NodeRole]string{swarm.NodeRoleManager: c.managers, swarm.NodeRoleWorker: c.workers} {
				for _, id := range strings.Split(ids, "") {
					n := aNode(id, "host-"+id)
					n.Spec.Role = role
					w.put(t, n)
				}
			}
			g := group{dead: c.dead, heard: new(bool)}
			for i, id := range strings.Split(c.voters+c.learners, "") {
				g.members = append(g.members, protocol.Member{RaftID: uint64(i + 1), NodeID: id, Learner: strings.Contains(c.learners, id)})
			}
			snap := w.snapshot()
			err := mayDemote(t.Context(), g, snap, snap.Node(c.demote))
			if (err == nil) != (c.want == "") || err != nil && err.Error() != "rpc error: code = FailedPrecondition desc = "+c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}
