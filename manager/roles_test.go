package manager

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

func TestRoleSteps(t *testing.T) {
	const m, w = swarm.NodeRoleManager, swarm.NodeRoleWorker
	for _, c := range []struct {
		name         string
		wanted, role swarm.NodeRole
		raftID       uint64 // in the node object
		member       uint64 // in the raft group
		addr         string // of the member
		want         string
	}{
		{"a worker", w, w, 0, 0, "", ""},
		{"a manager", m, m, 7, 7, "a:1", ""},
		{"promoted", m, w, 0, 0, "", "role manager"},
		{"promoted, not joined yet", m, m, 0, 0, "", ""},
		{"joined, and the leader died before it said so", m, m, 0, 7, "a:1", "role manager 7 a:1"},
		{"moved", m, m, 7, 7, "b:1", "role manager 7 b:1"},
		{"demoted", w, m, 7, 7, "a:1", "remove 7"},
		{"demoted and removed", w, m, 7, 0, "", "role worker, forget"},
		{"demoted before it joined", w, m, 0, 0, "", "role worker, forget"},
		{"joined in spite of a demotion", w, w, 0, 7, "a:1", "remove 7"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := &cluster.Node{Role: c.role, RaftID: c.raftID}
			n.ID, n.Spec.Role = "n1", c.wanted
			if c.raftID != 0 {
				n.ManagerAddr = "a:1"
			}
			st := cluster.NewState()
			if _, err := st.Apply(&cluster.Txn{Time: time.Unix(1, 0), Changes: []cluster.Change{cluster.CreateOf(n)}}, 1); err != nil {
				t.Fatal(err)
			}
			members := []protocol.Member{{RaftID: 9, NodeID: "deleted", Addr: "x:1"}}
			if c.member != 0 {
				members = append(members, protocol.Member{RaftID: c.member, NodeID: "n1", Addr: c.addr})
			}
			var got []string
			for _, s := range roleSteps(st.Snapshot(), members) {
				switch {
				case s.remove != 0:
					got = append(got, fmt.Sprintf("%s: remove %d", s.node, s.remove))
				case s.patch.ClearManager:
					got = append(got, fmt.Sprintf("%s: role %s, forget", s.node, s.patch.Role))
				case s.patch.RaftID != 0:
					got = append(got, fmt.Sprintf("%s: role %s %d %s", s.node, s.patch.Role, s.patch.RaftID, s.patch.ManagerAddr))
				default:
					got = append(got, fmt.Sprintf("%s: role %s", s.node, s.patch.Role))
				}
			}
			want := []string{"deleted: remove 9"} // the member of a node that was removed
			if c.want != "" {
				want = append(want, "n1: "+c.want)
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s, want %s", strings.Join(got, "; "), strings.Join(want, "; "))
			}
		})
	}
}
