package engineapi

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
	"github.com/miniswarm/miniswarm/manager/backup"
	"github.com/miniswarm/miniswarm/orchestrator"
	"github.com/miniswarm/miniswarm/scheduler"
)

// Local is this machine's part in a swarm; the node implements it.
type Local interface {
	// Init makes this machine the first manager of a new swarm and returns its node id. It is back when the swarm
	// can be used.
	Init(ctx context.Context, req swarm.InitRequest) (nodeID string, err error)
	// Join makes this machine a node of an existing swarm; it is back when the node has its identity and runs.
	Join(ctx context.Context, req swarm.JoinRequest) error
	// Leave takes this machine out of its swarm, with all its containers.
	Leave(ctx context.Context, force bool) error
	// Unlock starts the manager of a machine whose keys are locked. Errors have Docker's words and status codes, and
	// change nothing.
	Unlock(ctx context.Context, key string) error
	// Backup writes a sealed backup of the cluster to w. Before the first byte an error can still be answered.
	Backup(ctx context.Context, secret string, w io.Writer) error
	// Recover makes a cluster whose only manager is this machine from a backup or from its own disk, and says what it has kept, or would
	// keep. The body is the backup, if one is asked for.
	Recover(ctx context.Context, req backup.RecoverRequest, body io.Reader) (*backup.Report, error)
	// Rejoin has this node, which is part of a swarm, look for its managers at a further address. It is back when it has a session
	// with them.
	Rejoin(ctx context.Context, addr string) error
	// Info is the local part of /info's Swarm: node id, address, state, error, known managers, ControlAvailable. The
	// handler adds what only the store knows (Nodes, Managers, Cluster).
	Info() swarm.Info
	// Attach gives a container of this machine, which is part of a swarm, a place on a network of the swarm and makes the
	// engine's network. An error with the status 404 means that the swarm has no such network.
	Attach(ctx context.Context, req protocol.AttachRequest) (*Attachment, error)
	// SettleAttachments waits, for a moment at most, until the managers have taken back the places of containers that the
	// engine does not have any more.
	SettleAttachments(ctx context.Context)
	// Control gives access to the cluster's state while this machine is a manager. The error is a 503 in Docker's
	// words where it is not (no swarm, worker, locked, no quorum yet).
	Control() (Control, error)
}

// Attachment is a container's place on this machine's part of a network of the swarm.
type Attachment struct {
	// Network is the engine's name of the network.
	Network string
	// Address is the container's, Resolver where it finds the names of the network; invalid without names.
	Address, Resolver netip.Addr
	// Done says that the engine has the container, or will never have it: without one the place is given up. It must be
	// called.
	Done func()
}

// Control is an active manager's view of the cluster.
type Control interface {
	// Leader tells whether this manager leads; otherwise the leader's node id and host:port, empty without a leader.
	Leader() (self bool, nodeID, addr string)
	// Forward carries requests to another manager's cluster port (paths under protocol.PathEngine), authenticated.
	Forward(nodeID string) http.RoundTripper
	// Read gives a linearizable snapshot.
	Read(ctx context.Context) (*cluster.Snapshot, error)
	// Stale gives what this manager has, at once, and for how long it has known of no leader; known is false if it never did.
	Stale() (snap *cluster.Snapshot, age time.Duration, known bool)
	// Update commits what fn builds on the newest snapshot, and runs fn again when that changed meanwhile. An error of
	// fn is returned as it is.
	Update(ctx context.Context, fn func(*cluster.Snapshot) (*cluster.Txn, error)) (uint64, error)
	// Watch follows committed changes from start on; stop ends it. events is closed at the end or when the reader lags.
	Watch() (start *cluster.Snapshot, events <-chan []cluster.Event, stop func())
	// ConfigureCA gives the cluster that cl becomes with another CAConfig, which may begin a rotation of its root CA; it commits
	// nothing. Errors with the status 400 are refusals in Docker's words.
	ConfigureCA(ctx context.Context, cl *cluster.Cluster, want swarm.CAConfig) (*cluster.Cluster, error)
	// IDs makes ids for new objects.
	IDs() cluster.IDs
	// Members are the members of the raft group; Reachability says how the leader sees one. RollCall has them answer anew, so that
	// Reachability knows of those that died a moment ago; the leader only.
	Members() []protocol.Member
	Reachability(nodeID string) swarm.Reachability
	RollCall(ctx context.Context) error
	// TaskLogs reads one task's log from its node line by line, until its end or each fails.
	TaskLogs(ctx context.Context, nodeID string, req protocol.LogRequest, each func(protocol.LogMessage) error) error
	// Dial opens a stream to a node's agent, which answers HTTP on it; the leader only.
	Dial(ctx context.Context, nodeID string) (net.Conn, error)
	// Decisions are the remembered reasons of a task's placement, oldest first, and Explain recomputes the full table
	// for a task as things are now.
	Decisions(taskID string) []orchestrator.Decision
	Explain(snap *cluster.Snapshot, t *cluster.Task) scheduler.Decision
}
