// Package overlay makes the kernel's devices, forwarding entries, routes, rules
// and settings agree with a [plan.State], by netlink.
//
// Containers are attached to an overlay network by the engine, through an
// ordinary network of its bridge driver that has the same subnet on every node.
// Into that bridge this package puts a VXLAN device, whose forwarding entries lead
// to the other nodes: the network is one layer 2 segment.
//
// The ingress network is different. What travels on it between nodes was translated
// and routed by one node and is routed again by the other, so its VXLAN device
// stands beside the bridge and not in it, with a MAC derived from the node's address,
// by which peers recognise the node as the entry of a connection. That saves two
// bridges, and the firewall's second look at what they carry, on each packet's way.
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
