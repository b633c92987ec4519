// Package swarmkit holds the scheduler to the one it follows: swarmkit's own, run for real on a store of its own, places
// the same tasks on the same nodes, and how many every node gets must be the same.
//
// It is a module of its own, so that swarmkit and all it depends on are no part of what miniswarm is built from. `make test`
// runs it; alone it is
//
//	cd scheduler/swarmkit && go test -seeds 3000
//
// Where nodes or branches tie, swarmkit leaves the choice to the order of Go's maps. So nodes of one branch are compared
// as if their names did not matter, and where that is not enough the scenario is asked again: the answer of miniswarm, which is
// the same each time, has to be one that swarmkit gives. Some orders never occur there, though. So where that is not enough
// either, both answers have to be what swarmkit's rules, written down here, allow for some order of nodes that tie.
package swarmkit
