package metrics

import (
	"math"
	"slices"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/scheduler"
)

// table is every series that is read when somebody asks.
var table = slices.Concat(nodeSeries, agentSeries, meshSeries, raftSeries, leaderSeries, clusterSeries)

var nodeSeries = []series{
	{"Node", "miniswarm_build_info", "Always 1; the versions are in the labels.", false, []string{"version", "goversion"}, func(v *View, emit emit) {
		emit(1, v.Version, goVersion)
	}},
	{"Node", "miniswarm_node_state", "1 for the state that the node is in: inactive, pending, active, error or locked.", false, []string{"state"}, func(v *View, emit emit) {
		for _, s := range []swarm.LocalNodeState{swarm.LocalNodeStateInactive, swarm.LocalNodeStatePending, swarm.LocalNodeStateActive, swarm.LocalNodeStateError, swarm.LocalNodeStateLocked} {
			emit(indicator(v.State == s), string(s))
		}
	}},
	{"Node", "miniswarm_certificate_expiry_timestamp_seconds", "When the node's certificate (node) and the root it trusts (root) expire, as Unix time.", false, []string{"certificate"}, func(v *View, emit emit) {
		if !v.Certificate.IsZero() {
			emit(seconds(v.Certificate), "node")
		}
		if !v.Root.IsZero() {
			emit(seconds(v.Root), "root")
		}
	}},
}

var agentSeries = []series{
	{"Agent", "miniswarm_agent_session", "1 while the node has a session with a leader.", false, nil, func(v *View, emit emit) {
		if v.Agent != nil {
			emit(indicator(v.Agent.Leader != ""))
		}
	}},
	{"Agent", "miniswarm_agent_sessions_total", "Sessions that the node has had since its daemon started.", true, nil, func(v *View, emit emit) {
		if v.Agent != nil {
			emit(float64(v.Agent.Sessions))
		}
	}},
	{"Agent", "miniswarm_agent_leader_heard_timestamp_seconds", "When the leader was last heard from, as Unix time; missing before the first session.", false, nil, func(v *View, emit emit) {
		if v.Agent != nil && !v.Agent.Heard.IsZero() {
			emit(seconds(v.Agent.Heard))
		}
	}},
	{"Agent", "miniswarm_agent_tasks", "Tasks of this node by their state.", false, []string{"state"}, func(v *View, emit emit) {
		if v.Agent != nil {
			for s, n := range v.Agent.Tasks {
				emit(float64(n), string(s))
			}
		}
	}},
}

var meshSeries = []series{
	{"Data plane", "miniswarm_mesh_applied", "1 while the kernel has the newest routing table.", false, nil, func(v *View, emit emit) {
		if v.DataPlane != nil && v.Agent != nil {
			emit(indicator(v.Agent.Routing.Applied))
		}
	}},
	{"Data plane", "miniswarm_mesh_ports", "Published ports that this node serves.", false, nil, func(v *View, emit emit) {
		if v.DataPlane != nil {
			emit(float64(v.DataPlane.Ports))
		}
	}},
	{"Data plane", "miniswarm_mesh_endpoints", "Addresses of replicas that this node sends connections to, or has connections with.", false, nil, func(v *View, emit emit) {
		if v.DataPlane != nil {
			emit(float64(v.DataPlane.Backends))
		}
	}},
	{"Data plane", "miniswarm_mesh_networks", "Overlay networks that this node is on.", false, nil, func(v *View, emit emit) {
		if v.DataPlane != nil {
			emit(float64(v.DataPlane.Networks))
		}
	}},
	{"Data plane", "miniswarm_mesh_peers", "Other nodes by how packets reach them: plain, vxlan, none.", false, []string{"way"}, func(v *View, emit emit) {
		if v.DataPlane != nil {
			for way, n := range v.DataPlane.Peers {
				emit(float64(n), way)
			}
		}
	}},
	{"Data plane", "miniswarm_mesh_repairs_total", "How often rules, routes or devices differed from what was applied and were repaired.", true, nil, func(v *View, emit emit) {
		if v.DataPlane != nil {
			emit(float64(v.DataPlane.Repairs))
		}
	}},
}

