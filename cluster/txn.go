package cluster

import (
	"errors"
	"fmt"
	"time"

	"github.com/docker/docker/api/types/swarm"
)

// The ways in which a transaction can be refused when it is applied. The texts are Swarm's: clients match on them.
var (
	// ErrOutOfSequence: the object was changed since the writer read it. Read again and retry.
	ErrOutOfSequence = errors.New("update out of sequence")
	// ErrExists: an object with that id exists already.
	ErrExists = errors.New("object already exists")
	// ErrNotExist: there is no object with that id.
	ErrNotExist = errors.New("object does not exist")
	// ErrNameConflict: another object of the kind has that name; names are compared without regard to case.
	ErrNameConflict = errors.New("name conflicts with an existing object")
	// ErrGuard: a table that the writer depended on has changed since it was read. Read again and retry.
	ErrGuard = errors.New("the cluster changed while the change was prepared")
)

// TxnError says which change of a transaction was refused. It unwraps to one of the errors above.
type TxnError struct {
	Kind Kind
	ID   string
	Name string
	Err  error
}

func (e *TxnError) Error() string {
	if e.ID == "" {
		return fmt.Sprintf("%s: %v", e.Kind, e.Err)
	}
	if e.Name != "" {
		return fmt.Sprintf("%s %s (%s): %v", e.Kind, e.Name, e.ID, e.Err)
	}
	return fmt.Sprintf("%s %s: %v", e.Kind, e.ID, e.Err)
}

func (e *TxnError) Unwrap() error { return e.Err }

// Retryable says whether err means that the writer saw an older state and may read again and retry: an object or a
// guarded table changed in between.
func Retryable(err error) bool { return errors.Is(err, ErrOutOfSequence) || errors.Is(err, ErrGuard) }

// Action says what a change does to its object.
type Action uint8

// The actions. Their numbers are written to the log and never change their meaning.
const (
	// Create adds Object; its id and its name must be free.
	Create Action = iota + 1
	// Update replaces the object with Object, if its version index still is Version (0: whatever it is).
	Update
	// Remove deletes the object, if its version index still is Version (0: whatever it is). Removing what is not there
	// is an error unless Version is 0.
	Remove
	// Patch merges TaskPatch or NodePatch into the object as it is when the change is applied. It never conflicts:
	// an object that is gone is passed over, and a state that would move backwards is left as it is.
	Patch
)

func (a Action) String() string {
	switch a {
	case Create:
		return "create"
	case Update:
		return "update"
	case Remove:
		return "remove"
	case Patch:
		return "patch"
	}
	return fmt.Sprintf("action(%d)", uint8(a))
}

// Change is one step of a transaction.
type Change struct {
	Action Action
	Kind   Kind
	ID     string
	// Version is the version index the writer saw, checked for Update and Remove; 0 checks nothing.
	Version uint64
	// Object is the whole new object for Create and Update.
	Object Object
	// Task and Node are set for Patch, one of them according to Kind.
	Task *TaskPatch
	Node *NodePatch
}

// TaskPatch changes some fields of a task, whatever else has happened to it. Zero fields are left as they are.
type TaskPatch struct {
	// DesiredState only moves forward.
	DesiredState swarm.TaskState
	// Status replaces the status if its state is not earlier than the stored one.
	Status *swarm.TaskStatus
	// AppliedAt is the leader's clock for a status report.
	AppliedAt time.Time
	// NodeID places the task; it is set once and then stays. A patch that would place an already placed task is
	// dropped as a whole.
	NodeID string
	// NetworksAttachments and GenericResources are what was allocated.
	NetworksAttachments []swarm.NetworkAttachment
	GenericResources    []swarm.GenericResource
	// StartAfter moves the earliest start; only meaningful before the task runs.
	StartAfter time.Time
}

// NodePatch changes some fields of a node, whatever else has happened to it. Nil and zero fields are left as they are.
type NodePatch struct {
	Status      *swarm.NodeStatus
	Description *swarm.NodeDescription
	Role        swarm.NodeRole
	DataAddr    string
	NoDataPlane *bool
	Instance    string
	// Attachments replaces the whole map when not nil.
	Attachments map[string]string
	// RaftID and ManagerAddr describe a manager; ClearManager forgets both.
	RaftID       uint64
	ManagerAddr  string
	ClearManager bool
}

