// Package manager is a manager's shell around the pure core: it gives orchestrator.Next the time and the snapshot,
// commits what Next decides, and serves the cluster port.
//
// Every manager runs a [Manager] over its replica of the store. The one that leads also runs, for the length of its
// term, the loop around Next ([loop]), the dispatcher for agents, the certificate authority, and the watch over a
// rotation of the root CA; the others point callers to it. Nothing of a term outlives it: a new leader builds everything from the store.
//
// The cluster port (2377/tcp) carries, all under TLS:
//
//	/ca/...          anyone              root certificate, certificates for a token or for a node that renews
//	/session         workers, managers   an agent's session; a follower answers 421 and names the leader
//	/attachments     workers, managers   an address for a container that a person puts on a network
//	/raft/members    managers            join the raft group
//	/raft/...        managers            messages and snapshots of the raft group
//	/metrics, /healthz, /readyz  workers, managers   how this manager is
//	/engine/...      managers            the swarm part of the Engine API, forwarded by other managers' sockets
package manager