var raftSeries = []series{
	{"Raft", "miniswarm_raft_term", "Raft's term.", false, nil, raft(func(r *raftView, emit emit) { emit(float64(r.Term)) })},
	{"Raft", "miniswarm_raft_has_leader", "1 while this manager knows a leader.", false, nil, raft(func(r *raftView, emit emit) { emit(indicator(r.Leader != 0)) })},
	{"Raft", "miniswarm_raft_role", "1 for the role of this manager: leader, follower or learner.", false, []string{"role"}, raft(func(r *raftView, emit emit) {
		for _, role := range []string{"leader", "follower", "learner"} {
			emit(indicator(r.role() == role), role)
		}
	})},
	{"Raft", "miniswarm_raft_committed_index", "The last entry of the log that is known to be committed.", false, nil, raft(func(r *raftView, emit emit) { emit(float64(r.Committed)) })},
	{"Raft", "miniswarm_raft_applied_index", "The last entry of the log that is applied.", false, nil, raft(func(r *raftView, emit emit) { emit(float64(r.Applied)) })},
	{"Raft", "miniswarm_raft_snapshot_index", "The last entry of the log in the stored snapshot.", false, nil, raft(func(r *raftView, emit emit) { emit(float64(r.SnapshotIndex)) })},
	{"Raft", "miniswarm_raft_log_entries", "Entries of the log in memory.", false, nil, raft(func(r *raftView, emit emit) { emit(float64(r.LogEntries)) })},
	{"Raft", "miniswarm_raft_disk_bytes", "What the log and the snapshots take on disk.", false, []string{"what"}, raft(func(r *raftView, emit emit) {
		emit(float64(r.LogBytes), "log")
		emit(float64(r.SnapshotBytes), "snapshots")
	})},
	{"Raft", "miniswarm_raft_members", "Managers in the raft group: voters, and learners that have yet to catch up.", false, []string{"kind"}, raft(func(r *raftView, emit emit) {
		voters, learners, _ := r.count()
		emit(float64(voters), "voter")
		emit(float64(learners), "learner")
	})},
	{"Raft", "miniswarm_raft_quorum_margin", "How many more managers may fail before nothing can be changed any more; only the leader knows.", false, nil, raft(func(r *raftView, emit emit) {
		if voters, _, reachable := r.count(); r.IsLeader {
			emit(float64(reachable - (voters/2 + 1)))
		}
	})},
}

var leaderSeries = []series{
	{"Leader", "miniswarm_leader_pass_age_seconds", "For how long the leader's loop has been at its present pass, 0 between passes.", false, nil, leader(func(l *Leader, emit emit) { emit(l.Passing.Seconds()) })},
	{"Leader", "miniswarm_leader_sessions", "Nodes that have a session.", false, nil, leader(func(l *Leader, emit emit) { emit(float64(l.Sessions)) })},
	{"Leader", "miniswarm_leader_held_stops", "Tasks that wait for all nodes to route around them before they stop.", false, nil, leader(func(l *Leader, emit emit) { emit(float64(l.Holds)) })},
	{"Leader", "miniswarm_leader_clock_difference_seconds", "The largest difference between a node's clock and the leader's, where that is measured.", false, nil, leader(func(l *Leader, emit emit) {
		largest := time.Duration(-1)
		for _, d := range l.Clocks {
			largest = max(largest, d.Abs())
		}
		if largest >= 0 {
			emit(largest.Seconds())
		}
	})},
	{"Leader", "miniswarm_dispatcher_messages_total", "Messages of this manager's sessions with nodes, in all its terms: heartbeat and report received, assignments and mesh sent.", true, []string{"kind"}, func(v *View, emit emit) {
		if c := v.Counters; c != nil {
			emit(float64(c.Heartbeats.Load()), "heartbeat")
			emit(float64(c.Reports.Load()), "report")
			emit(float64(c.Assignments.Load()), "assignments")
			emit(float64(c.Meshes.Load()), "mesh")
		}
	}},
	{"Leader", "miniswarm_dispatcher_sessions_total", "Sessions that nodes have opened with this manager.", true, nil, func(v *View, emit emit) {
		if v.Counters != nil {
			emit(float64(v.Counters.Sessions.Load()))
		}
	}},
	{"Leader", "miniswarm_dispatcher_nodes_lost_total", "How often this manager has called a node down.", true, nil, func(v *View, emit emit) {
		if v.Counters != nil {
			emit(float64(v.Counters.Lost.Load()))
		}
	}},
}

