// Package dispatcher is the leader's side of the sessions with agents: it tells every node what to run and how to
// route, takes in what tasks report, and notices when a node falls silent.
//
// # What a node is sent
//
// A session's writer compares what the node was told with the newest snapshot and sends the difference; there is no
// queue of events that could be lost, grow, or arrive out of order. Tasks are immutable but for their desired state,
// so what was told is one word per task.
//
// # Two clocks
//
// Routing and rescheduling are separate. A node that has been silent for three beats (750 ms) is suspect: the mesh
// opens no new connections to its replicas, and nothing else happens. A node that has been silent for three heartbeat
// periods (3 s) is DOWN in the store, which makes the orchestrator replace its tasks. A node whose session merely
// broke is neither until that time has passed: its daemon may be restarting, and its containers serve on.
//
// # Ordered removal
//
// A replica behind a published port is told to stop only after every node has acknowledged a mesh without it and a
// short linger has passed, so that no request is sent to a process that is going away. The wait is bounded: a node
// that does not acknowledge in time cannot hold up a stop, and the log names it. Swarm sleeps a fixed 2 s instead and does
// not know whether the other nodes have heard.
//
// # Streams
//
// Whoever wants to reach a container on a node gets a stream to the node's agent by [Dispatcher.Dial]. The agent opens
// it, when it is asked to through its session, and it ends with that session: a node that has lost its power leaves
// nobody waiting longer than it takes to notice.
package dispatcher
