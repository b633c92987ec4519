package metrics

import "github.com/miniswarm/miniswarm/raftstore"

// raftView adds to the store's own words what is counted from them.
type raftView struct{ *raftstore.Status }

// raft makes a reader for managers.
func raft(read func(r *raftView, emit emit)) func(*View, emit) {
	return func(v *View, emit emit) {
		if v.Raft != nil {
			read(&raftView{v.Raft}, emit)
		}
	}
}

// leader makes a reader for the leader.
func leader(read func(l *Leader, emit emit)) func(*View, emit) {
	return func(v *View, emit emit) {
		if v.Leader != nil {
			read(v.Leader, emit)
		}
	}
}

func (r *raftView) role() string {
	for _, m := range r.Members {
		if m.RaftID == r.RaftID && m.Learner {
			return "learner"
		}
	}
	if r.IsLeader {
		return "leader"
	}
	return "follower"
}

// count counts the members, and the voters that were heard from.
func (r *raftView) count() (voters, learners, reachable int) {
	for _, m := range r.Members {
		switch {
		case m.Learner:
			learners++
		default:
			voters++
			if r.Reachable[m.RaftID] {
				reachable++
			}
		}
	}
	return voters, learners, reachable
}
