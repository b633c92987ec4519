package orchestrator

import (
	"time"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/scheduler"
)

// Plan is what a pass wants done. An empty plan means that nothing is to be done before something changes or Wake.
type Plan struct {
	// Changes bring the cluster nearer to what is wanted. They belong in one transaction; a manager that must split
	// them may cut anywhere, because every beginning of the list is safe by itself: what others need comes first
	// (networks, nodes, services, then the end of old tasks, then new tasks).
	Changes []cluster.Change
	// Decisions say why, in the order in which they were made.
	Decisions []Decision
	// Wake is when to look again even if nothing changes, zero for never.
	Wake time.Time
}

// Kind of a decision, a word for filters and counters.
type Kind string

// The kinds of decisions.
const (
	ScaleUp    Kind = "scale-up"   // a slot, or a node of a global service or job, gets its first task
	ScaleDown  Kind = "scale-down" // a task is not wanted any more
	Restart    Kind = "restart"    // a task ended or lost its node and another takes its place
	GiveUp     Kind = "give-up"    // a task ended and the restart policy does not allow another
	Release    Kind = "release"    // a task that was held back may start
	Update     Kind = "update"     // a task of an older spec makes way for one of the present spec
	Place      Kind = "place"      // tasks got their nodes
	Wait       Kind = "wait"       // tasks cannot be placed, or not be given addresses, for now
	Reject     Kind = "reject"     // a task's node does not meet its needs any more
	Forget     Kind = "forget"     // history beyond what is kept
	Allocation Kind = "allocation" // a network, a service or a node was given ports or addresses, or could not be
)

// Decision is one reason and everything it led to.
type Decision struct {
	Kind Kind
	// ServiceID is the service concerned, "" where none is.
	ServiceID string
	// Tasks are the ids of the tasks created, or changed where none was created.
	Tasks []string
	// Reason is one line in plain words.
	Reason string
	// Placement is the scheduler's account of how it chose, for [Place] and [Wait]; nil otherwise.
	Placement *scheduler.Decision
}
