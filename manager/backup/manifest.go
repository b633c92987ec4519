package backup

import (
	"time"

	"github.com/miniswarm/miniswarm/cluster"
	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// Manifest says what a backup is of.
type Manifest struct {
	// Version is of the miniswarm that wrote it, NodeID the manager that it was made on.
	Version   string
	NodeID    string
	ClusterID string
	// Taken is the manager's clock. Index and Term are the place in the cluster's log; every write that was acknowledged before the
	// backup was asked for is in it.
	Taken       time.Time
	Index, Term uint64
	Members     []protocol.Member
	// Objects counts them by kind.
	Objects map[string]int
}

// Count gives the number of objects of each kind.
func Count(snap *cluster.Snapshot) map[string]int {
	n := map[string]int{}
	for _, k := range cluster.Kinds() {
		if k != cluster.KindCluster {
			n[k.String()] = snap.Len(k)
		}
	}
	return n
}

// Request asks a daemon for a backup of its cluster: the body of POST /miniswarm/backup.
type Request struct {
	// Secret is the text of the [Secret] that seals it.
	Secret string
}

// RecoverRequest asks a daemon to recover a cluster. It travels as JSON in base64 in the header [RecoverHeader] of POST /miniswarm/recover,
// since the body is the backup.
type RecoverRequest struct {
	// FromBackup says that the body is a backup, opened with Secret; otherwise the cluster is recovered from the daemon's own disk.
	FromBackup bool
	Secret     string
	// DryRun has the daemon say what it would do and do nothing.
	DryRun bool
	// Force recovers although the cluster has a leader.
	Force bool
	// ListenAddr, AdvertiseAddr and DataPathAddr are as in init; empty: as they were where they are still this machine's.
	ListenAddr, AdvertiseAddr, DataPathAddr string
}

// RejoinRequest tells a daemon where its cluster's managers are: the body of POST /miniswarm/rejoin.
type RejoinRequest struct {
	// Addr is a manager's HOST[:PORT].
	Addr string
}

// RecoverHeader carries a RecoverRequest.
const RecoverHeader = "X-Miniswarm-Recover"

// Report says what a recovery has done, or what a dry run would do.
type Report struct {
	DryRun bool
	// Refused is why the same without DryRun would be refused, empty if it would not.
	Refused string `json:",omitempty"`
	// Backup describes the backup; nil where the source is this machine's own disk.
	Backup    *Manifest `json:",omitempty"`
	ClusterID string
	// NodeID is this machine's, NewNode says that it had no part in the cluster before.
	NodeID  string
	NewNode bool
	// Addr is where the other nodes reach this manager from now on, Known where they look for managers.
	Addr  string
	Known []string
	// Term and Index are the place in the log that the cluster goes on from, Committed up to where this manager knew that a majority had
	// it; the entries after it are kept.
	Term, Index, Committed uint64
	// LastChange is when the newest object was written.
	LastChange time.Time
	// Epoch is the recovered cluster's: see cluster.NextEpoch.
	Epoch uint64
	// Dropped are the managers that the recovered cluster does without.
	Dropped []DroppedManager
	// Objects counts what is kept, by kind.
	Objects map[string]int
	// ExternalCAs are where an external CA signs the certificate that this machine needs as a manager; none if it needs none or the
	// cluster signs itself. HasKey says that the cluster's root key is in the source, and signs in its place if it does not.
	ExternalCAs []string `json:",omitempty"`
	HasKey      bool     `json:",omitempty"`
	// NotSigned is why the external CA did not sign, so that the key had to; empty if it was not needed.
	NotSigned string `json:",omitempty"`
	// MayMiss says in words which acknowledged writes may be missing; empty if none can be.
	MayMiss string
	// Warnings say in words what may not be as it is meant.
	Warnings []string `json:",omitempty"`
}

// DroppedManager is a manager that a recovered cluster does without. Its node stays, as a worker.
type DroppedManager struct {
	NodeID, Hostname, Addr string
}
