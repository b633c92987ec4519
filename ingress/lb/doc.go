// Package lb is the load balancer in front of a cluster: `miniswarm lb --listen :80 --to vm1:80,vm2:80,vm3:80`.
//
// The routing mesh answers on every node, but a client that uses the address of one node is cut off when that node dies,
// though the service runs elsewhere. A [Balancer] gives clients one address that outlives any node: it knows which nodes
// live, sends new connections only to those, and turns to the next one at once when a connection cannot be made.
//
// # Which backends get traffic
//
// Three things decide. Active checks (a TCP connection, or an HTTP request when a path is given) mark a backend down after
// Fall failures in a row, repeated quickly once one has failed, and up after Rise successes. Connections that clients
// wanted and did not get, Fall in a row and none made for 250 ms, mark it down as well, and the checks bring it back: a
// node that is alive but leads to replicas of which some are not fails some connections and not all. The policy chooses among those that
// are up: by default the one with less work out of two drawn at random, which spreads well without herding. A backend
// that has not been checked yet counts as up. When all are down, all are tried: a wrong verdict must not be worse than none.
//
// A client's connection is tried on every backend in turn, and again in further rounds, until one accepts it or Patience
// is over. A machine without power swallows connection attempts silently, so each may take DialTimeout only; attempts
// already under way are given up the moment their backend is marked down.
//
// # TCP mode
//
// Bytes are moved by the kernel (splice) and never looked at. Half-closed connections stay half-closed, resets are passed
// on as resets, idle connections are left alone for as long as their peers live. What was under way to a node that dies
// cannot be repeated at this level: the client sees its connection end. To see that happen in seconds instead of the
// kernel's quarter of an hour, connections to backends are probed when idle (PeerTimeout), and those to a backend that is
// marked down must have what they send acknowledged soon; one that is alive after all passes and loses nothing.
//
// # HTTP mode
//
// Requests, not connections, are balanced. A request that can be repeated safely (GET, HEAD, OPTIONS or TRACE without
// a body) is sent again elsewhere when its backend dies, or is marked down, before the client has seen anything of the
// answer; one of up to 64 KiB is passed on when it is complete. So clients lose nothing when a node dies. A request that
// might have had an effect is only repeated when it certainly was not sent. Three backends may fail a request, so that one
// which kills whoever answers it cannot kill them all, and two may have it taken back for being slow.
// Backends learn the client's address from X-Forwarded-For.
//
// # Life
//
// [New] starts nothing. [Balancer.Run] listens and blocks until its context ends; then it stops accepting, lets what is
// under way finish within Grace, and cuts off the rest. It waits for every goroutine it started. All methods may be
// called concurrently.
package lb
