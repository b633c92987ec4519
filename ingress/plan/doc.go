// Package plan computes what one node's kernel should look like so that the
// routing mesh and the overlay networks work: it turns an [Input], the desired
// state as the cluster knows it, into a [State], a complete and comparable
// description of devices, forwarding entries, routes, rules and the nftables
// table. It is pure: it does no I/O, knows no clock and no dice, and the same
// arguments give the same answer, so that every rule can be tested by walking an
// imaginary packet through it. The packages nft and overlay make a kernel agree
// with a State.
//
// # How a connection travels
//
// A client C connects to port 80 of any node E (the entry node). E picks a
// backend B for the connection and rewrites the destination only: C stays the
// source, so the service sees its real client.
//
//   - B runs on E: the packet is routed to B over the ingress bridge. The reply
//     passes E anyway and is translated back.
//   - B runs on another node P: E routes the packet to P's address on the ingress
//     network (through VXLAN, which on this network is routed to and not bridged),
//     or, where both share a segment and a probe proved it, to P's own address. P
//     recognises E by the source MAC of the frame, which is derived from E's
//     address and therefore known, and writes E's number into the connection's mark. B's reply goes to P, its gateway, and would leave
//     there for C, who has never heard of B. The mark makes P route it back
//     through E, where the translation is undone.
//
// # When the client's address is not kept
//
// Three kinds of connections would short-circuit past the translation, and only
// they are given E's own address as source: those from loopback (127.0.0.0/8 means
// nothing to another machine), those from containers on networks of ours (the
// backend may reach them directly), and those of a node whose entry is another
// node while the chosen backend is on itself (it would take its own address as
// coming from outside for an imposter).
//
// # Virtual addresses
//
// On every overlay network but ingress a service may have a virtual address, which
// is in the network's subnet and which containers connect to. The bridge of each node
// has it as an address of its own, so a container's packet reaches its own node, which
// picks a backend as for a published port. Client and backend share a segment, so the
// reply would go straight to the client and never be translated back: these
// connections are given the address of the client's node on that network as source,
// as Swarm's load balancer does. ARP about virtual addresses stays on its node (package
// nft), or a container would find another node's.
//
// # Marks
//
// A connection mark of ours is 0x6d...... (see [MarkOurs]): the accept in Docker's
// DOCKER-USER chain is for all of them. Bit 23 says that this node serves a
// connection another node translated, bit 22 that it arrived without VXLAN, and
// the low 22 bits number the entry node: they are the host bits of its address
// on the ingress network, unique in the cluster without any further agreement. The low
// 16 of them are also the zone in which the node keeps that entry node's connections, so
// that two which have the client's address and port in common stay two (package nft). A
// neighbour whose frames may be those of several nodes, such as one that has a dead one's
// address, is therefore taken for the same one as long as that can be.
package plan
