// Package raftstore replicates the tables of package cluster between managers: etcd's raft decides the order of
// transactions, etcd's write-ahead log keeps them, and every member applies them to its own cluster.State.
//
// A [Store] is one member. [Open] reads its directory, [Store.Run] makes it take part. Writes go to the leader
// ([Store.Update], [Store.Propose]) and return when a majority has them on disk and the leader has applied them. Reads are
// local and immediate ([Store.Snapshot]), or as fresh as the latest acknowledged write of anybody ([Store.Read]).
// [Store.Watch] follows every change; [Store.LeaderChanges] tells who leads.
//
// # The life of a write
//
// Many goroutines write at once. What they propose while the disk is busy travels together: in one message to each
// follower and in one write to each log.
//
//	Update     build the transaction from the latest snapshot, encode it (in the caller's goroutine)
//	loop       hand it to raft; send it to the followers, hand it to the appender
//	appender   seal, write, one fdatasync for all that has collected; then acknowledge (here and on followers)
//	loop       a majority has acknowledged: hand it to the applier
//	applier    apply; publish the whole batch; tell the watches and then the writers
//
// The proposer keeps the transaction and does not decode its own encoding. A transaction that the tables refuse
// (cluster.TxnError) is in the log all the same, and refused alike by everybody.
//
// # Goroutines
//
// Run owns four: the raft loop (its own), the appender, the applier and the transport's; and one while a snapshot is written.
// The loop decides and never waits for disk or network. It talks to appender and applier through queues that raft itself bounds.
// Everything ends with Run, in the order told there.
//
// # The directory
//
//	wal/   the write-ahead log in etcd's format: preallocated segments of 64 MB, checksums chained
//	snap/  the latest snapshot
//
// Entries and snapshots are sealed with the member's key (XChaCha20-Poly1305); terms, votes and indices are not secret. A
// record that was being written when the power failed is cut off at the next start; any other damage is an error that names file
// and offset. A failed write or sync stops the store: nobody knows then what the disk holds. Snapshots are
// taken every so many entries, without stopping writes, and everything older is deleted, so the directory stays within the
// size of two snapshots and a few segments.
//
// # Members
//
// A group begins with one member (Config.Bootstrap). [Store.AddMember] on the leader gives a newcomer its raft id; it
// opens its own store with that id, receives a snapshot, and counts for majorities only when it has caught up. Member ids
// are never used twice. A member that comes back at another address has [Store.UpdateMemberAddr] write it down; as long as there is no
// leader to do so, members try the address that one of them has called from. Two machines that are the same member, by a copied
// disk, are told apart by the run of the member that a connection is of. Nobody speaks for the member of another node, and a node that is
// known to be a worker for none. Pre-vote keeps a member that was cut off from disturbing the others when it returns; check-quorum
// makes a leader that lost its majority step down.
package raftstore
