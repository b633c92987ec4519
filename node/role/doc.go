// Package role takes a machine into the managers of its cluster and out of them again, as its certificate says.
//
// A [Supervisor] decides: which parts run for which role, what is waited for, what comes after a demotion, a removal or a failure. What
// that means on a machine (its disk, its certificate, its network) is behind [Machine], and what runs there while it is a manager
// behind [Parts], so that a daemon and a simulation are led by the same code. [Join] and [Renewal] say whom the node asks for a place
// among the managers, and for a certificate.
//
// # A promotion
//
// The leader says that this node is to be a manager, and a certificate is fetched that says so too. The machine then asks the raft group
// for a place ([Join]), deletes whatever replica it has, notes on disk that it is a member, and opens a new one: a machine that stops
// in between starts as one that has yet to ask, or as a member whose replica is empty. Asking again is free, for the group gives the same
// answer until the member has caught up. While any of it fails it is tried again every second, and the certificate is renewed: the node
// may be a worker again.
//
// # A demotion
//
// A manager that is demoted leaves the raft group first, by the leader's hand, and has its new certificate afterwards; its store may
// hear of the first or not. So either ends the parts, and only the certificate of a worker, or a new membership, deletes the replica. A
// manager that was removed and still has the certificate of one asks for another, waits for a moment, and then asks to be a member again: it
// was promoted anew meanwhile.
package role
