// Package names is the name server of a node's containers. It listens on the node's own
// address in each overlay network the node takes part in, which containers are given as
// their name server, and answers by a [Table]:
//
//	web            the virtual address of service web, or in endpoint mode dnsrr its tasks' addresses
//	tasks.web      the addresses of the tasks that are healthy and not about to stop, in random order
//	alias          as the service it belongs to; tasks.alias too
//	web.1.x3fk...  one task, by the name of its container; by its short id and host name as well
//	web.front      any of these on one network, where a container is on several
//
// and addresses back to names (PTR). A container sees the names of its own networks
// only. Everything else is asked of the name servers that the container's service
// names, or else the node's own; not for containers whose networks are all internal,
// which nothing of theirs may leave.
//
// Between container and this server stands the engine's own resolver (127.0.0.11), which
// knows the local containers by their own names, gives the same answers for these, and
// passes on the rest. It must therefore not know the names of services: it would find
// the local replica only.
//
// Answers live for [TTL]: names change while clients that remember them go on asking.
package names
