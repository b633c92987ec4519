// Command benchmarks measures miniswarm against the bars it has set itself, and prints a table of each measurement. What
// it is compared with runs in the same run on the same machine wherever that is possible: etcd's own server beside the
// store, `docker run` and Docker Swarm beside the cluster. docs/benchmarks.md says how to read the figures.
//
//	go run ./benchmarks million              decide and store 1,000,000 tasks
//	go run ./benchmarks scale                4 -> 12 among 10,000 nodes and 100,000 tasks
//	go run ./benchmarks writes               committed updates a second, beside etcd
//	go run ./benchmarks cluster              hosts with engines: scaling, failures, lost requests, beside Docker Swarm (root)
//	go run ./benchmarks idle                 what daemons take that have nothing to do (root)
//
// The other benchmarks are next to what they measure: `go test -bench` in scheduler, orchestrator, raftstore and ingress.
//
// Measurements whose memory counts run in processes of their own: this program starts itself again for them.
package main
