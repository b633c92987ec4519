// Package nft is the mesh's data plane on nftables: it makes the kernel's table
// "miniswarm" of family ip say what a [plan.Table] says, over netlink.
//
// The table holds a fixed set of rules and, beside them, sets and maps with what
// varies: which ports are published, who the peers are. Each published port has a
// chain of one rule and a map from slot to "address . port":
//
//	chain tcp/80 { tcp flags syn / fin,syn,rst,ack  ct mark set 0x6d000000
//	               dnat ip to numgen inc mod 3 map @tcp/80 }
//
// so that one backend that comes or goes changes one or two elements of one map and,
// when the number of slots changes, that one rule. A change costs some hundred
// microseconds however many ports there are, while the nft command would read
// the whole ruleset back first (23 ms among 1000 services).
//
// Connections take the slots in turn (numgen inc) rather than at random, which
// spreads a few long-lived connections evenly. A TCP connection is translated by
// its first packet only: a packet in the middle of a connection nobody here knows
// is answered with a reset, so that its client connects again at once.
//
// A client's port may stand for several connections, through several entry nodes; the node of the replica that they all lead to keeps
// them apart by zones of its connection table, one for each entry node.
//
// A virtual address has a chain and a map of the same kind, whose slots are addresses
// without a port. A second table of family bridge keeps ARP about virtual addresses
// from leaving by a VXLAN device: every node has them on its bridge, and each answers
// its own containers only. A kernel without that family does without: a container may then
// be answered by another node, which serves it as well, at the price of a detour.
//
// All changes of one call are one transaction: the kernel has all of them or
// none, and so a process that ends at any moment leaves a whole table behind. That is true of a table that is made anew as well.
// Nothing outside the tables is touched.
package nft
