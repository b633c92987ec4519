// Package overlay makes the kernel's devices, forwarding entries, routes, rules
// and settings agree with a [plan.State], by netlink.
//
// Containers are attached to an overlay network by the engine, through an
// ordinary network of its bridge driver that has the same subnet on every node.
// Into that bridge this package puts a VXLAN device, whose forwarding entries lead
// to the other nodes. The bridge gets a MAC derived from the node's address, by
// which peers recognise the node as the entry of a connection.
//
// Tried and left aside: routing between nodes with one subnet a node (a container
// could not keep its address when its network is shared, and Swarm's addresses
// are cluster-wide), and letting a remote replica be reached by layer 2 alone (its
// reply then passes a node that does not know the connection).
//
// What is ours is recognised by name (msv- devices), by routing protocol number
// and by rule priority, so that it is found again after a restart, and nothing
// else is touched.
package overlay
