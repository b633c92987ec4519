// Package ingress is the network of a node: the routing mesh, through which every
// node answers every published port, and the overlay networks, through which
// containers on different nodes reach each other.
//
// [Mesh] takes the desired state of the node as the cluster knows it
// ([plan.Input]) and makes the machine agree with it. What that means in rules is
// decided by the pure package plan; the packages nft, overlay, ports and conntrack
// each change one thing of the machine, and this package says in which order:
//
//  1. published ports are reserved; what another process holds is left to it;
//  2. the engine's networks are made, whose bridges everything else hangs on;
//  3. devices, forwarding entries, routes and rules are added;
//  4. the nftables table is changed in one transaction, which is the moment new
//     connections follow;
//  5. what nothing leads to any more is removed, and connections to backends that
//     are gone are forgotten, so that their clients are reset and connect again.
//
// Names are looked up beside it, by package names.
//
// # Who may call what
//
// A Mesh has no goroutine of its own. Its methods may be called from any
// goroutine and run one after the other. Only one process in a network namespace
// can have a Mesh; another one gets [ErrTaken] and goes on without.
//
// # What outlives the process
//
// Close leaves everything in place: the kernel goes on translating, routing and
// forwarding while miniswarm is restarted or upgraded, and the next Apply changes
// only what differs. Remove takes everything away.
package ingress
