// Package agent is the worker in every node: it holds a session with the leader, runs the tasks it is given on the Docker
// Engine, reports what becomes of them, and hands the routing table to the data plane.
//
// # Who owns what
//
// [Agent.Run] owns everything. Below it:
//
//   - the session (session.go) speaks with the leader and finds the next one when it is gone. It never waits for Docker:
//     heartbeats, acknowledgements and incoming messages go on however slow the engine is.
//   - the worker (worker.go) keeps one runner for each task. A runner (runner.go) is a goroutine that moves its task one
//     step at a time; which step is decided by a pure function (step.go, swarm-semantics.md 2.3) and done by a
//     docker.Controller.
//   - a window (window.go) shows the leader, on streams that it asks for (streams.go), as much of the engine as concerns one
//     task's container: for commands in it, and for copying files.
//   - the reporter (report.go) keeps the latest status of every task until the leader has stored it.
//   - the mesh keeper (mesh.go) merges routing messages into one table and applies it, independent of the engine.
//   - the recorder (record.go) writes what is needed after a restart to disk, behind everybody's back.
//   - payloads (payloads.go) are the secrets and configs that the leader has sent. They are nowhere but in memory and, as
//     files for containers, on a tmpfs.
//   - attachments (attachment.go, attach.go) are the places on networks of the swarm that containers of people's own have: they
//     are asked for at the leader, and given back when the engine has no such container any more.
//   - the janitor (janitor.go) removes containers, their files and networks of this node that belong to nothing.
//
// # A node owns its own truth
//
// No container is stopped because a manager cannot be reached. What an agent was told it keeps on disk; after a restart it
// takes its containers over by name and label and goes on, with or without managers. Only two things end a container:
// that its task is to be shut down, or that a complete list of this node's tasks does not contain it. Until the first
// such list has arrived nothing unknown is removed, and what does not carry this node's label is never touched.
//
// An engine that does not answer fails no task. When it is back, what still runs goes on and what has ended is reported.
//
// # Differences to Docker Swarm
//
//   - Stopping the agent stops no container.
//   - An exit code of 0 that was not seen to happen (the engine or the machine was being shut down) fails a service's
//     task, so that restart condition on-failure brings it back; jobs are taken at their word.
//   - A container that cannot be stopped keeps its task running until it can; Swarm calls such a task failed and may
//     start its replacement beside it.
package agent
