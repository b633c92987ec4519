// Package engineapi serves the Docker Engine API: the front that the docker command, Compose files and every tool of
// the Docker world speak to.
//
// There are two handlers. [Server.Socket] is what a node's unix socket serves: the swarm part (/swarm /nodes /services
// /tasks /secrets /configs, swarm-scoped /networks), the merged answers (/info /version /_ping /events /networks), what
// Docker has no call for (/miniswarm/...), and for everything else the local engine, streams and hijacked connections
// included. [Server.Cluster] is the swarm part alone, for requests that another manager forwards to the leader over the
// cluster port. [Server.Run] keeps the swarm's events flowing.
//
// A request of the swarm part is answered by the leader. On a manager that follows it is forwarded as it is; on a
// worker, or where there is no swarm, it is refused in Docker's words. A change of leader is a delay for clients and no
// error: what surely was not carried out, or may be asked twice, is asked again. Logs are put together by the manager that
// is asked, so that they go on when the leader changes; merged answers come from that manager's own replica.
//
// Status codes and texts are Docker's (swarm-semantics, section 10), since clients match on them. Tests hold them against
// a real Docker Swarm, and the docker command against all of it.
package engineapi