var clusterSeries = []series{
	{"Cluster", "miniswarm_cluster_nodes", "Nodes by state, availability and role.", false, []string{"state", "availability", "role"}, leader(func(l *Leader, emit emit) {
		count := map[[3]string]int{}
		for n := range l.Snapshot.Nodes() {
			count[[3]string{string(n.Status.State), string(n.Spec.Availability), string(n.Spec.Role)}]++
		}
		for k, n := range count {
			emit(float64(n), k[:]...)
		}
	})},
	{"Cluster", "miniswarm_cluster_services", "Services by mode: replicated, global, replicated-job, global-job.", false, []string{"mode"}, leader(func(l *Leader, emit emit) {
		count := map[string]int{}
		for s := range l.Snapshot.Services() {
			count[mode(s)]++
		}
		for k, n := range count {
			emit(float64(n), k)
		}
	})},
	{"Cluster", "miniswarm_cluster_updates", "Services whose last update has the state: updating, paused, completed, rollback_started, rollback_paused, rollback_completed.", false, []string{"state"}, leader(func(l *Leader, emit emit) {
		count := map[string]int{}
		for s := range l.Snapshot.Services() {
			if s.UpdateStatus != nil && s.UpdateStatus.State != "" {
				count[string(s.UpdateStatus.State)]++
			}
		}
		for k, n := range count {
			emit(float64(n), k)
		}
	})},
	{"Cluster", "miniswarm_cluster_tasks", "Tasks by state, and by whether they are wanted (desired) or history and on their way out.", false, []string{"state", "desired"}, leader(func(l *Leader, emit emit) {
		count := map[[2]string]int{}
		for t := range l.Snapshot.Tasks() {
			desired := "no"
			if t.Wanted() {
				desired = "yes"
			}
			count[[2]string{string(t.Status.State), desired}]++
		}
		for k, n := range count {
			emit(float64(n), k[:]...)
		}
	})},
	{"Cluster", "miniswarm_cluster_tasks_pending", "Tasks that have no node, by what rules nodes out: ready, resource, plugin, constraint, platform, privileged, devices, gpus, host-port, max-replicas; other where nothing was found yet. A task counts for each of its reasons.", false, []string{"reason"}, leader(pending)},
	{"Cluster", "miniswarm_cluster_oldest_pending_timestamp_seconds", "When the task that has waited longest for a node began to wait, as Unix time; missing where none waits.", false, nil, leader(func(l *Leader, emit emit) {
		oldest := math.Inf(1)
		for t := range l.Snapshot.Tasks() {
			if t.Wanted() && t.Status.State == swarm.TaskStatePending {
				oldest = min(oldest, seconds(t.CreatedAt))
			}
		}
		if !math.IsInf(oldest, 1) {
			emit(oldest)
		}
	})},
}

// pending counts tasks without a node. There may be very many, with few different explanations.
func pending(l *Leader, emit emit) {
	texts := map[string]int{}
	for t := range l.Snapshot.Tasks() {
		if t.Wanted() && t.Status.State == swarm.TaskStatePending {
			texts[t.Status.Err]++
		}
	}
	count := map[string]int{}
	for text, n := range texts {
		reasons := scheduler.Reasons(text)
		for _, f := range reasons {
			count[f.String()] += n
		}
		if len(reasons) == 0 {
			count["other"] += n
		}
	}
	for reason, n := range count {
		emit(float64(n), reason)
	}
}

func mode(s *cluster.Service) string {
	switch m := s.Spec.Mode; {
	case m.Global != nil:
		return "global"
	case m.ReplicatedJob != nil:
		return "replicated-job"
	case m.GlobalJob != nil:
		return "global-job"
	}
	return "replicated"
}