// Guard refuses a transaction if the table of Kind was changed after the log index Index.
type Guard struct {
	Kind  Kind
	Index uint64
}

// Txn is a list of changes that are applied all or none, in order. Time is the proposing leader's clock; it becomes
// CreatedAt and UpdatedAt, so that applying reads no clock.
type Txn struct {
	Time    time.Time
	Guards  []Guard
	Changes []Change
	// OwnTasks says that the tasks in Changes were made for this transaction and that nobody looks at them again who has
	// them from elsewhere: they go into the tables themselves, not as copies. It is no part of what is written to the log.
	OwnTasks bool
}

// Creates, Updates, Removes and the patches build changes.

// CreateOf gives the change that adds o.
func CreateOf(o Object) Change {
	return Change{Action: Create, Kind: o.Kind(), ID: o.ObjectID(), Object: o}
}

// UpdateOf gives the change that replaces an object with o, checked against the version that o carries, which is the
// version its writer read.
func UpdateOf(o Object) Change {
	return Change{Action: Update, Kind: o.Kind(), ID: o.ObjectID(), Version: o.ObjectMeta().Version.Index, Object: o}
}

// RemoveOf gives the change that deletes o whatever its version has become, and whether it is still there or not.
func RemoveOf(o Object) Change {
	return Change{Action: Remove, Kind: o.Kind(), ID: o.ObjectID()}
}

// RemoveSeen gives the change that deletes o if it is as its writer read it. Of two who remove it at once one is told that
// it is gone already.
func RemoveSeen(o Object) Change {
	c := RemoveOf(o)
	c.Version = o.ObjectMeta().Version.Index
	return c
}

// PatchTask gives the change that merges p into the task.
func PatchTask(id string, p TaskPatch) Change {
	return Change{Action: Patch, Kind: KindTask, ID: id, Task: &p}
}

// PatchNode gives the change that merges p into the node.
func PatchNode(id string, p NodePatch) Change {
	return Change{Action: Patch, Kind: KindNode, ID: id, Node: &p}
}

// apply gives the task with the patch merged in, or t itself where the patch changes nothing.
func (p *TaskPatch) apply(t *Task) *Task {
	if p.NodeID != "" && t.NodeID != "" {
		return t
	}
	c := *t
	changed := false
	if p.DesiredState != "" && Before(t.DesiredState, p.DesiredState) {
		c.DesiredState, changed = p.DesiredState, true
	}
	if p.Status != nil && !Before(p.Status.State, t.Status.State) {
		c.Status, changed = *p.Status, true
		if p.Status.ContainerStatus == nil {
			c.Status.ContainerStatus = t.Status.ContainerStatus
		}
		if !p.AppliedAt.IsZero() {
			c.AppliedAt = p.AppliedAt
		}
	}
	if p.NodeID != "" {
		c.NodeID, changed = p.NodeID, true
	}
	if p.NetworksAttachments != nil {
		c.NetworksAttachments, changed = p.NetworksAttachments, true
	}
	if p.GenericResources != nil {
		c.GenericResources, changed = p.GenericResources, true
	}
	if !p.StartAfter.IsZero() {
		c.StartAfter, changed = p.StartAfter, true
	}
	if !changed {
		return t
	}
	return &c
}

// apply gives the node with the patch merged in at the time now.
func (p *NodePatch) apply(n *Node, now time.Time) *Node {
	c := *n
	if p.Status != nil {
		c.Status = *p.Status
		switch down := c.Status.State == swarm.NodeStateDown; {
		case !down:
			c.DownSince = time.Time{}
		case c.DownSince.IsZero():
			c.DownSince = now
		}
	}
	if p.Description != nil {
		c.Description = *p.Description
	}
	if p.Role != "" {
		c.Role = p.Role
	}
	if p.DataAddr != "" {
		c.DataAddr = p.DataAddr
	}
	if p.NoDataPlane != nil {
		c.NoDataPlane = *p.NoDataPlane
	}
	if p.Instance != "" {
		c.Instance = p.Instance
	}
	if p.Attachments != nil {
		c.Attachments = p.Attachments
	}
	if p.ClearManager {
		c.RaftID, c.ManagerAddr = 0, ""
	}
	if p.RaftID != 0 {
		c.RaftID = p.RaftID
	}
	if p.ManagerAddr != "" {
		c.ManagerAddr = p.ManagerAddr
	}
	return &c
}
